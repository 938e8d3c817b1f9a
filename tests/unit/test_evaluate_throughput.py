"""The benchmark of the evaluation runs, and both of its sides answer the same."""

from pathlib import Path

import pytest

from hack.benchmarks.evaluate_throughput import measure
from tests.support.tiny_model import build_tiny_llama

pytestmark = [pytest.mark.unit, pytest.mark.slow]


def test_both_sides_write_the_same_texts(tmp_path: Path) -> None:
    """Of a model so small that its speed says nothing."""
    found = measure(build_tiny_llama(tmp_path / "base"), 5)
    assert list(found) == ["room", "fewShot"]
    for way in found.values():
        assert way["different"] == 0
        assert way["answerTokens"] > 5
        assert way["oursSeconds"] > 0
        assert way["plainSeconds"] > 0
    assert found["fewShot"]["promptTokens"] > 2 * found["room"]["promptTokens"]
