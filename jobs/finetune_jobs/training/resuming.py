"""The trainer's own ``checkpoint-<step>`` folders on a pod's disk, made ready to resume from.

The trainer's state says by an absolute path which checkpoint was the best. In another pod the path differs, and that
checkpoint may be lost.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from finetune_jobs.artifacts.retention import TRAINER_STATE

log = logging.getLogger(__name__)

CHECKPOINTS: Final = "checkpoint-*"
"""Pattern of the folders' names."""


def step_of(name: str) -> int:
    """The step of a checkpoint, from the name of its folder."""
    return int(name.rpartition("-")[2])


def newest(work: Path) -> Path | None:
    """The newest checkpoint below ``work``, ready to resume from."""
    found = sorted(work.glob(CHECKPOINTS), key=lambda folder: step_of(folder.name))
    for folder in found:
        _relocate(folder)
    return found[-1] if found else None


def _relocate(checkpoint: Path) -> None:
    """The trainer's state names the best checkpoint by an absolute path, which differs in this pod. If that checkpoint
    is gone, the best remaining one takes its place: its weights are kept in the end, and its loss reported."""
    path = checkpoint / TRAINER_STATE
    state = json.loads(path.read_text(encoding="utf-8"))
    best = state.get("best_model_checkpoint")
    here = str(checkpoint.parent / Path(best).name) if best else None
    changes: dict[str, Any] = {"best_model_checkpoint": here}
    if state.get("best_metric") is not None and not (here and Path(here).is_dir()):
        changes = _best_left(checkpoint.parent, state)
        left = changes["best_global_step"]
        log.warning(
            "the best checkpoint, of step %s, is lost; %s",
            state.get("best_global_step"),
            f"the best remaining one is of step {left}" if left else "none of the remaining ones was validated",
        )
    if changes != {name: state.get(name) for name in changes}:
        changed = path.with_suffix(".new")  # never in place: a snapshot that is being uploaded may share the file
        changed.write_text(json.dumps(state | changes), encoding="utf-8")
        changed.replace(path)


def _best_left(work: Path, state: Mapping[str, Any]) -> dict[str, Any]:
    """What the trainer's state should say about the best checkpoint, by the validations of those below ``work``."""
    losses = {entry["step"]: entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry}
    left = [step for step in losses if (work / f"checkpoint-{step}").is_dir()]
    step = min(left, key=lambda step: losses[step], default=None)
    return {
        "best_model_checkpoint": str(work / f"checkpoint-{step}") if step else None,
        "best_global_step": step,
        "best_metric": losses[step] if step else None,
    }
