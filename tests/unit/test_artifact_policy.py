"""Which artifacts may be served: signed ones, if the policy asks for it, and in every byte what was signed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from finetune_api.endpoint_stages import FetchParams
from finetune_api.layout import MANIFEST, Manifest, output_folder, provenance_object
from finetune_api.reasons import Reason
from finetune_api.stages import Params, Stage, StageInput, StageResult
from finetune_jobs.artifacts.artifact import GOLDEN
from finetune_jobs.artifacts.signing import load_public_key, load_signer, seal
from finetune_jobs.base.errors import StageError
from finetune_jobs.fetch import fetch
from finetune_jobs.publish import publish, sign_move_and_push
from finetune_jobs.runtime.runner import execute
from finetune_jobs.store.s3 import Store
from tests.support.published import KEY, new_key, private_pem, public_pem, publish_input, put_upstream
from tests.support.seaweedfs import SeaweedFS
from tests.support.sentences import assert_says
from tests.support.stages import DEPLOYMENT, context

pytestmark = [pytest.mark.unit, pytest.mark.slow]

SIGNER, OTHER = new_key(), new_key("p256")


def key_id(key: PrivateKeyTypes) -> str:
    return load_public_key(public_pem(key), "the key").keyid


def published(s3: SeaweedFS, store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch, rows: bytes = b"") -> str:
    """The digest of an artifact that SIGNER has signed."""
    monkeypatch.setenv(KEY.variable, private_pem(SIGNER))
    chain = put_upstream(store, folder / f"made-{rows.decode()}", rows)
    given = publish_input(s3, store, chain, signed=True)
    return execute(context(given, folder), publish, after=sign_move_and_push).output_digest


def fetch_input(s3: SeaweedFS, store: Store, digest: str, *keys: str) -> StageInput:
    return StageInput(
        stage=Stage.FETCH,
        run=DEPLOYMENT,
        storage=s3.storage,
        artifact_uri=store.uri(output_folder(Stage.PUBLISH, digest)),
        params=Params(fetch=FetchParams(public_keys=list(keys)) if keys else None),
    )


def fetched(s3: SeaweedFS, store: Store, digest: str, folder: Path, *keys: str) -> StageResult:
    return execute(context(fetch_input(s3, store, digest, *keys), folder), fetch)


def test_one_of_the_keys_has_to_have_signed(
    s3: SeaweedFS, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = published(s3, store, tmp_path, monkeypatch)
    result = fetched(s3, store, digest, tmp_path, public_pem(OTHER), public_pem(SIGNER))
    assert result.scalars["signedBy"] == key_id(SIGNER)
    assert_says(result.message, "every hash matches, signed by key", key_id(SIGNER)[:12])
    assert "signedBy" not in fetched(s3, store, digest, tmp_path).scalars
    with pytest.raises(StageError) as error:
        fetched(s3, store, digest, tmp_path, public_pem(OTHER))
    assert error.value.reason is Reason.SIGNATURE_MISSING
    assert_says(
        error.value.message, f"artifacts/{digest} has no signature", "spec.policy.signature", key_id(OTHER)[:12]
    )


def swapped(content: bytes, by: Callable[[str], str]) -> bytes:
    """An envelope with another payload and the same signature."""
    envelope = json.loads(content)
    return json.dumps(envelope | {"payload": by(envelope["payload"])}).encode()


FORGERIES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "another payload": (
        lambda content: swapped(content, lambda payload: payload[:-8] + "AAAA" + payload[-4:]),
        "signature does not match its content",
    ),
    "signed by another key": (
        lambda _: seal(b"{}", load_signer(private_pem(OTHER), "the key")),
        "was made with another key",
    ),
    "another statement": (
        lambda _: seal(
            b'{"_type": "x", "predicateType": "y", "subject": []}', load_signer(private_pem(SIGNER), "the key")
        ),
        "it says 'y'",
    ),
    "no statement": (lambda _: seal(b"[]", load_signer(private_pem(SIGNER), "the key")), "cannot be read as Statement"),
    "no envelope": (lambda _: b"[1]", "it is not a DSSE envelope"),
    "no JSON": (lambda _: b"signed, the boss", "it is not a DSSE envelope"),
}


def test_a_forged_signature_is_refused(
    s3: SeaweedFS, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = published(s3, store, tmp_path, monkeypatch)
    place = provenance_object(digest, key_id(SIGNER))
    signed = store.get(place) or b""
    for name, (forge, said) in FORGERIES.items():
        store.put(place, forge(signed))
        with pytest.raises(StageError) as error:
            fetched(s3, store, digest, tmp_path, public_pem(SIGNER))
        assert error.value.reason is Reason.SIGNATURE_INVALID, name
        assert_says(error.value.message, store.uri(place), said)
        assert not (tmp_path / "models" / digest).exists(), name


def test_a_signature_is_good_for_one_artifact(
    s3: SeaweedFS, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (published(s3, store, tmp_path, monkeypatch, rows) for rows in (b"one", b"two"))
    store.put(provenance_object(two, key_id(SIGNER)), store.get(provenance_object(one, key_id(SIGNER))) or b"")
    with pytest.raises(StageError, match="signed for another artifact") as error:
        fetched(s3, store, two, tmp_path, public_pem(SIGNER))
    assert error.value.reason is Reason.SIGNATURE_INVALID


@pytest.mark.parametrize("honest", [True, False], ids=["file only", "file and manifest"])
def test_a_byte_that_was_changed_after_publishing(
    s3: SeaweedFS, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, honest: bool
) -> None:
    digest = published(s3, store, tmp_path, monkeypatch)
    folder = store.below(output_folder(Stage.PUBLISH, digest))
    changed = (folder.get(GOLDEN) or b"").replace(b"payment", b"Payment")
    folder.put(GOLDEN, changed)
    if not honest:
        local = tmp_path / "changed"
        local.write_bytes(changed)
        manifest = Manifest.model_validate_json(folder.get(MANIFEST) or b"")
        entries = [f.model_copy(update={"sha256": "0" * 64}) if f.path == GOLDEN else f for f in manifest.files]
        folder.put(MANIFEST, manifest.model_copy(update={"files": entries}).model_dump_json(by_alias=True).encode())
    with pytest.raises(StageError) as error:
        fetched(s3, store, digest, tmp_path, public_pem(SIGNER))
    assert error.value.reason is Reason.ARTIFACT_CORRUPT
    assert not (tmp_path / "models" / digest / "artifact").exists()


def test_a_policy_with_a_bad_key_serves_nothing(
    s3: SeaweedFS, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = published(s3, store, tmp_path, monkeypatch)
    for pem, said in (
        ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "is not a public key in PEM"),
        (public_pem(rsa.generate_private_key(65537, 2048)), "RSAPublicKey, and only Ed25519 and ECDSA"),
    ):
        with pytest.raises(StageError) as error:
            fetched(s3, store, digest, tmp_path, public_pem(SIGNER), pem)
        assert error.value.reason is Reason.KEY_UNUSABLE, said
        assert_says(error.value.message, "spec.policy.signature.publicKeys[1]", said)
