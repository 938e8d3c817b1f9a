"""What the stages write, against their pod's scratch volume; and a CPU that computes in float32."""

from __future__ import annotations

import pytest

from finetune_api.stages import Stage
from finetune_api.training import Method, Training
from finetune_jobs.base.errors import StageError
from finetune_jobs.fit.admission import admit, admit_rest
from finetune_jobs.fit.disk import scratch_bytes, scratch_shortage
from finetune_jobs.fit.fitting import After
from finetune_jobs.fit.memory import GIB, peak_memory
from finetune_jobs.fit.preflight import computes_bfloat16
from finetune_jobs.fit.steps import ON_CPU, ON_OLD_CPU
from tests.support.fit import A100, CPU, L4, LLAMA_8B, SMOLLM, shape_of
from tests.support.sentences import assert_says

pytestmark = pytest.mark.unit

FULL = Training(method=Method.FULL)


def test_files_of_the_stages() -> None:
    """An adapter's checkpoints are small; those of an 8B in full are 90 GiB each, as its decision on sharding says."""
    shape = shape_of(LLAMA_8B)
    adapter, full = (
        {stage: size / GIB for stage, size in scratch_bytes(shape, each).items()} for each in (Training(), FULL)
    )
    assert 15 < adapter[Stage.TRAIN] < 17
    assert adapter[Stage.EXPORT] == adapter[Stage.EVALUATE] == pytest.approx(15 + 8.5, abs=0.5)
    assert full[Stage.TRAIN] == pytest.approx(15 + 3 * 90 + 15, abs=1)
    assert full[Stage.EVALUATE] == pytest.approx(15 + 15 + 8.5, abs=0.5)
    unrounded = [scratch_bytes(shape, each, unrounded=True)[Stage.EVALUATE] / GIB for each in (Training(), FULL)]
    assert unrounded == pytest.approx([adapter[Stage.EVALUATE] + 15, full[Stage.EVALUATE]], abs=0.5)


def test_a_base_takes_what_its_files_take() -> None:
    """In 32 bits it is twice as large, as it is where a folder has the weights in two forms; less it never is."""
    shape, sizes = shape_of(LLAMA_8B), dict[int, dict[Stage, float]]()
    for downloaded in (0, 10 * GIB, 30 * GIB):
        found = scratch_bytes(shape, Training(), unrounded=True, downloaded=downloaded)
        sizes[downloaded] = {stage: size / GIB for stage, size in found.items()}
    assert sizes[0] == sizes[10 * GIB]
    more = {stage: size - sizes[0][stage] for stage, size in sizes[30 * GIB].items()}
    assert more == pytest.approx(dict.fromkeys(more, 15), abs=0.1), "what is written out stays in 16 bits"


def test_too_small_a_volume_is_refused() -> None:
    """With the stage that needs most, and another profile or method where one would do."""
    small = L4.model_copy(update={"scratch_gib": 20, "pod_memory_gib": 28})
    large = A100.model_copy(update={"scratch_gib": 120})
    with pytest.raises(StageError) as refusal:
        admit(LLAMA_8B, Training(), small, [large])
    assert_says(
        refusal.value.message, "Stage export needs about 24 GiB of scratch", "20 GiB", "profile gpu-l4", "gpu-a100-40"
    )
    assert admit(LLAMA_8B, Training(), small.model_copy(update={"scratch_gib": 60})).memory is not None
    assert scratch_shortage(shape_of(LLAMA_8B), Training(), L4) == ""
    big = A100.model_copy(update={"memory_gib": 200, "scratch_gib": 240})
    with pytest.raises(StageError) as refusal:
        admit(LLAMA_8B, FULL, big)
    assert_says(refusal.value.message, "Stage train needs about 299 GiB", "3 checkpoints", "240 GiB", "method: QLoRA")


def test_a_cpu_without_bfloat16_is_told_what_it_costs() -> None:
    """Twice the activations, and the weights that are not rounded; the rounded ones stay."""
    old, usual = (peak_memory(shape_of(SMOLLM), Training(), step) for step in (ON_OLD_CPU, ON_CPU))
    assert old.activations == 2 * usual.activations
    assert usual.weights < old.weights < 2 * usual.weights
    roomy = CPU.model_copy(update={"memory_gib": 64})
    told = admit(SMOLLM, Training(), roomy, bfloat16=False)
    assert_says(
        told.message, "lacks AVX512-BF16", "float32", f"about {usual.gib:.1f} GiB with bfloat16", "not more time"
    )
    assert "float32" not in admit(SMOLLM, Training(), roomy).message
    assert told.memory == old
    tight = CPU.model_copy(update={"memory_gib": 20})
    admit(LLAMA_8B, Training(), tight)
    lora = Training(method=Method.LORA)
    warned = admit(LLAMA_8B, lora, tight, bfloat16=False)
    assert_says(warned.warning, "lacks AVX512-BF16", "as this pod's", "LoRA needs at least", "20 GiB", "Evaluation")
    assert admit(LLAMA_8B, lora, tight).warning == ""
    with pytest.raises(StageError, match="at least"):  # what every CPU needs
        admit(LLAMA_8B, lora, CPU.model_copy(update={"memory_gib": 10}), bfloat16=False)


def test_what_follows_a_training_is_not_refused_for_the_cpu_of_another_pod() -> None:
    """Resolve runs where the platform lets small pods run. The training may be from elsewhere, and is kept."""
    asked = (LLAMA_8B, Training(), CPU.model_copy(update={"memory_gib": 20}))
    after = After(exported=[1.0], stages=(Stage.EXPORT, Stage.EVALUATE))
    warned = admit_rest(*asked, after=after, bfloat16=False)
    assert_says(warned.warning, "as this pod's does", "Evaluation needs at least 30.6 GiB", "32 bits", "20 GiB")
    assert admit_rest(*asked, after=after).warning == ""


@pytest.mark.parametrize(
    ("flags", "does"),
    [
        ("fpu sse avx2 fma", False),
        ("fpu avx2 avx512f avx512bw avx512dq avx512vl", False),
        ("fpu avx2 avx512f avx512bw avx512dq avx512vl avx512_bf16", True),
        ("fpu avx2 avx512f amx_tile", True),
        ("fp asimd bf16", True),
        ("fp asimd", False),
        ("", True),
    ],
)
def test_which_cpus_compute_in_bfloat16(flags: str, does: bool) -> None:
    assert computes_bfloat16(frozenset(flags.split())) is does
