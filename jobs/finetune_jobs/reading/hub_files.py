"""Files of data sets on the Hugging Face hub: ``hf://datasets/organisation/name@revision/path``."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from huggingface_hub.hf_api import RepoFile

from finetune_api.reasons import Reason
from finetune_api.references import SecretKeyRef
from finetune_jobs.base.errors import StageError
from finetune_jobs.store.hub import HUB_ERRORS, hub_client, hub_error, is_missing_entry

_URI: Final = re.compile(
    r"^hf://datasets/(?P<repo>[^/@]+/[^/@]+)@(?P<revision>(refs/(convert|pr)/)?[^/@]+)/(?P<path>.*)$"
)
_DATASET: Final = "dataset"
_TIMEOUT: Final = 30.0


@dataclass(frozen=True)
class HubPlace:
    """A path in a data set's repository, at a revision that the spec names."""

    repo: str
    revision: str
    path: str
    secret: SecretKeyRef | None = None
    """Where the token is."""

    def uri(self, path: str) -> str:
        """URI of a file of the same repository and revision."""
        return f"hf://datasets/{self.repo}@{self.revision}/{path}"


@dataclass(frozen=True)
class HubFile:
    """One file: its path, size in bytes and the hash of its content (SHA-256 of a large file, else Git's)."""

    path: str
    size: int
    hash: str
    commit: str
    """The commit that the revision stood for when the file was found."""


def hub_place(uri: str, secret: SecretKeyRef | None = None) -> HubPlace:
    """The parts of a URI; ``secret`` names the token. Raises StageError (SpecInvalid)."""
    match = _URI.match(uri)
    if match is None:
        raise StageError(
            Reason.SPEC_INVALID, f"{uri!r} is not of the form hf://datasets/organisation/name@revision/path."
        )
    return HubPlace(match["repo"], match["revision"], match["path"], secret)


def list_hub_files(place: HubPlace, folder: str, *, recursive: bool) -> Iterator[HubFile]:
    """The files of a folder, at the revision's current commit; none if there is no such folder.

    Raises StageError: DatasetNotFound (no such repository or revision, private, hub unreachable),
    GatedDatasetUnauthorized, SecretMissing.
    """
    hub = hub_client(place.secret)
    try:
        hub.auth_check(place.repo, repo_type=_DATASET)
        info = hub.dataset_info(place.repo, revision=place.revision, expand=["sha"], timeout=_TIMEOUT)
        commit = _commit(info.sha)
        found = hub.list_repo_tree(place.repo, folder or None, recursive=recursive, revision=commit, repo_type=_DATASET)
        for each in found:
            if isinstance(each, RepoFile):
                content = each.lfs.sha256 if each.lfs else each.blob_id
                yield HubFile(str(each.path), int(each.size), str(content), commit)
    except HUB_ERRORS as error:
        if is_missing_entry(error):
            return
        raise _failed(error, place) from None


def fetch_hub_file(place: HubPlace, file: HubFile, target: Path) -> None:
    """Copy a file to ``target``. Raises StageError as ``list_hub_files``."""
    try:
        with TemporaryDirectory(dir=target.parent) as folder:
            path = hub_client(place.secret).hf_hub_download(
                place.repo, file.path, repo_type=_DATASET, revision=file.commit, local_dir=folder
            )
            Path(path).replace(target)
    except HUB_ERRORS as error:
        raise _failed(error, place) from None


def _commit(sha: str | None) -> str:
    if not sha:
        raise ValueError("an answer without a commit")
    return str(sha)


def _failed(error: Exception, place: HubPlace) -> StageError:
    uri = f"hf://datasets/{place.repo}@{place.revision}"
    return hub_error(
        error,
        uri,
        "data set",
        missing=Reason.DATASET_NOT_FOUND,
        gated=Reason.GATED_DATASET_UNAUTHORIZED,
        secret=place.secret,
    )
