"""An artifact has the rotary positions of its base model, in whatever dialect each is written."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.exporting.positions import require_same_positions

pytestmark = pytest.mark.unit

OLD = {"rope_theta": 100000.0, "rope_scaling": None}
NEW = {"rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"}}
BOTH = {**OLD, **NEW}
BY_LAYER = {"rope_parameters": {"full": {"rope_theta": 1e6}, "sliding": {"rope_theta": 1e4}}}


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
        (NEW, {"rope_parameters": {"rope_theta": 100000}}),
        ({"rope_theta": 1e6, "rope_local_base_freq": 1e4}, BY_LAYER),
        ({"text_config": OLD, "vision_config": {"rope_theta": 5.0}}, BOTH),
        ({"n_positions": 1024}, {"n_positions": 1024}),
    ],
    ids=["of 4", "of 5", "a whole number", "by layer", "one that also sees", "no rotary positions"],
)
def test_the_same_positions(tmp_path: Path, base: dict[str, Any], artifact: dict[str, Any]) -> None:
    check(tmp_path, base, artifact)


@pytest.mark.parametrize(
    ("base", "artifact", "said"),
    [
        (NEW, {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e4}}, "has rope_theta 10000, that of"),
        (OLD, {"max_position_embeddings": 8192}, "has rope_theta nothing, that of its base model has 100000:"),
        (NEW, {**BOTH, "rope_theta": 1e4}, "has rope_theta 10000 and 100000, that of"),
        (BY_LAYER, {"rope_parameters": {"full": {"rope_theta": 1e6}}}, "that of its base model has 10000 and 1e+06:"),
    ],
    ids=["another", "none", "another for readers of transformers 4", "one of two"],
)
def test_other_positions_are_refused(tmp_path: Path, base: dict[str, Any], artifact: dict[str, Any], said: str) -> None:
    with pytest.raises(StageError) as refused:
        check(tmp_path, base, artifact)
    assert refused.value.reason is Reason.ARTIFACT_CORRUPT
    assert said in refused.value.message
    assert "spec.rerun" in refused.value.message
