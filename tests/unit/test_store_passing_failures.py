"""What passes in a store, or where a pod's identity comes from, is tried again, and never taken for an answer."""

from __future__ import annotations

import pytest
from botocore.exceptions import ClientError, CredentialRetrievalError

from finetune_api.reasons import Reason
from finetune_api.storage import Storage
from finetune_jobs.base.errors import StageError
from finetune_jobs.store.errors import store_error
from finetune_jobs.store.s3 import Store
from tests.support.closed_port import closed_port
from tests.support.sentences import assert_says

pytestmark = [pytest.mark.unit, pytest.mark.slow]


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("RequestTimeout", 400),
        ("ThrottlingException", 400),
        ("IncompleteBody", 400),
        ("NoSuchUpload", 404),
        ("KMS.ThrottlingException", 400),
        ("IDPCommunicationError", 400),
    ],
)
def test_what_passes_is_tried_again_whatever_its_status(code: str, status: int) -> None:
    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error = store_error(ClientError(answer, "PutObject"), "writing", "s3://data/x/key")
    assert (error.reason, error.retriable) == (Reason.S3_UNREACHABLE, True)
    assert_says(error.message, f"the store answered {status} {code}")


def test_an_identity_that_cannot_be_read_yet_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent of EKS Pod Identity starts with its node, as the pod does."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    monkeypatch.setattr("botocore.utils.ContainerMetadataFetcher.SLEEP_TIME", 0)
    with closed_port() as port:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://127.0.0.1:{port}/v1/credentials")
        with pytest.raises(StageError) as error:
            Store.connect(Storage(), "s3://data/x")
    assert (error.value.reason, error.value.retriable) == (Reason.S3_UNREACHABLE, True)
    assert_says(error.value.message, "connecting to s3://data/x failed", "pod's identity could not be read")


def test_an_identity_that_cannot_be_renewed_is_asked_for_again() -> None:
    lost = CredentialRetrievalError(provider="container-role", error_msg="Received non 200 response 500")
    error = store_error(lost, "writing", "s3://data/x/key")
    assert (error.reason, error.retriable) == (Reason.S3_UNREACHABLE, True)
