"""Small data sets and trainings for tests of train, export and evaluate."""

import json
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset

from finetune_api.stages import Stage, Upstream
from finetune_api.training import Loss, Method, Training
from finetune_jobs.artifacts.folders import publish_folder
from finetune_jobs.base.progress import Progress
from finetune_jobs.modelling.base_model import find_base_model
from finetune_jobs.modelling.device import precision
from finetune_jobs.modelling.encoding import encode_conversation
from finetune_jobs.modelling.loading import load_adapter, load_base, load_checkpoint
from finetune_jobs.modelling.token_files import read_split
from finetune_jobs.modelling.tokenizer import load_tokenizer, stop_token
from finetune_jobs.modelling.tuning import read_tuning
from finetune_jobs.store.s3 import Store
from finetune_jobs.training.checkpoints import Checkpoints
from finetune_jobs.training.context import TrainingContext
from finetune_jobs.training.division import mapped_split
from finetune_jobs.training.time_budget import TimeBudget
from finetune_jobs.training.trainer import Trained, TrainingFiles, train_model
from tests.support.stages import Lent

LABELS: Final = ("refund", "question", "other fox")
BASE: Final = "base-model"
"""Where tests keep the base model, below the output."""
INSTRUCTION: Final = "answer with one word"
_TEXTS: Final = ("refund my parcel {n}", "what is the capital {n}", "the quick brown fox {n}")


def row(text: str, label: str) -> dict[str, Any]:
    """One line of a split, as prepare writes it."""
    turns = (("system", INSTRUCTION), ("user", text), ("assistant", label))
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def rows(count: int, *, first: int = 0, labels: Sequence[str] = LABELS) -> list[dict[str, Any]]:
    """Rows whose label follows from their text, all labels in turn."""
    numbers = range(first, first + count)
    return [row(_TEXTS[n % 3].format(n=n), labels[n % 3]) for n in numbers]


def write_dataset(folder: Path, **splits: list[dict[str, Any]]) -> Path:
    """A prepared data set; splits that are not given have a few rows of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in {
        "train": rows(12),
        "validation": rows(3, first=30),
        "test": rows(9, first=60),
        **splits,
    }.items():
        text = "".join(json.dumps(line) + "\n" for line in content)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (folder / "labels.json").write_text(json.dumps(sorted(LABELS)), encoding="utf-8")
    return folder


def tokenise(base: Path, dataset: Path, loss: Loss = Loss.ANSWER) -> Path:
    """Add to a data set the tokens that prepare writes for this base model."""
    tokenizer = load_tokenizer(base)
    stop = stop_token(base, tokenizer)
    for split in ("train", "validation"):
        pieces = [p for e in read_split(dataset, split) for p in encode_conversation(tokenizer, e, stop, loss)]
        columns = {"input_ids": [p.input_ids for p in pieces], "labels": [p.labels for p in pieces]}
        pq.write_table(pa.table(columns), dataset / f"{split}.parquet")
    return dataset


def read_examples(base: Path, dataset: Path, split: str) -> Dataset:
    """A split as the trainer takes it."""
    return mapped_split(tokenise(base, dataset), split)


def settings(method: Method = Method.QLORA, **changes: Any) -> Training:
    """Settings with which the tiny model learns ``rows`` by heart in a second."""
    fast: dict[str, Any] = {
        "learning_rate": "3e-3" if method is Method.FULL else "1e-2",
        "batch_size": 4,
        "gradient_accumulation": 1,
        "epochs": 20,
        "checkpoint_steps": 20,
        "rank": 4,
        "alpha": 8,
    }
    return Training(method=method, **fast | changes)


def load_for_training(base: Path, training: Training) -> Any:
    """The base model as the stage train loads it."""
    dtype = torch.float32 if training.method is Method.FULL else precision()
    return load_base(base, training.base_quantization, dtype=dtype)


def load_tuned(base: Path, tuned: Path, method: Method) -> Any:
    """What a training left in ``tuned``, on the base that it was trained on."""
    tuning = read_tuning(tuned, method)
    return load_adapter(load_base(base, tuning.quantization), tuned) if tuning.is_adapter else load_checkpoint(tuned)


def publish_inputs(store: Store, base: Path, dataset: Path) -> Upstream:
    """Put a base model at ``BASE`` below ``store`` and a data set where prepare would; the chain up to there."""
    for file in base.iterdir():
        store.upload(f"{BASE}/{file.name}", file)
    model = find_base_model(Lent(store), store.uri(BASE))
    digest = publish_folder(store, tokenise(base, dataset), Stage.PREPARE)
    return Upstream(source="sources", model=model.digest, dataset=digest)


def run_training(
    base: Path,
    dataset: Path,
    folder: Path,
    training: Training,
    checkpoints: Store,
    *,
    progress: Progress | None = None,
    stopping: threading.Event | None = None,
    limit: Callable[[Checkpoints], TimeBudget] | None = None,
) -> Trained:
    """Train below ``folder``: the adapter in ``adapter``, checkpoints in ``work``; ``limit`` makes the time budget."""
    tokenise(base, dataset, training.loss)
    kept = Checkpoints(checkpoints)
    time_budget = limit(kept) if limit else None
    with time_budget or nullcontext():
        return train_model(
            TrainingFiles(base, dataset, folder / "adapter", folder / "work", "s3://data/model"),
            training,
            TrainingContext(kept, progress or Progress("train"), stopping or threading.Event(), time_budget),
        )
