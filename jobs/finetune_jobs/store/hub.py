"""The Hugging Face hub: which exceptions its client raises, and what they mean as failures of a stage."""

from typing import Final

from huggingface_hub import constants
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


def hub_error(error: Exception, uri: str, kind: str, *, missing: Reason, gated: Reason) -> StageError:
    """What one of ``HUB_ERRORS`` means for the ``kind`` ("model", "data set") at ``uri``.

    ``missing`` is the reason if it does not exist or cannot be reached, ``gated`` if it needs another token.
    """
    match error:
        case GatedRepoError():
            return StageError(gated, f"{uri} is gated, and the pod has no token with access to it.")
        case RevisionNotFoundError():
            return StageError(missing, f"{uri}: the {kind} has no such revision.")
        case RepositoryNotFoundError():
            return StageError(missing, f"{uri} does not exist on the hub, or is private.")
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
