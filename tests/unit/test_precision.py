"""A CPU without bfloat16 computes in float32, and writes the same kind of files; and checkpoints already quantised."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GptOssConfig, GptOssForCausalLM
from transformers.integrations.finegrained_fp8 import load_finegrained_fp8_kernel

from finetune_api.reasons import Reason
from finetune_api.training import Method, Quantization
from finetune_jobs.base.errors import StageError
from finetune_jobs.exporting.merge import merge
from finetune_jobs.fit.recipe import Batch, schedule
from finetune_jobs.modelling.device import precision
from finetune_jobs.modelling.loading import load_base, load_checkpoint
from finetune_jobs.modelling.tuning import read_tuning
from finetune_jobs.store.s3 import Store
from finetune_jobs.training.build import configuration, load_trainable
from tests.support.seaweedfs import SeaweedFS
from tests.support.tiny_model import build_tiny_int8, build_tiny_llama
from tests.support.training import load_tuned, run_training, settings, write_dataset
from tgi_cpu import checkpoint as tgi
from tgi_cpu.args import parse_args
from tgi_cpu.dialect import read_checkpoint

pytestmark = [pytest.mark.unit, pytest.mark.slow]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_llama(tmp_path_factory.mktemp("base"))


@pytest.mark.usefixtures("without_bfloat16")
@pytest.mark.parametrize("quantization", [None, *Quantization])
def test_a_base_computes_in_float32(base: Path, quantization: Quantization | None) -> None:
    assert precision("cuda:0") is torch.bfloat16
    found = load_base(base, quantization)
    stored = load_base(base, dtype=torch.bfloat16).state_dict()
    same = found.state_dict() if quantization is None else {"model.norm.weight": found.model.norm.weight}
    assert all(torch.equal(value, stored[name].float()) for name, value in same.items())
    assert found(input_ids=torch.arange(4, 20)[None]).logits.dtype is torch.float32


@pytest.mark.usefixtures("without_bfloat16")
def test_an_artifact_computes_in_float32(base: Path, tmp_path: Path) -> None:
    tokens = torch.arange(4, 20)[None]
    folder = build_tiny_int8(tmp_path / "int8", base)
    assert load_checkpoint(folder)(input_ids=tokens).logits.dtype is torch.float32
    for served in (base, folder):
        args = parse_args([], {"MODEL_ID": str(served)})
        assert tgi.load_checkpoint(args, read_checkpoint(args)).model(input_ids=tokens).logits.dtype is torch.float32


def test_a_checkpoint_that_is_quantised_already_is_not_trained_as_a_whole(base: Path, tmp_path: Path) -> None:
    """transformers says so when its trainer is made, as a fault that another pod could mend."""
    folder = build_tiny_int8(tmp_path / "int8", base)
    with pytest.raises(
        StageError, match=r"already quantised \(compressed-tensors\), which method Full.*16 bits"
    ) as found:
        load_trainable(folder, settings(Method.FULL))
    assert (found.value.reason, found.value.retriable) == (Reason.MODEL_UNSUPPORTED, False)
    load_trainable(folder, settings(Method.LORA))


def test_fp8_is_not_multiplied_without_kernels() -> None:
    """On cards that do not turn it back into 16 bits: preflight refuses it there."""
    with pytest.raises(ImportError, match="kernels"):
        load_finegrained_fp8_kernel()


@pytest.mark.parametrize("method", [Method.LORA, Method.FULL])
def test_mxfp4_is_turned_back_into_16_bits_and_trains(method: Method, tmp_path: Path) -> None:
    """As preflight says: as a checkpoint of gpt-oss in 16 bits would."""
    sizes = {"hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1}
    config = GptOssConfig(**sizes, **experts, num_key_value_heads=1, head_dim=32, vocab_size=64)
    GptOssForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for name in [name for name in weights if name.endswith("_proj") and ".experts." in name]:
        count, inputs, outputs = weights.pop(name).shape
        weights[f"{name}_blocks"] = torch.full((count, outputs, inputs // 32, 16), 0x22, dtype=torch.uint8)
        weights[f"{name}_scales"] = torch.full((count, outputs, inputs // 32), 127, dtype=torch.uint8)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    said = json.loads((tmp_path / "config.json").read_text()) | {"quantization_config": {"quant_method": "mxfp4"}}
    (tmp_path / "config.json").write_text(json.dumps(said))

    model = load_trainable(tmp_path, settings(method))

    turned_back = model.model.layers[0].mlp.experts.gate_up_proj
    assert turned_back.is_floating_point()
    assert set(turned_back.float().unique().tolist()) == {1.0}, "0x2 is 1 in E2M1, times 2^0"
    assert getattr(model, "hf_quantizer", None) is None
    model(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()


@pytest.mark.usefixtures("without_bfloat16")
@pytest.mark.parametrize("method", [Method.QLORA, Method.FULL])
def test_a_training_without_autocast_is_exported_in_bfloat16(
    method: Method, base: Path, s3: SeaweedFS, place: str, tmp_path: Path
) -> None:
    training, dataset = settings(method, epochs=2), write_dataset(tmp_path / "dataset")
    assert not configuration(training, tmp_path, Batch.of(training), schedule(training, 1000, 48, 12)).bf16
    run_training(base, dataset, tmp_path, training, Store.connect(s3.storage, place))
    tuned = load_tuned(base, tmp_path / "adapter", method)
    assert {value.dtype for name, value in tuned.named_parameters() if "norm" in name} == {torch.float32}
    merged = merge(base, tmp_path / "adapter", read_tuning(tmp_path / "adapter", method))
    assert {value.dtype for value in merged.state_dict().values()} == {torch.bfloat16}
