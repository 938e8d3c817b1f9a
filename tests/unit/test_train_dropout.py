"""Adapters' dropout on CPUs: the law of what is dropped, and the gradients."""

import math

import pytest
import torch
from torch import nn

from finetune_jobs.training.dropout import MOST, SparseDropout, drawn_places, use_sparse_dropout

pytestmark = [pytest.mark.unit, pytest.mark.slow]


@pytest.mark.parametrize("share", [0.01, 0.05, 0.25])
def test_each_place_is_dropped_as_often_and_whatever_its_neighbour_is(share: float) -> None:
    """Within five standard deviations, at the first and the last places as elsewhere."""
    torch.manual_seed(0)
    rounds, count = 4000, 50
    dropped = torch.zeros(rounds, count)
    for row in dropped:
        row[drawn_places(count, share)] = 1
    bound = 5 * math.sqrt(share * (1 - share) / rounds)
    assert (dropped.mean(0) - share).abs().max() < bound
    both = (dropped[:, 1:] * dropped[:, :-1]).mean()
    assert abs(float(both) - share**2) < 5 * share / math.sqrt(rounds * (count - 1))


@pytest.mark.parametrize("count", [0, 1, 2, 1000])
def test_places_ascend_within_the_count(count: int) -> None:
    torch.manual_seed(count)
    for _ in range(50):
        places = drawn_places(count, 0.2)
        assert torch.equal(places, places.unique())
        assert not len(places) or (int(places[0]) >= 0 and int(places[-1]) < count)


def test_more_is_drawn_where_the_first_draw_ends_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_jobs.training.dropout.DEVIATIONS", -3)
    torch.manual_seed(0)
    places = drawn_places(100_000, 0.05)
    assert torch.equal(places, places.unique())
    assert abs(len(places) / 100_000 - 0.05) < 5 * math.sqrt(0.05 * 0.95 / 100_000)
    assert int(places[-1]) > 99_000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_kept_is_scaled_and_so_is_its_gradient(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    values = torch.full((7, 30, 40), 2.0, dtype=dtype).transpose(0, 1).requires_grad_()
    found = SparseDropout(0.2)(values)
    found.backward(torch.full_like(found, 3.0))
    kept = found != 0
    assert found.shape == values.shape
    assert 0.75 < float(kept.float().mean()) < 0.85
    assert torch.equal(found, kept * torch.tensor(2.5, dtype=dtype))
    assert torch.equal(values.grad, kept * torch.tensor(3.75, dtype=dtype))


def test_the_generator_decides_what_is_dropped() -> None:
    values, dropout = torch.ones(64, 64), SparseDropout(0.1)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first, other = dropout(values), dropout(values)
    torch.set_rng_state(state)
    assert torch.equal(dropout(values), first)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("share", [0.0, MOST + 0.01, 1.0])
def test_other_shares_are_left_to_pytorch(share: float) -> None:
    values = torch.ones(64, 64)
    torch.manual_seed(0)
    expected = nn.functional.dropout(values, share)
    torch.manual_seed(0)
    assert torch.equal(SparseDropout(share)(values), expected)


def test_nothing_is_dropped_in_evaluation() -> None:
    values = torch.ones(8, 8)
    assert torch.equal(SparseDropout(0.2).eval()(values), values)


def test_only_adapters_change() -> None:
    layer = nn.Module()
    layer.lora_dropout = nn.ModuleDict({"default": nn.Dropout(0.1), "none": nn.Identity()})
    model = nn.Sequential(nn.Dropout(0.2), layer).eval()
    use_sparse_dropout(model)
    assert type(model[0]) is nn.Dropout
    found = layer.lora_dropout["default"]
    assert isinstance(found, SparseDropout)
    assert (found.p, found.training) == (0.1, False)
    assert isinstance(layer.lora_dropout["none"], nn.Identity)
