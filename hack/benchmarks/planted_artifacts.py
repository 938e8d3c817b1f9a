"""Wrong weights served in the place of the evaluated ones: how many of them verification refuses.

The good artifact is served several times, and each wrong one once, the bad models of planted_models among them; every
server must prove the good one's record. The baseline is what verification saw before: answers that are all as promised.
Needs no GPU; ``--job`` needs a cluster.

``--work``: a folder that keeps what was made, so that a run that was stopped goes on. If it is that of planted_models,
its models are not trained again. ``--job``: the artifact that a FineTuneJob of the local cluster has published, instead
of one that is made here. ``--engine vllm``: the real vLLM for CPUs instead of the stand-in for TGI. ``--format``: that
of the artifact that is made here; those beside INT8 and Merged have no wrong ones, only the good one is served.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from finetune_api.compatibility import TGI, VLLM
from finetune_api.export import ExportFormat
from finetune_api.serving_status import VerificationCheck
from hack.benchmarks.plantable import ROUNDED, SAMPLE, Wrong, made, published
from hack.benchmarks.proofs import failed, kept, or_refused, seen
from hack.benchmarks.result import Result
from hack.cluster.console import say

TRIES = 10
"""How often the good artifact is verified."""


def run(
    work: Path | None = None,
    job: str = "",
    engine: str = TGI,
    tries: int = TRIES,
    samples: int = SAMPLE,
    kind: ExportFormat = ExportFormat.INT8,
) -> Result:
    """Plant and verify; the value is the number of planted artifacts that are refused."""
    from tests.support.planted import GOOD, serve_and_check, write_artifact

    if work is None:
        with tempfile.TemporaryDirectory(prefix="finetune-planted-") as folder:
            return run(Path(folder), job, engine, tries, samples, kind)
    work.mkdir(parents=True, exist_ok=True)
    served = work / "served"
    shutil.rmtree(served, ignore_errors=True)
    subject = published(job, work, samples) if job else made(work, served / GOOD.name, kind)
    kind = ExportFormat(subject.promise.format)
    named = [job, engine if engine != TGI else "", kind.value if kind is not ExportFormat.INT8 and not job else ""]
    prefix = "-".join(filter(None, named))

    def checked(name: str, serve: Callable[[], list[VerificationCheck]], number: int = 1) -> list[VerificationCheck]:
        file = "-".join(filter(None, [prefix, name.replace(" ", "-"), str(number)]))
        return kept(work / f"{file}.checks.json", name, partial(or_refused, serve))

    def right() -> list[VerificationCheck]:
        return serve_and_check(engine, subject.good, work, subject.promise)

    def wrong(each: Wrong) -> list[VerificationCheck]:
        folder = served / each.plant.name.replace(" ", "-")
        shutil.rmtree(folder, ignore_errors=True)
        write_artifact(folder, subject.base, each.tuned(), each.plant, rounded=ROUNDED[kind])
        each.change(folder)
        try:
            return serve_and_check(engine, folder, work, subject.promise)
        finally:
            shutil.rmtree(folder)

    first = checked(GOOD.name, right)
    planted = {each.plant.name: checked(each.plant.name, partial(wrong, each)) for each in subject.wrong}
    good = [first, *(checked(GOOD.name, right, number) for number in range(2, tries + 1))]
    shutil.rmtree(served, ignore_errors=True)
    refused = sum(bool(failed(checks)) for checks in planted.values())
    by_answers = sum(bool({"goldenTexts", "testSample"} & set(failed(checks))) for checks in planted.values())
    return Result(
        name="planted_artifacts",
        value=refused,
        unit=f"of {len(planted)} planted artifacts refused",
        baseline=by_answers,
        goal=f"all refused, and the good one passes in {tries} of {tries} tries",
        details={
            "engine": engine,
            "format": kind.value,
            "good passed": f"{sum(not failed(checks) for checks in good)} of {tries}",
            GOOD.name: seen(first),
            **{name: seen(checks) for name, checks in planted.items()},
        },
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path)
    parser.add_argument("--job", default="")
    parser.add_argument("--engine", choices=(TGI, VLLM), default=TGI)
    parser.add_argument("--tries", type=int, default=TRIES)
    parser.add_argument("--samples", type=int, default=SAMPLE)
    formats = [each for each in ExportFormat if each is not ExportFormat.ADAPTER]
    parser.add_argument("--format", dest="kind", type=ExportFormat, choices=formats, default=ExportFormat.INT8)
    result = run(**vars(parser.parse_args()))
    result.write()
    say(json.dumps(result.details, indent=1))
