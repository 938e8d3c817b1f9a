"""How sizes of layers follow from the fields of a config: a search among simple formulas."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations_with_replacement
from typing import Final

Dimensions = tuple[int, ...]
_FACTORS: Final = (1, 2, 3, 4)
_LARGEST: Final = 8
"""Number that is added."""


class Formulas:
    """Formulas of the sizes of several models. With three models that share no size, a wrong formula would have to be
    right by chance three times."""

    def __init__(self, models: Sequence[Mapping[str, int]]) -> None:
        names = sorted(set.intersection(*(set(model) for model in models)))
        self._terms: dict[Dimensions, str] = {}
        for factor in _FACTORS:
            for name in names:
                self._add(factor, [model[name] for model in models], name)
        for factor in _FACTORS:
            for one, other in combinations_with_replacement(names, 2):
                self._add(factor, [model[one] * model[other] for model in models], f"{one}*{other}")

    def _add(self, factor: int, values: Iterable[int], name: str) -> None:
        self._terms.setdefault(tuple(factor * each for each in values), name if factor == 1 else f"{factor}*{name}")

    def find(self, values: Dimensions) -> str | None:
        """A simple formula that has these values in the models: a number, a product, or the sum of two; None if there
        is none."""
        if values in self._terms:
            return self._terms[values]
        if len(set(values)) == 1:
            return str(values[0])
        for one, term in self._terms.items():
            rest = tuple(value - each for value, each in zip(values, one, strict=True))
            if rest in self._terms:
                return f"{term}+{self._terms[rest]}"
            if len(set(rest)) == 1 and 0 < rest[0] <= _LARGEST:  # e.g. two more positions than tokens (OPT)
                return f"{term}+{rest[0]}"
        return None


def product(formulas: Iterable[str]) -> str:
    """Of sums, as a sum."""
    found = ["1"]
    for formula in formulas:
        found = [_shortened(f"{one}*{other}") for one in found for other in formula.split("+")]
    return "+".join(found)


def total(formulas: Iterable[str]) -> str:
    """Of sums, like terms together."""
    counted: Counter[str] = Counter()
    for formula in formulas:
        for term in formula.split("+"):
            factor, rest = _split(term)
            counted[rest] += factor
    terms = (_shortened(f"{count}*{rest}" if rest else str(count)) for rest, count in sorted(counted.items()))
    return "+".join(terms)


def _split(term: str) -> tuple[int, str]:
    """The number and the names of a product."""
    number = 1
    names: list[str] = []
    for each in term.split("*"):
        if each.isdigit():
            number *= int(each)
        else:
            names.append(each)
    return number, "*".join(sorted(names))


def _shortened(term: str) -> str:
    number, names = _split(term)
    return names if number == 1 and names else f"{number}*{names}" if names else str(number)
