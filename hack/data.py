"""Optional data for tests and benchmarks; it is not part of this repository.

``FINETUNE_DATA_DIR`` is its folder, by default ``shared/data`` beside the checkout. It contains:

- ``banking77/train.csv``: BANKING77 (Casanueva et al. 2020, arXiv 2003.04807; CC BY 4.0), from ``banking_data`` in
  https://github.com/PolyAI-LDN/task-specific-datasets;
- ``pii/dev.jsonl``: labelled sentences, in the format that ``hack.benchmarks.pii`` describes.
"""

from __future__ import annotations

import os
from pathlib import Path

from hack.cluster.layout import REPOSITORY

VARIABLE = "FINETUNE_DATA_DIR"


def data_file(name: str) -> Path:
    """Path of a file in the data folder, whether it exists or not."""
    return Path(os.environ.get(VARIABLE) or REPOSITORY.parent / "shared" / "data") / name


def missing(name: str) -> str:
    """What to say if the file is missing."""
    return f"{data_file(name)} is missing: add it, or set {VARIABLE} to its folder (see hack/data.py)"
