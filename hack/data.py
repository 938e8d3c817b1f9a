"""Data that tests and benchmarks read where a machine has it: none of it is part of this repository.

``FINETUNE_DATA_DIR`` names the folder; by default it is ``shared/data`` beside the checkout. In it:

- ``banking77/train.csv``: BANKING77 (Casanueva et al. 2020, arXiv 2003.04807; CC BY 4.0), from ``banking_data`` in
  https://github.com/PolyAI-LDN/task-specific-datasets;
- ``pii/dev.jsonl``: labelled sentences, in the form that ``hack.benchmarks.pii`` describes.
"""

from __future__ import annotations

import os
from pathlib import Path

from hack.cluster.layout import REPOSITORY

VARIABLE = "FINETUNE_DATA_DIR"


def data_file(name: str) -> Path:
    """Where the file of this name in the data folder is, or would be."""
    return Path(os.environ.get(VARIABLE) or REPOSITORY.parent / "shared" / "data") / name


def missing(name: str) -> str:
    """What to say where the file is not there."""
    return (
        f"{data_file(name)} is missing: put it there, or name its folder by {VARIABLE} (hack/data.py says what it is)"
    )
