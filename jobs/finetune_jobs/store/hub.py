"""The Hugging Face hub: a client with a token, what it raises, and what that means as a failure of a stage."""

import os
from collections.abc import Mapping
from typing import Final

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from finetune_api.reasons import Reason
from finetune_api.references import SecretKeyRef
from finetune_jobs.base.errors import StageError

CLIENT_ERROR: Final[type[Exception]] = HfHubHTTPError.__bases__[0]
"""Base class of everything that the hub's HTTP client (httpx or httpx2, by its version) raises: no connection, a
timeout, a status of 400 or more."""
_NO_SENSE: Final = (ValueError, LookupError, TypeError, AttributeError)
"""What the client raises for an answer of 200 that is none of the hub's: a proxy's page, half of a listing."""
HUB_ERRORS: Final = (CLIENT_ERROR, OfflineModeIsEnabled, EntryNotFoundError, *_NO_SENSE)
"""Everything that a request to the hub may raise."""


def is_missing_entry(error: Exception) -> bool:
    """Whether the hub itself says that there is no such file or folder."""
    return isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError)


def hub_client(
    secret: SecretKeyRef | None, environment: Mapping[str, str] = os.environ, endpoint: str | None = None
) -> HfApi:
    """A client that sends the token of a Secret to the hub, and to no other host that the hub redirects to; without a
    Secret, with the machine's own login, if there is one. ``endpoint``: another hub than the machine's.

    Raises StageError (SecretMissing) if the token is empty, or cannot be sent.
    """
    if secret is None:
        return HfApi(endpoint=endpoint)
    token = environment.get(secret.variable, "").strip()  # Secrets made from files end in a line break
    if not token:
        raise StageError(
            Reason.SECRET_MISSING,
            f"{secret.variable} is empty: Secret {secret.name!r} must contain a token for the hub under "
            f"{secret.key!r}.",
        )
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise StageError(
            Reason.SECRET_MISSING,
            f"Secret {secret.name!r} contains no token for the hub under {secret.key!r}: a token has no spaces and no "
            "line breaks.",
        )
    return HfApi(endpoint=endpoint, token=token)


def hub_error(
    error: Exception, uri: str, kind: str, *, missing: Reason, gated: Reason, secret: SecretKeyRef | None = None
) -> StageError:
    """What one of ``HUB_ERRORS`` means for the ``kind`` ("model", "data set") at ``uri``, asked with the token of
    ``secret``.

    ``missing`` is the reason if it does not exist or cannot be reached, ``gated`` if it needs another token.
    """
    token = f"the token in Secret {secret.name!r} (key {secret.key!r})" if secret else ""
    match error:
        case GatedRepoError() if secret:
            return StageError(gated, f"{uri} is gated, and {token} gives no access to it.")
        case GatedRepoError():
            return StageError(gated, f"{uri} is gated, and secretKeyRef names no token with access to it.")
        case RevisionNotFoundError():
            return StageError(missing, f"{uri}: the {kind} has no such revision.")
        case RepositoryNotFoundError():
            seen = f"{token} does not show it" if secret else "is private and needs a token in secretKeyRef"
            return StageError(missing, f"{uri} does not exist on the hub, or {seen}.")
        case HfHubHTTPError() if secret and _is_refusal(error):
            return StageError(gated, f"{uri}: the hub at {constants.ENDPOINT} refuses {token}.")
        case _ if isinstance(error, _NO_SENSE) and not isinstance(error, CLIENT_ERROR):
            return StageError(
                missing,
                f"{uri}: what answers at {constants.ENDPOINT} is not the hub ({type(error).__name__}). Check the proxy "
                f"between, or copy the {kind} to S3.",
                retriable=True,
            )
        case _ if is_missing_entry(error):
            return StageError(missing, f"{uri}: a file was removed from the hub.")
        case _:
            return StageError(
                missing,
                f"{uri}: the hub at {constants.ENDPOINT} cannot be reached ({type(error).__name__}). Without access "
                f"to the hub, copy the {kind} to S3.",
                retriable=True,
            )


def _is_refusal(error: HfHubHTTPError) -> bool:
    """Whether the hub does not take the token: it is expired, revoked, or of other rights."""
    return error.response is not None and error.response.status_code in (401, 403)
