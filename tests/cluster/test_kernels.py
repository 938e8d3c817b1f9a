"""The image that trains can compile, in a restricted pod, what training launches on a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hack.cluster.images import build_images
from hack.cluster.layout import REPOSITORY
from hack.cluster.provider import provider
from hack.platform.kubectl import Kubectl
from tests.support.restricted import ended, pod, restricted_namespace

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

SOURCE = Path(REPOSITORY, "hack", "gpu", "kernels.py")
PARTS = 1 + 14 * 4
"""The driver, and fourteen kernels for four generations of cards: two of TRL's, twelve of Liger's."""


def test_driver_and_kernels_compile_without_a_gpu(cluster: Kubectl) -> None:
    image = build_images(provider().images(), ["jobs"])["jobs"]
    with restricted_namespace("kernels") as kubectl:
        kubectl.apply(pod("kernels", image, "python", "-c", SOURCE.read_text()))
        state = ended(kubectl, "kernels", 500)
        lines = [json.loads(line) for line in kubectl("logs", "kernels").splitlines() if line.startswith("{")]
    assert [line for line in lines if "failed" in line] == []
    assert state["exitCode"] == 0
    assert len(lines) == PARTS
    assert all(line["bytes"] > 1000 for line in lines)
