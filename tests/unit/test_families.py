"""What ``make families`` reads from transformers: formulas that hold for models of any size, or nothing."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from finetune_jobs.fit.families import DATA, Asks, Condition, Count, Family, evaluate, known
from finetune_jobs.fit.shapes import WITH_IMAGES, families, read_shape
from hack.cluster.layout import REPOSITORY
from hack.families.__main__ import text, up_to_date
from hack.families.formulas import Formulas, product, total
from tests.support.fit import GEMMA2_9B, VISION, shape_of, small

pytestmark = pytest.mark.unit


def test_the_file_is_what_the_present_programs_write() -> None:
    """With the present transformers, and untouched since."""
    file = DATA.read_text()
    assert up_to_date(file)
    assert not up_to_date(file.replace('"norms": 2', '"norms": 3', 1))


@pytest.mark.slow
def test_every_causal_model_of_transformers_is_known_or_has_a_reason() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    found = known()
    assert {*families(), *found.left_out, *found.images} >= set(CAUSAL)
    assert set(found.left_out) | set(families()) <= set(CAUSAL)
    assert not set(families()) & {*found.left_out, *found.images}
    assert all(found.left_out.values())


@pytest.mark.slow
def test_models_for_images_are_those_that_training_cannot_load() -> None:
    """Preflight refuses them."""
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    assert {"mistral3", "qwen2_vl"} <= set(known().images)
    assert not [kind for kind in known().images if CONFIG_MAPPING[kind] in MODEL_FOR_CAUSAL_LM_MAPPING]


@pytest.mark.slow
@pytest.mark.parametrize("kind", families())
def test_shape_is_that_of_the_model_in_transformers(kind: str) -> None:
    """Of other sizes than those that the family was read from: the same parameters, and the same linear layers but the
    output layer, for both ways to write a config.json."""
    from torch import nn

    from hack.families.models import build, config_of, linear_layers, parameters

    config = config_of(kind, _larger(kind))
    model = build(config)
    there = Counter(linear_layers(model))
    # PyTorch's own attention, which the part for images ends with, computes its last projection without calling it.
    plain = Counter(
        (name.rpartition(".")[2], module.in_features, module.out_features)
        for name, module in model.named_modules()
        if type(module) is nn.Linear
    )
    for written in (config.to_dict(), config.to_diff_dict()):
        shape = read_shape(written)
        assert shape.parameters == parameters(model)
        found = Counter(shape.linear_layers)
        assert found <= there
        # A kernel that keeps no scores is there for all or none of a model's attention.
        assert {bool(each.score_bytes) for each in shape.kinds if not each.key_dim} == {not model._supports_sdpa}
        beside = ((there & plain) - found).elements()
        assert (shape.tower.sides if shape.tower else 0) == sum(sum(sides) for _, *sides in beside)


def _larger(kind: str) -> dict[str, Any]:
    """The fields of a model that is in no test of ``hack.families``."""
    from hack.families.proof import Small
    from hack.families.sizes import READ, SET

    if part := WITH_IMAGES.get(kind) or known().texts.get(kind):
        others = {"vision_config": small(kind)["vision_config"]} if kind in WITH_IMAGES else {}
        return {"text_config": {**_larger(part), "model_type": part}, **others}
    fields = Small.of(kind).fields(READ)
    settable = fields.keys() - known().families[kind].computed.keys()
    return {name: fields[name] if name in SET else 2 * fields[name] for name in fields if name in settable}


SWITCHED = [kind for kind, each in known().families.items() if any(layer.switched_norms for layer in each.kinds)]


def test_settings_that_add_norms_are_known() -> None:
    """Released models set them: use_qk_norm those of GLM-4.5 and Command R+."""
    assert {"cohere", "glm4_moe", "hyperclovax", "persimmon", "sarvam_moe"} <= set(SWITCHED)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SWITCHED)
@pytest.mark.parametrize("changed", [False, True])
def test_norms_are_those_of_the_model_with_its_settings(kind: str, changed: bool) -> None:
    from hack.families.models import build, config_of, in_attention

    switches = known().families[kind].switches
    config = config_of(kind, {**_larger(kind), **{name: default != changed for name, default in switches.items()}})
    shape = read_shape(config.to_dict())
    model = build(config)
    (layers,) = (each for name, each in model.named_modules() if name.endswith("layers"))
    for layer in layers:
        names = [name for name, each in layer.named_modules() if "norm" in type(each).__name__.lower()]
        attentions = [name.rpartition(".")[2] for name in names if in_attention(name)]
        both = all(any(name.startswith(which) for name in attentions) for which in ("q", "k"))
        assert {each.qk_norm for each in shape.kinds} == {both}
        assert {each.norms for each in shape.kinds} == {len(names) - len(attentions)}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "kept"), [("llama", 0), ("gemma2", 8), ("gpt_oss", 2)])
def test_what_attention_keeps_of_its_scores(kind: str, kept: int) -> None:
    """Gemma 2: the cap's tangent and the weights in 16 bits, the softmax in 32; gpt-oss: the softmax in 16."""
    from hack.families.proof import Small
    from hack.families.scores import score_bytes

    assert score_bytes(kind, Small.of(kind).shown(0)) == kept
    assert {each.score_bytes for each in known().families[kind].kinds} == {kept}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "olmoe", "qwen3_moe", "gpt2", "deepseek_v3", "glm4_moe_lite"])
