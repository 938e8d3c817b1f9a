"""Message tests: what a message must say, and whether every sentence of a module is said by some test.

A test pins place, value and remedy of a message by parts (``assert_says``), so that a sentence is reworded in its
source alone. A test of completeness compares the sentences of a module's source with messages that the code really
produced (``unsaid``); a module-scoped fixture that wraps ``functools.cache`` produces each message once for both tests.
"""

import ast
import re
from collections.abc import Collection, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Self

_WORDS: Final = re.compile(r"[A-Za-z]+,? [A-Za-z]+")
"""At least two words: what is less is a name, a key or a unit."""
_NOT_FOR_USERS: Final = frozenset({"debug", "info", "warning", "report", "part", "ValueError", "RuntimeError"})
"""Calls whose texts are for the log, the progress bar, or the programmer who has made a mistake."""


def assert_says(message: str, *parts: str) -> None:
    """Each part is in the message, in this order, as whole words and numbers: ``line 1`` is not in ``line 10``.

    Parts are places, values, fields and the verb or field of the remedy, not the sentence around them.
    """
    assert parts
    missing = _missing(message, parts)
    assert not missing, f"{missing!r} is missing in {message!r}, or does not come after the parts before it"


class Saying(str):
    """In a comparison, equal to every text that says these parts: ``Fault(2, "text", "notUtf8", Saying("byte 7"))``."""

    parts: tuple[str, ...]

    def __new__(cls, *parts: str) -> Self:
        """``parts`` as for ``assert_says``."""
        assert parts
        made = super().__new__(cls, " … ".join(parts))
        made.parts = parts
        return made

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and not _missing(other, self.parts)

    __hash__ = str.__hash__


def unsaid(module: str, messages: Collection[str]) -> list[str]:
    """The sentences of ``module`` that no message contains; ``{}`` stands for a value in a sentence."""
    spec = find_spec(module)
    assert spec
    assert spec.origin
    said = sentences(Path(spec.origin))
    return [each for each in said if not any(_pattern(each).search(message) for message in messages)]


def sentences(file: Path) -> list[str]:
    """Every sentence in a file of Python, docstrings apart; ``{}`` stands for what an f-string leaves open."""
    return list(_sentences(ast.parse(file.read_text(encoding="utf-8"))))


def _sentences(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In):
        return  # words that are looked for in what others say
    if isinstance(node, ast.Call) and _name(node.func) in _NOT_FOR_USERS:
        return
    text = _text(node)
    if _WORDS.search(text):
        yield text
    elif not text:
        for each in ast.iter_child_nodes(node):
            yield from () if _is_docstring(each) else _sentences(each)


def _text(node: ast.AST) -> str:
    """The text of a literal; empty for everything else."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return ""


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _pattern(sentence: str) -> re.Pattern[str]:
    """A full stop at the end may give way where a sentence goes on."""
    return re.compile(".*?".join(map(re.escape, sentence.removesuffix(".").split("{}"))), re.DOTALL)


def _missing(message: str, parts: Sequence[str]) -> str:
    """The first part that is not in the message after those before it, or an empty text."""
    at = 0
    for part in parts:
        found = _whole(part).search(message, at)
        if not found:
            return part
        at = found.end()
    return ""


def _whole(part: str) -> re.Pattern[str]:
    """The part where no word or number that it begins or ends with goes on."""
    before = r"(?<!\w)(?<!\d[.,])" if re.match(r"\w", part) else ""
    after = r"(?!\w|[.,]\d)" if re.search(r"\w\Z", part) else ""
    return re.compile(before + re.escape(part) + after)
