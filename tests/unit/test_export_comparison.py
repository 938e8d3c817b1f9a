"""Exported files hold the tuned model, tensor by tensor; what is wrong with them is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import load_file, save_file

from finetune_api.export import ExportFormat
from finetune_api.reasons import Reason
from finetune_api.training import Method, Training
from finetune_jobs.base.errors import StageError
from finetune_jobs.exporting.adapter import write_adapter
from finetune_jobs.exporting.comparison import require_same
from finetune_jobs.exporting.rescaling import Rescaling, rescale
from finetune_jobs.modelling.loading import load_checkpoint
from finetune_jobs.modelling.tuning import Tuning
from tests.support.sentences import assert_says
from tests.support.tiny_model import LORA_TARGETS, build_tiny_llama, build_tiny_lora, edit_json

pytestmark = [pytest.mark.unit, pytest.mark.slow]

Tensors = dict[str, torch.Tensor]
Damage = Callable[[Tensors], Any]

GROUP = 32
ONE_SCALE = QuantizationArgs(num_bits=8, type="float", strategy="tensor", symmetric=True, dynamic=False)
"""Of activations that are rounded by a scale which calibration has found."""
SCHEMES: dict[ExportFormat, tuple[str, dict[str, Any]]] = {
    ExportFormat.INT8: ("int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel"}),
    ExportFormat.W8A16: ("pack-quantized", {"num_bits": 8, "type": "int", "strategy": "channel"}),
    ExportFormat.FP8: ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
    ExportFormat.FP8_STATIC: ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
    ExportFormat.INT4: ("pack-quantized", {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP}),
}
"""As llm-compressor writes them; that it does is tested with its own files in test_export."""
LAYER, OTHER = "model.layers.1.mlp.down_proj", "model.layers.0.mlp.down_proj"
NORM, HEAD, EMBEDDINGS = "model.norm.weight", "lm_head.weight", "model.embed_tokens.weight"
FORMATS = pytest.mark.parametrize("kind", [*SCHEMES, ExportFormat.MERGED])
ROUNDED = pytest.mark.parametrize("kind", SCHEMES)


@pytest.fixture(scope="module")
def tuned(tiny_llama: Path) -> Any:
    """The tuned model, in 16 bits."""
    return load_checkpoint(tiny_llama, dtype=torch.bfloat16, where="cpu")


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Another one, whose output layer is its embeddings."""
    folder = build_tiny_llama(tmp_path_factory.mktemp("tied"))
    changed(folder, lambda weights: weights.pop(HEAD))
    edit_json(folder / "config.json", tie_word_embeddings=True)
    return load_checkpoint(folder, dtype=torch.bfloat16, where="cpu")


