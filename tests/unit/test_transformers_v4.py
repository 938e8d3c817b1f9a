"""An exported folder speaks the dialects of transformers 4 and 5: names in its configurations."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_jobs.exporting.transformers_v4 import config_v4, tokenizer_config_v4, write_transformers_v4

pytestmark = pytest.mark.unit

GEMMA = {
    "model_type": "gemma3_text",
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
}
"""Of the sizes from 4 B on."""
OF_GEMMA = {
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
}
FACTORS = {"short_factor": [1.0, 1.5], "long_factor": [2.0, 3.0]}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e5}, "dtype": "bfloat16"},
            {"rope_theta": 1e5, "torch_dtype": "bfloat16"},
        ),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0}},
            {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        ),
        ({"rope_theta": 1e4, "torch_dtype": "float16"}, {}),
        ({"rope_theta": 2.0, "rope_parameters": {"rope_theta": 1.0}, "dtype": "a", "torch_dtype": "b"}, {}),
        ({"model_type": "gpt2"}, {}),
        (GEMMA, OF_GEMMA),
        ({"text_config": GEMMA, "dtype": "float16"}, {"text_config": GEMMA | OF_GEMMA, "torch_dtype": "float16"}),
        (
            {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.4}},
            {"rope_theta": 1e4, "partial_rotary_factor": 0.4},
        ),
        (
            {"model_type": "gpt_neox", "rope_parameters": {"rope_theta": 5e3, "partial_rotary_factor": 0.5}},
            {"rope_theta": 5e3, "partial_rotary_factor": 0.5, "rotary_emb_base": 5e3, "rotary_pct": 0.5},
        ),
        (
            {
                "model_type": "phi3",
                "rope_parameters": {
                    "rope_theta": 1e4,
                    "rope_type": "longrope",
                    "original_max_position_embeddings": 4096,
                    **FACTORS,
                },
            },
            {"rope_theta": 1e4, "rope_scaling": {"type": "longrope", **FACTORS}},
        ),
    ],
    ids=[
        *("version 5", "scaled", "version 4", "both", "no rope"),
        *("by layer", "of one that also sees", "a share", "names of its own", "a scaling of three"),
    ],
)
def test_config_gets_the_names_of_version_4(config: dict[str, Any], expected: dict[str, Any]) -> None:
    assert config_v4(config) == config | expected
    assert config_v4(config_v4(config)) == config_v4(config)


@pytest.mark.parametrize(
    ("config", "template", "expected"),
    [
        (
            {"tokenizer_class": "TokenizersBackend", "backend": "tokenizers", "is_local": True, "eos_token": "</s>"},
            "T",
            {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "chat_template": "T"},
        ),
        (
            {"tokenizer_class": "GPT2Tokenizer", "chat_template": "own"},
            None,
            {"tokenizer_class": "GPT2Tokenizer", "chat_template": "own"},
        ),
        ({"chat_template": "of an earlier version"}, "T", {"chat_template": "T"}),
        ({"extra_special_tokens": ["<a>"]}, None, {"additional_special_tokens": ["<a>"]}),
        ({"extra_special_tokens": {"image": "<a>"}}, None, {"extra_special_tokens": {"image": "<a>"}}),
        ({"tokenizer_class": "LlamaTokenizerFast"}, None, {"tokenizer_class": "LlamaTokenizerFast"}),
    ],
    ids=["version 5", "version 4", "a file beside it", "token list", "token map", "no template"],
)
def test_tokenizer_config_gets_a_class_of_version_4(
    config: dict[str, Any], template: str | None, expected: dict[str, Any]
) -> None:
    assert tokenizer_config_v4(config, template) == expected
    assert tokenizer_config_v4(expected, template) == expected


def test_the_dialect_of_a_folder_can_be_spoken_twice(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"rope_parameters": {"rope_theta": 3.0}, "dtype": "bfloat16"}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend"}')
    (tmp_path / "chat_template.jinja").write_text("{{ messages }} – é")
    (tmp_path / "chat_template.json").write_text('{"chat_template": "which TGI would read first"}')
    write_transformers_v4(tmp_path)
    once = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert set(once) == {"config.json", "tokenizer_config.json", "chat_template.jinja"}
    write_transformers_v4(tmp_path)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == once
    assert json.loads(once["tokenizer_config.json"])["chat_template"] == "{{ messages }} – é"
