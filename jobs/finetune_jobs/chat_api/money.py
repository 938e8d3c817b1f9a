"""The cost of asking: tokens times price, and a budget that no request can exceed.

A request is only sent when its dearest outcome still fits: what is spent, what the requests in flight may cost at most,
and its own most. So the bill stays below ``maxCost`` whatever the answers are; only the prompt's tokens are estimated.
"""

import asyncio
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from finetune_api.distillation import TeacherPrices

_BYTES_PER_TOKEN: Final = 4
_MILLION: Final = 1_000_000


def estimate_tokens(text: str) -> int:
    """Tokens of a text where nobody counted them: one for four bytes of UTF-8.

    A rule of thumb of OpenAI's documentation ("4 characters in English"); bytes instead of characters, as other scripts
    need more tokens for a character.
    """
    return -(-len(text.encode()) // _BYTES_PER_TOKEN)


@dataclass(frozen=True)
class Tokens:
    """Tokens of one request or of many."""

    input: int = 0
    output: int = 0
    estimated: int = 0
    """Of all these, those that the teacher did not report."""

    @classmethod
    def guessed(cls, input: int, output: int) -> "Tokens":  # noqa: A002 # the field's name
        """Tokens that the server did not count."""
        return cls(input, output, input + output)

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(self.input + other.input, self.output + other.output, self.estimated + other.estimated)

    def cost(self, prices: TeacherPrices | None) -> Decimal:
        """US dollars; 0 where the prices are not known."""
        if prices is None:
            return Decimal()
        dear = self.input * Decimal(prices.usd_per_million_input_tokens)
        dear += self.output * Decimal(prices.usd_per_million_output_tokens)
        return dear / _MILLION


class Budget:
    """What may still be spent, shared by the requests in flight. Without a limit, nothing is ever stopped."""

    def __init__(self, prices: TeacherPrices | None, limit: Decimal | None, spent: Tokens) -> None:
        self._prices, self._limit = prices, limit
        self.spent = spent
        """All that was spent, also by earlier pods."""
        self.exhausted = False
        """Once a request was refused, all later ones are, so that cheap prompts are not preferred to dear ones."""
        self._reserved = Decimal()
        self._settled = asyncio.Event()

    @property
    def cost(self) -> Decimal:
        """US dollars spent."""
        return self.spent.cost(self._prices)

    async def reserve(self, most: Tokens) -> bool:
        """Put aside what a request may cost at most; False when that would lead beyond the limit.

        Waits for requests in flight while it is they who might need the money.
        """
        price = most.cost(self._prices)
        while not self.exhausted and self._limit is not None and self.cost + self._reserved + price > self._limit:
            if self._reserved:
                self._settled.clear()
                await self._settled.wait()
            else:
                self.exhausted = True
        if not self.exhausted:
            self._reserved += price
        return not self.exhausted

    def settle(self, most: Tokens, used: Tokens) -> None:
        """A request for which ``most`` was put aside has used ``used``."""
        self._reserved -= most.cost(self._prices)
        self.spent += used
        self._settled.set()
