"""What a result of the suite depends on: cards, driver, and whether the libraries are the locked ones."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Final

from finetune_jobs.modelling.cards import Found, unusable
from hack.cluster.layout import REPOSITORY
from hack.gpu.bench import Bench
from hack.gpu.check import Check
from hack.gpu.machine import find

LIBRARIES: Final = ("torch", "triton", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "datasets")
"""What a result may change with."""


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

    found = find() if bench.on_gpu else Found()
    cards = ", ".join(
        f"{card.name} ({card.gib:.1f} GiB, sm_{card.capability[0]}{card.capability[1]})" for card in found.cards
    )
    fault = unusable(found, None)
    yield Check("machine", "GPUs", f"{cards or 'none'} {fault}".rstrip(), "", not fault if bench.on_gpu else None)
    cuda = f"{torch.version.cuda or 'none'} of torch, {found.driver or 'none'} of the driver"
    yield Check("machine", "CUDA", cuda, "", None)
    installed = {name: _version(name) for name in LIBRARIES}
    others = other_versions((REPOSITORY / "uv.lock").read_text(encoding="utf-8"), installed)
    same = ", ".join(f"{name} {version}" for name, version in installed.items())
    yield Check("machine", "libraries", ", ".join(others) or same, "as locked", None if others else True)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
