"""A model repository of the Hugging Face hub to which a model is pushed; huggingface_hub sends the requests.

Files go by Git LFS, as a stream and over the same HTTP client as everything else: the hub's other way (Xet) wants files
on a disk, and a server of its own.
"""

import io
import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_session, hf_raise_for_status
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

from finetune_api.push import HubTarget
from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.store.hub import CLIENT_ERROR, HUB_ERRORS, hub_client

MAIN: Final = "main"
"""The branch that a repository shows."""
_CONFLICT: Final = frozenset({409, 412})
_PASSING: Final = frozenset({408, 425, 429})
_LONGEST: Final = 300
"""Characters of what the hub says that are quoted."""
_UPLOADS: Final = "huggingface_hub._commit_api"
"""The client's logger that warns of each file which does not go by Xet."""


@dataclass(frozen=True)
class Refs:
    """What the names of a repository stand for: commits, by the name of a branch or tag."""

    branches: Mapping[str, str]
    tags: Mapping[str, str]


@dataclass(frozen=True)
class HubEntry:
    """A file in a commit."""

    size: int
    sha256: str
    """Of the content; empty where Git keeps the file itself."""
    blob: str
    """Git's hash of what it keeps."""


@dataclass(frozen=True)
class Upload:
    """A file that is to be sent."""

    addition: CommitOperationAdd

    @classmethod
    def of(cls, path: str, content: io.BufferedReader) -> "Upload":
        """A file at a path of the repository. It is read once here, for its hash, and again as it is sent. Raises what
        reading raises."""
        return cls(CommitOperationAdd(path_in_repo=path, path_or_fileobj=content))

    @property
    def path(self) -> str:
        """Where it goes."""
        return str(self.addition.path_in_repo)

    @property
    def sha256(self) -> str:
        """Of its content."""
        return str(self.addition.upload_info.sha256.hex())


