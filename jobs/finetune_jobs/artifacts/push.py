"""Copies of a published artifact outside of the store: sent from it, found again, and noted beside the artifact.

A push is done again from where it was cut off: blobs that the registry has are not sent, and the tag is written last.
How one goes to an OCI registry is here; to the Hugging Face hub, in ``hub_push``.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from finetune_api.artifact_source import Channel
from finetune_api.finetunejob import Output
from finetune_api.hashing import canonical_json
from finetune_api.layout import Manifest, PushRecord, output_folder, push_object, pushes_folder
from finetune_api.push import HubTarget, OciTarget
from finetune_api.reasons import Reason
from finetune_api.stages import RunRef, Stage
from finetune_jobs.artifacts.artifact import MODEL_REF, ModelRef
from finetune_jobs.artifacts.folders import get_listed, require_manifest
from finetune_jobs.artifacts.hub_push import HubPush
from finetune_jobs.artifacts.modelpack import SHOWN, FileLayer, Packed, blobs_of, is_copy, pack
from finetune_jobs.base.documents import parse_json
from finetune_jobs.base.errors import StageError
from finetune_jobs.base.progress import Progress
from finetune_jobs.store.registry import Content, Registry, sha256_digest
from finetune_jobs.store.s3 import Store

log = logging.getLogger(__name__)

PUSHED: Final = "pushed"
"""The scalar with the digest of each copy, in the order of ``output.pushTo``; ``-`` for a place that wants none."""
_NONE: Final = "-"
_CHUNK: Final = 1 << 20


@dataclass(frozen=True)
class Copies:
    """The copies of an artifact that are wanted."""

    store: Store
    output: Output
    digest: str
    """Of the artifact."""
    channel: Channel

    def make(self, run: RunRef, moment: str, progress: Progress) -> dict[str, str]:
        """Push the artifact wherever it is wanted and not there yet; returns the scalars that say so.

        Each run asks every place, since somebody may have deleted a copy; what this run has sent is left alone. A
        place that fails does not keep the others from being tried.

        Raises StageError, the first of those that places ended in: TagTaken, ArtifactCorrupt, as Registry, as
        HubPush, as Store.
        """
        if not self.wanted:
            return {}
        packed = _packed(self.store, self.output.name, self.digest)
        failures: list[StageError] = []
        digests: list[str] = []
        for target in self._targets:
            try:
                digests.append(self._push(target, packed, run, moment, progress) if target else _NONE)
            except StageError as error:
                log.warning("%s", error.message)
                failures.append(error)
        if failures:
            raise failures[0]
        return {PUSHED: " ".join(digests)}

    @property
    def wanted(self) -> bool:
        """Whether there is a place to which this artifact goes."""
        return any(self._targets)

    def _push(self, target: OciTarget | HubTarget, packed: Packed, run: RunRef, moment: str, progress: Progress) -> str:
        """Make one copy, and note who sent what; the copy's digest."""
        to, noted = target.reference(self.digest), self._record(target)
        if noted and noted.run == run:
            return noted.digest
        earlier = noted.digest if noted else ""
        if isinstance(target, HubTarget):
            digest, sent = HubPush(self.store, target, self.digest, packed.layers, earlier).make(progress)
        else:
            digest, sent = _Push(self.store, target, self.digest, packed, earlier).make(progress)
        log.info("%s: %s", to, "pushed" if sent else "is there already; nothing was sent")
        if sent or digest != earlier:
            record = PushRecord(to=to, digest=digest, run=run, pushed_at=moment)
            self.store.put(push_object(self.digest, to), canonical_json(record))
        return digest

    @property
    def _targets(self) -> Sequence[OciTarget | HubTarget | None]:
        """In the order of the spec; None for a place that does not want artifacts of this channel."""
        candidate = self.channel is Channel.CANDIDATE
        return [target.place if target.wants(candidate=candidate) else None for target in self.output.push_to]

    def _record(self, target: OciTarget | HubTarget) -> PushRecord | None:
        path = push_object(self.digest, target.reference(self.digest))
        content = self.store.get(path)
        return None if content is None else parse_json(content, PushRecord, self.store.uri(path))


def read_pushes(store: Store, digest: str) -> list[PushRecord]:
    """The copies of an artifact that were noted, by their places."""
    place = pushes_folder(digest)
    paths = [f"{place}/{entry.key}" for entry in store.list(place)]
    found = [parse_json(content, PushRecord, store.uri(path)) for path in paths if (content := store.get(path))]
    return sorted(found, key=lambda each: each.to)


