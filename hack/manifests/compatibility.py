"""What a change of the CRDs breaks, compared with CRDs that were accepted before.

A manifest that was valid must stay valid and mean the same, and what the operator wrote must stay readable. Accepted:
a new optional field, a wider bound, another enum value. Whoever breaks something says so, with a reason, in
``crds/accepted/breaks.yaml`` (docs/decisions/0024-the-shape-of-the-api.md).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from finetune_api import crdgen
from finetune_api.spelled import is_spelled, spelled_out
from hack.cluster.layout import REPOSITORY

Schema = dict[str, Any]

ACCEPTED: Final = Path("crds/accepted")
BREAKS: Final = ACCEPTED / "breaks.yaml"
_UPPER: Final = ("maximum", "maxLength", "maxItems", "maxProperties")
_LOWER: Final = ("minimum", "minLength", "minItems")
_SAME: Final = ("type", "format", "pattern", "x-kubernetes-list-type", "x-kubernetes-list-map-keys")
_UNSAID: Final = {("array", "x-kubernetes-list-type"): "atomic"}
"""What the API server takes where a schema says nothing."""
_HEADER: Final = """\
# What the CRDs break, compared with those in this folder, each with its reason: `FineTuneJob spec.field: why`.
# `make accept-api` takes the present CRDs as the new measure and empties this list.
"""


def breaks(old: Schema, new: Schema, path: str = "") -> Iterator[tuple[str, str]]:
    """Where and how the schema ``new`` refuses or changes what ``old`` took."""
    yield from ((path, how) for how in _narrowed(old, new))
    properties = new.get("properties", {})
    for name, child in old.get("properties", {}).items():
        place = f"{path}.{name}".removeprefix(".")
        if name not in properties:
            yield place, "is gone"
        else:
            yield from breaks(child, properties[name], place)
    for name in set(new.get("required", [])) - set(old.get("required", [])):
        yield f"{path}.{name}".removeprefix("."), "is now required"
    if "items" in old and "items" in new:
        yield from breaks(old["items"], new["items"], f"{path}[]")


def _narrowed(old: Schema, new: Schema) -> Iterator[str]:
    for name in _SAME:
        was, now = (_said(each, name) for each in (old, new))
        if was != now and not (name == "pattern" and now is None):
            yield f"has another {name}: {was} → {now}"
    if "enum" in old or "enum" in new:
        gone = set(old.get("enum", [])) - set(new.get("enum", []))
        if gone or "enum" not in old:
            yield f"has fewer values: {', '.join(sorted(gone)) or 'any text before'}"
    for name in (*_UPPER, *_LOWER):
        was, now = old.get(name), new.get(name)
        if now is not None and (was is None or (now < was if name in _UPPER else now > was)):
            yield f"has a narrower {name}: {was} → {now}"
    if old.get("default") != new.get("default") and ("default" in old or "default" in new):
        yield f"has another default: {old.get('default')} → {new.get('default')}"
    known = {rule["rule"] for rule in old.get("x-kubernetes-validations", [])}
    for rule in new.get("x-kubernetes-validations", []):
        if rule["rule"] not in known and not is_spelled(rule):
            yield f"has another rule: {rule['message']}"


def _said(schema: Schema, name: str) -> Any:
    """What a schema says, or a rule in place of its pattern, or the API server takes."""
    if name == "pattern" and (words := spelled_out(schema)):
        return words[0]
    return schema.get(name, _UNSAID.get((schema.get("type", ""), name)))


def schema(crd: Schema) -> Schema:
    """The schema of spec and status in a CRD."""
    [version] = crd["spec"]["versions"]
    whole: Schema = version["schema"]["openAPIV3Schema"]
    return whole


def between(old: dict[str, str]) -> dict[str, list[str]]:
    """What today's models break of CRDs by file name: each place, as in ``breaks.yaml``, and how."""
    found: dict[str, list[str]] = {}
    for kind in crdgen.KINDS:
        text = old.get(crdgen.file_name(kind))
        for path, how in breaks(schema(yaml.load(text, yaml.CSafeLoader)), schema(crdgen.crd(kind))) if text else ():
            found.setdefault(f"{kind.kind} {path or '(object)'}", []).append(how)
    return found


def accepted() -> dict[str, str]:
    """The CRDs that were accepted last."""
    return {path.name: path.read_text() for path in (REPOSITORY / ACCEPTED).glob("finetune.dev_*.yaml")}


def committed(revision: str) -> dict[str, str] | None:
    """The CRDs of a commit; None where git or the commit is missing, as in a shallow clone or an archive."""
    found = {}
    for name in map(crdgen.file_name, crdgen.KINDS):
        command = ["git", "-C", str(REPOSITORY), "show", f"{revision}:crds/{name}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
        except (OSError, subprocess.SubprocessError):
            return None
        found[name] = done.stdout
    return found


def listed() -> dict[str, str]:
    """The breaks that somebody answers for: place and reason."""
    said: dict[str, str] = yaml.load((REPOSITORY / BREAKS).read_text(), yaml.CSafeLoader) or {}
    return said


def accept() -> None:
    """Take the present CRDs as the measure of those to come."""
    for kind in crdgen.KINDS:
        (REPOSITORY / ACCEPTED / crdgen.file_name(kind)).write_text(crdgen.text(kind))
    (REPOSITORY / BREAKS).write_text(_HEADER)


if __name__ == "__main__":
    accept()
    sys.stdout.write(f"{ACCEPTED}: the present CRDs\n")
