"""Replay: general data, read as a data set of its own, of which a share is mixed into the training."""

from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

from finetune_api.dataset import Dataset, Replay, Task, TaskType
from finetune_jobs.examples.parts import Part
from finetune_jobs.preparation.collect import Collected
from finetune_jobs.splitting import leakage, sampling
from finetune_jobs.splitting.division import Division
from finetune_jobs.splitting.near_duplicates import Hashes

GENERAL_TASK: Final = Task(type=TaskType.TEXT)
"""General data is not of the job's task."""


@dataclass(frozen=True)
class Replayed:
    """General examples that are mixed into the training."""

    collected: Collected
    usable: int
    """Examples that could be mixed in."""
    chosen: list[str]
    """Identities."""

    def report(self) -> dict[str, Any]:
        """The figures for the report."""
        ledger = self.collected.ledger
        lost = Counter(ledger.faults.kinds) + Counter(ledger.dropped) + Counter(duplicates=ledger.duplicates)
        return {
            "read": ledger.read,
            "usable": self.usable,
            "chosen": len(self.chosen),
            "filters": dict(sorted(lost.items())),
        }

    def message(self) -> str:
        """The figures for people."""
        lost = ", ".join(f"{kind} {count}" for kind, count in self.report()["filters"].items())
        dropped = f" (dropped: {lost})" if lost else ""
        return (
            f"{self.usable} of {self.collected.ledger.read} rows of general data usable{dropped}, "
            f"{len(self.chosen)} mixed in."
        )


def general_data(own: Dataset, replay: Replay) -> Dataset:
    """General data as a data set: chats, cleaned by the same rules as the job's own rows."""
    return Dataset(
        sources=[replay.source],
        cleaning=own.cleaning,
        pii=own.pii,
        max_invalid_percent=own.max_invalid_percent,
    )


def choose(general: Collected, own: Collected, division: Division, boilerplate: Hashes, dataset: Dataset) -> Replayed:
    """What is mixed in: as much of it as the spec's share asks for, and nothing that is (nearly) among the job's own
    examples for validation and test. ``boilerplate``: as ``near_duplicates.Near``."""
    held_out = {identity for identity, part in division.parts.items() if part is not Part.TRAIN}
    texts = general.texts(set(general.ledger.labels))
    leaks = leakage.find(texts, own.texts(held_out), dataset.duplicates.sought_percent, boilerplate)
    usable = general.ledger.labels.keys() - own.ledger.labels.keys() - {leak.train for leak in leaks}
    trained = sum(division.repeats.get(each, 1) for each, part in division.parts.items() if part is Part.TRAIN)
    percent = dataset.replay.percent if dataset.replay else 0
    return Replayed(general, len(usable), sampling.replay(usable, trained, percent, dataset.split.seed))
