"""An evaluation of tiny models of which rows are counted; as a program, one that is slow: for tests that kill it.

``python tests/support/tiny_evaluation.py S3_ENDPOINT PLACE MODELS OUT``
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from finetune_api.dataset import TaskType
from finetune_api.evaluation import Coverage, Evaluation
from finetune_api.training import Method, Training
from finetune_jobs.base.progress import Progress
from finetune_jobs.evaluate import EvaluationFiles, Setting, evaluate_models
from finetune_jobs.evaluation import batches
from finetune_jobs.evaluation.findings import KeptFindings
from finetune_jobs.evaluation.generators.protocol import Exported
from finetune_jobs.modelling.tuning import Tuning
from finetune_jobs.store.s3 import Store
from tests.support.seaweedfs import SeaweedFS


@dataclass
class Asked:
    """How many rows models were asked, and how many seconds each batch takes at least."""

    rows: int = 0
    pause: float = 0.0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count those that are asked within."""
        read = batches._read

        def counted(model: Any, rows: Sequence[Sequence[int]], *others: Any) -> Any:
            time.sleep(self.pause)
            self.rows += len(rows)
            return read(model, rows, *others)

        with mock.patch.object(batches, "_read", counted):
            yield


def evaluate_tiny(models: Path, out: Path, findings: KeptFindings | None) -> None:
    """What ``tests.support.evaluating.build_models`` has made, evaluated in a moment."""
    exported = [Exported("INT8", "e" * 64, models / "artifact")]
    files = EvaluationFiles(models / "base", models / "adapter", exported, models / "dataset", out, findings)
    asked = Evaluation(max_samples=20, general=Coverage.SAMPLE, adversarial=Coverage.OFF)
    setting = Setting(TaskType.CLASSIFICATION, asked)
    evaluate_models(files, Tuning.of(Training(method=Method.LORA)), setting, Progress("evaluate"))


def main(endpoint: str, place: str, models: str, out: str) -> None:
    """Evaluate slowly, keeping what is found in the store."""
    store = Store.connect(SeaweedFS(endpoint).storage, place)
    with Asked(pause=1.0).counting(), mock.patch("finetune_jobs.evaluation.findings._KEEP_SECONDS", 0.2):
        evaluate_tiny(Path(models), Path(out), KeptFindings(store))


if __name__ == "__main__":
    main(*sys.argv[1:])
