"""Downloading artifacts for a model server: an artifact's own files, and adapters of one base."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from finetune_api.endpoint_stages import AdapterRef, FetchParams, WantedAdapter
from finetune_api.layout import Manifest, output_folder
from finetune_api.reasons import Reason
from finetune_api.stages import Stage
from finetune_api.storage import Storage
from finetune_jobs.artifacts import artifact
from finetune_jobs.artifacts.folders import fetch_folder, is_kept, partial_of, require_manifest
from finetune_jobs.artifacts.signature import require_signature
from finetune_jobs.base.documents import read_json
from finetune_jobs.base.errors import StageError
from finetune_jobs.base.progress import Report
from finetune_jobs.base.wording import sized
from finetune_jobs.runtime.runner import artifact_root
from finetune_jobs.store.places import Places
from finetune_jobs.store.s3 import Store

_UNSAFE: Final = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".h5", ".msgpack", ".py")


@dataclass(frozen=True)
class Adapter:
    """One of several, and where its base is."""

    ref: AdapterRef
    base: artifact.BaseRef
    store: Store


@dataclass(frozen=True)
class AdapterSource:
    """Downloads adapters of one base, verified."""

    places: Places
    storage: Storage
    asked: FetchParams
    """What they must bear."""
    models: Path
    """Where the server reads them."""
    room: int = 0
    """Bytes that may be there; 0: not known."""

    def download(self, ref: AdapterRef, report: Report | None = None) -> Adapter:
        """An adapter and its artifact; what is there already is kept. Failures name it. Raises StageError:
        AdaptersUnsuitable, ModelUnsupported, as require_signature, require_room, fetch_folder and Store."""
        try:
            return _download(self, ref, report)
        except StageError as error:
            raise error.of(f"Adapter {ref.name!r}") from error

    def take(self, wanted: WantedAdapter) -> Adapter:
        """The same for a server that runs. The store is not asked for one that was proved before and is all there: a
        server that starts again while the store is down goes on without it."""
        return (_kept(self, wanted) if wanted.required else None) or self.download(wanted)


def _kept(source: AdapterSource, ref: AdapterRef) -> Adapter | None:
    """One that an earlier download has left, and so found to bear what is asked: the model comes last."""
    home = source.models / ref.digest
    if not is_kept(output_folder(Stage.PUBLISH, ref.digest), home / "artifact"):
        return None
    model = read_json(home / "artifact" / artifact.MODEL_REF, artifact.ModelRef)
    if model.base is None or not is_kept(model.folder, home / "model"):
        return None
    return Adapter(ref, model.base, source.places.open(artifact_root(ref.uri, ref.digest), source.storage))


def _download(source: AdapterSource, ref: AdapterRef, report: Report | None) -> Adapter:
    store, asked = source.places.open(artifact_root(ref.uri, ref.digest), source.storage), source.asked
    if asked.public_keys:
        require_signature(store, ref.digest, asked.public_keys)
    home = source.models / ref.digest
    model = fetch_artifact(store, home, ref.digest, report)
    if model.base is None:
        raise StageError(
            Reason.ADAPTERS_UNSUITABLE,
            f"Artifact {ref.digest[:12]} is a whole model ({model.format}), not of format Adapter.",
        )
    if model.base.rank > asked.max_rank:
        raise StageError(
            Reason.ADAPTERS_UNSUITABLE,
            f"It has rank {model.base.rank}; the runtime makes room for {asked.max_rank}. Set --max-lora-rank in args "
            "of the runtime in the chart's values.",
        )
    manifest, target = require_manifest(store, model.folder), home / "model"
    require_no_code(store.uri(model.folder), manifest)
    size = sum(file.size for file in manifest.files)
    require_room(source.models, source.room, store.uri(model.folder), size, target)
    fetch_folder(store, model.folder, target)
    return Adapter(ref, model.base, store)


def fetch_artifact(store: Store, home: Path, digest: str, report: Report | None) -> artifact.ModelRef:
    """The artifact's own files, and what they say of its model. Raises StageError as fetch_folder."""
    home.mkdir(parents=True, exist_ok=True)
    fetch_folder(store, output_folder(Stage.PUBLISH, digest), home / "artifact", report=report)
    return read_json(home / "artifact" / artifact.MODEL_REF, artifact.ModelRef)


def require_room(models: Path, room: int, uri: str, size: int, target: Path) -> None:
    """The operator knows no size of what is pinned, or follows a channel. Here the manifest tells it: a pod that fills
    its volume would be evicted, and so would the next one. Raises StageError (ScratchFull).

    Args:
        models: the volume.
        room: bytes that it may hold; 0: not known.
        uri: what is to be downloaded, for messages.
        size: its bytes.
        target: where they go.
    """
    begun = (target, partial_of(target))
    kept = (each for each in models.rglob("*") if not any(map(each.is_relative_to, begun)))
    beside = sum(each.stat().st_size for each in kept if each.is_file())
    if 0 < room < size + beside:
        others = f", beside {sized(beside)} that are there" if beside else ""
        raise StageError(
            Reason.SCRATCH_FULL,
            f"{uri} has {sized(size)}{others}; the pod's volume has {sized(room)} (scratchSize).",
        )


def require_no_code(uri: str, manifest: Manifest) -> None:
    """Raises StageError (ModelUnsupported) for files that may run code."""
    unsafe = [file.path for file in manifest.files if file.path.endswith(_UNSAFE)]
    if unsafe:
        raise StageError(
            Reason.MODEL_UNSUPPORTED, f"{uri} contains {unsafe[0]}, which may run code; only safetensors are accepted."
        )
