"""The training examples on which 4-bit weights are calibrated, as the model sees them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from finetune_api.dataset import TaskType
from finetune_jobs.evaluation.sample import sample
from finetune_jobs.modelling import chat
from finetune_jobs.modelling.token_files import read_split
from finetune_jobs.modelling.tokenizer import load_tokenizer, stop_token

ROWS: Final = 128
"""Examples: as many as GPTQ was published with (Frantar et al. 2022, arXiv 2210.17323)."""
TOKENS: Final = 512
"""Of each example at most, from its end, where the answer stands: longer ones take memory and time, and tell little."""

Tokens = Sequence[Sequence[int]]
"""Token ids, one list an example."""


def calibration_rows(dataset: Path, base: Path, *, thoughts: bool) -> Tokens:
    """At most ROWS examples of the train split; which ones, the hash of their content decides.

    ``thoughts``: whether the model was trained to think before it answers. Raises StageError (ModelUnsupported).
    """
    tokenizer = load_tokenizer(base)
    stop = stop_token(base, tokenizer)
    chosen = sample(read_split(dataset, "train"), ROWS, TaskType.TEXT)
    encoded = [chat.encode(tokenizer, each.messages, stop, each.tools, thoughts=thoughts) for each in chosen]
    return [each.input_ids[-TOKENS:] for each in encoded]
