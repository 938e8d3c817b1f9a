"""What proves the very weights once they are served: how likely the artifact finds each token of some conversations.

Answers tell too little. A label stays the likeliest one when an adapter counts double, a layer is lost or positions are
wrong, and the same weights on another engine may break a tie in a long text and go on differently. Probabilities of
given tokens need one forward pass, and move with every weight that moves. The prompt's tokens count like the answer's:
tuning makes a model so sure of its answer that little can shake that, while it was never taught the prompt.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, Final

import torch
from pydantic import TypeAdapter

from finetune_api.hashing import digest
from finetune_jobs.artifacts.artifact import ReferenceText
from finetune_jobs.evaluation.distances import distance
from finetune_jobs.evaluation.findings import FindingKind, look_up
from finetune_jobs.modelling import chat
from finetune_jobs.modelling.token_files import Conversation

CANDIDATES: Final = 16
"""Conversations of the test split that all models look at, and that show wrong positions."""
SHORT: Final = 8
"""Those of them that show wrong weights: where base and artifact differ most."""
LONG: Final = 2
LONG_TOKENS: Final = 1008
"""Length of a long conversation: with a few tokens to spare, what a runtime accepts by default (1,024). A rotary base
of seven tenths of the right one shows from about 1,000 tokens on."""
TURN: Final = 0.7
"""What the rotary base is multiplied with for the record of wrong positions."""
FAR_TURN: Final = 0.1
"""The same for short texts, which hardly show TURN. A reader that does not find the base takes 10,000, a tenth of that
of many models: so does version 4 of transformers with a config of version 5."""
_CHUNK: Final = 256
"""Tokens of one forward pass: the probabilities of a whole vocabulary at 1,000 positions may take a gigabyte."""
_LIKELY: Final = FindingKind("passage", TypeAdapter(list[float]))
_TURNED: Final = FindingKind("passage, turned", TypeAdapter(tuple[list[float], list[float]]), [TURN, FAR_TURN])


@dataclass(frozen=True)
class Passage:
    """A conversation as tokens, before any model has seen it."""

    text: str
    ids: list[int]
    long: bool = False


def make_passages(
    tokenizer: Any, examples: Sequence[Conversation], stop: int, longest: int, *, thoughts: bool = False
) -> list[Passage]:
    """Conversations to look at, the same for the same examples in any order; ``longest``: the model's positions.

    The long ones are examples whose question follows the text of others.
    """
    ordered = sorted(examples, key=lambda example: digest(example.messages))
    short = [_passage(tokenizer, example, stop, thoughts) for example in ordered[:CANDIDATES]]
    return [
        *(passage for passage in short if len(passage.ids) <= longest),
        *_long(tokenizer, ordered, stop, longest, thoughts),
    ]


def longest_text(model: Path) -> int:
    """How many tokens a model takes at once, from its ``config.json``; LONG_TOKENS if that does not say."""
    return said_positions(model) or LONG_TOKENS


def said_positions(model: Path) -> int | None:
    """The same; None if it does not say. Some that take more leave it to the default of their architecture."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    found = config.get("text_config", config).get("max_position_embeddings")
    return found if isinstance(found, int) else None


def log_probs(model: Any, passage: Passage) -> list[float]:
    """The model's log-probability of each token but the first, given those before it."""
    return look_up(model, _LIKELY, passage.ids, lambda: _log_probs(model, passage))


def _log_probs(model: Any, passage: Passage) -> list[float]:
    """To the digits that are written."""
    return [round(value, 4) for value in token_log_probs(model, passage.ids)]


@torch.inference_mode()  # type: ignore[untyped-decorator] # torch has no type for it
def token_log_probs(model: Any, ids: Sequence[int]) -> list[float]:
    """Of each of these tokens but the first. The logits of a text are never in memory at once."""
    tokens = torch.tensor([ids], device=model.device)
    cache, found = None, list[float]()
    for start in range(0, len(ids) - 1, _CHUNK):
        output = model(input_ids=tokens[:, start : start + _CHUNK], cache=cache, use_cache=True)
        cache = output.cache
        expected = tokens[0, start + 1 : start + _CHUNK + 1]
        predicted = torch.log_softmax(output.logits[0, : len(expected)].float(), dim=-1)
        found += predicted.gather(1, expected[:, None])[:, 0].tolist()
    return found


def turned_log_probs(model: Any, passage: Passage) -> tuple[list[float], list[float]]:
    """A conversation's log-probabilities with the right rotary positions and with wrong ones: the direction in which
    those of a server are searched for the same mistake. Empty for a model without such positions.

    Activations are not rounded to 8 bits here: small differences would flip roundings, and the noise of that, which is
    another one in every server, hides what the positions do.
    """
    if not _rotary(model):
        return [], []
    return look_up(model, _TURNED, passage.ids, lambda: _both(model, passage))