def write(out: Path, model: Any, kind: ExportFormat, damage: Damage = lambda _weights: None) -> Path:
    """An export: the model's weights, rounded, in one file. They are damaged before they are rounded: what is wrong
    is then a good rounding of wrong weights."""
    out.mkdir(exist_ok=True)
    model.config.save_pretrained(out)
    weights = {name: each.clone() for name, each in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del weights[HEAD]
    damage(weights)
    if kind in SCHEMES:
        form, args = SCHEMES[kind]
        inputs = ONE_SCALE if kind is ExportFormat.FP8_STATIC else None
        scheme = QuantizationScheme(
            targets=["Linear"], weights=QuantizationArgs(symmetric=True, **args), input_activations=inputs
        )
        weights = rounded(weights, form, scheme)
        said = {"quant_method": "compressed-tensors", "format": form, "ignore": ["lm_head"]}
        edit_json(
            out / "config.json",
            quantization_config={**said, "config_groups": {"group_0": scheme.model_dump(mode="json")}},
        )
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    return out


def rounded(weights: Tensors, form: str, scheme: Any) -> Tensors:
    """Each linear layer's weights to the nearest value, as the library's observer and compressor do."""
    compressor = BaseCompressor.get_value_from_registry(form)
    args, found = scheme.weights, {}
    largest = 448.0 if args.type == "float" else (2**args.num_bits - 1) / 2
    for name, each in weights.items():
        if name.split(".")[-2] not in LORA_TARGETS:
            found[name] = each
            continue
        groups = each.unflatten(-1, (-1, args.group_size or each.shape[-1]))
        scale = groups.abs().amax(-1) / largest
        scale = scale.where(scale > 0, torch.finfo(scale.dtype).eps)
        parts = compressor.compress({"weight": each, "weight_scale": scale}, scheme)
        if scheme.input_activations is not None:
            parts["input_scale"] = torch.ones(1, dtype=each.dtype)
        found |= {f"{name.removesuffix('weight')}{part}": value for part, value in parts.items()}
    return found


def changed(out: Path, damage: Damage) -> Path:
    """The same export with other tensors in its file."""
    weights = load_file(out / "model.safetensors")
    damage(weights)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    return out


def refused(out: Path, model: Any) -> str:
    with pytest.raises(StageError) as error:
        require_same(out, model)
    assert error.value.reason is Reason.EXPORT_MISMATCH
    return error.value.message


@FORMATS
def test_good_files_hold_the_model(kind: ExportFormat, tuned: Any, tmp_path: Path) -> None:
    found = require_same(write(tmp_path, tuned, kind), tuned)
    assert found.tensors == len(tuned.state_dict())
    assert found.rounded == (2 * len(LORA_TARGETS) if kind in SCHEMES else 0)
    assert (0 < found.most <= 1) == (kind in SCHEMES)


@FORMATS
def test_so_do_those_of_a_model_whose_output_layer_is_its_embeddings(
    kind: ExportFormat, tied: Any, tmp_path: Path
) -> None:
    assert require_same(write(tmp_path, tied, kind), tied).tensors == len(tied.state_dict()) - 1


def set_(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Damage:
    return lambda weights: weights.update({name: change(weights[name])})


def swap(first: str, second: str) -> Damage:
    return lambda weights: weights.update({first: weights[second], second: weights[first]})


def zero_row(weight: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.zeros_like(weight[:1]), weight[1:]])


WRONG: dict[str, Damage] = {
    "zeroed": set_(f"{LAYER}.weight", torch.zeros_like),
    "scaled by 1.2": set_(f"{LAYER}.weight", lambda weight: weight * 1.2),
    "swapped": swap(f"{LAYER}.weight", f"{OTHER}.weight"),
    "one output lost": set_(f"{LAYER}.weight", zero_row),
}


@FORMATS
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_layer_is_named(wrong: str, kind: ExportFormat, tuned: Any, tmp_path: Path) -> None:
    said = refused(write(tmp_path, tuned, kind, WRONG[wrong]), tuned)
    assert f"The exported files do not hold the tuned model: {OTHER if wrong == 'swapped' else LAYER}.weight" in said
    assert "more" not in said


@ROUNDED
@pytest.mark.parametrize("noise", [0.25, 0.03])
def test_noise_in_the_scales_is_seen(kind: ExportFormat, noise: float, tuned: Any, tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)

    def disturb(weights: Tensors) -> None:
        for name, each in weights.items():
            if name.endswith("weight_scale"):
                weights[name] = each * (1 + noise * torch.randn(each.shape, generator=random)).to(each.dtype)

    assert f"and {2 * len(LORA_TARGETS) - 3} more" in refused(changed(write(tmp_path, tuned, kind), disturb), tuned)


def test_calibrated_weights_may_be_further_from_the_models_than_the_nearest_but_not_as_far_as_others(
    tuned: Any, tmp_path: Path
) -> None:
    """Right scales, and other values under them."""
    out = write(tmp_path, tuned, ExportFormat.INT4)
    lost = changed(out, set_(f"{LAYER}.weight_packed", torch.zeros_like))
    assert f"{LAYER}.weight differs from the model's by" in refused(lost, tuned)


DAMAGED: dict[str, tuple[ExportFormat, Damage, str]] = {
    "tensor lost": (ExportFormat.MERGED, lambda w: w.pop(NORM), f"{NORM} is missing"),
    "scale lost": (ExportFormat.FP8, lambda w: w.pop(f"{LAYER}.weight_scale"), f"{LAYER}.weight_scale is missing"),
    "scale of inputs lost": (
        ExportFormat.FP8_STATIC,
        lambda w: w.pop(f"{LAYER}.input_scale"),
        f"{LAYER}.input_scale is missing",
    ),
    "scale of inputs zero": (
        ExportFormat.FP8_STATIC,
        set_(f"{LAYER}.input_scale", torch.zeros_like),
        f"{LAYER}.input_scale is 0.0, which scales nothing",
    ),
    "one too many": (
        ExportFormat.INT8,
        lambda w: w.update({"x.weight": w[NORM].clone()}),
        "x.weight is none of the model's",
    ),
    "shape": (ExportFormat.MERGED, set_(NORM, lambda w: w[:-1]), f"{NORM} has shape [63], the model's [64]"),
    "type": (
        ExportFormat.MERGED,
        set_(NORM, torch.Tensor.float),
        f"{NORM} has type torch.float32, the model's torch.bfloat16",
    ),
    "one bit": (
        ExportFormat.MERGED,
        set_(NORM, lambda w: torch.cat([w[:1] * (1 + 2**-7), w[1:]])),
        f"{NORM} differs from the model's in 1 of 64 values",
    ),
    "no number": (
        ExportFormat.MERGED,
        set_(HEAD, lambda w: w / 0),
        f"{HEAD} has values that are no finite numbers",
    ),
    "no number times eight bits": (
        ExportFormat.INT8,
        set_(f"{LAYER}.weight_scale", lambda w: w * torch.nan),
        f"{LAYER}.weight has values that are no finite numbers",
    ),
    "rows lost": (
        ExportFormat.INT8,
        set_(f"{LAYER}.weight", lambda w: w[:8]),
        f"{LAYER}.weight has shape [8, 128], the model's [64, 128]",
    ),
    "scales lost": (
        ExportFormat.INT8,
        set_(f"{LAYER}.weight_scale", lambda w: w[:8]),
        f"{LAYER}.weight_scale has shape [8, 1], the model's [64, 1]",
    ),
    "packed shape": (
        ExportFormat.INT4,
        set_(f"{LAYER}.weight_shape", lambda w: w.flip(0)),
        f"{LAYER}.weight_shape is [128, 64], the model's weights have shape [64, 128]",
    ),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_described(damage: str, tuned: Any, tmp_path: Path) -> None:
    kind, change, said = DAMAGED[damage]
    assert said in refused(changed(write(tmp_path, tuned, kind), change), tuned)


def test_a_layer_that_is_not_rounded_where_readers_expect_it_is_refused(tuned: Any, tmp_path: Path) -> None:
    out = write(tmp_path, tuned, ExportFormat.INT8)
    plain = tuned.state_dict()[f"{LAYER}.weight"]

    def undo(weights: Tensors) -> None:
        weights[f"{LAYER}.weight"] = plain.clone()
        del weights[f"{LAYER}.weight_scale"]

    assert f"{LAYER}.weight_scale is missing" in refused(changed(out, undo), tuned)


def test_a_form_that_rounds_nothing_is_refused(tuned: Any, tmp_path: Path) -> None:
    """What llm-compressor writes of a model whose layers are of a class of their own, e.g. Falcon."""
    out = write(tmp_path, tuned, ExportFormat.INT8)
    said = json.loads((out / "config.json").read_text())["quantization_config"]
    edit_json(out / "config.json", quantization_config=said | {"format": "dense"})
    assert "The exported files are in form 'dense', whose weights have no scales" in refused(out, tuned)


def test_an_output_layer_that_readers_would_take_from_the_embeddings_is_refused(
    tuned: Any, tied: Any, tmp_path: Path
) -> None:
    out = write(tmp_path / "tuned", tuned, ExportFormat.MERGED, lambda weights: weights.pop(HEAD))
    edit_json(out / "config.json", tie_word_embeddings=True)
    said = refused(out, tuned)
    assert "config.json has tie_word_embeddings true, but the model's output layer is not its embeddings" in said
    assert f"{HEAD} is missing" in said

    out = write(tmp_path / "tied", tied, ExportFormat.MERGED)
    edit_json(out / "config.json", tie_word_embeddings=False)
    assert f"{HEAD} is missing" in refused(out, tied)

    out = write(
        tmp_path / "both", tied, ExportFormat.MERGED, lambda weights: weights.update({HEAD: weights[EMBEDDINGS] * 2})
    )
    assert f"{HEAD} differs from the model's in" in refused(out, tied)


FACTORS = torch.linspace(0.5, 2.0, 64)


def test_a_rescaled_model_computes_the_same_and_its_files_are_compared_with_it(
    tiny_llama: Path, tmp_path: Path
) -> None:
    """As AWQ does it: the tuned model's weights are then other ones, what it computes is not."""
    model = load_checkpoint(tiny_llama, dtype=torch.bfloat16, where="cpu")
    block = "model.layers.1"
    inputs = [f"{block}.self_attn.{each}_proj" for each in "qkv"]
    outputs = [Rescaling(f"{block}.mlp.up_proj", [f"{block}.mlp.down_proj"], FACTORS.repeat(2))]
    text = [list(range(4, 60))]
    plain = {name: each.clone() for name, each in model.state_dict().items()}
    rescale(model, [Rescaling(f"{block}.input_layernorm", inputs, FACTORS), *outputs], text)
    rescaled = model.state_dict()
    assert {name for name in plain if not torch.equal(plain[name], rescaled[name])} == {
        *(f"{name}.weight" for name in inputs),
        *(f"{block}.{name}.weight" for name in ("input_layernorm", "mlp.up_proj", "mlp.down_proj")),
    }
    require_same(write(tmp_path, model, ExportFormat.INT4), model)
    assert "differs from the model's" in refused(
        tmp_path, load_checkpoint(tiny_llama, dtype=torch.bfloat16, where="cpu")
    )

    with pytest.raises(StageError) as error:  # what divides is not what computes these inputs
        rescale(model, [Rescaling(f"{block}.post_attention_layernorm", inputs, FACTORS)], text)
    assert error.value.reason is Reason.MODEL_UNSUPPORTED
    assert_says(
        error.value.message, "Rescaled by AWQ", "computes something else", "of their norm", "to INT4, INT8 or FP8"
    )


def test_several_files_are_read_as_their_index_says(tuned: Any, tmp_path: Path) -> None:
    out = write(tmp_path, tuned, ExportFormat.MERGED)
    weights = load_file(out / "model.safetensors")
    (out / "model.safetensors").unlink()
    parts = {"model-00001-of-00002.safetensors": [NORM], "model-00002-of-00002.safetensors": weights.keys() - {NORM}}
    for file, names in parts.items():
        save_file({name: weights[name] for name in names}, out / file, metadata={"format": "pt"})
    index = {name: file for file, names in parts.items() for name in names}
    listed = out / "model.safetensors.index.json"
    listed.write_text(json.dumps({"weight_map": index}))
    require_same(out, tuned)
    listed.write_text(json.dumps({"weight_map": {**index, NORM: index[HEAD]}}))
    first, second = parts
    assert f"{NORM} is in {first}, and readers look for it in {second}" in refused(out, tuned)


def test_an_adapter_that_is_not_the_trained_one_is_refused(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, tuning = build_tiny_lora(tmp_path / "adapter", tiny_llama), Tuning.of(Training(method=Method.LORA))
    write_adapter(adapter, tmp_path / "good", tuning, "0" * 64)
    monkeypatch.setattr(shutil, "copyfile", lambda given, out: out.write_bytes(given.read_bytes()[:-1]))
    with pytest.raises(StageError, match=r"adapter_model\.safetensors is not the file that training") as error:
        write_adapter(adapter, tmp_path / "bad", tuning, "0" * 64)
    assert error.value.reason is Reason.EXPORT_MISMATCH
