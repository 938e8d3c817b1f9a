"""The benchmarks of the export run, and their figures mean what they say."""

from pathlib import Path

import pytest

from finetune_api.finetunejob import ExportFormat
from hack.benchmarks.artifact_ledger import Reading, compared, read
from hack.benchmarks.export_memory import Size, measure
from tests.support.tiny_model import build_tiny_llama
from tests.support.training import rows, write_dataset

pytestmark = [pytest.mark.unit, pytest.mark.slow]


def test_the_peak_of_an_export_is_measured(quantize_python: Path, tmp_path: Path) -> None:
    """Of a model so small that the process itself decides: more than Python, less than a gigabyte or two."""
    tiny = Size(hidden=128, layers=2, intermediate=256)
    found = measure(tmp_path, build_tiny_llama(tmp_path / "like"), tiny, [ExportFormat.INT4], quantize_python)
    assert found["bytes"] > 2 * 2 * 128 * (4 * 128 + 3 * 256)
    peak = found["multiples"]["INT4"] * found["bytes"]
    assert 100e6 < peak < 2e9


def test_what_a_format_adds_to_the_loss_has_an_interval() -> None:
    """Twenty rows of two tokens, each 0.1 nats worse in all: 0.05 a token, and nothing to doubt."""
    adapter = Reading([0.2] * 20, [2] * 20, [True] * 20)
    worse = Reading([0.3] * 20, [2] * 20, [True] * 15 + [False] * 5)
    found = compared(worse, adapter)
    assert (found["increase"], found["low"], found["high"]) == (0.05, 0.05, 0.05)
    assert (found["loss"], found["accuracy"], found["adapterAccuracy"]) == (0.15, 0.75, 1.0)
    mixed = compared(Reading([0.0, 0.6] * 10, [2] * 20, [True] * 20), adapter)
    assert mixed["low"] < 0.05 == mixed["increase"] < mixed["high"]
    assert compared(adapter, adapter)["increase"] == 0


def test_the_loss_is_that_of_the_answer(tmp_path: Path) -> None:
    """The same as transformers computes from labels."""
    import torch

    from finetune_jobs.modelling import chat
    from finetune_jobs.modelling.loading import load_checkpoint
    from finetune_jobs.modelling.token_files import read_split
    from finetune_jobs.modelling.tokenizer import load_tokenizer

    base = build_tiny_llama(tmp_path / "base")
    examples = read_split(write_dataset(tmp_path / "dataset", test=rows(2)), "test")
    model, tokenizer = load_checkpoint(base), load_tokenizer(base)
    found = read(model, base, examples)
    for example, loss, tokens in zip(examples, found.losses, found.tokens, strict=True):
        encoded = chat.encode(tokenizer, example.messages, tokenizer.eos_token_id)
        given = {"input_ids": torch.tensor([encoded.input_ids]), "labels": torch.tensor([encoded.labels])}
        assert loss / tokens == pytest.approx(model(**given).loss.item(), rel=1e-3)