def _both(model: Any, passage: Passage) -> tuple[list[float], list[float]]:
    with torch.inference_mode(), _unrounded(model):
        straight = _log_probs(model, passage)
        with _turned(model, TURN if passage.long else FAR_TURN):
            return straight, _log_probs(model, passage)


def to_record(passages: Sequence[Passage], base: Sequence[list[float]], artifact: Sequence[list[float]]) -> list[int]:
    """The numbers of the conversations to record: the short ones, first those on which the two models differ most, then
    the long ones. ``base`` and ``artifact`` are their ``log_probs``; without numbers from both, one is left out."""
    known = [n for n in range(len(passages)) if _finite(base[n], artifact[n])]
    short = [n for n in known if not passages[n].long]
    short.sort(key=lambda n: distance(base[n], artifact[n]), reverse=True)
    return [*short, *(n for n in known if passages[n].long)]


def make_references(
    passages: Sequence[Passage],
    base: Sequence[list[float]],
    artifact: Sequence[list[float]],
    turned: Mapping[int, tuple[list[float], list[float]]],
) -> list[ReferenceText]:
    """What is recorded. ``turned``: the artifact's ``turned_log_probs`` of what ``to_record`` has chosen, by its
    numbers, in its order. Short texts after the first SHORT are for positions only."""
    short = [number for number in turned if not passages[number].long]
    return [
        ReferenceText(
            text=passages[number].text,
            ids=passages[number].ids,
            long=passages[number].long,
            positions_only=number in short[SHORT:],
            base=base[number],
            artifact=artifact[number],
            straight=straight,
            turned=wrong,
        )
        for number, (straight, wrong) in turned.items()
        if _finite(straight, wrong) and (wrong or number not in short[SHORT:])
    ]


def _finite(*found: Sequence[float]) -> bool:
    return all(math.isfinite(value) for values in found for value in values)


@contextmanager
def _unrounded(model: Any) -> Iterator[None]:
    """Compute with 16 or 32 bits what compressed-tensors rounds while it computes; the weights stay rounded."""
    rounding = [module for module in model.modules() if getattr(module, "quantization_enabled", False)]
    for module in rounding:
        module.quantization_enabled = False
    try:
        yield
    finally:
        for module in rounding:
            module.quantization_enabled = True


@contextmanager
def _turned(model: Any, factor: float) -> Iterator[None]:
    """Multiply the base of the rotary positions (Su et al. 2021, arXiv 2104.09864): the frequency i of n is the base to
    the power of -i/n."""
    frequencies = _rotary(model)
    kept = [each.clone() for each in frequencies]
    for each in frequencies:
        each.mul_(factor ** -(torch.arange(len(each), device=each.device) / len(each)))
    try:
        yield
    finally:
        for each, before in zip(frequencies, kept, strict=True):
            each.copy_(before)


def _rotary(model: Any) -> list[torch.Tensor]:
    """The frequencies of a model's rotary positions, as transformers names them."""
    return [buffer for name, buffer in model.named_buffers() if name.endswith("inv_freq") and buffer.dim() == 1]


def _passage(tokenizer: Any, example: Conversation, stop: int, thoughts: bool, *, long: bool = False) -> Passage:
    """The conversation as a server will be sent it."""
    encoded = chat.encode(tokenizer, example.messages, stop, example.tools, thoughts=thoughts)
    return Passage(*chat.as_sent(tokenizer, encoded.input_ids), long)


def _long(
    tokenizer: Any, ordered: Sequence[Conversation], stop: int, longest: int, thoughts: bool
) -> Iterator[Passage]:
    asked = [
        each for each in ordered if each.prompt[-1]["role"] == "user" and isinstance(each.prompt[-1]["content"], str)
    ]
    words = [str(message["content"]) for each in ordered for message in each.messages if message.get("content")]
    limit = min(LONG_TOKENS, longest - 1)
    for number, example in enumerate(asked[:LONG]):
        room = limit - len(_passage(tokenizer, example, stop, thoughts).ids)
        # From another text on for each, so that the two do not begin alike.
        before = _filler(tokenizer, words[number * len(words) // LONG :] + words, room)
        messages = [dict(message) for message in example.messages]
        messages[-2]["content"] = f"{before}\n\n{messages[-2]['content']}"
        passage = _passage(tokenizer, Conversation(messages, example.tools), stop, thoughts, long=True)
        if room > 0 and len(passage.ids) <= longest:
            yield passage


def _filler(tokenizer: Any, texts: Sequence[str], length: int) -> str:
    """The texts, again and again, cut to about so many tokens."""
    ids: list[int] = []
    for text in cycle(texts):
        ids += tokenizer(f"{text}\n", add_special_tokens=False)["input_ids"]
        if len(ids) >= length:
            return str(tokenizer.decode(ids[: max(0, length - 4)]))
    return ""
