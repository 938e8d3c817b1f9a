"""The machine on which the suite runs: its cards, and what CUDA is told."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from typing import Final

from pydantic import TypeAdapter

from finetune_jobs.modelling.cards import Found
from hack.cluster.layout import REPOSITORY

VISIBLE: Final = "CUDA_VISIBLE_DEVICES"
_IMAGE: Final = REPOSITORY / "images" / "torch" / "Dockerfile"
_ALLOCATOR: Final = re.compile(r"^ENV (PYTORCH_ALLOC_CONF)=(\S+)$", re.MULTILINE)
_ASK: Final = """
import json
from dataclasses import asdict
from finetune_jobs.modelling.device import reported
print(json.dumps(asdict(reported())))
"""


def find() -> Found:
    """The GPUs that torch can use, and what it needs of the driver. A process of its own asks: this one would hold
    memory of the first GPU from then on, which would be taken for the trainings'."""
    asked = subprocess.run([sys.executable, "-c", _ASK], stdout=subprocess.PIPE, text=True, check=True)
    return TypeAdapter(Found).validate_json(asked.stdout)


def numbers(cards: int, environment: Mapping[str, str] = os.environ) -> list[str]:
    """By what CUDA knows the GPUs that this process may use: as the environment names them, else from 0."""
    named = [each.strip() for each in environment.get(VISIBLE, "").split(",") if each.strip()]
    return named[:cards] or [str(number) for number in range(cards)]


def allocator() -> dict[str, str]:
    """The setting of CUDA's allocator with which the image trains: memory is not the same without."""
    return dict(_ALLOCATOR.findall(_IMAGE.read_text(encoding="utf-8")))
