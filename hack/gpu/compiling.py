"""What training launches on a GPU compiles here."""

from __future__ import annotations

from collections.abc import Iterator

from hack.gpu import kernels
from hack.gpu.bench import Bench
from hack.gpu.check import Check


def compiled(_: Bench) -> Iterator[Check]:
    """Triton's driver, and the kernels of the loss for several generations of cards."""
    for what, build in kernels.tasks():
        try:
            found, passed = f"{build()} bytes", True
        except Exception as error:  # noqa: BLE001 # whatever it is, it is the answer
            found, passed = f"{type(error).__name__}: {error}", False
        yield Check("kernels", what, found, "machine code", passed)
