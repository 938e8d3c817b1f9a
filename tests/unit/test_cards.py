"""GPUs: their generation by name, and what a pod's GPUs are good for, as torch reports them."""

from typing import Final

import pytest

from finetune_api.budget import HardwareFacts
from finetune_api.cards import Generation, generation_of
from finetune_jobs.modelling.cards import Card, Found, described, differences, unusable
from hack.cluster.layout import REPOSITORY
from tests.support.sentences import assert_says, unsaid

pytestmark = pytest.mark.unit

KERNELS: Final = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")
"""Of torch 2.13 for CUDA 13.0."""
L4: Final = Card("NVIDIA L4", 22.03, (8, 9))
T4: Final = Card("Tesla T4", 14.56, (7, 5))
A100: Final = Card("NVIDIA A100-SXM4-40GB", 39.39, (8, 0))
SLICE: Final = Card("NVIDIA A100-SXM4-40GB MIG 3g.20gb", 19.5, (8, 0))
H100: Final = Card("NVIDIA H100 80GB HBM3", 79.1, (9, 0))
H200: Final = Card("NVIDIA H200", 139.8, (9, 0))
V100: Final = Card("Tesla V100-SXM2-16GB", 15.77, (7, 0))
GB10: Final = Card("NVIDIA GB10", 119.7, (12, 1))
NEXT: Final = Card("NVIDIA R200", 280, (14, 0))
FOR_L4: Final = HardwareFacts(profile="gpu-l4", name="NVIDIA L4", count=1, memory_gib=22)
FOR_A100: Final = HardwareFacts(profile="gpu-a100-40", name="NVIDIA A100 40GB", count=1, memory_gib=39)
FOR_H100: Final = HardwareFacts(profile="gpu-h100-80", name="NVIDIA H100 80GB", count=1, memory_gib=79)
FOR_TWO: Final = FOR_L4.model_copy(update={"count": 2})
NOMINAL: Final = FOR_L4.model_copy(update={"memory_gib": 24})
CPU: Final = HardwareFacts(profile="cpu-small", memory_gib=8)


def here(*cards: Card, kernels: tuple[str, ...] = KERNELS) -> Found:
    """A pod with these GPUs."""
    return Found(cards, "13.0", "13.0", kernels)


@pytest.mark.parametrize(
    ("name", "generation"),
    [
        ("NVIDIA L4", "Ada"),
        ("NVIDIA-L40S", "Ada"),
        ("nvidia-l4", "Ada"),
        ("NVIDIA RTX 6000 Ada Generation", "Ada"),
        ("NVIDIA GeForce RTX 4090", "Ada"),
        ("Tesla T4", "Turing"),
        ("nvidia-tesla-t4", "Turing"),
        ("Quadro RTX 6000", "Turing"),
        ("NVIDIA GeForce RTX 2080 Ti", "Turing"),
        ("NVIDIA A10G", "Ampere"),
        ("a10g", "Ampere"),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "Ampere"),
        ("NVIDIA-A100-SXM4-80GB-SHARED", "Ampere"),
        ("NVIDIA RTX A6000", "Ampere"),
        ("NVIDIA GeForce RTX 3090", "Ampere"),
        ("NVIDIA H100 80GB HBM3", "Hopper"),
        ("NVIDIA GH200 480GB", "Hopper"),
        ("NVIDIA B200", "Blackwell"),
        ("nvidia-gb200", "Blackwell"),
        ("NVIDIA GeForce RTX 5090", "Blackwell"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "Blackwell"),
        ("nvidia-rtx-pro-6000", "Blackwell"),
        ("Tesla V100-SXM2-16GB", "Volta"),
        ("AMD Instinct MI300X", None),
        ("NVIDIA R200", None),
        ("GPU", None),
        ("", None),
    ],
)
def test_a_name_tells_the_generation(name: str, generation: str | None) -> None:
    assert generation_of(name) == (Generation(generation) if generation else None)


def test_the_chart_names_cards_that_are_known() -> None:
    values = (REPOSITORY / "charts/finetune-operator/values.yaml").read_text()
    names = [
        line.partition("gpu: {name: ")[2].partition(",")[0] for line in values.splitlines() if "gpu: {name" in line
    ]
    assert names
    assert None not in {generation_of(name) for name in names}


