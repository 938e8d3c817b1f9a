"""What the chart offers a namespace in its ConfigMap is what the operator allows it, no more and no less."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from finetune_operator.settings import Settings
from finetune_operator.tenancy.claim import Claim, Subject
from finetune_operator.tenancy.verdict import tenancy_violation
from tests.support.chart import NAMESPACE, Object, of_kind, render, settings

pytestmark = [pytest.mark.unit, pytest.mark.slow]

TEAMS: Final = ("team-a", "team-b", "steam-a", "research")
FREE: Final[Object] = {"name": "NVIDIA L4", "count": 3, "memoryGib": 22, "usdPerHour": 0}

TENANCY: Final[dict[str, Object]] = {
    "nothing is said": {},
    "open": {"open": True},
    "one for all": {"rules": [{"namespaces": ["*"]}]},
    "nobody here": {"rules": [{"namespaces": ["others"]}]},
    "names": {"rules": [{"namespaces": ["team-a"], "profiles": ["gpu-l4", "unknown"], "runtimes": ["tgi"]}]},
    "patterns": {"rules": [{"namespaces": ["team-*"], "profiles": ["gpu-a*", "*-80"], "runtimes": ["*-cpu"]}]},
    "whole names": {"rules": [{"namespaces": ["team-a", "search"], "profiles": ["gpu-a100-8"], "runtimes": ["gi"]}]},
    "nothing of it": {"rules": [{"namespaces": ["*"], "profiles": [], "runtimes": []}]},
    "left out": {"rules": [{"namespaces": ["*"], "maxUsdPerRun": 5}]},
    "choices": {
        "rules": [
            {"namespaces": ["team-*"], "profiles": ["cpu-*"], "runtimes": []},
            {"namespaces": ["team-b", "research"], "profiles": ["gpu-h*"], "maxUsdPerRun": 2000},
        ]
    },
}
"""``tenancy`` in the chart's values."""


def offers(objects: list[Object]) -> dict[str, dict[str, Any]]:
    """What the chart offers: by namespace and by ``profiles`` or ``runtimes``."""
    maps = [each for each in of_kind(objects, "ConfigMap") if each["metadata"]["name"] == "finetune-offers"]
    return {
        each["metadata"]["namespace"]: {key: yaml.safe_load(text) for key, text in each["data"].items()}
        for each in maps
    }


def allowed(given: Settings, namespace: str, subject: Subject) -> set[str]:
    """The profiles or runtimes that the operator lets a namespace name."""
    names = given.profiles if subject is Subject.PROFILE else given.runtimes
    return {
        name
        for name in names
        if not tenancy_violation(given.tenancy, given.free_profiles, namespace, [Claim(subject, "spec", name)])
    }


@pytest.mark.parametrize("tenancy", TENANCY.values(), ids=TENANCY)
def test_a_namespace_is_offered_what_the_operator_allows(tenancy: Object, tmp_path: Path) -> None:
    values = {
        "runner": {"namespaces": [*TEAMS]},
        "profiles": {"gpu-a10g": {"gpu": FREE}},
        "tenancy": tenancy,
    }
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
    objects = render("--values", str(tmp_path / "values.yaml"))
    given, offered = settings(objects), offers(objects)
    assert offered.keys() == {*TEAMS}
    for namespace in TEAMS:
        for subject in (Subject.PROFILE, Subject.RUNTIME):
            assert offered[namespace][subject.value].keys() == allowed(given, namespace, subject), (namespace, subject)


def test_metric_containers_are_offered_to_whoever_may_run_a_job(tmp_path: Path) -> None:
    """With what they measure, and no image."""
    brevity = {
        "description": "How short answers are",
        "image": {"repository": "metrics/brevity", "tag": "1"},
        "figures": {"words": {"higherIsBetter": False, "minimum": 0}},
    }
    values = {
        "runner": {"namespaces": ["team-a", "research"]},
        "metricContainers": {"brevity": brevity},
        "tenancy": {"rules": [{"namespaces": ["team-*"]}]},
    }
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
    found = offers(render("--values", str(tmp_path / "values.yaml")))
    shown = {key: brevity[key] for key in ("description", "figures")}
    assert {name: each["metricContainers"] for name, each in found.items()} == {
        "team-a": {"brevity": shown},
        "research": {},
    }