def test_a_family_is_read_as_it_is_in_the_file(kind: str) -> None:
    from hack.families.derive import derive

    assert derive(kind) == known().families[kind]


QWEN2 = known().families["qwen2"]
LAYER = QWEN2.kinds[0]
MORE = Count(size="hidden_size", when={"attention_bias": True})


def _with_layers(**changed: Any) -> dict[str, Any]:
    return {"kinds": (LAYER.model_copy(update=changed),)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            {"kinds": (LAYER.model_copy(update={"vectors": (Count(size="2*hidden_size"),)}),)},
            "of other sizes, the count of parameters differs",
        ),
        (
            {"kinds": (LAYER.model_copy(update={"linear": LAYER.linear[1:]}),)},
            "of other sizes, the count of parameters differs",
        ),
        ({"defaults": {**QWEN2.defaults, "intermediate_size": 11}}, "as usual, the count of parameters differs"),
        ({"defaults": {}}, "as usual, config.json does not describe .* missing"),
        (
            {"switches": {"attention_bias": False}} | _with_layers(vectors=(*LAYER.vectors, MORE)),
            "all settings changed, the count",
        ),
    ],
    ids=["vectors", "linear", "default", "no default", "switch"],
)
def test_a_wrong_description_is_not_taken(change: dict[str, Any], why: str) -> None:
    from hack.families.models import LeftOutError
    from hack.families.proof import Small, prove

    prove(QWEN2, Small.of("qwen2"))
    with pytest.raises(LeftOutError, match=why):
        prove(QWEN2.model_copy(update=change), Small.of("qwen2"))


FIRST = Condition(asks=Asks.FROM, field="first_k_dense_replace", usual=3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("deepseek_v3", {"second": (FIRST.model_copy(update={"usual": 2}),)}),
        ("deepseek_v3", {"second": (FIRST.model_copy(update={"asks": Asks.EVERY}),)}),
        ("glm4_moe_lite", {"labels": {"sparse": 0, "dense": 1}}),
    ],
    ids=["default", "rule", "labels"],
)
def test_a_wrong_pattern_of_layers_is_not_taken(kind: str, wrong: dict[str, Any]) -> None:
    from hack.families.models import LeftOutError
    from hack.families.proof import Small, prove

    right = known().families[kind]
    assert right.pattern is not None
    pattern = right.pattern.model_copy(update=wrong)
    with pytest.raises(LeftOutError, match=r"the count of parameters differs"):
        prove(right.model_copy(update={"pattern": pattern}), Small.of(kind, right.pattern))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "why"),
    [("mimo_v2_flash", "not all of one kind"), ("falcon", "FalconLinear, which bitsandbytes does not round")],
)
def test_what_cannot_be_described_is_left_out(kind: str, why: str) -> None:
    """MiMo's layers differ both in attention and in experts, by two fields. Falcon's weights stay as large as
    they are under QLoRA."""
    from hack.families.derive import derive
    from hack.families.models import LeftOutError

    with pytest.raises(LeftOutError, match=why):
        derive(kind)


