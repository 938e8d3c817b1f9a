"""The loss in tiles is the plain one: its value, its gradients, and of its memory a part."""

from typing import Any

import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    PhiConfig,
    PreTrainedConfig,
)

from finetune_jobs.modelling.chat import IGNORED
from finetune_jobs.training import tiled_loss
from finetune_jobs.training.collator import Collator, labelled
from finetune_jobs.training.tiled_loss import Logits, add_tiled_loss

pytestmark = [pytest.mark.unit, pytest.mark.slow]

SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
WORDS, SIZE = 90, 16
EXACT = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""How far gradients may be from the plain ones, as a share of the largest."""


def parts(count: int, dtype: torch.dtype, *, bias: bool) -> tuple[Any, Any, Any, Any]:
    draw = torch.Generator().manual_seed(count)
    hidden, weight, offset = (
        torch.randn(size, generator=draw).to(dtype).requires_grad_()
        for size in ((count, SIZE), (WORDS, SIZE), (WORDS,))
    )
    return hidden, weight, offset if bias else None, torch.randint(WORDS, (count,), generator=draw)


def plain(hidden: Any, weight: Any, bias: Any, targets: Any, logits: Logits) -> torch.Tensor:
    """All logits at once, as autograd differentiates them."""
    scores = torch.nn.functional.linear(hidden, weight, bias)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) * logits.scale
    if logits.cap is not None:
        scores = logits.cap * torch.tanh(scores / logits.cap)
    return cross_entropy(scores, targets, reduction="sum")


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("count", [0, 1, 7, 40])
@pytest.mark.parametrize("logits", [Logits(), Logits(0.25), Logits(cap=3.0), Logits(2.0, 30.0)], ids=str)
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_loss_and_gradients_are_the_plain_ones(
    dtype: torch.dtype, count: int, logits: Logits, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over tiles of a few positions, the last of them not full; multiplied by what comes after the loss."""
    monkeypatch.setattr(tiled_loss, "TILE", 6 * WORDS)
    given = parts(count, dtype, bias=bias)
    expected = plain(*given, logits)
    (expected / 3).backward()
    wanted = [None if each is None else each.grad for each in given[:3]]
    given = parts(count, dtype, bias=bias)

    found = tiled_loss.tiled_loss(*given, logits)
    (found / 3).backward()

    assert found.item() == pytest.approx(expected.item(), rel=EXACT[dtype] / 2)
    for each, gradient in zip(given[:3], wanted, strict=True):
        if each is not None:
            assert gradient is not None
            assert each.grad.dtype is dtype
            most = float(gradient.abs().max()) if gradient.numel() else 0.0
            torch.testing.assert_close(each.grad, gradient, rtol=0, atol=EXACT[dtype] * most)


def test_under_autocast_it_computes_in_16_bits_and_gives_gradients_as_the_weights_are() -> None:
    hidden, weight, _, targets = parts(40, torch.float32, bias=False)
    with torch.autocast("cpu", torch.bfloat16):
        found = tiled_loss.tiled_loss(hidden, weight, None, targets, Logits())
    found.backward()
    assert found.dtype is hidden.grad.dtype is weight.grad.dtype is torch.float32
    exact = plain(hidden, weight, None, targets, Logits())
    assert found.item() == pytest.approx(exact.item(), rel=1e-2)
    assert found.item() != exact.item()


def test_what_is_not_trained_gets_no_gradient_and_a_validation_computes_none() -> None:
    hidden, weight, _, targets = parts(7, torch.float32, bias=False)
    tiled_loss.tiled_loss(hidden, weight.detach(), None, targets, Logits()).backward()
    assert hidden.grad is not None
    with torch.no_grad():
        assert not tiled_loss.tiled_loss(hidden, weight, None, targets, Logits()).requires_grad


def test_a_second_backward_pass_is_refused() -> None:
    """The gradients were used up by the first: wrong ones would be worse."""
    hidden, weight, _, targets = parts(7, torch.float32, bias=False)
    loss = tiled_loss.tiled_loss(hidden, weight, None, targets, Logits())
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_memory_is_that_of_a_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    """By PyTorch's memory tracker: 1,024 positions and 8,192 words, whose logits take 32 MiB each time."""
    monkeypatch.setattr(tiled_loss, "TILE", 1 << 19)

    def peak(loss: Any) -> int:
        hidden, weight = torch.randn(1024, 32, requires_grad=True), torch.randn(8192, 32)
        targets, tracker = torch.zeros(1024, dtype=torch.long), MemTracker()
        with tracker:
            loss(hidden, weight, None, targets, Logits()).backward()
        return int(tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"])

    assert peak(plain) > 3 * 4 * 1024 * 8192
    assert peak(tiled_loss.tiled_loss) < 4 * (3 * (1 << 19) + 4 * 1024 * 32)


def labels_of(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows)


@pytest.mark.parametrize(
    ("labels", "positions", "targets"),
    [
        (labels_of([IGNORED, 5, 6]), [0, 1], [5, 6]),
        (labels_of([5, IGNORED, 6]), [1], [6]),
        (labels_of([IGNORED, 5, IGNORED], [IGNORED, IGNORED, 7]), [0, 4], [5, 7]),
        (labels_of([IGNORED, IGNORED]), [], []),
        (labels_of([5]), [], []),
    ],
)
def test_a_label_is_predicted_one_token_before(labels: torch.Tensor, positions: list[int], targets: list[int]) -> None:
    found = labelled(labels)
    assert found["positions"].tolist() == positions
    assert found["targets"].tolist() == targets


def test_no_example_of_a_row_is_predicted_from_the_one_before() -> None:
    examples = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}, {"input_ids": [4, 5], "labels": [4, 5]}]
    batch = Collator(0, padding_free=True)(examples)
    assert batch["positions"].tolist() == [0, 1, 3]
    assert batch["targets"].tolist() == [2, 3, 5]


@pytest.mark.parametrize(
    ("config", "in_tiles"),
    [
        (LlamaConfig(**SMALL), True),
        (PhiConfig(**SMALL), True),
        (Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=2.0), True),
        (GraniteConfig(**SMALL, logits_scaling=8.0), True),
        (CohereConfig(**SMALL, logit_scale=0.5), True),
        (LlamaConfig(**SMALL, final_logit_softcapping=0.01), False),  # which Llama does not look at
    ],
    ids=["llama", "bias", "capped", "divided", "multiplied", "something else"],
)
def test_a_models_loss_is_that_of_its_own_logits(
    config: PreTrainedConfig, in_tiles: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In value and gradient; what cannot be computed in tiles is said, and computed otherwise."""
    monkeypatch.setattr(tiled_loss, "TILE", 4 * 96)
    caplog.set_level("INFO")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for each in model.parameters():
            each.mul_(4)  # logits that a cap changes
    examples = [{"input_ids": [7, 8, 9, 10, 11, 12], "labels": [IGNORED, IGNORED, 9, 10, 11, 12]}]
    batch = Collator(0)([*examples, {"input_ids": [13, 14], "labels": [IGNORED, IGNORED]}])
    labels = batch.pop("labels")
    own = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].float()
    expected = cross_entropy(own.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    expected.backward()
    wanted = {name: each.grad.clone() for name, each in model.named_parameters()}
    model.zero_grad()

    add_tiled_loss(model)
    found = model(**batch, use_cache=False)
    found.backward()

    assert ("all logits at once" in caplog.text) != in_tiles
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, each in model.named_parameters():
        torch.testing.assert_close(each.grad, wanted[name], rtol=1e-4, atol=1e-5, msg=name)
    assert model(input_ids=batch["input_ids"]).logits.shape == (2, 6, 96)
