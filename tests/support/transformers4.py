"""What the readers of Text Generation Inference 3.3 find in checkpoints, in an environment of their own."""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from finetune_jobs.examples.shapes import Message

_PROGRAM: Final = Path(__file__).parent.parent / "transformers4" / "read.py"


@dataclass(frozen=True)
class Read:
    """What was found."""

    version: str
    """Of transformers."""
    prompts: list[list[int]]
    """Token ids of each conversation, rendered for an answer."""
    log_probabilities: list[list[float]]
    """Of each token of a text but its first."""


def read_with_transformers_4(
    python: Path,
    checkpoints: Sequence[Sequence[Path]],
    texts: Sequence[Sequence[int]],
    conversations: Sequence[Sequence[Message]],
) -> list[Read]:
    """Load each checkpoint with transformers 4 and compute the texts, lists of token ids, in float32. One is a model's
    folder, or that and an adapter's."""
    folders = [[str(each) for each in checkpoint] for checkpoint in checkpoints]
    asked = json.dumps({"checkpoints": folders, "texts": texts, "conversations": conversations})
    ended = subprocess.run([python, _PROGRAM], input=asked, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    return [Read(each["version"], each["prompts"], each["logProbabilities"]) for each in found]
