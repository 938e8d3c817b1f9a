"""A store whose certificate is of a private authority: refused until that is named, then used like any other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_api.meta import CA_DIR_VARIABLE
from finetune_api.reasons import Reason
from finetune_api.references import ConfigMapKeyRef
from finetune_api.storage import CaBundle, Storage
from finetune_jobs.base.errors import StageError
from finetune_jobs.store.s3 import Store
from finetune_jobs.store.transfers import download_file
from tests.support.seaweedfs import SeaweedFS
from tests.support.sentences import assert_says
from tests.support.tls_store import PrivateAuthority, encrypted, private_authority

pytestmark = [pytest.mark.unit, pytest.mark.slow]

BUNDLE = CaBundle(config_map_key_ref=ConfigMapKeyRef(name="corp-ca", key="ca.crt"))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> PrivateAuthority:
    """Nobody trusts it by default."""
    return private_authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def endpoint(s3: SeaweedFS, authority: PrivateAuthority) -> Iterator[str]:
    """The store of the tests, behind TLS."""
    with encrypted(s3.endpoint, authority.certificate) as url:
        yield url


def _mount(authority: PrivateAuthority, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The certificate where a pod would have it, as the key ca.crt of the ConfigMap corp-ca."""
    file = folder / "mounted" / "corp-ca" / "ca.crt"
    file.parent.mkdir(parents=True)
    file.write_bytes(authority.authority.read_bytes())
    monkeypatch.setenv(CA_DIR_VARIABLE, str(folder / "mounted"))


def test_the_authority_that_is_named_is_trusted(
    endpoint: str, place: str, authority: PrivateAuthority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _mount(authority, tmp_path, monkeypatch)
    store = Store.connect(Storage(endpoint=endpoint, ca_bundle=BUNDLE), place)
    (tmp_path / "large").write_bytes(b"x" * 3_000_000)
    store.upload("large", tmp_path / "large")
    assert download_file(store, "large", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "large").read_bytes()
    assert store.put_if_absent("once", b"a")
    assert not store.put_if_absent("once", b"b")
    assert store.get("once") == b"a"


@pytest.mark.parametrize("named", [False, True])
def test_a_certificate_of_anybody_else_is_refused(
    endpoint: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    """Without a bundle, and with the bundle of another authority."""
    if named:
        _mount(private_authority(tmp_path, "another authority"), tmp_path, monkeypatch)
    store = Store.connect(Storage(endpoint=endpoint, ca_bundle=BUNDLE if named else None), place)
    with pytest.raises(StageError) as caught:
        store.get("once")
    assert caught.value.reason is Reason.S3_UNREACHABLE
    assert_says(caught.value.message, f"reading {place}/once", "TLS certificate", "not trusted", "storage.caBundle")


def test_a_bundle_that_is_missing_is_named(place: str) -> None:
    with pytest.raises(StageError) as caught:
        Store.connect(Storage(ca_bundle=BUNDLE), place)
    assert (caught.value.reason, caught.value.retriable) == (Reason.SPEC_INVALID, False)
    assert "ConfigMap 'corp-ca' does not exist in this namespace, or has no key 'ca.crt'" in caught.value.message
