"""Write families.json, or check that it is up to date: ``python -m hack.families [--check | NAME ...]``.

Writing takes minutes. The check looks only whether the file was made by the present programs with the present
transformers, and not changed since: nothing else decides what is in it. With names, it prints what is found of them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from finetune_jobs.fit.families import DATA

HERE = Path(__file__).parent


def stamp(content: str) -> dict[str, str]:
    """By what a file with this ``content`` was made."""
    programs = "".join(each.read_text() for each in sorted(HERE.glob("*.py")))
    digests = {"programs": programs, "content": content}
    return {"transformers": version("transformers")} | {
        name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in digests.items()
    }


def text(found: dict[str, Any]) -> str:
    """The file, with its stamp: a line for each part of a family."""
    return _lines({"made": stamp(_lines(found)), **found}) + "\n"


def up_to_date(file: str) -> bool:
    """Whether the file is what the present programs would write."""
    return text({name: part for name, part in json.loads(file).items() if name != "made"}) == file


def _lines(value: Any, depth: int = 6, indent: str = "") -> str:
    """JSON, of which the outer levels have a line for each part."""
    if not depth or not value or not isinstance(value, dict | list) or not _nested(value):
        return json.dumps(value)
    inner = f"{indent} "
    if isinstance(value, list):
        return "[\n" + ",\n".join(f"{inner}{_lines(each, depth - 1, inner)}" for each in value) + f"\n{indent}]"
    pairs = (f"{inner}{json.dumps(name)}: {_lines(each, depth - 1, inner)}" for name, each in value.items())
    return "{\n" + ",\n".join(pairs) + f"\n{indent}}}"


def _nested(value: Any) -> bool:
    parts = value.values() if isinstance(value, dict) else value
    return any(isinstance(each, dict | list) for each in parts) or len(json.dumps(value)) > 100


def main() -> int:
    """Exit code 0, or 1 if ``--check`` found the file out of date."""
    parser = argparse.ArgumentParser(prog="python -m hack.families", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only check; fail if the file is out of date")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only print what is found of these model_types")
    options = parser.parse_args()
    if options.check:
        current = DATA.exists() and up_to_date(DATA.read_text())
        if not current:
            sys.stdout.write(f"{DATA}: out of date; run `make families`\n")
        return 0 if current else 1
    from hack.families.everything import everything, told  # with torch

    for name in options.names:
        sys.stdout.write(f"{name}: {_lines(told(name))}\n")
    if not options.names:
        DATA.write_text(text(everything()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
