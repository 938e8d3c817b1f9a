"""What of uv.lock goes into an image: one package with all that it needs, and nothing else of the lock."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

Package = Mapping[str, Any]
_INSTALLED = ("version", "source", "sdist", "wheels")


class Request(NamedTuple):
    """A package that is asked for, or one extra of it; any version that the lock has, unless one is named."""

    name: str
    extra: str = ""
    version: str | None = None


@cache
def locked(lock: str, wanted: Request) -> bytes:
    """The locked state of a package and of everything that it needs, as bytes to hash.

    Markers are not evaluated: what only another Python would need counts too, so that nothing is missed.
    """
    found: dict[Request, list[dict[str, Any]]] = {}
    waiting = [wanted]
    while waiting:
        request = waiting.pop()
        if request not in found:
            named = _packages(lock).get(request.name, ())
            matching = [each for each in named if request.version in (None, each.get("version"))]
            found[request] = [_state(each, request.extra) for each in matching]
            waiting.extend(further for each in matching for further in _requests(each, request.extra))
    return json.dumps(sorted(map(str, found.items()))).encode()


@cache
def _packages(lock: str) -> Mapping[str, list[Package]]:
    """The versions of each package in the lock, by its name."""
    found: dict[str, list[Package]] = {}
    for package in tomllib.loads(lock)["package"]:
        found.setdefault(package["name"], []).append(package)
    return found


def _state(package: Package, extra: str) -> dict[str, Any]:
    """What decides which files of a package are installed, and which others with it."""
    return {**{key: package.get(key) for key in _INSTALLED}, "needs": _needs(package, extra)}


def _needs(package: Package, extra: str) -> list[Package]:
    return [*package.get("dependencies", ()), *package.get("optional-dependencies", {}).get(extra, ())]


def _requests(package: Package, extra: str) -> Iterator[Request]:
    for need in _needs(package, extra):
        for each in ("", *need.get("extra", ())):
            yield Request(need["name"], each, need.get("version"))
