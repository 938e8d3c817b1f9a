"""An object of an earlier API is refused by ``kubectl apply``, and told the name of the field that it must use now."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator

import pytest

from finetune_api import crdgen
from finetune_api.base import is_retired
from hack.cluster import toolchain
from hack.cluster.controlplane import ControlPlane
from tests.support.crd_patterns import KINDS, Object
from tests.support.retired_fields import ADAPTER_CHANNELS, ADAPTERS, CHANNEL, DEPLOYMENT, JOB, OLD, Old, Path

pytestmark = pytest.mark.controlplane


def retired(path: Path, schema: Object) -> Iterator[Path]:
    """Every field of a schema that is refused whatever it holds; list items are number 0."""
    if "items" in schema:
        yield from retired((*path, 0), schema["items"])
    for name, child in schema.get("properties", {}).items():
        if is_retired(child):
            yield (*path, name)
        else:
            yield from retired((*path, name), child)


def test_every_retired_field_is_tried() -> None:
    declared = {
        (kind, *path)
        for kind in KINDS
        for path in retired((), crdgen.crd(KINDS[kind])["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
    }
    tried = {(old.body["kind"], *old.path, name) for old in OLD for name in old.value}
    assert declared
    assert declared <= tried
    assert all("status" not in path for path in declared), "the operator never writes them"


@pytest.mark.parametrize(
    "body",
    [JOB, DEPLOYMENT, ADAPTERS, CHANNEL, ADAPTER_CHANNELS],
    ids=["FineTuneJob", "AdapterDeployment", "adapters", "channel", "channels of adapters"],
)
def test_without_the_old_field_it_is_taken(plane: ControlPlane, body: Object) -> None:
    plane.kubectl("apply", "--dry-run=server", "-f", "-", stdin=json.dumps(body))


@pytest.fixture(scope="module", params=[(), ("--server-side",), ("--validate=ignore",)], ids=" ".join)
def complaints(
    request: pytest.FixtureRequest, plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """What kubectl says to each object of ``OLD``, which it gets all at once: a start for each would take a minute."""
    folder = tmp_path_factory.mktemp("retired")
    for number, old in enumerate(OLD):
        named = old.object | {"metadata": {"name": f"old-{number}"}}
        (folder / f"{number}.json").write_text(json.dumps(named))
    command = [toolchain.program("kubectl"), "--kubeconfig", plane.kubeconfig, "apply", *request.param]
    done = subprocess.run(
        [*command, "--dry-run=server", "-f", folder], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.stdout == "", "every object is refused"
    # A complaint names the file, the object or both.
    _, *said = re.split(rf'"(?:{folder}/|old-)(\d+)(?:\.json)?"', done.stderr)
    return dict(zip(said[::2], said[1::2], strict=True))


@pytest.mark.parametrize(("number", "old"), list(enumerate(OLD)), ids=str)
def test_kubectl_says_what_to_write_instead(complaints: dict[str, str], number: int, old: Old) -> None:
    """Also to clients that do not ask for strict validation: nothing is dropped without a word."""
    assert old.says in complaints[str(number)]
