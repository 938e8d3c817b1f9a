"""What a training is judged by: the whole validation split, or the same part of it every time."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune_api.training import Training, Validation
from finetune_jobs.training import division
from finetune_jobs.training.division import validation_split

pytestmark = [pytest.mark.unit, pytest.mark.slow]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Forty examples of 1 to 40 tokens."""
    rows = [[number] * number for number in range(1, 41)]
    pq.write_table(pa.table({"input_ids": rows, "labels": rows}), tmp_path / "validation.parquet")
    return tmp_path


def chosen(dataset: Path, most: int, seed: int = 0) -> list[int]:
    split = validation_split(dataset, Training(seed=seed, validation=Validation(max_examples=most)))
    assert [each["labels"] for each in split] == [each["input_ids"] for each in split]
    return [len(each["input_ids"]) for each in split]


def test_a_small_split_is_looked_at_whole(dataset: Path) -> None:
    assert chosen(dataset, 40) == list(range(1, 41))


def test_of_a_large_one_it_is_always_the_same_part(dataset: Path) -> None:
    part = chosen(dataset, 12)
    assert len(part) == 12
    assert part == sorted(part)
    assert part == chosen(dataset, 12)
    assert part != chosen(dataset, 12, seed=1)


def test_long_examples_are_fewer(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(division, "VALIDATION_TOKENS", 100)
    part = chosen(dataset, 40)
    assert 1 <= len(part) < 20
    assert sum(part) <= 100
    monkeypatch.setattr(division, "VALIDATION_TOKENS", 0)
    assert len(chosen(dataset, 40)) == 1
