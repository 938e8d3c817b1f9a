"""Models of every kind that an evaluation asks, and questions to them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune_jobs.evaluation.choices import choosing
from finetune_jobs.evaluation.generate import Questions, ask_each, generate_answers
from finetune_jobs.modelling.canaries import make_canaries, write_canaries
from finetune_jobs.modelling.tokenizer import load_tokenizer
from tests.support.tiny_model import build_tiny_int8, build_tiny_llama, build_tiny_lora
from tests.support.training import rows, write_dataset

CANARIES = make_canaries(8, "data")


def build_models(root: Path) -> Path:
    """A base, an adapter, another model as full tuning leaves one, an INT8 artifact (of the base), and a data set with
    canaries; the same with only two of them, each of which takes 64 questions, for who answers one by one."""
    base = build_tiny_llama(root / "base")
    build_tiny_lora(root / "adapter", base)
    build_tiny_llama(root / "whole", seed=5)
    build_tiny_int8(root / "artifact", base)
    for name, canaries in (("dataset", CANARIES), ("two-canaries", CANARIES[:2])):
        write_dataset(root / name, test=rows(30, first=100))
        write_canaries(root / name, canaries)
    return root


def ask(model: Any, base: Path, prompts: list[Any], batch_size: int) -> list[str]:
    """Short answers to these prompts."""
    questions = Questions(prompts, limit=10, batch_size=batch_size)
    return generate_answers(model, load_tokenizer(base), questions, lambda _done, _total: None)


def choose_labels(model: Any, tokenizer: Any, questions: Questions, labels: Sequence[str], stop: int) -> list[str]:
    """The label that the model must choose for each question."""
    return ask_each(model, tokenizer, questions, choosing(tokenizer, labels, stop), lambda _done, _total: None)
