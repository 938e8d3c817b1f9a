"""How far right and wrong servers are from an evaluation, by precision: what the tolerances of verification rest on.

SmolLM2-135M is tuned for 16 steps, unless there is an adapter. Then its own texts are read by the same weights in other
precisions (emulated: the output of every module is rounded), and by damaged ones. ``way`` is how far a server has gone
towards wrong rotary positions, as verification computes it. Needs no GPU and no server; ``make test-vllm`` and the
stand-in are for those.

``--dataset``: a folder with train.jsonl and test.jsonl, as the stage prepare writes them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from finetune_api.export import ExportFormat
from finetune_api.training import Method
from finetune_jobs.evaluation.distances import distance
from finetune_jobs.evaluation.disturbance import twins_apart
from finetune_jobs.evaluation.passages import CANDIDATES, Passage, make_passages, token_log_probs
from finetune_jobs.modelling.loading import load_adapter
from finetune_jobs.modelling.token_files import read_split
from finetune_jobs.modelling.tokenizer import load_tokenizer, stop_token
from finetune_jobs.modelling.tuning import Tuning
from hack.benchmarks.tuned import BATCH, load_unpacked, tune
from hack.cluster.console import say
from hack.cluster.layout import cache_directory
from hack.models import ensure_smollm2

STEPS = 16
SHORT, LONG = CANDIDATES, 1
GROUP = 64
"""Values of a row with one scale, in 4 bits."""
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
THETAS = (0.7, 0.1)

Likely = Sequence[list[float]]


@contextmanager
def rounded(model: Any, dtype: torch.dtype | None) -> Iterator[None]:
    """Round what every module puts out."""

    def hook(_module: Any, _given: Any, output: Any) -> Any:
        return output.to(dtype).float() if isinstance(output, torch.Tensor) else output

    handles = [each.register_forward_hook(hook) for each in model.modules()] if dtype else []
    try:
        yield
    finally:
        for each in handles:
            each.remove()


def in_integers(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Values in so many bits, with a scale for each row."""
    most = 2 ** (bits - 1) - 1
    scale = values.abs().amax(dim=-1, keepdim=True).clamp(min=1e-8) / most
    return (values / scale).round().clamp(-most - 1, most) * scale


def in_groups_of_4_bits(values: torch.Tensor) -> torch.Tensor:
    """The same in 4 bits with a scale for each GROUP values of a row, as far as these divide it."""
    size = GROUP if values.shape[-1] % GROUP == 0 else values.shape[-1]
    return in_integers(values.unflatten(-1, (-1, size)), 4).flatten(-2)


def in_fp8(values: torch.Tensor) -> torch.Tensor:
    """Values as float8_e4m3fn, with a scale for each row."""
    scale = values.abs().amax(dim=-1, keepdim=True).clamp(min=1e-8) / torch.finfo(torch.float8_e4m3fn).max
    return (values / scale).to(torch.float8_e4m3fn).float() * scale


def in_8_bit_integers(values: torch.Tensor) -> torch.Tensor:
    """Values in 8 bits, with a scale for each row: of activations, for each token."""
    return in_integers(values, 8)


Rounding = Callable[[torch.Tensor], torch.Tensor]
FORMATS: Mapping[ExportFormat, tuple[Rounding, Rounding | None] | None] = {
    ExportFormat.MERGED: None,
    ExportFormat.W8A16: (in_8_bit_integers, None),
    ExportFormat.INT4: (in_groups_of_4_bits, None),
    ExportFormat.FP8: (in_fp8, in_fp8),
    ExportFormat.INT8: (in_8_bit_integers, in_8_bit_integers),
}
"""How each format of a whole model rounds weights and, while it computes, activations. Adapter is 16 bits too."""


