"""Fused kernels compute what the model does without them, or are not used. They run in Triton's interpreter, in a
process of their own (``tests.support.interpreted``), one for all cases: starting takes longer than most of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import MethodType
from typing import Any, Final

import pytest
import torch
from liger_kernel.transformers import monkey_patch
from liger_kernel.transformers.rms_norm import LigerRMSNorm
from liger_kernel.transformers.rope import liger_rotary_pos_emb
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

from finetune_api.reasons import Reason
from finetune_api.training import Kernels, Method, Training
from finetune_jobs.base.errors import StageError
from finetune_jobs.fit.kernels import FAMILIES, Kernel, fused_kernels, listed
from finetune_jobs.fit.recipe import Batch
from finetune_jobs.modelling.loading import load_base
from finetune_jobs.modelling.tokenizer import load_tokenizer
from finetune_jobs.training import kernels
from finetune_jobs.training.build import Examples, build_trainer
from finetune_jobs.training.kernels import restore_rotation, runnable, use_kernels
from hack.cluster.layout import REPOSITORY
from tests.support.sentences import assert_says
from tests.support.tiny_model import build_tiny_llama
from tests.support.training import read_examples, settings, write_dataset

pytestmark = [pytest.mark.unit, pytest.mark.slow, pytest.mark.timeout(1800)]

PROGRAM: Final = "tests.support.interpreted"
CLOSE: Final = 1e-5
"""Two float32 passes of a small model, whose sums are in another order."""


CHECKED: Final = ("llama", "qwen3", "gemma2")
TRAINED: Final = ("LoRA,packed,all", "QLoRA,padded,none", "LoRA,padded,part", "Full,packed,part")
CASES: Final = (
    *(f"family:{name}" for name in FAMILIES),
    *(f"checked:{name}" for name in CHECKED),
    *(f"planted:{what}" for what in ("forward", "backward", "compile")),
    *(f"trained:{asked}" for asked in TRAINED),
)


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What each case found."""
    command = [sys.executable, "-m", PROGRAM, str(tmp_path_factory.mktemp("interpreted")), *CASES]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    found = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith('{"case"')]
    assert [each["case"] for each in found] == [*CASES]
    return {each.pop("case"): each for each in found}


def assert_close(found: dict[str, Any]) -> None:
    assert found["moved"] > 0
    assert found["loss"] < CLOSE
    assert found["gradients"] < CLOSE


NORMS: Final = {"qwen3": 4, "gemma2": 4, "gemma3_text": 6}
"""Normalisations of a layer that have a kernel, where they are not two. Those of OLMo's queries and keys have none."""


@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_gradients_of_each_family_are_the_plain_ones(
    name: str, interpreted: dict[str, dict[str, Any]]
) -> None:
    """Every layer has the kernels, nothing but the rotation changes for other models, and what is taken
    away again leaves no trace."""
    found = interpreted[f"family:{name}"]
    assert_close(found)
    assert found["norms"] == 2 * NORMS.get(name, 2) + 1
    assert (found["gates"], found["changed"], found["asBefore"]) == (2, ["apply_rotary_pos_emb"], True)


@pytest.mark.parametrize("name", CHECKED)
def test_right_kernels_pass_the_check(name: str, interpreted: dict[str, dict[str, Any]]) -> None:
    faults = interpreted[f"checked:{name}"]["faults"]
    assert len(faults) == 6
    assert set(faults.values()) == {""}


@pytest.mark.parametrize(
    ("what", "used", "says"),
    [
        ("forward", ["RMSNorm", "RoPE"], "without … kernel for SwiGLU … results are … from PyTorch's"),
        ("backward", ["RMSNorm", "SwiGLU"], "without … kernel for RoPE … gradients are … from PyTorch's"),
        ("compile", ["RoPE", "SwiGLU"], "without … kernel for RMSNorm … CompilationError: no such instruction"),
    ],
    ids=["forward", "backward", "compile"],
)
def test_wrong_kernels_are_left_out(
    what: str, used: list[str], says: str, interpreted: dict[str, dict[str, Any]]
) -> None:
    """One number of a row, a gradient, a compiler that fails: training goes on without that kernel, and says why."""
    found = interpreted[f"planted:{what}"]
    assert found["used"] == used
    (told,) = found["told"]
    assert_says(told, *says.split(" … "))
    assert_close(found)


@pytest.mark.parametrize("asked", TRAINED)
def test_a_training_has_the_same_loss_and_gradients_with_them(
    asked: str, interpreted: dict[str, dict[str, Any]]
) -> None:
    """Under adapters, on 4-bit weights, packed and padded; with checkpointing, of which the selective one keeps
    products that are rotated later."""
    found = interpreted[f"trained:{asked}"]
    assert_close(found)
    assert found["used"] == [["RMSNorm", "RoPE", "SwiGLU"], []]
    assert found["selective"] == asked.endswith("part")


