"""What is deleted of a run's state once a training has succeeded: checkpoints that no training will resume from.

Results (data sets, models, evaluations, artifacts) are not touched: they are shared by content, and a FineTuneJob whose
resolve has just found one leaves no mark in the store that could prevent its deletion (decision 14).
"""

import json
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from finetune_api.layout import MANIFEST, run_folder
from finetune_api.stages import RunRef
from finetune_api.tracking import Retention
from finetune_jobs.base.background import Repeating
from finetune_jobs.store.s3 import Store

log = logging.getLogger(__name__)

_CHECKPOINT: Final = re.compile(
    r"(?P<folder>(?P<training>[0-9a-f]{16})/(.+/)?checkpoint-(?P<step>[0-9]+))/(?P<file>.+)"
)
_ATTEMPT: Final = re.compile(r"[^/]+/attempt-(?P<number>[0-9]+)(-[^/]*)?/.+")
TRAINER_STATE: Final = "trainer_state.json"
"""The file of a checkpoint with the training's progress and its best step."""
_SECONDS: Final = 10.0
"""Longest that a finished training waits for old checkpoints to be deleted."""


@dataclass(frozen=True, order=True)
class Checkpoint:
    """One of a FineTuneJob's checkpoints in the store."""

    training: str
    """The first 16 digits of the training's input key."""
    step: int
    folder: str
    """Relative to the run's ``checkpoints/``."""
    complete: bool
    """Whether it has a manifest. One that was torn, because the training ended before all of it was in the store, has
    none, and no training resumes from it."""

    @property
    def attempt(self) -> int:
        """Number of the attempt that wrote it; 0 where earlier versions did."""
        match = _ATTEMPT.fullmatch(self.folder)
        return int(match["number"]) if match else 0


def checkpoints_of(paths: Iterable[str]) -> set[Checkpoint]:
    """The checkpoints to which objects belong, by their paths below ``checkpoints/``; other objects are left out."""
    found = [match for path in paths if (match := _CHECKPOINT.fullmatch(path))]
    whole = {match["folder"] for match in found if match["file"] == MANIFEST}
    return {
        Checkpoint(match["training"], int(match["step"]), match["folder"], match["folder"] in whole) for match in found
    }


def superseded(stored: Iterable[Checkpoint], training: str, keep: int, best: int = 0) -> list[Checkpoint]:
    """Those to delete once ``training`` has succeeded: all but its ``keep`` newest complete ones and, if any stays,
    that of its ``best`` step; and all of earlier trainings. A FineTuneJob has one run at a time: when a training
    succeeds, no other of the same job can still be running. What that training itself may still be sending stays too:
    its thread would name a checkpoint whole of which files are gone. If it was torn, the next training deletes it.
    """
    checkpoints = sorted(stored)
    of_training = [checkpoint for checkpoint in checkpoints if checkpoint.training == training]
    own = [checkpoint for checkpoint in of_training if checkpoint.complete]
    kept = own[max(0, len(own) - keep) :]
    if kept:  # a training resumed from the newest one may end with the weights of the best
        kept += [checkpoint for checkpoint in own if checkpoint.step == best]
    kept += _on_their_way(of_training)
    return [checkpoint for checkpoint in checkpoints if checkpoint not in kept]


def _on_their_way(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Those of a training that its newest attempt may be sending: incomplete, and newer than any that it has sent."""
    attempt = max((checkpoint.attempt for checkpoint in checkpoints), default=0)
    latest = [checkpoint for checkpoint in checkpoints if checkpoint.attempt == attempt > 0]
    whole = max((checkpoint.step for checkpoint in latest if checkpoint.complete), default=0)
    return [checkpoint for checkpoint in latest if not checkpoint.complete and checkpoint.step > whole]


def remove_checkpoints(store: Store, run: RunRef, input_key: str, retention: Retention) -> None:
    """Delete the superseded checkpoints of ``run``'s FineTuneJob. A failure is logged, and costs storage only."""
    place = store.below(f"{run_folder(run)}/checkpoints")

    def remove() -> None:
        stored, training = checkpoints_of(entry.key for entry in place.list()), input_key[:16]
        best = _best_step(place, stored, training)
        for checkpoint in superseded(stored, training, retention.checkpoints, best):
            _delete(place.below(checkpoint.folder))
            log.info("deleted %s", place.uri(checkpoint.folder))

    removing = Repeating(remove, name="deleting old checkpoints", pause=_SECONDS)
    removing.end()
    if not removing.wait(_SECONDS):
        log.warning("old checkpoints were not deleted below %s", place.uri())


def _best_step(place: Store, stored: Iterable[Checkpoint], training: str) -> int:
    """The best step of a training by its newest checkpoint; 0 if that does not name one."""
    newest = max((each for each in stored if each.training == training and each.complete), default=None)
    content = place.get(f"{newest.folder}/{TRAINER_STATE}") if newest else None
    try:
        return int(json.loads(content or b"{}").get("best_global_step") or 0)
    except (ValueError, AttributeError, TypeError):
        return 0


def _delete(folder: Store) -> None:
    folder.delete(MANIFEST)  # first: the rest is then no longer a checkpoint
    for entry in folder.list():
        folder.delete(entry.key)