def test_an_offer_says_what_it_is_and_costs(tmp_path: Path) -> None:
    """Nothing else that is in the values: no images, placement or accounts."""
    values = {
        "runner": {"namespaces": ["team-a"]},
        "profiles": {"gpu-l4": {"nodes": 2, "gpu": {"count": 3, "usdPerHour": 1.1}}, "gpu-a10g": {"gpu": FREE}},
        "tenancy": {"open": True},
    }
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
    objects = render("--values", str(tmp_path / "values.yaml"))
    given, offered = settings(objects), offers(objects)["team-a"]
    for name, offer in offered["profiles"].items():
        gpu, nodes = given.profiles[name].gpu, given.profiles[name].nodes
        assert offer["description"] == given.profiles[name].description
        assert offer.get("nodes", 1) == nodes
        assert offer.get("gpu") == (gpu and {"name": gpu.name, "count": gpu.count, "memoryGib": gpu.memory_gib})
        price = gpu.count * gpu.usd_per_hour if gpu else 0
        assert offer.get("usdPerHour", 0) == pytest.approx(price)
        assert ("usdPerHour" in offer) == given.profiles[name].has_price
        assert offer.keys() <= {"description", "nodes", "gpu", "usdPerHour"}
    for name, offer in offered["runtimes"].items():
        runtime = given.runtimes[name]
        assert offer == {
            "description": runtime.description,
            "engine": runtime.engine,
            "maxTotalTokens": runtime.max_total_tokens,
            **({"maxInputTokens": runtime.max_input_tokens} if runtime.limits_prompts else {}),
        }
    assert "usdPerHour: 3.3\n" in _text(objects, "profiles"), "people read it"


def test_a_profile_of_few_words_is_offered_too(tmp_path: Path) -> None:
    """The count of GPUs has a default, everything else is left out; without runtimes the list is empty, not missing."""
    gpu = {"name": "NPU", "memoryGib": 0.5, "peakTflops": 1, "usdPerHour": 0.25}
    values = {
        "runner": {"namespaces": ["team-a"]},
        "profiles": {"mine": {"gpu": gpu}},
        "runtimes": {"tgi": None, "tgi-cpu": None, "vllm": None},
        "tenancy": {"open": True},
    }
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
    offered = offers(render("--values", str(tmp_path / "values.yaml")))["team-a"]
    assert offered["profiles"]["mine"] == {
        "gpu": {"name": "NPU", "count": 1, "memoryGib": 0.5},
        "usdPerHour": 0.25,
    }
    assert offered["runtimes"] == {}


@pytest.mark.parametrize(
    ("watched", "expected"),
    [("[]", {"team-a", "team-b"}), ('["team-b","team-c"]', {"team-b"}), ('["team-c"]', set())],
)
def test_only_namespaces_that_the_operator_watches_are_offered_anything(watched: str, expected: set[str]) -> None:
    values = ("--set", "runner.namespaces={team-a,team-b}", "--set-json", f"watchNamespaces={watched}")
    assert offers(render(*values)).keys() == expected


def test_the_offer_goes_with_the_release() -> None:
    """Unlike the ServiceAccounts and policies there: without an operator nothing is offered."""
    objects = render("--set", "runner.namespaces={team-a}")
    (offer,) = (each for each in of_kind(objects, "ConfigMap") if each["metadata"]["namespace"] != NAMESPACE)
    assert "annotations" not in offer["metadata"]


def _text(objects: list[Object], key: str) -> str:
    (offer,) = (each for each in of_kind(objects, "ConfigMap") if each["metadata"]["name"] == "finetune-offers")
    return str(offer["data"][key])
