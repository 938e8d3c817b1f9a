"""A later run over the same data: publish runs only if something beside the artifact is missing, and puts it back."""

from __future__ import annotations

import pytest

from finetune_api.layout import UNSIGNED, gates_folder, provenance_object
from finetune_jobs.artifacts.gates import read_gates
from finetune_jobs.artifacts.signature import require_signature
from finetune_jobs.artifacts.signing import load_public_key
from finetune_jobs.store.s3 import Store
from tests.support.publish_job import PublishJob
from tests.support.published import KEY, new_key, private_pem, public_pem

pytestmark = [pytest.mark.unit, pytest.mark.slow]


def test_what_is_said_of_an_artifact_is_written_again(store: Store, job: PublishJob) -> None:
    digest = job.publish().output_digest
    assert job.resolved() is not None, "nothing is left to do"
    for place in (provenance_object(digest, UNSIGNED), gates_folder(digest)):
        for path in [place, *(f"{place}/{entry.key}" for entry in store.list(place))]:
            store.delete(path)
        assert job.resolved() is None, place
        assert job.publish().output_digest == digest
        assert job.resolved() is not None
    assert read_gates(store, digest)


def test_a_signature_that_was_deleted_is_made_again(
    store: Store, job: PublishJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the remedy of SignatureInvalid says."""
    key, job.signed = new_key(), True
    monkeypatch.setenv(KEY.variable, private_pem(key))
    first = job.publish()
    store.delete(provenance_object(first.output_digest, first.scalars["signedBy"]))
    assert job.resolved() is None
    assert job.publish().reused
    assert require_signature(store, first.output_digest, [public_pem(key)]) == first.scalars["signedBy"]


def test_a_pod_whose_result_was_lost_says_it_again(
    store: Store, job: PublishJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only publish finds what is signed, as resolve has no key. Nothing is signed, moved or published twice."""
    key, job.signed = new_key(), True
    monkeypatch.setenv(KEY.variable, private_pem(key))
    lost, standing = job.publish(), objects(store)
    assert job.resolved() is None
    said = job.publish()
    assert (said.output_digest, said.scalars) == (lost.output_digest, lost.scalars)
    assert objects(store) == standing


def objects(store: Store) -> dict[str, str]:
    """What a publish writes, with its ETags; not the index, which says when it was written."""
    places = ("artifacts", "channels", "owners", "keys/publish")
    return {each.uri: each.etag for place in places for each in store.list(place)}


def test_a_new_key_in_the_same_secret_signs(store: Store, job: PublishJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only publish has it, so it runs."""
    job.signed = True
    for key in (new_key(), new_key()):
        monkeypatch.setenv(KEY.variable, private_pem(key))
        assert job.resolved() is None
        made = job.publish()
        assert made.scalars["signedBy"] == load_public_key(public_pem(key), "the key").keyid
        require_signature(store, made.output_digest, [public_pem(key)])
