"""Calls of tools in a model's text, in the form of its own chat template. Pure.

What is no whole call in that form is text, as servers' parsers have it (vLLM's ``hermes``, ``llama3_json`` and
``mistral``): a client would get it as content.
"""

import json
import re
from typing import Any, Final

from finetune_api.base import WireModel
from finetune_jobs.base.strict_json import require_shallow

CALLS: Final = "tool_calls"
"""The only key of what ``CallFormat.canonical`` writes, as in a message of OpenAI's API."""
_HEAD: Final = f'{{"{CALLS}": ['
_NAME: Final = re.compile(r"[\w.:/-]+")
_BETWEEN: Final = re.compile(r"[\s,;]*")
_OPENING: Final = re.compile(r"[{\[]")
Call = tuple[str, dict[str, Any]]
"""Name of a tool and its arguments."""


class CallFormat(WireModel):
    """How a template writes a call: as a JSON object with the name in it, or as the name and an object."""

    begin: str = ""
    """What stands before each call, or before the list of all; empty: a call begins the answer."""
    name_key: str = ""
    """Key of the name; empty: the name stands before the arguments."""
    arguments_key: str = ""
    between: str = ""
    """What stands between name and arguments."""

    def read(self, text: str) -> list[Call] | None:
        """The calls in a text; None: it calls nothing, or what it calls cannot be read."""
        try:
            calls = self._calls(text)
            require_shallow([list(each) for each in calls])
            return calls or None
        except (KeyError, TypeError, ValueError, RecursionError):
            return None

    def canonical(self, text: str) -> str:
        """The calls of a text as JSON, whatever the template; a text that calls nothing is left as it is."""
        calls = self.read(text)
        return text if calls is None else written(calls)

    def _calls(self, text: str) -> list[Call]:
        """Raises KeyError, TypeError, ValueError for what begins like a call and is none."""
        place = text.find(self.begin) + len(self.begin)
        if place < len(self.begin):
            return []
        found: list[Call] = []
        while place >= 0:
            calls, place = self._one(text, _skip(text, place))
            found += calls
            after = _skip(text, place)
            if self._goes_on(text, after):
                place = after
            else:
                place = text.find(self.begin, place) if self.begin else -1
                place += len(self.begin) if place >= 0 else 0
        return found

    def _goes_on(self, text: str, place: int) -> bool:
        """Whether a call follows another without a mark of its own."""
        if self.name_key:
            return text.startswith("{", place)
        named = None if self.begin else _NAME.match(text, place)
        return named is not None and text.startswith(f"{self.between}{{", named.end())

    def _one(self, text: str, place: int) -> tuple[list[Call], int]:
        """A call, or a list of them, and where it ends."""
        if self.name_key:
            value, end = json.JSONDecoder().raw_decode(text, place)
            found = value if isinstance(value, list) else [value]
            return [(_text(each[self.name_key]), _object(each[self.arguments_key])) for each in found], end
        named = _NAME.match(text, place)
        if named is None or not text.startswith(self.between, named.end()):
            raise ValueError("no name of a tool")
        value, end = json.JSONDecoder().raw_decode(text, _skip(text, named.end() + len(self.between)))
        return [(named[0], _object(value))], end


def written(calls: list[Call]) -> str:
    """Calls as JSON, which ``read`` reads: keys in order, so that equal calls are equal texts. Half a surrogate pair,
    which JSON may hold and no file, stays the escape that it was."""
    made = {CALLS: [{"name": name, "arguments": _sorted(arguments)} for name, arguments in calls]}
    return json.dumps(made, ensure_ascii=False).encode(errors="backslashreplace").decode()


def read(text: str) -> list[Call] | None:
    """The calls that ``written`` has written; None: the text is no such."""
    if not text.startswith(_HEAD):
        return None
    try:
        value = json.loads(text)
        require_shallow(value)
        found = [(_text(each["name"]), _object(each["arguments"])) for each in value[CALLS]]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return found if value.keys() == {CALLS} and found else None


def learnt(text: str, name: str, arguments: dict[str, Any]) -> CallFormat | None:
    """The form in which a text writes the call of a name with arguments; None: none that can be read."""
    for opening in _OPENING.finditer(text):
        try:
            value, _ = json.JSONDecoder().raw_decode(text, opening.start())
        except ValueError:
            continue
        before = text[: opening.start()]
        first = value[0] if isinstance(value, list) and value else value
        if isinstance(first, dict):
            made = _keyed(before, first, name, arguments) or _named(before, first, name, arguments)
            if made and made.read(text) == [(name, arguments)]:
                return made
    return None


def _keyed(before: str, value: dict[str, Any], name: str, arguments: dict[str, Any]) -> CallFormat | None:
    name_key = next((key for key, each in value.items() if each == name), "")
    arguments_key = next((key for key, each in value.items() if _is(each, arguments)), "")
    if not (name_key and arguments_key):
        return None
    return CallFormat(begin=before.strip(), name_key=name_key, arguments_key=arguments_key)


def _named(before: str, value: dict[str, Any], name: str, arguments: dict[str, Any]) -> CallFormat | None:
    begin, found, between = before.rpartition(name)
    return CallFormat(begin=begin.strip(), between=between) if found and value == arguments else None


def _is(value: Any, arguments: dict[str, Any]) -> bool:
    try:
        return _object(value) == arguments
    except (TypeError, ValueError):
        return False


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("the name of a tool is no text")
    return value


def _object(value: Any) -> dict[str, Any]:
    """Arguments; some templates write them as JSON within a text."""
    found = json.loads(value) if isinstance(value, str) else value
    if not isinstance(found, dict):
        raise TypeError("arguments are no object")
    return found


def _sorted(value: Any) -> Any:
    return json.loads(json.dumps(value, sort_keys=True))


def _skip(text: str, place: int) -> int:
    found = _BETWEEN.match(text, place)
    return found.end() if found else place
