"""Every YAML file of examples/ is taken by a real API server as it stands, and keeps all that is written in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from hack.cluster.console import ClusterError
from hack.cluster.controlplane import ControlPlane
from hack.cluster.layout import REPOSITORY

pytestmark = pytest.mark.controlplane

EXAMPLES = REPOSITORY / "examples"
FILES = sorted(path for path in EXAMPLES.rglob("*") if path.suffix in {".yaml", ".yml"})
ORIGINAL = EXAMPLES / "transactions" / "finetunejob.yaml"


def dry_run(plane: ControlPlane, path: Path) -> list[Any]:
    """What the API server would store of each document. Raises ClusterError where it refuses one."""
    options = ("--server-side", "--dry-run=server", "--validate=strict", "--output=yaml")
    return documents(plane.kubectl("apply", *options, "--filename", str(path)))


def documents(text: str) -> list[Any]:
    """The objects of a stream of YAML documents; kubectl writes several as one List."""
    every = [document for document in yaml.safe_load_all(text) if document]
    return every[0]["items"] if len(every) == 1 and every[0]["kind"] == "List" else every


def missing(written: Any, stored: Any, place: str = "") -> list[str]:
    """Places whose value was changed or dropped on the way; what the API server adds does not count."""
    if isinstance(written, dict) and isinstance(stored, dict):
        return [each for name in written for each in missing(written[name], stored.get(name), f"{place}.{name}")]
    if isinstance(written, list) and isinstance(stored, list) and len(written) == len(stored):
        pairs = enumerate(zip(written, stored, strict=True))
        return [each for number, (one, other) in pairs for each in missing(one, other, f"{place}[{number}]")]
    return [] if written == stored else [place]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_the_api_server_takes_every_document(plane: ControlPlane, path: Path) -> None:
    written, stored = documents(path.read_text()), dry_run(plane, path)
    assert written
    assert len(stored) == len(written)
    for number, document in enumerate(written):
        for part in set(document) - {"metadata"}:
            assert missing(document[part], stored[number][part], part) == []
        assert missing(document["metadata"], stored[number]["metadata"]) == []


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("batchSize:", "batchsize:", ".spec.training.batchsize: field not declared in schema"),
        ('learningRate: "1e-3"', "learningRate: 1e-3", ".spec.training.learningRate: expected string"),
        ("uri: s3://artifacts/transactions", "uri: /artifacts", "spec.output.uri: Invalid value"),
    ],
)
def test_what_is_wrong_in_an_example_is_seen(
    plane: ControlPlane, tmp_path: Path, old: str, new: str, complaint: str
) -> None:
    text = ORIGINAL.read_text()
    assert old in text
    path = tmp_path / "finetunejob.yaml"
    path.write_text(text.replace(old, new))
    with pytest.raises(ClusterError) as error:
        dry_run(plane, path)
    assert complaint in str(error.value)