class HubRepository:
    """A repository. Every method raises StageError: RegistryAccessDenied, RepositoryNotFound, PushRefused, SpecInvalid,
    and RegistryUnreachable, which is retriable."""

    def __init__(self, target: HubTarget, api: HfApi) -> None:
        self._target, self._api, self._repo = target, api, target.repository
        self.name = f"{target.endpoint.partition('://')[2]}/{target.repository}"
        """For people."""
        self._uploads: list[CommitOperationAdd] = []

    @classmethod
    def connect(cls, target: HubTarget, environment: Mapping[str, str] = os.environ) -> "HubRepository":
        """The repository of a target, with the token of its Secret. Raises StageError (SecretMissing)."""
        logging.getLogger(_UPLOADS).addFilter(_is_news)
        return cls(target, hub_client(target.secret_key_ref, environment, target.endpoint))

    def is_private(self) -> bool | None:
        """Whether only some may read it; None: there is none that the token shows."""
        with self._errors("looking for it"):
            try:
                return bool(self._api.model_info(self._repo, expand=["private"]).private)
            except RepositoryNotFoundError as error:
                if error.response.status_code not in (401, 404):
                    raise
                return None

    def create(self, *, private: bool) -> bool:
        """Create it; whether it is private. If it has been created meanwhile, it stays as it is."""
        with self._errors("creating it"):
            try:
                self._api.create_repo(self._repo, private=private)
            except HfHubHTTPError as error:
                if error.response.status_code != 409:
                    raise
        found = self.is_private()
        if found is None:
            raise self._denied("creating it", "it exists, and the hub does not show it to")
        return found

    def refs(self) -> Refs:
        """What branches and tags stand for."""
        with self._errors("reading its tags"):
            found = self._api.list_repo_refs(self._repo)
            return Refs(
                {each.name: each.target_commit for each in found.branches},
                {each.name: each.target_commit for each in found.tags},
            )

    def files(self, commit: str) -> dict[str, HubEntry]:
        """All files of a commit, by path."""
        with self._errors(f"reading commit {commit[:12]}"):
            tree = self._api.list_repo_tree(self._repo, recursive=True, revision=commit)
            return {each.path: _entry(each) for each in tree if isinstance(each, RepoFile)}

    def titles(self, commit: str) -> list[str]:
        """The titles of a commit and of all before it."""
        with self._errors("reading its history"):
            return [each.title for each in self._api.list_repo_commits(self._repo, revision=commit)]

    def check_card(self, content: str) -> None:
        """Have the hub check a model card's metadata, as it does at the commit. Raises StageError (PushRefused) with
        what it says of them."""
        action = "checking the model card"
        with self._errors(action):
            answer = get_session().post(
                f"{self._target.endpoint}/api/validate-yaml",
                json={"content": content, "repoType": "model"},
                headers={"Authorization": f"Bearer {self._api.token}"} if self._api.token else {},
            )
            if answer.status_code == 400:
                faults = "; ".join(str(each["message"]) for each in answer.json()["errors"])
                raise self.refused(action, f"the hub rejects its metadata: {_shortened(faults).rstrip('.')}")
            hf_raise_for_status(answer)

    def upload(self, file: Upload) -> None:
        """Send a file for the next commit, as a stream; what the hub has is not sent again. Nobody sees it before."""
        with self._errors(f"sending {file.path}"):
            self._api.preupload_lfs_files(self._repo, additions=[file.addition], revision=MAIN)
        self._uploads.append(file.addition)

    def commit(self, title: str, removed: Collection[str], parent: str) -> str:
        """One commit on main with what was uploaded, without the files that are ``removed``; its hash. The hub refuses
        it if main does not stand for ``parent`` any more."""
        operations: Sequence[CommitOperationAdd | CommitOperationDelete] = [
            *self._uploads,
            *(CommitOperationDelete(path) for path in sorted(removed)),
        ]
        with self._errors("committing"):
            made = self._api.create_commit(
                self._repo, operations, commit_message=title, revision=MAIN, parent_commit=parent
            )
            return str(made.oid)

    def tag(self, name: str, commit: str) -> None:
        """Let a tag that is not there yet stand for a commit."""
        with self._errors(f"writing tag {name}"):
            self._api.create_tag(self._repo, tag=name, revision=commit)

    def refused(self, action: str, cause: str) -> StageError:
        """The hub, or what is there, does not let the model be pushed."""
        return StageError(Reason.PUSH_REFUSED, f"{self.name}: {action} failed: {cause}.")

    def _denied(self, action: str, cause: str) -> StageError:
        secret = self._target.secret_key_ref
        return StageError(
            Reason.REGISTRY_ACCESS_DENIED,
            f"{self.name}: {action} failed: {cause} the token in Secret {secret.name!r} (key {secret.key!r}).",
        )

    @contextmanager
    def _errors(self, action: str) -> Iterator[None]:
        try:
            yield
        except (*HUB_ERRORS, RuntimeError) as error:
            cause = error.__cause__ if isinstance(error, RuntimeError) else None  # the client's, of an upload
            if isinstance(cause, StageError):
                raise cause from None
            raise self._failed(action, cause or error) from None

    def _failed(self, action: str, error: BaseException) -> StageError:
        """What an error means. Its text may hold a signed address, so only what it says as a number is told."""
        response = error.response if isinstance(error, HfHubHTTPError) else None
        if response is not None:
            return self._answered(action, response.status_code)
        if isinstance(error, HFValidationError):
            return StageError(Reason.SPEC_INVALID, f"pushTo.huggingFace: {self._repo!r} is not a repository name.")
        if isinstance(error, CLIENT_ERROR):
            trust = "CERTIFICATE_VERIFY_FAILED" in str(error)
            cause = "its TLS certificate is not trusted" if trust else f"cannot be reached ({type(error).__name__})"
            return self._unreachable(action, f"the hub at {self._target.endpoint}: {cause}")
        if type(error) is ValueError:  # what the client makes of a refusal in an answer of 200
            return self.refused(action, "the hub rejects it")
        return self.refused(action, f"what answers at {self._target.endpoint} is not a hub ({type(error).__name__})")

    def _answered(self, action: str, status: int) -> StageError:
        if status in (401, 403):
            return self._denied(action, f"the hub answered {status} to")
        if status == 404:
            owner = self._repo.partition("/")[0]
            cause = f"the hub has no such repository, or no user or organisation {owner!r}"
            return StageError(Reason.REPOSITORY_NOT_FOUND, f"{self.name}: {action} failed: {cause}.")
        if status in _CONFLICT:
            return self._unreachable(action, f"it was changed at the same time ({status})")
        if status in _PASSING or status >= 500:
            limit = " (its limit of requests)" if status == 429 else ""
            return self._unreachable(action, f"the hub answered {status}{limit}")
        return self.refused(action, f"the hub answered {status}")

    def _unreachable(self, action: str, cause: str) -> StageError:
        return StageError(Reason.REGISTRY_UNREACHABLE, f"{self.name}: {action} failed: {cause}.", retriable=True)


def _is_news(record: logging.LogRecord) -> bool:
    return "Xet" not in record.getMessage()


def _shortened(said: str) -> str:
    line = " ".join(said.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} …"


def _entry(found: RepoFile) -> HubEntry:
    return HubEntry(int(found.size), str(found.lfs.sha256) if found.lfs else "", str(found.blob_id))
