"""Namespaces that a role no longer opens: deleted ones, and roles of an earlier chart."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import pytest

from finetune_operator.controller import INDEXES, Controller
from finetune_operator.framework.cache import CHILDREN, Cache
from finetune_operator.framework.client import PAGE, ApiError, Page, Selection
from finetune_operator.framework.objects import PODS, Resource
from finetune_operator.kinds import CUSTOM_RESOURCES, WAKERS
from finetune_operator.settings import Images, Settings
from tests.support.sentences import assert_says
from tests.support.streams import StreamServer

pytestmark = pytest.mark.unit

UNUSED = cast(Any, None)
IMAGES = Images(data="d", prepare="p", jobs="j", quantize="q", proxy="x")
SETTINGS = Settings(images=IMAGES, profiles={}, namespaces=["team-a", "team-b"])
ALL_KINDS = (*CUSTOM_RESOURCES, *CHILDREN, *SETTINGS.serving.watched_routes, *WAKERS)


@dataclass
class Namespaces(StreamServer):
    """Refuses what the roles of some namespaces do not allow."""

    refuses: tuple[tuple[str, Resource], ...] = ()

    def pages(self, selection: Selection, limit: int = PAGE) -> Iterator[Page]:
        if (selection.namespace, selection.resource) in self.refuses:
            raise ApiError(403, "Forbidden", f"{selection.resource.plural} is forbidden in {selection.namespace}")
        return super().pages(selection, limit)


def gone(*namespaces: str) -> tuple[tuple[str, Resource], ...]:
    """They were deleted, and their roles with them."""
    return tuple((namespace, resource) for namespace in namespaces for resource in ALL_KINDS)


def test_a_deleted_namespace_stops_the_operator_for_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """Neither when it starts, nor by its probe. It is read again when it is back."""
    server = Namespaces(refuses=gone("team-b"))
    controller = Controller(cast(Any, server), Cache(INDEXES), UNUSED, SETTINGS)
    controller.start()
    try:
        [told] = [each for each in caplog.messages if "cannot be read" in each]
        assert_says(told, "namespace team-b of watchNamespaces", "Role and RoleBinding", "is forbidden in team-b")
        for informer in controller._informers:
            if informer.selection.namespace == "team-b":
                informer._heard -= 10_000
        assert max(controller.sync_ages().values()) < 100
        server.refuses = ()
        deadline = time.monotonic() + 60
        while any(informer.refused for informer in controller._informers):
            assert time.monotonic() < deadline, "the namespace is back, and not read"
            time.sleep(0.02)
    finally:
        controller.stop()


@pytest.mark.parametrize(
    "refuses",
    [
        pytest.param(gone("team-a", "team-b"), id="no namespace may be read"),
        pytest.param((("team-b", PODS),), id="a role of an earlier chart lacks a kind"),
    ],
)
def test_rights_that_are_missing_are_told_at_the_start(refuses: tuple[tuple[str, Resource], ...]) -> None:
    controller = Controller(cast(Any, Namespaces(refuses=refuses)), Cache(INDEXES), UNUSED, SETTINGS)
    with pytest.raises(ApiError, match="is forbidden in team-"):
        controller.start()


def test_a_kind_that_no_namespace_lets_read_any_more_is_late() -> None:
    """A restart then says why at once."""
    server = Namespaces()
    controller = Controller(cast(Any, server), Cache(INDEXES), UNUSED, SETTINGS)
    for informer in controller._informers:
        informer.refused = informer.selection.resource == PODS
        informer._heard -= 10_000 if informer.refused else 0
    assert [kind for kind, age in controller.sync_ages().items() if age > 100] == ["pods"]
