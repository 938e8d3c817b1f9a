"""A FineTuneJob on a tiny random model: every stage runs for real, in seconds; its answers are nonsense."""

from __future__ import annotations

import csv
import random
import tempfile
from pathlib import Path
from typing import Any

from finetune_api import meta
from hack.platform import object_store
from hack.platform.kubectl import Kubectl, Object
from tests.support.tiny_model import build_tiny_llama

ROWS = 200
LABELS = ("FEES", "RENT", "SALES")


def tiny_job(name: str, **changes: Any) -> Object:
    """A FineTuneJob that trains for a few steps; ``changes`` replace fields of its spec."""
    spec: dict[str, Any] = {
        "profile": "cpu-small",
        "model": {"uri": "s3://base-models/tiny"},
        "dataset": {
            "sources": [{"uri": "s3://datasets/tiny.csv"}],
            "columns": {"input": "text", "label": "label"},
            "instruction": "Name the account.",
        },
        "training": {"maxSteps": 4, "checkpointSteps": 2, "maxLength": 128, "gradientAccumulation": 1},
        "evaluation": {"maxSamples": 10, "goldenPrompts": 2},
        "output": {"uri": f"s3://artifacts/{name}", "name": name},
        "storage": {"endpoint": object_store.ENDPOINT, "secretRef": {"name": "s3-credentials"}},
    }
    return {
        "apiVersion": meta.API_VERSION,
        "kind": meta.FINETUNEJOB,
        "metadata": {"name": name},
        "spec": spec | changes,
    }


def tiny_rows(path: Path, rows: int = ROWS, labels: tuple[str, ...] = LABELS) -> Path:
    """A small CSV of distinct texts, the same on every machine."""
    chosen = random.Random(7)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for number in range(rows):
            writer.writerow([f"payment {number} of {chosen.randint(1, 999)} euros", labels[number % len(labels)]])
    return path


def upload_tiny_inputs(kubectl: Kubectl) -> None:
    """Upload the tiny model and its rows to where ``tiny_job`` expects them."""
    with tempfile.TemporaryDirectory(prefix="finetune-tiny-") as folder:
        model = build_tiny_llama(Path(folder) / "model")
        object_store.upload(kubectl, model, "base-models", "tiny")
        object_store.upload(kubectl, tiny_rows(Path(folder) / "tiny.csv"), "datasets", "tiny.csv")
