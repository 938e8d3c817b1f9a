"""The machine on which the suite runs: its cards, and whether its libraries are the locked ones."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Final

from hack.cluster.layout import REPOSITORY

if TYPE_CHECKING:
    from hack.gpu.bench import Bench
    from hack.gpu.check import Check

LIBRARIES: Final = ("torch", "triton", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "datasets")
"""What a result may change with."""
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


def other_versions(lock: str, installed: Mapping[str, str]) -> list[str]:
    """Libraries whose installed versions are not those of a ``uv.lock``, which has several of what other environments
    pin otherwise; a local part, as in 2.13.0+cu130, is none of its concern."""
    locked: dict[str, set[str]] = {}
    for package in tomllib.loads(lock)["package"]:
        locked.setdefault(package["name"], set()).add(package.get("version", "").partition("+")[0])
    return [
        f"{name} {version or 'is missing'} (locked: {' or '.join(sorted(locked[name]))})"
        for name, version in installed.items()
        if name in locked and version.partition("+")[0] not in locked[name]
    ]


def described(bench: Bench) -> Iterator[Check]:
    """Cards, driver and libraries: what a figure of this suite is worth elsewhere depends on them."""
    import torch  # seconds, which a wrong argument does without

    from hack.gpu.check import Check

    cards = ", ".join(
        f"{card.name} ({card.gib:.1f} GiB, sm_{card.capability[0]}{card.capability[1]})" for card in bench.cards
    )
    yield Check("machine", "GPUs", cards or "none", "", True if bench.cards else None)
    yield Check("machine", "CUDA of torch", torch.version.cuda or "none", "", None)
    installed = {name: _version(name) for name in LIBRARIES}
    others = other_versions((REPOSITORY / "uv.lock").read_text(encoding="utf-8"), installed)
    same = ", ".join(f"{name} {version}" for name, version in installed.items())
    yield Check("machine", "libraries", ", ".join(others) or same, "as locked", None if others else True)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
