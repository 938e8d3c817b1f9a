"""A metric container: how short answers are, and how many keep to a length. Python's standard library only.

It reads ``request.json`` and ``answers.jsonl`` and writes ``metrics.json``: docs/reference/metric-containers.md.
Parameter ``words``: the most words that an answer should have (default 20).
"""

import json
import os
import sys
from pathlib import Path
from typing import NoReturn

IN = Path(os.environ.get("METRICS_IN", "/metrics/in"))
OUT = Path(os.environ.get("METRICS_OUT", "/metrics/out"))
LOG = Path(os.environ.get("METRICS_LOG", "/dev/termination-log"))
MODELS = ("base", "artifact")


def main() -> None:
    """Count the words of every answer of both models."""
    request = json.loads((IN / "request.json").read_text(encoding="utf-8"))
    given = request["parameters"].get("words", "20")
    if not given.isdecimal():
        refuse(f"The parameter words is {given!r}: it must be a number.")
    with (IN / "answers.jsonl").open(encoding="utf-8") as lines:
        answers = [json.loads(line)["answers"] for line in lines]
    words = {model: [len(each[model].split()) for each in answers] for model in MODELS}
    kept = {model: {"scores": [float(count <= int(given)) for count in words[model]]} for model in MODELS}
    measured = [
        {"figure": "brief", "models": kept},
        {"figure": "words", "models": {model: {"scores": words[model]} for model in MODELS}},
    ]
    # Under another name first: a report that is there is whole.
    partial = OUT / "metrics.json.partial"
    partial.write_text(json.dumps({"schemaVersion": 1, "measured": measured}), encoding="utf-8")
    partial.rename(OUT / "metrics.json")


def refuse(why: str) -> NoReturn:
    """End with a message that the status of the FineTuneJob repeats."""
    if LOG.exists():
        LOG.write_text(why, encoding="utf-8")
    sys.exit(why)


if __name__ == "__main__":
    main()