@contextmanager
def as_exported(model: Any, how: tuple[Rounding, Rounding | None] | None) -> Iterator[None]:
    """The model in a format: its linear layers but the last one are rounded."""
    if how is None:
        yield
        return
    of_weights, of_activations = how

    def pre(_module: Any, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (of_activations(given[0]), *given[1:]) if of_activations else given

    layers = [each for each in model.model.layers.modules() if isinstance(each, torch.nn.Linear)]
    kept = [each.weight.data for each in layers]
    for each in layers:
        each.weight.data = of_weights(each.weight.data)
    handles = [each.register_forward_pre_hook(pre) for each in layers] if of_activations else []
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for each, weight in zip(layers, kept, strict=True):
            each.weight.data = weight


@contextmanager
def lost_mlp(model: Any, layer: int) -> Iterator[None]:
    """The MLP of a layer adds nothing."""
    down = model.model.layers[layer].mlp.down_proj
    kept = down.weight.data
    down.weight.data = torch.zeros_like(kept)
    try:
        yield
    finally:
        down.weight.data = kept


@contextmanager
def turned(model: Any, factor: float) -> Iterator[None]:
    """Multiply the rotary base."""
    frequencies = model.model.rotary_emb.inv_freq
    kept = frequencies.clone()
    frequencies.mul_(factor ** -(torch.arange(len(kept)) / len(kept)))
    try:
        yield
    finally:
        frequencies.copy_(kept)


def read(model: Any, passages: Sequence[Passage]) -> Likely:
    """The log-probabilities of every text."""
    return [token_log_probs(model, each.ids) for each in passages]


def apart(left: Likely, right: Likely) -> float:
    """Mean distance, in nats a token."""
    return round(fmean(distance(a, b) for a, b in zip(left, right, strict=True)), 3)


def way(artifact: Likely, straight: Likely, wrong: Likely, seen: Likely) -> float:
    """The share of the way to wrong positions (least squares)."""
    direction = [b - a for s, t in zip(straight, wrong, strict=True) for a, b in zip(s, t, strict=True)]
    moved = [b - a for s, t in zip(artifact, seen, strict=True) for a, b in zip(s, t, strict=True)]
    return round(sum(a * b for a, b in zip(direction, moved, strict=True)) / sum(a * a for a in direction), 2)


def right_ones(model: Any, name: str, texts: Mapping[str, Sequence[Passage]], out: dict[str, Any]) -> None:
    """How far right servers are from the evaluation of each format, text by text: nothing here is damaged.

    Either may compute in another precision, or both, so that each pair of them counts. The noise is what an evaluation
    measures of an artifact in their place.
    """
    for each, how in FORMATS.items():
        with as_exported(model, how):
            for kind, passages in texts.items():
                noise = round(fmean(twins_apart(model, passage) for passage in passages), 4)
                out[f"{name} {each}: noise, {kind}"] = noise
                say(f"{name} {each}: noise, {kind}: {noise}")
                read_by = {"float32": read(model, passages)}
                for precision, dtype in DTYPES.items():
                    with rounded(model, dtype):
                        read_by[precision] = read(model, passages)
                for one, other in combinations(read_by, 2):
                    pairs = zip(read_by[one], read_by[other], strict=True)
                    found = [round(distance(a, b), 4) for a, b in pairs]
                    mean = round(fmean(found), 4)
                    out[f"{name} {each}: {one} to {other}, {kind}"] = {"mean": mean, "most": max(found)}
                    say(f"{name} {each}: {one} to {other}, {kind}: {mean}, at most {max(found)}")


def in_16_bits(model: Any, name: str, by_kind: Mapping[str, Sequence[Passage]], out: dict[str, Any]) -> None:
    """Right and wrong servers of the weights as they are: short texts first, which cost little."""
    layers = len(model.model.layers)
    for kind, texts in by_kind.items():
        right, by_dtype = read(model, texts), dict[str, Likely]()

        def note(what: str, seen: Likely, kind: str = kind, right: Likely = right) -> None:
            out[f"{name} 16 bits: {what}, {kind}"] = apart(right, seen)
            say(f"{name} 16 bits: {what}, {kind}: {apart(right, seen)}")

        for each, dtype in DTYPES.items():
            with rounded(model, dtype):
                by_dtype[each] = read(model, texts)
            note(each, by_dtype[each])
        out[f"{name} 16 bits: bfloat16 to float16, {kind}"] = apart(*by_dtype.values())
        lost: Sequence[int] = range(layers)
        if kind == "long":
            lost = [min(lost, key=lambda layer: out[f"{name} 16 bits: MLP {layer} lost, short"])]
        for layer in lost:
            with lost_mlp(model, layer):
                note(f"MLP {layer} lost", read(model, texts))
        for factor in THETAS:
            with turned(model, factor):
                note(f"theta x {factor}", read(model, texts))


def in_8_bits(
    model: Any, name: str, format_: ExportFormat, texts: Mapping[str, Sequence[Passage]], out: dict[str, Any]
) -> None:
    """Right and wrong servers of a format that rounds activations, and how far each is on the way to wrong
    positions."""
    of_weights, of_activations = FORMATS[format_] or (in_8_bit_integers, None)
    with as_exported(model, (of_weights, None)):
        straight = {kind: read(model, each) for kind, each in texts.items()}
        wrong: dict[tuple[str, float], Likely] = {}
        for factor in THETAS:
            with turned(model, factor):
                wrong |= {(kind, factor): read(model, each) for kind, each in texts.items()}
    for (kind, factor), likely in wrong.items():
        out[f"{name} {format_}: theta x {factor} moves, {kind}"] = apart(straight[kind], likely)
    with as_exported(model, (of_weights, of_activations)):
        artifact = {kind: read(model, each) for kind, each in texts.items()}
        for precision, served in [(p, t) for t in (1.0, *THETAS) for p in DTYPES]:
            with ExitStack() as stack:
                stack.enter_context(turned(model, served))
                stack.enter_context(rounded(model, DTYPES[precision]))
                seen = {kind: read(model, each) for kind, each in texts.items()}
            for kind in texts:
                what = f"{name} {format_}: {precision}, theta x {served}, {kind}"
                out[what] = {
                    "distance": apart(artifact[kind], seen[kind]),
                    **{
                        f"way to {factor}": way(artifact[kind], straight[kind], wrong[kind, factor], seen[kind])
                        for factor in THETAS
                    },
                }
                say(f"{what}: {out[what]}")


def main(dataset: Path, out: Path, adapter: Path | None, *, planted: bool, long_texts: int) -> None:
    """Measure, and write the figures. ``adapter``: of a tuned model that there is; otherwise one is tuned. ``planted``:
    of wrong servers, too. ``long_texts``: so many of 1,000 tokens."""
    base, tuning = ensure_smollm2(cache_directory()), Tuning(method=Method.LORA)
    tokenizer = load_tokenizer(base)
    passages = make_passages(tokenizer, read_split(dataset, "test"), stop_token(base, tokenizer), 8192)
    short = [each for each in passages if not each.long][:SHORT]
    long = [each for each in passages if each.long][:long_texts]
    texts = {kind: each for kind, each in (("short", short), ("long", long)) if each}
    figures = dict[str, Any]()

    def measure(model: Any, name: str) -> None:
        right_ones(model, name, texts, figures)
        if planted:
            in_16_bits(model, name, texts, figures)
            for each in (ExportFormat.INT8, ExportFormat.FP8):
                in_8_bits(model, name, each, texts, figures)
        (out / "server_distance.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")

    untuned = load_unpacked(base, tuning)
    measure(untuned, "untuned")
    adapter = adapter or out / "adapter"
    if not adapter.exists():
        tune(base, read_split(dataset, "train")[: STEPS * BATCH], adapter, tuning)
    model = load_adapter(untuned, adapter).merge_and_unload()
    for each in model.parameters():
        each.data = each.data.to(torch.bfloat16).float()  # as it is exported
    measure(model, "tuned")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, help="that of a tuned model, e.g. of planted_models; else one is tuned")
    parser.add_argument("--planted", action="store_true", help="measure damaged servers, too")
    parser.add_argument("--long", type=int, default=LONG, metavar="N", help="texts of 1,000 tokens (%(default)s)")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    main(given.dataset, given.out, given.adapter, planted=given.planted, long_texts=given.long)
