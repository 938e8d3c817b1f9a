"""An evaluation of tiny models of which rows are counted; as a program, one that is slow: for tests that kill it.

``python tests/support/tiny_evaluation.py S3_ENDPOINT PLACE MODELS OUT GENERATOR``
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
from finetune_api.evaluation import Coverage, Evaluation, Generator
from finetune_api.training import Method, Training
from finetune_jobs.base.progress import Progress
from finetune_jobs.evaluate import EvaluationFiles, Setting, evaluate_models
from finetune_jobs.evaluation import batches
from finetune_jobs.evaluation.findings import KeptFindings
from finetune_jobs.evaluation.generators.protocol import Exported
from finetune_jobs.evaluation.generators.vllm_process import VllmProcess
from finetune_jobs.modelling.tuning import Tuning
from finetune_jobs.store.s3 import Store
from tests.support.seaweedfs import SeaweedFS


@dataclass
class Asked:
    """How many rows models were asked, and how many seconds each batch, or request to vLLM, takes at least."""

    rows: int = 0
    pause: float = 0.0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count those that are asked within."""
        read, ask = batches._read, VllmProcess.ask

        def counted(model: Any, rows: Sequence[Sequence[int]], *others: Any) -> Any:
            self._count(rows)
            return read(model, rows, *others)

        def counted_by_vllm(process: Any, kind: str, rows: Sequence[Sequence[int]], **wanted: Any) -> Any:
            self._count(rows)
            return ask(process, kind, rows, **wanted)

        with mock.patch.object(batches, "_read", counted), mock.patch.object(VllmProcess, "ask", counted_by_vllm):
            yield

    def _count(self, rows: Sequence[Any]) -> None:
        time.sleep(self.pause)
        self.rows += len(rows)


def evaluate_tiny(
    models: Path, out: Path, findings: KeptFindings | None, generator: Generator = Generator.TRANSFORMERS
) -> None:
    """What ``tests.support.evaluating.build_models`` has made, evaluated in a moment."""
    if generator is Generator.TRANSFORMERS:
        exported = [Exported("INT8", "e" * 64, models / "artifact")]
        dataset, most, general = "dataset", 20, Coverage.SAMPLE
    else:  # what stands in for vLLM reads adapters, and is slow; whatever it is asked, a request holds all of a kind
        exported = [Exported("Adapter", "e" * 64, models / "adapter", models / "base")]
        dataset, most, general = "two-canaries", 10, Coverage.OFF
    files = EvaluationFiles(models / "base", models / "adapter", exported, models / dataset, out, findings)
    asked = Evaluation(max_samples=most, general=general, adversarial=Coverage.OFF, generator=generator)
    setting = Setting(TaskType.CLASSIFICATION, asked)
    evaluate_models(files, Tuning.of(Training(method=Method.LORA)), setting, Progress("evaluate"))


def main(endpoint: str, place: str, models: str, out: str, generator: str) -> None:
    """Evaluate slowly, keeping what is found in the store."""
    store = Store.connect(SeaweedFS(endpoint).storage, place)
    with Asked(pause=1.0).counting(), mock.patch("finetune_jobs.evaluation.findings._KEEP_SECONDS", 0.2):
        evaluate_tiny(Path(models), Path(out), KeptFindings(store), Generator(generator))


if __name__ == "__main__":
    main(*sys.argv[1:])