def _packed(store: Store, name: str, digest: str) -> Packed:
    published = output_folder(Stage.PUBLISH, digest)
    manifest = require_manifest(store, published)
    model = parse_json(get_listed(store, published, manifest, MODEL_REF), ModelRef, store.uri(published))
    weights = require_manifest(store, model.folder)
    shown = [layer for layer in _layers(published, manifest) if layer.file.path in SHOWN]
    own = {layer.file.path for layer in shown}
    files = [layer for layer in _layers(model.folder, weights) if layer.file.path not in own]
    return pack(name, digest, model.format, [*files, *shown], _model_config(store, model, weights))


def _layers(folder: str, manifest: Manifest) -> list[FileLayer]:
    return [FileLayer(folder, file) for file in manifest.files]


def _model_config(store: Store, model: ModelRef, weights: Manifest) -> dict[str, Any]:
    """config.json of the model; nothing where that is none, as beside an adapter."""
    if model.base:
        return {}
    try:
        found = json.loads(get_listed(store, model.folder, weights, "config.json"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class _Push:
    """One copy."""

    store: Store
    target: OciTarget
    artifact: str
    packed: Packed
    earlier: str
    """Digest of the copy that was noted here; empty if there is none."""

    @property
    def _to(self) -> str:
        return self.target.reference(self.artifact)

    def make(self, progress: Progress) -> tuple[str, bool]:
        """Blobs, then the manifest under its tag; then the registry is asked for all of it. The digest of what the tag
        stands for, and whether anything was missing."""
        with closing(Registry.connect(self.target)) as registry:
            stood = self._standing(registry)
            sent = self._send(registry, stood or self.packed.manifest, progress)
            if stood and not sent:
                return sha256_digest(stood), False
            if not (stood or self._standing(registry)):  # again: the blobs may have taken an hour
                registry.put_manifest(self.target.tag_of(self.artifact), self.packed.manifest)
            standing = self._standing(registry)
            if not standing:
                raise self._lost("has nothing under the tag")
            for name, size in blobs_of(standing):
                if not registry.has_blob(name, size):
                    raise self._lost(f"does not have all of {name[:19]}")
            return sha256_digest(standing), True

    def _send(self, registry: Registry, manifest: bytes, progress: Progress) -> bool:
        """The blobs of ``manifest`` that the registry does not have; whether there were any."""
        blobs, contents, done, sent = blobs_of(manifest), self._contents(), 0, False
        total = sum(size for _, size in blobs)
        progress.begin(0, f"pushing to {self._to}")
        for name, size in blobs:
            if not registry.has_blob(name, size):
                if name not in contents:  # the description of an earlier copy, which nobody can write again
                    raise self._lost(f"does not have all of {name[:19]}")
                registry.put_blob(name, size, contents[name])
                sent = True
            done += size
            progress.report(done / total)
        return sent

    def _contents(self) -> Mapping[str, Content]:
        """What can be sent, by digest."""
        config = self.packed.config
        files = {layer.digest: partial(_stream, self.store, layer) for layer in self.packed.layers}
        return {**files, sha256_digest(config): lambda: iter([config])}

    def _standing(self, registry: Registry) -> bytes | None:
        """The copy for which the tag stands: this one, or an earlier one of the artifact, made under another name or by
        another release. None: nothing. Raises StageError (TagTaken) if it is something else."""
        found = registry.manifest(self.target.tag_of(self.artifact))
        if found is None or found == self.packed.manifest:
            return found
        known = sha256_digest(found) == self.earlier or is_copy(found, self.artifact, self.packed)
        if not (known and blobs_of(found)):
            raise StageError(
                Reason.TAG_TAKEN,
                f"{self._to} already points to {sha256_digest(found)[:19]}, not to this model "
                f"({self.packed.digest[:19]}): nothing was overwritten.",
            )
        return found

    def _lost(self, fault: str) -> StageError:
        return StageError(Reason.PUSH_REFUSED, f"{self._to}: the registry accepted the model, but {fault}.")


def _stream(store: Store, layer: FileLayer) -> Iterator[bytes]:
    """A file of the store as it comes. The last bytes are kept back until its hash is known to be right."""
    path = f"{layer.folder}/{layer.file.path}"
    content = store.stream(path)
    if content is None or content.total != layer.file.size:
        raise StageError(Reason.ARTIFACT_CORRUPT, f"{store.uri(path)} is not the one that its manifest lists.")
    hashed, left = hashlib.sha256(), layer.file.size
    while left and (chunk := content.read(_CHUNK)):
        hashed.update(chunk)
        left -= len(chunk)
        if not left and hashed.hexdigest() != layer.file.sha256:
            raise StageError(Reason.ARTIFACT_CORRUPT, f"{store.uri(path)} is not the one that its manifest lists.")
        yield chunk
