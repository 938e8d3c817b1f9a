"""An artifact has the rotary positions of its base model, in whatever dialect each is written."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.exporting.positions import require_same_positions
from finetune_jobs.exporting.transformers_v4 import config_v4

pytestmark = pytest.mark.unit

OLD = {"rope_theta": 100000.0, "rope_scaling": None}
NEW = {"rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"}}
BOTH = {**OLD, **NEW}
BY_LAYER = {"rope_parameters": {"full": {"rope_theta": 1e6}, "sliding": {"rope_theta": 1e4}}}
GEMMA = {
    "model_type": "gemma3_text",
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
}
GEMMA_UNSCALED = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
OLD_GEMMA = {
    "model_type": "gemma3_text",
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
}
PHI = {"model_type": "phi", "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.4}}
"""Phi 2, whose share is not the one that transformers takes where none is named."""


def check(folder: Path, base: dict[str, Any], artifact: dict[str, Any]) -> None:
    for name, config in (("base", base), ("artifact", artifact)):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
    require_same_positions(folder / "base", folder / "artifact")


@pytest.mark.parametrize(
    ("base", "artifact"),
    [
        (OLD, BOTH),
        (NEW, BOTH),
        (NEW, {"rope_theta": 100000, "rope_parameters": {"rope_theta": 100000}}),
        ({"rope_theta": 1e6, "rope_local_base_freq": 1e4}, BY_LAYER),
        ({"text_config": OLD, "vision_config": {"rope_theta": 5.0}}, BOTH),
        ({"n_positions": 1024}, {"n_positions": 1024}),
        (OLD_GEMMA, config_v4(GEMMA)),
        ({"text_config": OLD_GEMMA}, config_v4({"text_config": GEMMA})),
        (PHI, config_v4(PHI)),
        ({"rotary_pct": 0.5, "rotary_emb_base": 5000}, {"partial_rotary_factor": 0.5, "rope_theta": 5000}),
        ({**OLD, "vision": {"factor": 4}}, BOTH),
    ],
    ids=[
        *("of 4", "of 5", "a whole number", "by layer", "one that also sees", "no rotary positions"),
        *("by layer, of 4", "by layer, of one that also sees", "a share", "a share, of 4", "no factor of positions"),
    ],
)
def test_the_same_positions(tmp_path: Path, base: dict[str, Any], artifact: dict[str, Any]) -> None:
    check(tmp_path, base, artifact)


@pytest.mark.parametrize(
    ("base", "artifact", "said"),
    [
        (NEW, {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e4}}, "has rope_theta 10000, that of"),
        (OLD, {"max_position_embeddings": 8192}, "has no rope_theta, that of its base model has rope_theta 100000:"),
        (NEW, {**BOTH, "rope_theta": 1e4}, "has rope_theta 10000.0 where its rope_parameters have 100000.0"),
        (NEW, NEW, "has rope_theta nothing where its rope_parameters have 100000.0"),
        (
            BY_LAYER,
            {"rope_parameters": {"full": {"rope_theta": 1e6}}},
            "that of its base model has rope_theta 10000 and 1e+06:",
        ),
        (
            OLD_GEMMA,
            config_v4(GEMMA | {"rope_parameters": GEMMA_UNSCALED}),
            "has rope_theta 10000 and 1e+06, that of its base model has rope_theta 10000 and 1e+06, factor 8:",
        ),
        (OLD_GEMMA, GEMMA | {"rope_theta": 1e6}, "has rope_local_base_freq nothing where its rope_parameters have"),
        (
            {"text_config": OLD_GEMMA},
            {"text_config": config_v4(GEMMA) | {"rope_scaling": None}},
            "has rope_scaling nothing where its rope_parameters have",
        ),
        (PHI, PHI | {"rope_theta": 1e4}, "has partial_rotary_factor nothing where its rope_parameters have 0.4"),
    ],
    ids=[
        *("another", "none", "another for readers of transformers 4", "none for them", "one of two"),
        *("no factor", "no base of the other layers for them", "no factor for them", "no share for them"),
    ],
)
def test_other_positions_are_refused(tmp_path: Path, base: dict[str, Any], artifact: dict[str, Any], said: str) -> None:
    with pytest.raises(StageError) as refused:
        check(tmp_path, base, artifact)
    assert refused.value.reason is Reason.ARTIFACT_CORRUPT
    assert said in refused.value.message
    assert "spec.rerun" in refused.value.message
