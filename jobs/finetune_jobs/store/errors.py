"""What the exceptions of boto3 mean, as failures of a stage."""

from typing import Any, Final

from boto3.exceptions import Boto3Error
from botocore import exceptions as boto

from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError

STORE_ERRORS: Final = (boto.BotoCoreError, boto.ClientError, Boto3Error)
"""Everything that boto3 raises."""

_NO_IDENTITY: Final = (boto.NoCredentialsError, boto.PartialCredentialsError, boto.ProfileNotFound)
_PASSING: Final = frozenset(
    {"RequestTimeout", "RequestTimeoutException", "IncompleteBody", "BadDigest", "NoSuchUpload", "SlowDown"}
    | {"Throttling", "ThrottlingException", "RequestThrottled", "TooManyRequestsException", "RequestLimitExceeded"}
    | {"IDPCommunicationError"}
)
"""Codes that ask for another attempt whatever the status, which is often 400; of S3, its key management (after the
prefix) and the service that gives a pod its identity."""
_DENIED: Final = frozenset(
    {"403", "Forbidden", "AccessDenied", "AllAccessDisabled", "AccountProblem", "InvalidAccessKeyId"}
    | {"SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired", "RequestTimeTooSkewed"}
    | {"ExpiredTokenException", "InvalidIdentityToken"}
)
_ELSEWHERE: Final = frozenset({"301", "PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraint"})
_KMS: Final = "KMS."
"""Prefix of S3 codes for errors of its key management, e.g. KMS.DisabledException."""
_UNSENDABLE: Final = "Invalid header value"
"""What Python's HTTP client says of a key with a line break, inside an exception that looks like a lost connection."""
_CONDITION_UNKNOWN: Final = frozenset({"501", "NotImplemented"})


def error_code(error: BaseException) -> str:
    """The S3 error code of an exception, or an empty string. HEAD answers have no body: their code is the status."""
    response: dict[str, Any] = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def store_error(error: BaseException, action: str, uri: str) -> StageError:
    """What an exception of boto3 means. The message is made here: boto3's own may quote signed URLs."""
    error = _root(error)
    code = error_code(error)
    status = _status(error)
    failed = f"{action} {uri} failed"
    if isinstance(error, _NO_IDENTITY):
        return StageError(Reason.S3_ACCESS_DENIED, f"{failed}: the pod has no S3 credentials, or they are incomplete.")
    if isinstance(error, boto.CredentialRetrievalError):  # an agent that is not ready yet, or a busy service
        provider = error.kwargs.get("provider", "its provider")
        cause = f"the pod's identity could not be read ({provider})"
        return StageError(Reason.S3_UNREACHABLE, f"{failed}: {cause}.", retriable=True)
    if isinstance(error, boto.HTTPClientError) and _UNSENDABLE in str(error.kwargs.get("error")):
        problem = "the S3 access key contains a line break, which is not allowed in a request"
        return StageError(Reason.S3_ACCESS_DENIED, f"{failed}: {problem}.")
    if code.removeprefix(_KMS) in _PASSING:
        return StageError(Reason.S3_UNREACHABLE, f"{failed}: the store answered {status} {code}.", retriable=True)
    if code.startswith(_KMS):
        return StageError(Reason.S3_ENCRYPTION_REFUSED, f"{failed}: the encryption key cannot be used ({code}).")
    if code in _DENIED or status in (401, 403):
        return StageError(Reason.S3_ACCESS_DENIED, f"{failed}: the store rejected the credentials ({code or status}).")
    if code == "NoSuchBucket":
        return StageError(Reason.BUCKET_NOT_FOUND, f"{failed}: bucket {uri.split('/')[2]!r} does not exist.")
    if code in _ELSEWHERE:
        return StageError(
            Reason.SPEC_INVALID, f"{failed}: the bucket is in another region ({code}). Set storage.region."
        )
    if code in _CONDITION_UNKNOWN and action == PUT_CONDITIONAL:
        return StageError(Reason.S3_CONDITIONAL_WRITES_UNSUPPORTED, f"{failed}: the store answered {code}.")
    if status and 400 <= status < 500 and status not in (408, 409, 429):
        return StageError(Reason.INTERNAL_ERROR, f"{failed}: the store answered {status} {code}.")
    cause = f"the store answered {status} {code}" if status else _connection_cause(error)
    return StageError(Reason.S3_UNREACHABLE, f"{failed}: {cause}.", retriable=True)


PUT_CONDITIONAL: Final = "conditional put of"
"""The action that only a store with conditional writes can do."""


def _root(error: BaseException) -> BaseException:
    """boto3's S3UploadFailedError and RetriesExceededError hide the exception that says why."""
    while isinstance(error, Boto3Error) and (error.__cause__ or error.__context__):
        error = error.__cause__ or error.__context__ or error
    return error


def _status(error: BaseException) -> int:
    response: dict[str, Any] = getattr(error, "response", None) or {}
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _connection_cause(error: BaseException) -> str:
    match error:
        case boto.SSLError():
            return "the endpoint's TLS certificate is not trusted; for a private authority, set storage.caBundle"
        case boto.ConnectTimeoutError() | boto.ReadTimeoutError():
            return "the endpoint did not answer in time"
        case boto.EndpointConnectionError():
            return "the endpoint cannot be reached (name or connection refused)"
        case _:
            return f"the connection broke ({type(error).__name__})"