FAULTS: Final = [
    (
        Found(cuda="13.0", driver="12.4", why_not="The NVIDIA driver on your system is too old."),
        FOR_L4,
        "Profile 'gpu-l4' … 1 × NVIDIA L4 … CUDA cannot be used … CUDA 13.0 … CUDA 12.4 … 580 or newer",
    ),
    (
        Found(cuda="14.1", driver="13.2"),
        FOR_L4,
        "CUDA 14.1 … CUDA 13.2 … Update the driver … one that supports CUDA 14",
    ),
    (
        Found(cuda="13.1", driver="13.0", why_not="No CUDA GPUs are available."),
        FOR_L4,
        "CUDA cannot be used … No CUDA GPUs are available.",
    ),
    (Found(cuda="13.0"), FOR_L4.model_copy(update={"name": ""}), "1 × GPU … torch gives no reason"),
    (here(V100), None, "no kernels for Tesla V100-SXM2-16GB (compute capability 7.0) … sm_75 … Choose a profile"),
    (here(NEXT), FOR_L4, "no kernels for NVIDIA R200 (compute capability 14.0) … sm_120 … Choose a profile"),
    (here(H100, kernels=("sm_86",)), FOR_H100, "no kernels for NVIDIA H100 … only for sm_86"),
    (here(H100, kernels=("sm_100a", "sm_80")), FOR_H100, "no kernels for NVIDIA H100"),
    (here(T4), FOR_L4, "bfloat16 … Tesla T4 (compute capability 7.5) … Choose a profile … Ampere"),
    (here(L4, T4), None, "bfloat16 … Tesla T4"),
    (here(L4), FOR_TWO, "2 × NVIDIA L4 … 1 × NVIDIA L4 … nvidia.com/gpu … accelerator.limits"),
    (
        here(SLICE),
        FOR_A100.model_copy(update={"count": 2, "memory_gib": 19.5}),
        "2 × NVIDIA A100 40GB … 1 × NVIDIA A100-SXM4-40GB MIG 3g.20gb … one MIG slice, however many … gpu.count … "
        "accelerator.limits to 1 … nodes without MIG",
    ),
    (
        here(L4),
        FOR_L4.model_copy(update={"memory_gib": 39}),
        "Profile 'gpu-l4' … 39 GiB … fit … a GPU with 22.0 GiB (NVIDIA L4) … gpu.memoryGib … to 22 … nodeSelector",
    ),
    (
        here(SLICE),
        FOR_A100,
        "'gpu-a100-40' … 39 GiB … a MIG slice with 19.5 GiB (NVIDIA A100-SXM4-40GB MIG 3g.20gb) … gpu.memoryGib … to "
        "19.5 … nodes without MIG",
    ),
    (here(L4, SLICE), FOR_TWO, "2 × NVIDIA L4 with 22 GiB … a MIG slice with 19.5 GiB"),
]
"""What torch reports, the profile, and what is wrong with it."""


@pytest.mark.parametrize(("found", "hardware", "says"), FAULTS)
def test_what_cannot_be_used(found: Found, hardware: HardwareFacts | None, says: str) -> None:
    assert_says(unusable(found, hardware), *says.split(" … "))


@pytest.mark.parametrize(
    ("found", "hardware", "said"),
    [
        (here(L4), FOR_L4, []),
        (here(A100), FOR_A100, []),
        (here(H100), FOR_H100, []),
        (here(L4, kernels=()), FOR_L4, []),
        (here(GB10), None, []),
        (here(NEXT, kernels=("sm_90", "compute_120")), None, []),
        (here(H100, kernels=("sm_90a",)), FOR_H100, []),
        (here(L4), CPU, []),
        (here(L4), FOR_L4.model_copy(update={"memory_gib": 0, "name": ""}), []),
        (here(L4), FOR_L4.model_copy(update={"memory_gib": 22.5}), []),
        (Found(cuda="13.0", why_not="no driver"), None, []),
        (Found(), CPU, []),
        (here(A100), FOR_L4, ["NVIDIA A100-SXM4-40GB … 'gpu-l4' calls it NVIDIA L4 … time and cost", "39.4 GiB … 22"]),
        (here(H200), FOR_H100, ["NVIDIA H200 … NVIDIA H100 80GB", "139.8 GiB … more than the 79"]),
        (here(SLICE), FOR_A100.model_copy(update={"memory_gib": 19.5}), []),
        (here(L4), NOMINAL, ["22.0 GiB … less than the 24 … 'gpu-l4' … gpu.memoryGib to 22"]),
        (here(L4, L4), FOR_L4, ["2 GPUs … the 1 of its profile"]),
    ],
)
def test_what_can_be_used(found: Found, hardware: HardwareFacts | None, said: list[str]) -> None:
    """What is more than promised, or has another name, is told only."""
    assert unusable(found, hardware) == ""
    told = differences(found, hardware)
    assert len(told) == len(said)
    for sentence, parts in zip(told, said, strict=True):
        assert_says(sentence, *parts.split(" … "))


def test_every_sentence_about_cards_is_in_a_table() -> None:
    logged = [*differences(here(H200), FOR_H100), *differences(here(L4), NOMINAL), *differences(here(L4, L4), FOR_L4)]
    messages = [*(unusable(found, hardware) for found, hardware, _ in FAULTS), *logged]
    assert unsaid("finetune_jobs.modelling.cards", messages) == []
    assert described((L4, L4, T4)) == "2 × NVIDIA L4, 1 × Tesla T4"
