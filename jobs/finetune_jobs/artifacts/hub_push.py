"""A copy of a published model on the Hugging Face hub: one commit on main, and a tag that is written once.

Until the commit nobody sees what was sent, and a commit is made whole or not at all. It has the model's files and no
others: what the artifact before had, or people have added, is gone from main and stays in the history.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from finetune_api.push import HubTarget
from finetune_api.reasons import Reason
from finetune_jobs.artifacts.artifact import MODEL_CARD
from finetune_jobs.artifacts.modelpack import FileLayer
from finetune_jobs.base.errors import StageError
from finetune_jobs.base.progress import Progress
from finetune_jobs.store.hub_repository import MAIN, HubEntry, HubRepository, Refs, Upload
from finetune_jobs.store.s3 import Store
from finetune_jobs.store.stored_file import open_stored

_GIT_ATTRIBUTES: Final = ".gitattributes"
"""The hub writes it into a new repository: which files are large."""
_OF_A_NEW_ONE: Final = frozenset({_GIT_ATTRIBUTES, MODEL_CARD})
"""What a repository that people have just made on the hub's pages may have."""
_TITLE: Final = "finetune-operator: artifact "
"""How the title of each push begins."""
_RUNS_CODE: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".h5", ".py")
"""Ends of names of files that are no safetensors, and can run code where they are loaded."""


@dataclass(frozen=True)
class HubPush:
    """One copy."""

    store: Store
    target: HubTarget
    artifact: str
    """Its digest."""
    layers: Sequence[FileLayer]
    """The files, the largest first."""
    earlier: str
    """The commit that was noted here; empty if there is none."""

    @property
    def _to(self) -> str:
        return self.target.reference(self.artifact)

    def make(self, progress: Progress) -> tuple[str, bool]:
        """Send what is missing, and let main show it; the commit for which the tag stands, and whether there was
        anything to do.

        Raises StageError: TagTaken, PushRefused, ArtifactCorrupt, as HubRepository and Store.
        """
        self._require_safe()
        progress.begin(0, f"pushing to {self._to}")
        hub, tag = HubRepository.connect(self.target), self.target.tag_of(self.artifact)
        refs = self._opened(hub)
        standing = refs.tags.get(tag)
        if standing or tag in refs.branches:
            return self._require_copy(hub, tag, standing), self._brought_back(hub, refs, progress)
        commit = self._on_main(hub, refs, progress)
        hub.tag(tag, commit)
        return self._require_copy(hub, tag, hub.refs().tags.get(tag)), True

    def _require_safe(self) -> None:
        for layer in self.layers:
            if layer.file.path.lower().endswith(_RUNS_CODE):
                raise StageError(
                    Reason.PUSH_REFUSED,
                    f"{self._to}: {layer.file.path} can run code when it is loaded: only safetensors are pushed.",
                )

    def _opened(self, hub: HubRepository) -> Refs:
        """The repository's branches and tags; it is created if it is missing."""
        private = hub.is_private()
        if private is None:
            private = hub.create(private=not self.target.public)
        if not (private or self.target.public):
            cause = "it is public. Make it private, or set public: true in pushTo.huggingFace"
            raise hub.refused("pushing", cause)
        return hub.refs()

    def _require_copy(self, hub: HubRepository, tag: str, standing: str | None) -> str:
        """The commit for which the tag stands. Raises StageError (TagTaken) if that is no copy of this artifact."""
        if standing and (standing == self.earlier or self._is_copy(hub.files(standing))):
            return standing
        what = f"commit {standing[:12]}" if standing else f"a branch, {tag!r},"
        raise StageError(
            Reason.TAG_TAKEN, f"{self._to} already points to {what}, not to this model: nothing was overwritten."
        )

    def _brought_back(self, hub: HubRepository, refs: Refs, progress: Progress) -> bool:
        """Whether main, to which another artifact was pushed since, had to be given this one again."""
        head = refs.branches.get(MAIN)
        pushed = [title for title in hub.titles(head) if title.startswith(_TITLE)] if head else []
        if not pushed or pushed[0] == f"{_TITLE}{self.artifact}":
            return False
        self._on_main(hub, refs, progress)
        return True

    def _on_main(self, hub: HubRepository, refs: Refs, progress: Progress) -> str:
        """A commit on main that is a copy: what a push left that was cut off before the tag, or a new one."""
        head = refs.branches.get(MAIN)
        if head is None:
            raise hub.refused("pushing", f"it has no branch {MAIN}")
        files = hub.files(head)
        if self._is_copy(files):
            return head
        if not (files.keys() <= _OF_A_NEW_ONE or any(title.startswith(_TITLE) for title in hub.titles(head))):
            other = min(files.keys() - _OF_A_NEW_ONE)
            cause = f"it contains other files ({other}), not written by a push. Name another repository"
            raise hub.refused("pushing", cause)
        self._upload(hub, progress)
        removed = files.keys() - {layer.file.path for layer in self.layers} - {_GIT_ATTRIBUTES}
        commit = hub.commit(f"{_TITLE}{self.artifact}", removed, head)
        if not self._is_copy(hub.files(commit)):
            raise hub.refused("committing", "the hub accepted the model, but its commit has different files")
        return commit

    def _upload(self, hub: HubRepository, progress: Progress) -> None:
        """Send every file. The card first, to be checked only: for its metadata the hub would refuse the commit, after
        hours of sending."""
        for card in (layer for layer in self.layers if layer.file.path == MODEL_CARD):
            hub.check_card((self.store.get(f"{card.folder}/{MODEL_CARD}") or b"").decode())
        done, total = 0, sum(layer.file.size for layer in self.layers)
        for layer in self.layers:
            path = f"{layer.folder}/{layer.file.path}"
            upload = Upload.of(layer.file.path, open_stored(self.store, path))
            if upload.sha256 != layer.file.sha256:
                raise StageError(
                    Reason.ARTIFACT_CORRUPT, f"{self.store.uri(path)} is not the one that its manifest lists."
                )
            hub.upload(upload)
            done += layer.file.size
            progress.report(done / total)

    def _is_copy(self, found: Mapping[str, HubEntry]) -> bool:
        """Whether a commit has the artifact's files, and no others."""
        expected = {layer.file.path: layer for layer in self.layers}
        if found.keys() - {_GIT_ATTRIBUTES} != expected.keys():
            return False
        return all(self._holds(found[path], layer) for path, layer in expected.items())

    def _holds(self, entry: HubEntry, layer: FileLayer) -> bool:
        if entry.size != layer.file.size or entry.sha256:
            return entry.size == layer.file.size and entry.sha256 == layer.file.sha256
        content = self.store.get(f"{layer.folder}/{layer.file.path}") or b""  # small: Git keeps it
        return entry.blob == _git_hash(content)


def _git_hash(content: bytes) -> str:
    """How Git names a file's content (https://git-scm.com/book/en/v2/Git-Internals-Git-Objects)."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
