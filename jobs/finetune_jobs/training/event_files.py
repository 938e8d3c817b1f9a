"""TensorBoard event files of a training, written on scratch and mirrored to the store at each validation."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from finetune_jobs.base.background import Repeating
from finetune_jobs.base.progress import Measurement
from finetune_jobs.store.s3 import Store
from finetune_jobs.training.figures import End, Facts, Settings, figures

log = logging.getLogger(__name__)

_MIRROR_SECONDS: Final = 60.0
"""Time between two uploads between validations."""


class EventFiles:
    """Records a training in TensorBoard's files. A resumed training writes its own file, which revokes what the
    previous one recorded for repeated steps (``purge_step``); so the writer is opened at the first measurement.
    """

    def __init__(self, folder: Path, place: Store, settings: Settings, facts: Facts) -> None:
        self._folder, self._place = folder, place
        self._settings, self._facts = settings, facts
        self._writer: Any = None
        self._mirrored: dict[str, int] = {}
        self._mirroring = Repeating(self._mirror, name="uploading the TensorBoard files", pause=_MIRROR_SECONDS)

    def measured(self, measurement: Measurement) -> None:
        """Write what is known of a step; after a validation, upload the files."""
        with _fail_open():
            self._writer = self._writer or self._open(measurement.step)
            for tag, value in figures(measurement):
                self._writer.add_scalar(tag, value, measurement.step)
            if measurement.validation_loss is not None:
                self._writer.flush()
                self._mirroring.soon()

    def end(self, end: End) -> None:
        """Close the files and upload them a last time."""
        with _fail_open():
            if self._writer:
                if end is End.FINISHED:
                    self._writer.file_writer.add_summary(hparams(self._settings, {})[2])
                self._writer.close()
        self._mirroring.end()

    def wait(self, seconds: float) -> bool:
        """After ``end``: whether the store holds the files, within ``seconds``."""
        return self._mirroring.wait(seconds)

    def _open(self, step: int) -> Any:
        writer = SummaryWriter(log_dir=str(self._folder), purge_step=step)
        experiment, session, _ = hparams(self._settings, {"train/loss": 0.0, "validation/loss": 0.0})
        writer.file_writer.add_summary(experiment)
        writer.file_writer.add_summary(session)
        for name, value in self._facts.items():
            writer.add_text(name.replace(".", "/", 1), value)
        return writer

    def _mirror(self) -> None:
        """Upload each file that has grown. TensorBoard reads a file up to its last whole record."""
        for file in sorted(self._folder.glob("events.*")):
            size = file.stat().st_size
            if size > self._mirrored.get(file.name, 0):
                self._place.upload(file.name, file)
                self._mirrored[file.name] = size


@contextmanager
def _fail_open() -> Iterator[None]:
    """A full scratch volume costs the figures; the training will report it itself."""
    try:
        yield
    except (OSError, ValueError) as error:
        log.warning("the TensorBoard files are incomplete: %s", error)
