"""Fixtures of the unit tests."""

from __future__ import annotations

import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest

from hack.cluster.layout import cache_directory
from tests.support import leaks
from tests.support.clock import Clock
from tests.support.seaweedfs import ADMIN, SeaweedFS

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from finetune_api.stages import StageResult, Upstream
    from finetune_jobs.store.s3 import Store
    from tests.support.preparing import Prepared
    from tests.support.publish_job import PublishJob


@pytest.fixture(scope="module", autouse=True)
def _leaves_nothing_behind() -> Iterator[None]:
    """Other files of tests follow in the same process."""
    before = leaks.places()
    yield
    if left := leaks.left_behind(before, leaks.places()):
        pytest.fail(f"this file has not put back: {', '.join(left)}")


@pytest.fixture(scope="module")
def own_environment() -> Iterator[None]:
    """The environment of a file whose tests let the product change it, as a stage may: it is the pod's."""
    with patch.dict(os.environ):
        yield


@pytest.fixture
def own_client() -> Iterator[None]:
    """For a test that lets the product change how huggingface_hub connects, as a verification does: in its pod nothing
    else runs. A server that is gone would be asked for three seconds by every test that follows."""
    from huggingface_hub.utils import _http

    factory = _http._GLOBAL_CLIENT_FACTORY
    yield
    _http.set_client_factory(factory)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    """A real S3 server with the bucket ``data``."""
    with SeaweedFS.running(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture
def clock() -> Clock:
    """A clock of the test's own."""
    return Clock()


@pytest.fixture
def place(s3: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> str:
    """A URI that no other test uses; the environment holds the admin's keys."""
    for name, value in ADMIN.environment().items():
        monkeypatch.setenv(name, value)
    return f"s3://data/{uuid.uuid4().hex}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium as Debian has it."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium")
    if program is None:
        pytest.fail("chromium is missing: `python3 -m hack.environments browser` installs it")
    with sync_playwright() as playwright:
        # By default it has half a minute, which a busy machine may need.
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"], timeout=180_000)
        yield started
        started.close()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that asks for the server is slow, whoever marks it."""
    for item in items:
        if "s3" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model that no test changes."""
    from tests.support.tiny_model import build_tiny_llama  # imports torch, which most tests do without

    return build_tiny_llama(tmp_path_factory.mktemp("tiny-llama") / "model")


@pytest.fixture
def stocked(s3: SeaweedFS, place: str, tiny_llama: Path) -> Store:
    """A place with sources and a base model, for resolve and prepare."""
    from finetune_jobs.store.s3 import Store
    from tests.support.first_stages import stock

    return stock(Store.connect(s3.storage, place), tiny_llama)


@pytest.fixture
def prepared(s3: SeaweedFS, place: str, tiny_llama: Path, tmp_path: Path) -> Prepared:
    """A place in the store with a base model, for the stage prepare."""
    from tests.support.preparing import Prepared

    return Prepared(s3, place, tiny_llama, tmp_path)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of every kind that an evaluation asks, and a data set; no test changes them."""
    from tests.support.evaluating import build_models

    return build_models(tmp_path_factory.mktemp("evaluate"))


@pytest.fixture(scope="session")
def forked_vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What the fixture ``vllm`` has, once for all tests."""
    from tests.support.vllm_forked import waiting

    with waiting(tmp_path_factory.mktemp("vllm")) as program:
        yield program


@pytest.fixture
def vllm(forked_vllm: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Python that finds the package ``vllm``, one that keeps its contract; and has imported it."""
    monkeypatch.setenv("FINETUNE_VLLM_PYTHON", str(forked_vllm))
    return forked_vllm


@pytest.fixture
def fresh_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, as a Python that starts."""
    from tests.support.vllm_forked import STAND_IN

    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={STAND_IN} exec {sys.executable} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("FINETUNE_VLLM_PYTHON", str(program))
    return program


@pytest.fixture
def store(s3: SeaweedFS, place: str) -> Store:
    """A place in the store."""
    from finetune_jobs.store.s3 import Store

    return Store.connect(s3.storage, place)


@pytest.fixture
def upstream(store: Store, tmp_path: Path) -> Upstream:
    """Outputs of all stages before publish."""
    from tests.support.publishing import put_upstream

    return put_upstream(store, tmp_path)


@pytest.fixture
def chain(store: Store, tmp_path: Path) -> Upstream:
    """The same, each with its lineage."""
    from tests.support.published import put_upstream

    return put_upstream(store, tmp_path / "made")


@pytest.fixture
def job(s3: SeaweedFS, store: Store, chain: Upstream, tmp_path: Path) -> PublishJob:
    """A FineTuneJob whose publish runs."""
    from tests.support.publish_job import PublishJob

    return PublishJob(s3, store, chain, tmp_path)


@pytest.fixture
def published(s3: SeaweedFS, store: Store, upstream: Upstream, tmp_path: Path) -> StageResult:
    """An artifact in the channel stable."""
    from tests.support.publishing import publish_upstream

    return publish_upstream(s3, store, upstream, tmp_path)


@pytest.fixture(scope="session")
def quantize_python() -> Path:
    """Python with llm-compressor, whose pins exclude those of the tests' own environment."""
    python = Path(os.environ.get("FINETUNE_QUANTIZE_PYTHON", cache_directory() / "venvs/quantize/bin/python"))
    if not python.exists():
        pytest.fail(f"{python} is missing: `python3 -m hack.environments quantize` makes it")
    return python


@pytest.fixture(scope="session")
def transformers_4_python() -> Path:
    """Python with what Text Generation Inference 3.3 reads checkpoints with."""
    python = cache_directory() / "venvs/transformers-4/bin/python"
    if not python.exists():
        pytest.fail(f"{python} is missing: `python3 -m hack.environments transformers-4` makes it")
    return python


@pytest.fixture
def without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU of which oneDNN says that it has no bfloat16, whatever this machine's has: models compute in float32."""
    import torch  # too slow for the tests that do without

    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
