"""What the documentation tells people to type: in an order that works, with names that exist."""

from __future__ import annotations

import pytest
import yaml

from hack.cluster.layout import REPOSITORY
from tests.support.pages import blocks, commands

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("name", ["README.md", "docs/how-to/install.md"])
def test_the_chart_is_installed_into_namespaces_that_exist_and_makes_their_accounts_itself(name: str) -> None:
    """Helm puts nothing into a namespace that is not there, and takes over nothing that it has not made."""
    typed = commands(REPOSITORY / name)
    install = next(number for number, line in enumerate(typed) if line.startswith("helm upgrade --install"))
    assert "kubectl create namespace team-a" in typed[:install]
    assert not [line for line in typed if "-n team-a create serviceaccount" in line], "runner.namespaces lists it"


def test_images_are_pushed_under_a_tag_of_their_own_which_the_values_name() -> None:
    """Nodes never pull a tag again that they have: under the same one, an upgrade would go on with the old images."""
    page = REPOSITORY / "docs" / "how-to" / "install.md"
    pushed = [line for line in commands(page) if line.startswith("docker push")]
    assert pushed == ["docker push $REGISTRY/$image:$VERSION"]
    assert any(line.startswith("VERSION=$(git describe") for line in commands(page))
    values = yaml.safe_load(next(block for block in blocks(page, "yaml") if block.startswith("# values.yaml")))
    assert isinstance(values["images"]["tag"], str)
