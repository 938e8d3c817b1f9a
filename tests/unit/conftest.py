"""Fixtures of the unit tests."""

import uuid
from collections.abc import Iterator

import pytest

from tests.support.seaweedfs import ADMIN, SeaweedFS


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    """A real S3 server with the bucket ``data``."""
    with SeaweedFS.running(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture
def place(s3: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> str:
    """A URI that no other test uses; the environment holds the admin's keys."""
    for name, value in ADMIN.environment().items():
        monkeypatch.setenv(name, value)
    return f"s3://data/{uuid.uuid4().hex}"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that asks for the server is slow, whoever marks it."""
    for item in items:
        if "s3" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
