"""What the documentation tells people to type: in an order that works, with names that exist."""

from __future__ import annotations

import pytest

from hack.cluster.layout import REPOSITORY
from tests.support.pages import commands

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("name", ["README.md", "docs/how-to/install.md"])
def test_the_chart_is_installed_into_namespaces_that_exist_and_makes_their_accounts_itself(name: str) -> None:
    """Helm puts nothing into a namespace that is not there, and takes over nothing that it has not made."""
    typed = commands(REPOSITORY / name)
    install = next(number for number, line in enumerate(typed) if line.startswith("helm upgrade --install"))
    assert "kubectl create namespace team-a" in typed[:install]
    assert not [line for line in typed if "-n team-a create serviceaccount" in line], "runner.namespaces lists it"
