"""Names and versions that Kubernetes and Helm allow and few people use: the chart's objects stay valid."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.chart import CHART, Object, helm, settings

pytestmark = [pytest.mark.unit, pytest.mark.slow]

NUMBERS = ("2026", "1e3", "0x1f", "no", "null")
"""Names of namespaces that YAML takes for something else than texts."""
NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
MONITORED = tuple(
    argument
    for each in ("podMonitor", "alerts", "endpoints.podMonitor", "endpoints.rules", "dashboards")
    for argument in ("--set", f"metrics.{each}.enabled=true")
)


def rendered(release: str, *arguments: str, chart: Path = CHART) -> list[Object]:
    done = helm("template", release, str(chart), *MONITORED, "--set", "metrics.withoutCrds=Create", *arguments)
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.load_all(done.stdout, yaml.CSafeLoader) if each]


def texts(found: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """All names and labels, wherever they are in an object, with their places."""
    if isinstance(found, list):
        for number, each in enumerate(found):
            yield from texts(each, f"{place}[{number}]")
    elif isinstance(found, dict):
        for key, value in found.items():
            here = f"{place}.{key}"
            if key in ("name", "namespace", "serviceAccountName", "priorityClassName"):
                yield here, value
            elif key in ("labels", "matchLabels", "annotations"):
                yield from ((f"{here}.{name}", each) for name, each in value.items())
            elif key not in ("openAPIV3Schema", "data"):
                yield from texts(value, here)


def test_names_that_are_numbers_stay_texts(tmp_path: Path) -> None:
    """The API server refuses an object whose namespace is a number."""
    values = {
        "watchNamespaces": [*NUMBERS],
        "runner": {"namespaces": [*NUMBERS]},
        "operator": {"priorityClassName": "1000", "imagePullSecrets": ["2026"]},
        "profiles": {"no": {"description": "none"}},
    }
    (tmp_path / "values.json").write_text(json.dumps(values))
    objects = rendered("42", "--namespace", "1234", "--values", str(tmp_path / "values.json"))
    found = [text for each in objects for text in texts(each, each["kind"])]
    assert [place for place, value in found if not isinstance(value, str)] == []
    assert {*NUMBERS, "42", "1234", "1000"} <= {value for _, value in found}
    given = settings(objects)
    assert given.namespaces == [*NUMBERS]
    assert "no" in given.profiles


def test_build_metadata_of_a_version_is_no_label(tmp_path: Path) -> None:
    """``helm package --version 0.1.0+3d8dbbb`` is common in pipelines; the API server refuses a label with a plus."""
    chart = tmp_path / "finetune-operator"
    shutil.copytree(CHART, chart)
    about = yaml.safe_load((chart / "Chart.yaml").read_text())
    about |= {"version": "0.1.0+3d8dbbb", "appVersion": "0.1.0+3d8dbbb"}
    (chart / "Chart.yaml").write_text(yaml.safe_dump(about))
    objects = rendered("finetune-operator", chart=chart)
    labels = {each["metadata"]["labels"].get("helm.sh/chart") for each in objects if "labels" in each["metadata"]}
    assert labels - {None} == {"finetune-operator-0.1.0_3d8dbbb"}
    wrong = [value for each in objects for value in each["metadata"].get("labels", {}).values()]
    assert [value for value in wrong if not LABEL.fullmatch(value)] == []


@pytest.mark.parametrize("release", ["a", "models.eu", f"{'m' * 39}.eu", "m" * 53])
def test_every_name_of_a_release_gives_names_of_objects(release: str) -> None:
    for each in rendered(release, "--set", "runner.namespaces={team-a}"):
        assert NAME.fullmatch(each["metadata"]["name"]), each["metadata"]["name"]
