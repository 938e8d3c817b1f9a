"""What the stages after training get of the accelerator's shape: one GPU, or as many as the model needs."""

from __future__ import annotations

import pytest

from finetune_api.budget import FitStatus
from finetune_api.evaluation import Generator
from finetune_api.stages import Stage
from finetune_operator.finetunejob.hardware import alone, gpus_alone, hardware_facts, shape_alone
from finetune_operator.settings import Gpu, PodShape, Profile

pytestmark = pytest.mark.unit

EIGHT = PodShape(
    requests={"cpu": "48", "memory": "400Gi", "ephemeral-storage": "480Gi"},
    limits={"cpu": "96", "memory": "800Gi", "nvidia.com/gpu": "8", "example.com/nic": "4", "hugepages-2Mi": "1Gi"},
    scratch_size="480Gi",
    node_selector={"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"},
)


def profile_of(shape: PodShape, count: int) -> Profile:
    """A profile with as many GPUs per pod."""
    gpu = Gpu(name="NVIDIA A100 80GB", count=count, memory_gib=79, peak_tflops=312, usd_per_hour=2.5)
    return Profile(accelerator=shape, gpu=gpu, nodes=2)


def test_after_training_a_pod_has_one_gpu_and_its_part_of_what_goes_with_it() -> None:
    """Memory and disk are those of the model, which is as large."""
    assert shape_alone(profile_of(EIGHT, 8)) == EIGHT.model_copy(
        update={
            "requests": {"cpu": "6", "memory": "400Gi", "ephemeral-storage": "480Gi"},
            "limits": {
                "cpu": "12",
                "memory": "800Gi",
                "nvidia.com/gpu": "1",
                "example.com/nic": "1",
                "hugepages-2Mi": "1Gi",
            },
        }
    )


def test_evaluation_of_a_model_that_fits_no_gpu_gets_more_of_them() -> None:
    """As many as preflight counted, with their part of the rest; never more than the profile has."""
    three, all_of_them = shape_alone(profile_of(EIGHT, 8), 3), shape_alone(profile_of(EIGHT, 8), 9)
    assert (three.limits["nvidia.com/gpu"], three.limits["example.com/nic"], three.limits["cpu"]) == ("3", "2", "36")
    assert all_of_them == EIGHT
    eight, fit = hardware_facts("big", profile_of(EIGHT, 8)), FitStatus(evaluation_gpus=3)
    assert alone(eight, 3) == eight.model_copy(update={"count": 3, "nodes": 1, "cpus": 36})
    assert [gpus_alone(stage, fit) for stage in (Stage.EVALUATE, Stage.EXPORT)] == [3, 1]
    assert [gpus_alone(stage, fit, Generator.VLLM) for stage in (Stage.EVALUATE, Stage.EXPORT)] == [4, 1]
    powers = [gpus_alone(Stage.EVALUATE, FitStatus(evaluation_gpus=each), Generator.VLLM) for each in (1, 2, 4, 5)]
    assert powers == [1, 2, 4, 8]
    assert gpus_alone(Stage.EVALUATE, None) == gpus_alone(Stage.EVALUATE, FitStatus()) == 1


@pytest.mark.parametrize(
    ("name", "count", "given", "part"),
    [
        ("cpu", 8, "4", "500m"),
        ("cpu", 8, "500m", "63m"),
        ("cpu", 3, "1.5", "500m"),
        ("nvidia.com/mig-3g.40gb", 2, "2", "1"),
        ("amd.com/gpu", 8, "8", "1"),
        ("rdma/hca", 4, "6", "2"),
        ("nvidia.com/gpu", 2, "two", "two"),
    ],
)
def test_a_part_is_rounded_up(name: str, count: int, given: str, part: str) -> None:
    """A device is whole. What is no amount is left to the API server to refuse."""
    shape = PodShape(requests={name: given}, limits={name: given})
    made = shape_alone(profile_of(shape, count))
    assert (made.requests, made.limits) == ({name: part}, {name: part})


@pytest.mark.parametrize("gpu", [True, False])
def test_a_pod_with_one_gpu_or_none_stays_as_it_is(gpu: bool) -> None:
    shape = PodShape(requests={"cpu": "0.5"}, limits={"cpu": "2", "memory": "8Gi"})
    profile = profile_of(shape, 1) if gpu else Profile(accelerator=shape, nodes=3)
    assert shape_alone(profile) == shape
