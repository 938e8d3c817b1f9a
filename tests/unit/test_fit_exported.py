"""Sizes of an exported model by its format, and the groups of its 4-bit weights."""

import pytest

from finetune_api.budget import HardwareFacts
from finetune_api.export import ExportFormat
from finetune_api.stages import Stage
from finetune_api.training import Training
from finetune_jobs.base.errors import StageError
from finetune_jobs.fit.admission import admit
from finetune_jobs.fit.disk import scratch_bytes
from finetune_jobs.fit.exported import exported_bytes, require_calibrated, require_group, require_rounded, weight_bytes
from finetune_jobs.fit.fitting import After
from finetune_jobs.fit.memory import GIB
from tests.support.fit import A100, L4, LLAMA_8B, shape_of
from tests.support.sentences import assert_says, unsaid

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("inputs", "size"),
    [
        ([4096, 14336], 128),
        ([576, 1536], 64),
        ([576, 1536, 96], 32),
        ([4096, 4096 + 32], 32),
        ([64], 64),
    ],
)
def test_the_largest_group_that_divides_every_layer(inputs: list[int], size: int) -> None:
    assert require_group(inputs) == size


def test_every_sentence_about_formats() -> None:
    with pytest.raises(StageError) as indivisible:
        require_group([4096, 80])
    assert_says(
        indivisible.value.message, "spec.export.format INT4", "128, 64, 32", "are 80, 4096", "Choose INT8 or FP8"
    )
    with pytest.raises(StageError, match=r"format INT4AWQ needs layers"):
        require_group([4096, 80], ExportFormat.INT4_AWQ)
    with pytest.raises(StageError) as uncalibrated:
        require_calibrated(["model.layers.0.mlp.up_proj", "model.layers.3.mlp.up_proj"])
    parts = (
        "2 layers could not be calibrated",
        "model.layers.0.mlp.up_proj",
        "QLoRA",
        "Set spec.export.format",
        "INT8",
    )
    assert_says(uncalibrated.value.message, *parts)
    require_calibrated([])
    with pytest.raises(StageError) as unrounded:
        require_rounded("INT8", 0)
    assert_says(unrounded.value.message, "format INT8: no layer was quantized", "Conv1D", "to Merged, or train another")
    require_rounded("INT8", 1)
    messages = [indivisible.value.message, uncalibrated.value.message, unrounded.value.message]
    assert unsaid("finetune_jobs.fit.exported", messages) == []


def test_bytes_of_every_format() -> None:
    """Of an 8B: its embeddings and output layer stay in 16 bits."""
    shape = shape_of(LLAMA_8B)
    sizes = {each: exported_bytes(shape, weight_bytes(each)) / GIB for each in ExportFormat}
    assert sizes[ExportFormat.INT8] == pytest.approx(8.5, abs=0.1)
    assert sizes[ExportFormat.W8A16] == sizes[ExportFormat.FP8] == sizes[ExportFormat.INT8]
    assert sizes[ExportFormat.INT4] == pytest.approx(5.6, abs=0.2)
    assert sizes[ExportFormat.MERGED] == pytest.approx(15.0, abs=0.1)
    assert weight_bytes("of a newer version") == 2


def test_a_larger_format_needs_more_disk_and_more_of_the_gpu() -> None:
    shape = shape_of(LLAMA_8B)
    small, large = (scratch_bytes(shape, Training(), [weight_bytes(each)]) for each in ("INT4", "Merged"))
    assert large[Stage.EXPORT] / GIB == pytest.approx(15 + 15.3, abs=0.5)
    assert small[Stage.EVALUATE] / GIB == pytest.approx(15 + 5.9, abs=0.5)

    def admitted(hardware: HardwareFacts, export_format: str) -> None:
        admit(LLAMA_8B, Training(), hardware, [A100], after=After(exported=[weight_bytes(export_format)]))

    disk = L4.model_copy(update={"scratch_gib": 28, "pod_memory_gib": 28})
    gpu = L4.model_copy(update={"memory_gib": 16.0, "pod_memory_gib": 28})
    for hardware, says in ((disk, "Stage export needs about 30 GiB"), (gpu, "Evaluation needs about")):
        admitted(hardware, "INT8")
        with pytest.raises(StageError) as refusal:
            admitted(hardware, "Merged")
        assert_says(refusal.value.message, says, "it fits profile gpu-a100-40")
