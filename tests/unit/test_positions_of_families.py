"""What transformers 5 wrote of positions, transformers 4 reads: of families that have names of their own for it.

Each has numbers that neither version takes where a name is missing, so that a name that is not read shows.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from finetune_jobs.exporting.transformers_v4 import write_transformers_v4
from finetune_jobs.modelling.loading import copy_tokenizer
from tests.support.tiny_model import build_tiny_llama
from tests.support.transformers4 import read_with_transformers_4

pytestmark = [pytest.mark.unit, pytest.mark.slow]

_SIZES: Final = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "vocab_size": 320,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 3,
    "pad_token_id": 0,
}
_SHARE: Final = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.75}
_GEMMA: Final = {
    "head_dim": 16,
    "sliding_window_pattern": 2,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 700.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
    },
}
_PHI3: Final = {
    "original_max_position_embeddings": 128,
    "rope_parameters": {"rope_type": "longrope", "short_factor": [1.0, 2, 3, 4, 5, 6, 7, 8], "long_factor": [9.0] * 8},
}
_VISION: Final = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
FAMILIES: Final[Mapping[str, Mapping[str, Any]]] = {
    "gemma3_text": _SIZES | _GEMMA,
    "gemma3": {
        "text_config": _SIZES | _GEMMA,
        "vision_config": _VISION,
        "mm_tokens_per_image": 4,
        "boi_token_index": 317,
        "eoi_token_index": 318,
        "image_token_index": 319,
    },
    "gpt_neox": _SIZES | {"rope_parameters": _SHARE},
    "llama": _SIZES | {"rope_parameters": {"rope_type": "linear", "factor": 8.0, "rope_theta": 500.0}},
    "phi": _SIZES | {"rope_parameters": _SHARE},
    "phi3": _SIZES | _PHI3,
    "stablelm": _SIZES | {"rope_parameters": _SHARE},
}


def test_transformers_4_computes_the_positions_of_transformers_5(tmp_path: Path, transformers_4_python: Path) -> None:
    """What it computes with the same weights; and transformers 5 reads what was written for version 4 as before."""
    base = build_tiny_llama(tmp_path / "tokenizer")
    ids = torch.randint(4, 310, (1, 60), generator=torch.Generator().manual_seed(0))
    expected = {name: written(name, base, tmp_path / name, ids) for name in FAMILIES}
    again = {name: of_tokens(AutoModelForCausalLM.from_pretrained(tmp_path / name), ids) for name in FAMILIES}
    checkpoints = [[tmp_path / name] for name in FAMILIES]
    found = read_with_transformers_4(transformers_4_python, checkpoints, ids.tolist(), [])
    for (name, ours), theirs in zip(expected.items(), found, strict=True):
        assert theirs.version.startswith("4.51.")
        assert ours == pytest.approx(again[name], abs=1e-4), name
        assert ours == pytest.approx(theirs.log_probabilities[0], abs=1e-4), name


def written(family: str, base: Path, out: Path, ids: torch.Tensor) -> list[float]:
    """Write a random model in which attention decides much; what it finds of the tokens."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **FAMILIES[family]), dtype=torch.float32)
    with torch.no_grad():
        for each in model.parameters():
            if each.ndim == 2:
                each.normal_(0, 0.15)
    model.save_pretrained(out)
    copy_tokenizer(base, out)
    write_transformers_v4(out)
    return of_tokens(model, ids)


def of_tokens(model: Any, ids: torch.Tensor) -> list[float]:
    """The log-probability of each token but the first."""
    with torch.no_grad():
        logits = model.eval()(input_ids=ids).logits[0, :-1].float()
    found: list[float] = torch.log_softmax(logits, -1).gather(-1, ids[0, 1:, None])[:, 0].tolist()
    return found
