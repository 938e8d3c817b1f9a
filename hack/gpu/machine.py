"""The machine on which the suite runs: its cards, and what CUDA is told."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from hack.cluster.layout import REPOSITORY

VISIBLE: Final = "CUDA_VISIBLE_DEVICES"
_IMAGE: Final = REPOSITORY / "images" / "torch" / "Dockerfile"
_ALLOCATOR: Final = re.compile(r"^ENV (PYTORCH_ALLOC_CONF)=(\S+)$", re.MULTILINE)
_ASK: Final = """
import json, torch
found = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
print(json.dumps([[each.name, each.total_memory / 2**30, [each.major, each.minor]] for each in found]))
"""


@dataclass(frozen=True)
class GpuCard:
    """A GPU as torch reports it."""

    name: str
    gib: float
    capability: tuple[int, int]


def find_cards() -> tuple[GpuCard, ...]:
    """The GPUs that torch can use. A process of its own asks: this one would hold memory of the first GPU from then on,
    which would be taken for the trainings'."""
    asked = subprocess.run([sys.executable, "-c", _ASK], stdout=subprocess.PIPE, text=True, check=True)
    return tuple(GpuCard(name, gib, (major, minor)) for name, gib, (major, minor) in json.loads(asked.stdout))


def numbers(cards: int, environment: Mapping[str, str] = os.environ) -> list[str]:
    """By what CUDA knows the GPUs that this process may use: as the environment names them, else from 0."""
    named = [each.strip() for each in environment.get(VISIBLE, "").split(",") if each.strip()]
    return named[:cards] or [str(number) for number in range(cards)]


def allocator() -> dict[str, str]:
    """The setting of CUDA's allocator with which the image trains: memory is not the same without."""
    return dict(_ALLOCATOR.findall(_IMAGE.read_text(encoding="utf-8")))
