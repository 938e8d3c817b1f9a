"""Steps that a GPU with less memory would take: without all activations, and a whole model in 16 bits. One that holds
this suite's model with everything would never try them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from finetune_api.meta import ExitCode
from finetune_jobs.fit.memory import GIB
from hack.gpu.bench import Bench
from hack.gpu.check import Check
from hack.gpu.training import APART, FALL, METHODS, apart, peak
from tests.support.stages import Ended
from tests.support.stepped_train import PROGRAM, STEP

ALL: Final = "KEPT"
"""The step that keeps all activations, in float32 (``fit.steps``)."""
SMALLER: Final[Mapping[str, Mapping[str, str]]] = {
    "QLoRA NF4": {"SELECTIVE": "a part kept", "ON_GPU": "none kept"},
    "Full": {"SELECTIVE": "a part kept", "ROUNDED": "none kept, all in 16 bits"},
}
"""By method, steps that take less memory, with words for them."""
ROUNDED_APART: Final = 0.05
"""By how much the losses of a whole model in 16 bits may differ from those in float32: each update is rounded at
random."""
REFUSED: Final = "allows no selection"
"""Of the log, where a model's activations cannot be kept in part."""


def smaller(bench: Bench) -> Iterator[Check]:
    """Each such step has the losses of the one that keeps everything, and its tensors take less. In a rehearsal the
    first one alone."""
    for name, ways in SMALLER.items() if bench.on_gpu else [*SMALLER.items()][:1]:
        whole = _run(bench, name, ALL)
        for step, words in ways.items() if bench.on_gpu else [*ways.items()][:1]:
            yield _compared(bench, f"{name}, activations: {words}", step, _run(bench, name, step), whole)


def _run(bench: Bench, name: str, step: str) -> Ended:
    training = bench.training(**{"learning_rate": "1e-3", **METHODS[name], "batch_size": 16, "max_steps": 12})
    given = bench.input_of(training, f"{step}-{name}".lower().translate(str.maketrans(" _", "--")))
    return bench.run(given, program=PROGRAM, variables={STEP: step})


def _compared(bench: Bench, what: str, step: str, ended: Ended, whole: Ended) -> Check:
    """A training beside the one that keeps everything."""
    if failed := next((each for each in (whole, ended) if each.code != ExitCode.OK), None):
        return Check("steps", what, failed.result.message, "an end", False)
    losses, most = bench.losses(ended), ROUNDED_APART if step.startswith("ROUNDED") else APART
    far = apart(losses, bench.losses(whole))
    found, passed = f"losses {far:.1%} apart", far <= most and losses[-1] <= FALL * losses[0]
    if any(REFUSED in line["message"] for line in ended.log):
        found, passed = f"{found}; none kept, the model allows no part", False
    if bench.on_gpu:
        said, before = peak(ended), peak(whole)
        tensors, all_tensors = (each[1] / GIB if each else 0.0 for each in (said, before))
        found += f"; tensors {tensors:.2f} GiB instead of {all_tensors:.2f}"
        passed = passed and 0 < tensors < all_tensors
    return Check("steps", what, found, f"within {most:.0%}, the last ≤ {FALL} × the first, in less memory", passed)
