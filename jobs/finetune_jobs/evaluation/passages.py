"""Conversations that every model looks at, and how likely a model finds each of their tokens.

Nothing is generated: tokens are given (teacher forcing), so nothing can diverge, and one forward pass is enough.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, Final

import torch
from pydantic import TypeAdapter

from finetune_api.hashing import digest
from finetune_jobs.evaluation.findings import FindingKind, look_up
from finetune_jobs.modelling import chat
from finetune_jobs.modelling.token_files import Conversation

CANDIDATES: Final = 16
"""Short ones: conversations of the test split."""
LONG: Final = 2
"""Long ones: one of the split's own texts, which tuning has changed most, and one of words in alphabetical order, which
shows positions best. Texts that are all alike hardly show them."""
LONG_TOKENS: Final = 1008
"""Length of a long conversation: with a few tokens to spare, what a runtime accepts by default (1,024). A rotary base
of seven tenths of the right one shows from about 1,000 tokens on."""
WORDS: Final = Path(__file__).with_name("words.txt")
"""A thousand, in order. Each is uncertain, but where the list is says much about it. To change them is to change what
evaluations find: their recipe."""
_CHUNK: Final = 256
"""Tokens of one forward pass: the probabilities of a whole vocabulary at 1,000 positions may take a gigabyte."""
_LIKELY: Final = FindingKind("passage", TypeAdapter(list[float]))


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

    The long ones are examples whose question follows other text: that of further examples, and a list of words.
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
    return look_up(model, _LIKELY, passage.ids, lambda: rounded_log_probs(model, passage))


def rounded_log_probs(model: Any, passage: Passage) -> list[float]:
    """The same as the model computes them now, to the digits that are written."""
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
    own = [str(message["content"]) for each in ordered for message in each.messages if message.get("content")]
    words = [" ".join(WORDS.read_text(encoding="utf-8").split())]
    limit = min(LONG_TOKENS, longest - 1)
    for example, texts in zip(cycle(asked), (own, words), strict=False):
        room = limit - len(_passage(tokenizer, example, stop, thoughts).ids)
        messages = [dict(message) for message in example.messages]
        messages[-2]["content"] = f"{_filler(tokenizer, texts, room)}\n\n{messages[-2]['content']}"
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