@pytest.mark.slow
def test_the_documented_text_part_of_a_ministral_answers_as_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, Mistral3Config

    sizes = {name: value for name, value in small("ministral3").items() if name != "model_type"}
    config = Mistral3Config(
        text_config={"model_type": "ministral3", **sizes},
        vision_config={**VISION, "model_type": "pixtral", "head_dim": 12},
    )
    monkeypatch.chdir(tmp_path)
    whole = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    whole.save_pretrained("whole")
    page = (REPOSITORY / "docs/how-to/train.md").read_text(encoding="utf-8")
    (program,) = (each for each in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "get_text_config" in each)

    exec(program, {})  # as a reader would run it

    text = AutoModelForCausalLM.from_pretrained("text", dtype=torch.bfloat16)
    tokens = torch.arange(5, 25)[None]
    assert torch.equal(text(input_ids=tokens).logits, whole(input_ids=tokens).logits)
    assert read_shape(text.config.to_dict()).parameters == sum(each.numel() for each in text.parameters())


MODELS = [{"a": 3, "b": 10, "c": 7}, {"a": 4, "b": 13, "c": 9}, {"a": 5, "b": 17, "c": 2}]


@pytest.mark.parametrize(
    ("formula", "found"),
    [("b", "b"), ("3*a", "3*a"), ("a*c", "a*c"), ("a+2*b", "2*b+a"), ("a*b+2*a*c", "2*a*c+a*b"), ("1", "1")],
)
def test_a_formula_is_found_by_its_values(formula: str, found: str) -> None:
    values = tuple(evaluate(formula, model) for model in MODELS)
    said = Formulas(MODELS).find(values)
    assert said is not None
    assert sorted(said.split("+")) == sorted(found.split("+"))


def test_what_has_no_formula_has_none() -> None:
    assert Formulas(MODELS).find((1000, 77, 4321)) is None


def test_formulas_are_multiplied_and_added_up() -> None:
    assert evaluate(product(["a+b", "c", "2"]), MODELS[0]) == 2 * 13 * 7
    assert total(["a", "b*c", "a", "2*a", "c*b", "3"]) == "3+4*a+2*b*c"
    assert evaluate("a*b//a+b//a", MODELS[0]) == 3 * 3 + 3


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        # As the hub has them; parameters are those that the hub counts in their files.
        (
            {
                "model_type": "gpt2",
                "n_embd": 768,
                "n_head": 12,
                "n_layer": 12,
                "n_positions": 1024,
                "vocab_size": 50257,
            },
            124_439_808,
        ),
        (
            {
                "model_type": "bloom",
                "n_embed": 1024,
                "n_layer": 24,
                "num_attention_heads": 16,
                "vocab_size": 250880,
            },
            559_214_592,
        ),
        (
            {
                "model_type": "qwen2",
                "hidden_size": 3584,
                "intermediate_size": 18944,
                "num_attention_heads": 28,
                "num_hidden_layers": 28,
                "num_key_value_heads": 4,
                "tie_word_embeddings": False,
                "vocab_size": 152064,
            },
            7_615_616_512,
        ),
        (
            {
                "model_type": "qwen3_moe",
                "decoder_sparse_step": 1,
                "head_dim": 128,
                "hidden_size": 2048,
                "intermediate_size": 6144,
                "mlp_only_layers": [],
                "moe_intermediate_size": 768,
                "num_attention_heads": 32,
                "num_experts": 128,
                "num_experts_per_tok": 8,
                "num_hidden_layers": 48,
                "num_key_value_heads": 4,
                "tie_word_embeddings": False,
                "vocab_size": 151936,
            },
            30_532_122_624,
        ),
        (
            GEMMA2_9B,
            9_241_705_984,
        ),
        (
            {
                "model_type": "phi",
                "hidden_size": 2560,
                "intermediate_size": 10240,
                "num_attention_heads": 32,
                "num_hidden_layers": 32,
                "num_key_value_heads": 32,
                "qk_layernorm": False,
                "tie_word_embeddings": False,
                "vocab_size": 51200,
            },
            2_779_683_840,
        ),
    ],
    ids=["GPT-2", "BLOOM-560M", "Qwen2.5-7B", "Qwen3-30B-A3B", "Gemma 2 9B", "Phi-2"],
)
def test_released_models_have_their_parameters(config: dict[str, Any], parameters: int) -> None:
    assert shape_of(config).parameters == parameters


def test_a_file_says_each_part_of_a_family_in_a_line() -> None:
    family = Family.model_validate(known().families["llama"]).model_dump(mode="json", exclude_defaults=True)
    lines = text({"families": {"llama": family}}).splitlines()
    assert len(lines) < 80
    assert sum('"q_proj"' in line for line in lines) == 1
