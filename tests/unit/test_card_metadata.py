"""The metadata of a model card: nothing that the Hugging Face hub would refuse, for which it refuses the whole push."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from finetune_api.stages import Params, Stage, StageInput
from finetune_jobs.artifacts.artifact import Metrics
from finetune_jobs.artifacts.card_metadata import card_metadata
from tests.support.pushed_hub import metadata_faults
from tests.support.stages import RUN, model_ref

pytestmark = pytest.mark.unit


def metadata(base: str, licence: str = "", **metrics: Any) -> dict[str, Any]:
    """As the hub reads them; it must find no fault."""
    model = model_ref(base_model_uri=base)
    told = Metrics.model_validate({"goldenPrompts": 2, "scalars": {}, "baseLicense": licence} | metrics)
    text = card_metadata(StageInput(stage=Stage.PUBLISH, run=RUN, params=Params()), model, told, "transactions")
    assert metadata_faults(f"---\n{text}\n---\n") == []
    found: dict[str, Any] = yaml.safe_load(text)
    return found


@pytest.mark.parametrize(
    ("uri", "named"),
    [
        ("hf://acme/base@0123abc", "acme/base"),
        ("hf://gpt2@main", "gpt2"),
        ("s3://models/qwen3-4b", None),
        (f"s3://models/team-a/models/{'1' * 64}/quantized", None),
    ],
)
def test_the_hub_knows_base_models_of_its_own_only(uri: str, named: str | None) -> None:
    assert metadata(uri).get("base_model") == named


@pytest.mark.parametrize(
    ("licence", "told"),
    [
        ("", {}),
        ("apache-2.0", {"license": "apache-2.0"}),
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("other", {"license": "other"}),
        ("Acme Community License (2026)", {"license": "other", "license_name": "acme-community-license-2026"}),
        ("gpl-2.0-or-later", {"license": "other", "license_name": "gpl-2.0-or-later"}),
        ("许可证", {"license": "other"}),
    ],
)
def test_a_licence_that_the_hub_does_not_know_is_another_one(licence: str, told: dict[str, str]) -> None:
    found = metadata("hf://acme/base@0123abc", licence)
    assert {name: found[name] for name in ("license", "license_name") if name in found} == told


@pytest.mark.parametrize(("label", "named"), [("GSM 8K (short)", "GSM-8K-short"), ("…", "transactions")])
def test_what_a_container_measured_on_has_a_name_that_the_hub_takes(label: str, named: str) -> None:
    """The label in full beside it."""
    figure = {"value": 0.5, "low": 0.4, "high": 0.6}
    measured = {"metric": "suite.acc", "label": label, "cases": 8, "models": {"artifact": figure}}
    found = metadata("hf://acme/base@0123abc", measurements={"rows": 8, "measured": [measured]})
    [result] = found["model-index"][0]["results"]
    assert (result["dataset"]["type"], result["dataset"]["name"]) == (named, label)