def small_llama() -> LlamaForCausalLM:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes))


def test_a_cpu_never_uses_them() -> None:
    rotation, model = modeling_llama.apply_rotary_pos_emb, small_llama()

    assert (use_kernels(model, Training()), runnable()) == ((), False)
    assert modeling_llama.apply_rotary_pos_emb is rotation
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels are put in place although nothing can run them here, as where a GPU's compiler or driver fails. The
    rotation of a whole family is changed back for the tests that come after in this process."""
    monkeypatch.setattr(kernels, "runnable", lambda: True)
    yield
    restore_rotation(modeling_llama)


@pytest.mark.usefixtures("tried")
def test_a_library_that_does_not_fit_its_neighbours_stops_no_training(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It has changed a part of the model and of the process by then: all of that is undone."""
    before, model = dict(vars(modeling_llama)), small_llama()

    def breaking(model: LlamaForCausalLM, rope: bool = True) -> None:
        modeling_llama.LlamaRMSNorm = LigerRMSNorm
        modeling_llama.apply_rotary_pos_emb = liger_rotary_pos_emb
        model.model.norm.forward = MethodType(LigerRMSNorm.forward, model.model.norm)
        raise ImportError("cannot import name 'LlamaMLP'")

    monkeypatch.setitem(monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN, "llama", breaking)
    assert use_kernels(model, Training()) == ()
    assert not any("forward" in vars(module) for module in model.modules())
    assert all(vars(modeling_llama)[name] is value for name, value in before.items())
    assert_says(caplog.text, "without the fused kernel for RMSNorm", "ImportError: cannot import name 'LlamaMLP'")


@pytest.mark.usefixtures("tried")
def test_a_check_that_finds_no_room_leaves_the_kernel_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def too_large(*_: Any) -> str:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(kernels, "norm_fault", too_large)
    assert Kernel.RMS_NORM not in use_kernels(small_llama(), Training())
    assert_says(caplog.text, "without the fused kernel for RMSNorm", "OutOfMemoryError: CUDA out of memory")


@pytest.mark.usefixtures("tried")
def test_the_loss_is_asked_of_a_model_without_them(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """A model that will be divided is still in host memory then, and no kernel can read that: here, where Triton finds
    no GPU, those that are in place fail as they would there."""
    caplog.set_level("INFO")
    monkeypatch.setattr(kernels, "fault_of", lambda *_: "")  # they have passed, on the GPU
    base, training = build_tiny_llama(tmp_path / "base"), settings(Method.FULL)
    rows = read_examples(base, write_dataset(tmp_path / "dataset"), "train")
    examples = Examples(rows, rows, load_tokenizer(base))

    model = build_trainer(load_base(base), examples, training, tmp_path / "work", Batch.of(training)).model

    assert vars(model.base_model.norm)["forward"].__func__ is LigerRMSNorm.forward
    assert "the loss takes all logits at once" not in caplog.text
    with pytest.raises((RuntimeError, ValueError)):
        model(input_ids=torch.zeros((1, 2), dtype=torch.long))


def test_a_kernel_that_breaks_the_gpu_is_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the device "meta" nothing can be read back, as on a GPU after an illegal access."""
    model = small_llama()
    monkeypatch.setattr(kernels, "device", lambda: "meta")
    fused = kernels.fuse(model)
    with pytest.raises(StageError) as error:
        kernels.fault_of(Kernel.SWIGLU, fused, model)
    restore_rotation(fused.family)
    assert error.value.reason is Reason.GPU_UNUSABLE
    assert_says(error.value.message, "fused kernel for SwiGLU", "Set spec.training.kernels to Off")


@pytest.mark.parametrize(
    ("kind", "training", "found"),
    [
        ("llama", Training(), "RMSNorm, RoPE and SwiGLU"),
        ("gemma2", Training(), "RMSNorm, RoPE and GeGLU"),
        ("llama", Training(kernels=Kernels.OFF), "none"),
        ("qwen3_moe", Training(), "none"),
    ],
)
def test_which_are_tried(kind: str, training: Training, found: str) -> None:
    assert listed(fused_kernels({"model_type": kind}, training)) == found


def test_one_of_them_is_listed_alone() -> None:
    assert (listed((Kernel.ROPE,)), listed((Kernel.ROPE, Kernel.SWIGLU))) == ("RoPE", "RoPE and SwiGLU")
