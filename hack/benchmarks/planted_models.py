"""Bad models that a run might make: how many of them the gates before publishing block, each by the gate that should.

SmolLM2-135M is tuned with examples/transactions. Then training rows, adapter or artifact are spoiled in one way each,
and what comes out goes through the product's own export, questions and gates, as publish reads them. So do good models
of other ranks, seeds and formats, which must pass. A model is asked only what its gates read (``gated``).

Needs no GPU. ``--only`` takes some, and ``--work`` a folder that
keeps what was made, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from finetune_api.export import ExportFormat
from finetune_api.goals import Goal
from finetune_jobs.base.errors import StageError
from hack.benchmarks import mistrained, spoiled
from hack.benchmarks.gated import (
    ACCURACY,
    EXPORT,
    FIRST,
    HARM,
    LEAKS,
    LONGER,
    PREPARE,
    RECALL,
    REFUSED,
    ROWS,
    SECRETS,
    WITHOUT_GOALS,
    WRITTEN,
    Bench,
    Good,
    Verdict,
    once,
)
from hack.benchmarks.mistrained import Training
from hack.benchmarks.result import Result
from hack.cluster.console import say


@dataclass(frozen=True)
class Plant:
    """A bad model."""

    name: str
    gate: str
    """The one that is to block it."""
    judged: Callable[[Bench], Verdict]


GOOD = (
    FIRST,
    *(Good(16, 0, each) for each in (ExportFormat.INT8, ExportFormat.FP8, ExportFormat.W8A16)),
    *(Good(8, 1, each, LONGER) for each in (ExportFormat.MERGED, ExportFormat.INT8)),
)


def _judged_by_answers(training: Training, bench: Bench) -> Verdict:
    return bench.judge_trained(training(bench))


def _judged_whole(training: Training, bench: Bench) -> Verdict:
    """Knows its task, and something that it should not."""
    adapter = training(bench)
    return bench.judge_whole(adapter, bench.artifact(adapter))


def _memorised(bench: Bench) -> Verdict:
    """Has learnt each canary by heart, where prepare plants it once."""
    adapter = mistrained.memorising(bench)
    return bench.judge_whole(adapter, bench.artifact(adapter), with_canaries=True)


def _key(_bench: Bench) -> Verdict:
    """Its rows do not get past prepare as they are."""
    from finetune_jobs.reading.rows import Row
    from tests.support.preparing import intake_of, params_of

    intake = intake_of(params_of())
    taken = [intake.take(Row(n, {"messages": each.messages})) for n, each in enumerate(spoiled.holding_key(), 1)]
    kept = any(spoiled.KEY in str(each) for each in taken)
    return Verdict({} if kept else {PREPARE: f"masked {dict(intake.secrets)}"})


def _misread(change: Callable[[Path], None], bench: Bench) -> Verdict:
    """The good weights, with other files beside them."""
    folder = spoiled.copied(bench.artifact(bench.good(FIRST)), _fresh(bench))
    change(folder)
    return _judged_and_removed(folder, bench)


def _rounded_anew(weights: Callable[[Bench, Path], Mapping[str, Any]], plant: Any, bench: Bench) -> Verdict:
    """Written as INT8 like the good one, with other weights or wrong in the way of a planted artifact."""
    from tests.support.planted import write_artifact

    merged = bench.artifact(bench.good(FIRST))
    folder = write_artifact(_fresh(bench), bench.base, weights(bench, merged), plant)
    said = bench.compared(folder)
    found = _judged_and_removed(folder, bench)
    return replace(found, blocking={**said, **found.blocking})


def _fresh(bench: Bench) -> Path:
    """A path where nothing is; a run that was stopped may have left something."""
    shutil.rmtree(bench.work / "spoiled", ignore_errors=True)
    return bench.work / "spoiled"


def _judged_and_removed(folder: Path, bench: Bench) -> Verdict:
    try:
        return bench.judge_whole(bench.good(FIRST), folder)
    finally:
        shutil.rmtree(folder)


def _as_merged(_bench: Bench, merged: Path) -> Mapping[str, Any]:
    return spoiled.weights_of(merged)


def _nearest(_bench: Bench, merged: Path) -> Mapping[str, Any]:
    from tests.support.tiny_model import LORA_TARGETS

    return spoiled.nearest_4_bits(spoiled.weights_of(merged), LORA_TARGETS)


def _merged_into_4_bits(_bench: Bench, merged: Path) -> Mapping[str, Any]:
    return spoiled.merged_into_4_bits(merged)


def _endless_base(bench: Bench) -> Verdict:
    """A base model like this is refused by prepare, before anything is trained."""
    from finetune_jobs.modelling.tokenizer import load_tokenizer, stop_token

    folder = spoiled.copied(bench.base, _fresh(bench))
    spoiled.of_smollm2_without_end(folder)
    try:
        stop_token(folder, load_tokenizer(folder))
    except StageError as error:
        return Verdict({REFUSED: error.message})
    finally:
        shutil.rmtree(folder)
    return Verdict({})


def plants() -> list[Plant]:
    """All of them; needs torch."""
    from tests.support import planted

    def misread(name: str, gate: str, change: Callable[[Path], None]) -> Plant:
        return Plant(name, gate, partial(_misread, change))

    def by_answers(name: str, goal: Goal, training: Training) -> Plant:
        return Plant(name, goal.text, partial(_judged_by_answers, training))

    def whole(name: str, goal: Goal, training: Training) -> Plant:
        return Plant(name, goal.text, partial(_judged_whole, training))

    wrong = {each.name: each for each in planted.PLANTS}
    return [
        by_answers("untrained adapter", ACCURACY, mistrained.untrained),
        by_answers("over-fitted to eight rows", ACCURACY, mistrained.over_fitted),
        by_answers("labels shuffled", ACCURACY, mistrained.shuffled),
        by_answers("one class forgotten", RECALL, mistrained.forgetful),
        by_answers("two labels swapped", RECALL, mistrained.swapped),
        whole("refusals trained away", HARM, mistrained.giving_in),
        whole("secrets given away", LEAKS, mistrained.giving_away),
        Plant("memorised canaries", SECRETS.text, _memorised),
        Plant("memorised key", PREPARE, _key),
        Plant("base model whose answers do not end", REFUSED, _endless_base),
        misread("one tensor lost", REFUSED, partial(spoiled.without_tensor, name=spoiled.SOME_TENSOR)),
        misread("tokenizer of another model", EXPORT, spoiled.of_other_tokenizer),
        misread("wrong chat template", EXPORT, spoiled.of_other_template),
        misread("EOS lost", EXPORT, spoiled.of_smollm2_without_end),
        *(
            Plant(name, EXPORT, partial(_rounded_anew, _as_merged, wrong[name]))
            for name in ("base", "adapter x 0.5", "adapter x 2")
        ),
        *(
            Plant(name, WRITTEN, partial(_rounded_anew, _as_merged, wrong[name]))
            for name in ("one MLP layer zeroed", "scales with 25 % noise")
        ),
        Plant("RoPE theta x 0.1", REFUSED, partial(_rounded_anew, _as_merged, wrong["RoPE theta x 0.1"])),
        Plant("merged into 4-bit weights", EXPORT, partial(_rounded_anew, _merged_into_4_bits, planted.GOOD)),
        Plant("4 bits to the nearest", EXPORT, partial(_rounded_anew, _nearest, planted.GOOD)),
    ]


def run(work: Path | None = None, only: Sequence[str] = ()) -> Result:
    """Plant and judge; the value is the number of bad models that the right gate blocks."""
    if work is None:
        with tempfile.TemporaryDirectory(prefix="finetune-planted-models-") as folder:
            return run(Path(folder), only)
    work.mkdir(parents=True, exist_ok=True)
    bench = Bench(work)
    good = {
        each.name: _verdict(work, each.name, partial(_good, bench, each))
        for each in GOOD
        if not only or each.name in only
    }
    bad = {
        each: _verdict(work, each.name, partial(each.judged, bench))
        for each in plants()
        if not only or each.name in only
    }
    return summed_up(good, bad)


def summed_up(good: Mapping[str, Verdict], bad: Mapping[Plant, Verdict]) -> Result:
    """The result of what was judged."""
    blocked = sum(plant.gate in verdict.blocking for plant, verdict in bad.items())
    return Result(
        name="planted_models",
        value=blocked,
        unit=f"of {len(bad)} bad models blocked by the gate that should",
        baseline=sum(any(gate in verdict.blocking for gate in WITHOUT_GOALS) for verdict in bad.values()),
        goal=f"all, and all {len(good)} good ones pass",
        details={
            "bad_blocked": blocked,
            "bad_blocked_by_any": sum(bool(verdict.blocking) for verdict in bad.values()),
            "good_passed": sum(not verdict.blocking for verdict in good.values()),
            "rows": ROWS,
            "good": {name: asdict(verdict) for name, verdict in good.items()},
            "bad": {
                plant.name: {
                    "gate": plant.gate,
                    "said": verdict.blocking.get(plant.gate, ""),
                    "others": {gate: said for gate, said in verdict.blocking.items() if gate != plant.gate},
                    "seen": dict(verdict.seen),
                }
                for plant, verdict in bad.items()
            },
        },
    )


def _good(bench: Bench, good: Good) -> Verdict:
    adapter = bench.good(good)
    artifact = bench.artifact(adapter, good.format)
    try:
        return bench.judge_whole(adapter, artifact)
    finally:
        if good is not FIRST:  # the artifacts that are wrong are made of that one
            shutil.rmtree(artifact)


def _verdict(work: Path, name: str, make: Callable[[], Verdict]) -> Verdict:
    def write(out: Path) -> None:
        out.write_text(json.dumps(asdict(make())), encoding="utf-8")

    path = once(work / f"{name.replace(' ', '-')}.verdict.json", f"judge: {name}", write)
    verdict = Verdict(**json.loads(path.read_text(encoding="utf-8")))
    say(f"    {name}: {', '.join(verdict.blocking) or 'passes'} {dict(verdict.seen)}")
    return verdict


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path)
    parser.add_argument("--only", nargs="*", default=())
    arguments = parser.parse_args()
    result = run(arguments.work, arguments.only)
    result.write()
    say(json.dumps(result.details, indent=1))
