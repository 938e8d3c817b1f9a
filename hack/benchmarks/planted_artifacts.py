"""Wrong weights served in the place of the evaluated ones: how many of them verification refuses.

The good model of planted_models is exported to INT8 (rounded here as llm-compressor's W8A8 does) and recorded as the
stage evaluate does. Then the stand-in for TGI serves the artifact ten times, and each planted one once. The baseline is
what verification saw before: answers that are all as promised. Needs no cluster and no GPU.

``--work``: a folder that keeps what was made, so that a run that was stopped goes on. If it is that of planted_models,
its model is not trained again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from finetune_api.dataset import TaskType
from finetune_api.export import ExportFormat
from finetune_api.serving_status import CheckOutcome, VerificationCheck
from hack.benchmarks.gated import FIRST, Bench, once
from hack.benchmarks.result import Result
from hack.cluster.console import say

TRIES = 10
"""How often the good artifact is verified."""
GOLDEN, SAMPLE = 8, 50
_CHECKS = TypeAdapter(list[VerificationCheck])


def run(work: Path | None = None) -> Result:
    """Plant and verify; the value is the number of planted artifacts that are refused."""
    from safetensors.torch import load_file

    from finetune_jobs.modelling.token_files import read_split
    from tests.support.planted import GOOD, PLANTS, Plant, serve_and_check, write_artifact

    if work is None:
        with tempfile.TemporaryDirectory(prefix="finetune-planted-") as folder:
            return run(Path(folder))
    work.mkdir(parents=True, exist_ok=True)
    bench = Bench(work)
    tuned = dict(load_file(bench.artifact(bench.good(FIRST)) / "model.safetensors"))
    served = work / "served"
    shutil.rmtree(served, ignore_errors=True)

    def previous() -> dict[str, Any]:
        """The version before had seen half of the rows."""
        adapter = bench.adapter("previous version", bench.rows[: len(bench.rows) // 2])
        return dict(load_file(bench.artifact(adapter) / "model.safetensors"))

    def checked(plant: Plant, number: int = 1) -> list[VerificationCheck]:
        def serve() -> list[VerificationCheck]:
            folder = served / plant.name.replace(" ", "-")
            if not folder.exists():
                write_artifact(folder, bench.base, tuned, plant, previous)
            try:
                return serve_and_check(folder, work, promise)
            finally:
                if plant is not GOOD:
                    shutil.rmtree(folder)

        return _kept(work / f"{plant.name.replace(' ', '-')}-{number}.checks.json", plant.name, serve)

    good = write_artifact(served / GOOD.name, bench.base, tuned)
    say("    record what the evaluation records")
    promise = _promise(bench.base, good, read_split(bench.dataset, "test"))
    planted = {plant.name: checked(plant) for plant in PLANTS}
    tries = [checked(GOOD, number) for number in range(1, TRIES + 1)]
    shutil.rmtree(served)
    refused = sum(bool(_failed(checks)) for checks in planted.values())
    by_answers = sum(bool({"goldenTexts", "testSample"} & set(_failed(checks))) for checks in planted.values())
    return Result(
        name="planted_artifacts",
        value=refused,
        unit=f"of {len(PLANTS)} planted artifacts refused",
        baseline=by_answers,
        goal=f"all refused, and the good one passes in {TRIES} of {TRIES} tries",
        details={
            "good passed": f"{sum(not _failed(checks) for checks in tries)} of {TRIES}",
            GOOD.name: _seen(tries[0]),
            **{name: _seen(checks) for name, checks in planted.items()},
        },
    )


def _kept(path: Path, name: str, serve: Callable[[], list[VerificationCheck]]) -> list[VerificationCheck]:
    """What the checks found, unless an earlier run in the same folder has asked."""

    def make(out: Path) -> None:
        out.write_bytes(_CHECKS.dump_json(serve()))

    found = _CHECKS.validate_json(once(path, f"serve and verify: {name}", make).read_bytes())
    say(f"    {name}: {', '.join(_failed(found)) or 'takes traffic'}")
    return found


def _promise(base: Path, artifact: Path, examples: list[Any]) -> Any:
    """What publish would put beside the artifact."""
    from finetune_jobs.artifacts.artifact import Answer
    from finetune_jobs.evaluation.generate import Questions, answer_limit, generate_answers
    from finetune_jobs.modelling import chat
    from finetune_jobs.modelling.loading import load_checkpoint
    from finetune_jobs.modelling.tokenizer import load_tokenizer
    from finetune_jobs.publish import choose_golden
    from finetune_jobs.verification.observation import Promise
    from tests.support.artifacts import record

    tokenizer, asked = load_tokenizer(base), examples[:SAMPLE]
    questions = Questions([e.prompt for e in asked], answer_limit(tokenizer, [e.label for e in asked]), 16)
    before, after = (
        generate_answers(load_checkpoint(folder), tokenizer, questions, lambda _done, _total: None)
        for folder in (base, artifact)
    )
    answers = [
        Answer(
            messages=e.prompt,
            label=e.label,
            base=b,
            tuned=a,
            artifact=a,
            max_tokens=questions.limit,
            prompt_tokens=len(chat.prompt_ids(tokenizer, e.prompt)),
            stopped=len(chat.answer_ids(tokenizer, a)) < questions.limit - 1,
        )
        for e, b, a in zip(asked, before, after, strict=True)
    ]
    return Promise(
        golden=choose_golden(answers, GOLDEN),
        sample=answers,
        references=record(base, artifact, examples),
        task=TaskType.CLASSIFICATION,
        format=ExportFormat.INT8,
    )


def _failed(checks: list[VerificationCheck]) -> list[str]:
    return [check.name for check in checks if check.outcome is CheckOutcome.FAILED]


def _seen(checks: list[VerificationCheck]) -> dict[str, str]:
    return {check.name: f"{check.outcome}: {check.seen}" for check in checks}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path)
    result = run(parser.parse_args().work)
    result.write()
    say(json.dumps(result.details, indent=1))
