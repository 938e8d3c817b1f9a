"""Wrong weights served in the place of the evaluated ones: how many of them verification refuses.

SmolLM2-135M is tuned with examples/transactions, exported to INT8 (rounded here as llm-compressor's W8A8 does) and
recorded as the stage evaluate does. Then the stand-in for TGI serves the artifact ten times, and each planted one once.
The baseline is what verification saw before: answers that are all as promised. Needs no cluster and no GPU; about half
an hour on two idle cores.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from finetune_api.adapterdeployment import CheckOutcome, VerificationCheck
from finetune_api.dataset import TaskType
from finetune_api.finetunejob import ExportFormat
from finetune_api.training import Method
from hack.benchmarks.result import Result
from hack.benchmarks.transactions import transactions
from hack.benchmarks.tuned import BATCH, tune
from hack.cluster.console import say, step
from hack.cluster.layout import cache_directory
from hack.models import ensure_smollm2

TRIES = 10
"""How often the good artifact is verified."""
STEPS = 60
GOLDEN, SAMPLE = 8, 50


def run() -> Result:
    """Plant and verify; the value is the number of planted artifacts that are refused."""
    from tests.support.planted import GOOD, PLANTS, serve_and_check, write_artifact

    base = ensure_smollm2(cache_directory())
    with tempfile.TemporaryDirectory(prefix="finetune-planted-") as folder:
        work = Path(folder)
        examples = transactions(work, 800)
        with step(f"tune {base.name} for {STEPS} steps"):
            tuned = _tuned(base, examples[: STEPS * BATCH], work / "adapter")
        artifact = write_artifact(work / "good", base, tuned)
        with step("record what the evaluation records"):
            promise = _promise(base, artifact, examples[STEPS * BATCH :])
        good = [serve_and_check(artifact, work, promise) for _ in range(TRIES)]
        planted: dict[str, list[VerificationCheck]] = {}
        for number, plant in enumerate(PLANTS):
            served = write_artifact(work / f"plant-{number}", base, tuned, plant)
            planted[plant.name] = serve_and_check(served, work, promise)
            say(f"    {plant.name}: {', '.join(_failed(planted[plant.name])) or 'takes traffic'}")
    refused = sum(bool(_failed(checks)) for checks in planted.values())
    by_answers = sum(bool({"goldenTexts", "testSample"} & set(_failed(checks))) for checks in planted.values())
    return Result(
        name="planted_artifacts",
        value=refused,
        unit=f"of {len(PLANTS)} planted artifacts refused",
        baseline=by_answers,
        goal=f"all refused, and the good one passes in {TRIES} of {TRIES} tries",
        details={
            "good passed": f"{sum(not _failed(checks) for checks in good)} of {TRIES}",
            GOOD.name: _seen(good[0]),
            **{name: _seen(checks) for name, checks in planted.items()},
        },
    )


def _tuned(base: Path, examples: list[Any], adapter: Path) -> dict[str, Any]:
    """Weights of the base with a LoRA adapter that was trained for one epoch, merged."""
    from finetune_jobs.exporting.merge import merge
    from finetune_jobs.modelling.tuning import Tuning

    tuning = Tuning(method=Method.LORA)
    tune(base, examples, adapter, tuning)
    return dict(merge(base, adapter, tuning).state_dict())


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
