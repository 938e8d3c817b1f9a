"""Base models: what they are (identity, without a download) and their files, from S3 or the Hugging Face hub.

Only safetensors are weights here: pickles can run code when they are opened, so they are neither counted nor copied.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from finetune_api.hashing import digest
from finetune_api.reasons import Reason
from finetune_api.references import SecretKeyRef
from finetune_api.storage import InputStorage
from finetune_jobs.base.errors import StageError
from finetune_jobs.modelling.tuning import ADAPTER_CONFIG
from finetune_jobs.runtime.runner import Context
from finetune_jobs.store.cache import FolderCache
from finetune_jobs.store.hub import HUB_ERRORS, hub_client, hub_error
from finetune_jobs.store.places import Places
from finetune_jobs.store.s3 import Store, StoredObject
from finetune_jobs.store.transfers import TransferError, Wanted, download_files, hash_files

WEIGHTS: Final = ".safetensors"
_COPIED: Final = (WEIGHTS, ".json", ".model", ".txt", ".jinja")
"""Endings of the files that a model needs: weights, configuration, tokenizer, chat template."""
_PICKLES: Final = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_HUB_URI: Final = re.compile(r"^hf://(?P<repo>[^@]+)@(?P<revision>.+)$")
_HUB_TIMEOUT: Final = 30.0


@dataclass(frozen=True)
class BaseModel:
    """A base model that exists and can be used."""

    uri: str
    digest: str
    """Identity of its files."""
    files: list[str]
    """Names of the files to copy."""
    revision: str = ""
    """Commit of a model of the hub."""
    objects: tuple[StoredObject, ...] = ()
    """The files of a model in S3."""
    size: int = 0
    """Bytes of the files; 0: not known."""

    @property
    def pinned(self) -> str:
        """Its URI; of a model of the hub, at the commit for which its branch or tag stands now."""
        return f"{self.uri.partition('@')[0]}@{self.revision}" if self.revision else self.uri


def find_base_model(
    places: Places, uri: str, storage: InputStorage | None = None, secret: SecretKeyRef | None = None
) -> BaseModel:
    """Check a model without downloading it; ``secret`` names the token for one of the hub.

    Raises StageError: ModelNotFound (no config.json), ModelUnsupported (no safetensors, an adapter),
    GatedModelUnauthorized, and as Store for a model in S3.
    """
    return _find_in_s3(places.open(uri, storage), uri) if uri.startswith("s3://") else _find_on_hub(uri, secret)


def model_of(context: Context) -> BaseModel:
    """The base model of a stage's input. Raises StageError as ``find_base_model``."""
    given = context.input
    return find_base_model(
        context.places, given.base_model_uri, given.base_model_storage, given.base_model_secret_key_ref
    )


def fetch_base_model(context: Context, target: Path) -> None:
    """Put the run's base model into ``target``: configuration, tokenizer and safetensors, only to be read. With a
    cache, ``target`` is a link into it.

    Raises StageError as ``find_base_model``, and ModelNotFound if it is no longer the model that the run started with.
    """
    model = model_of(context)
    _require_same(context, model)  # also of a model in the cache: who may not read it now, gets nothing from there
    if target.is_symlink():
        target.unlink()
    cached = None if context.cache is None else _from_cache(context, model, context.cache)
    if cached:
        target.symlink_to(cached, target_is_directory=True)
    else:
        _download(context, model, target)


def _from_cache(context: Context, model: BaseModel, cache: FolderCache) -> Path | None:
    """The model's folder in the cache, filled if need be. Its key names the place as well as the files: another store
    could claim to have the same."""
    storage = context.input.base_model_storage or context.input.storage
    key = digest([model.uri, storage.endpoint, model.digest])
    return cache.folder(key, model.size, lambda folder: _download(context, model, folder, hashing=True))


def _download(context: Context, model: BaseModel, target: Path, *, hashing: bool = False) -> dict[str, str]:
    """Returns the SHA-256 of each file, with ``hashing``."""
    if model.revision:  # a commit of the hub never changes
        _download_from_hub(model, context.input.base_model_secret_key_ref, target)
        found = hash_files([target / name for name in model.files]) if hashing else []
        return dict(zip(model.files, found, strict=False))
    hashes = _download_from_s3(context, model, target, hashing=hashing)
    _require_same(context, model_of(context))
    return hashes


def fetch_tokenizer(context: Context, target: Path) -> None:
    """As ``fetch_base_model``, without the weights."""
    model = model_of(context)
    objects = tuple(entry for entry in model.objects if not entry.key.endswith(WEIGHTS))
    names = [name for name in model.files if not name.endswith(WEIGHTS)]
    small = replace(model, files=names, objects=objects, size=sum(entry.size for entry in objects))
    _require_same(context, model)
    _download(context, small, target)


def _require_same(context: Context, found: BaseModel) -> None:
    expected = context.input.upstream.model
    if expected and found.digest != expected:
        raise _changed(found.uri)


def _changed(uri: str) -> StageError:
    return StageError(
        Reason.MODEL_NOT_FOUND,
        f"The version of {uri} that this run started with is gone: its files have changed. Set spec.rerun to a new "
        "value to use the new version.",
    )


def _find_in_s3(place: Store, uri: str) -> BaseModel:
    entries, folders = list[StoredObject](), dict[str, None]()
    for entry in place.list():
        name, slash, _ = entry.key.partition("/")
        if slash:
            folders[name] = None
        elif name:  # consoles of stores make an object without a name of a folder
            entries.append(entry)
    if not entries:
        only = f", only folders: {', '.join(list(folders)[:5])}" if folders else ""
        raise StageError(Reason.MODEL_NOT_FOUND, f"{uri} contains no files{only}.")
    entries.sort(key=lambda entry: entry.key)
    _require_usable(uri, [entry.key for entry in entries])
    copied = [entry for entry in entries if entry.key.endswith(_COPIED)]
    size = sum(entry.size for entry in copied)
    return BaseModel(uri, _s3_digest(copied), [entry.key for entry in copied], objects=tuple(copied), size=size)


def _s3_digest(entries: list[StoredObject]) -> str:
    return digest([[entry.key, entry.size, entry.etag] for entry in entries])


def _require_usable(uri: str, names: list[str]) -> None:
    if ADAPTER_CONFIG in names:
        # transformers puts an adapter on the model beside it, without a word; vLLM serves the model alone.
        said = (
            "an adapter beside the model. Copy the model without the adapter, or merged with it."
            if "config.json" in names
            else "an adapter, not a model. Set spec.model.uri to its base model, or merge the two."
        )
        raise StageError(Reason.MODEL_UNSUPPORTED, f"{uri} contains {ADAPTER_CONFIG}: it has {said}")
    if "config.json" not in names:
        found = ", ".join(names[:5])
        raise StageError(Reason.MODEL_NOT_FOUND, f"{uri} is not a model: it has no config.json (found: {found}).")
    if not any(name.endswith(WEIGHTS) for name in names):
        pickles = [name for name in names if name.endswith(_PICKLES)]
        why = f"only pickles ({', '.join(pickles[:3])}), which can run code when opened" if pickles else "no weights"
        raise StageError(Reason.MODEL_UNSUPPORTED, f"{uri} contains {why}; *.safetensors are required.")


def _download_from_s3(context: Context, model: BaseModel, target: Path, *, hashing: bool) -> dict[str, str]:
    place = context.places.open(model.uri, context.input.base_model_storage)
    copied = 0

    def advance(count: int) -> None:
        nonlocal copied
        copied += count
        context.progress.report(0, f"downloading {model.uri}: {copied >> 20} of {model.size >> 20} MiB")

    advance(0)
    try:
        wanted = [Wanted(each.key, target / each.key, each.size, each.etag) for each in model.objects]
        return download_files(place, wanted, advance, hashing=hashing)
    except TransferError as fault:
        if not fault.missing:
            raise _changed(model.uri) from None
        uri = place.uri(fault.wanted.path)
        raise StageError(Reason.MODEL_NOT_FOUND, f"{uri} was deleted while the model was being copied.") from None


def _find_on_hub(uri: str, secret: SecretKeyRef | None) -> BaseModel:
    repo, revision = hub_name(uri)
    hub = hub_client(secret)
    try:
        hub.auth_check(repo)
        info = hub.model_info(repo, revision=revision, timeout=_HUB_TIMEOUT, files_metadata=True)
    except HUB_ERRORS as error:
        raise _failed(error, uri, secret) from None
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or [] if "/" not in file.rfilename}
    _require_usable(uri, sorted(sizes))
    copied, commit = sorted(name for name in sizes if name.endswith(_COPIED)), str(info.sha)
    size = sum(sizes[name] for name in copied)
    return BaseModel(uri, digest(["hf", repo, commit]), copied, commit, size=size)


def _download_from_hub(model: BaseModel, secret: SecretKeyRef | None, target: Path) -> None:
    repo, _ = hub_name(model.uri)
    hub = hub_client(secret)
    try:
        hub.snapshot_download(repo, revision=model.revision, allow_patterns=model.files, local_dir=target)
    except HUB_ERRORS as error:
        raise _failed(error, model.uri, secret) from None


def hub_name(uri: str) -> tuple[str, str]:
    """Repository and revision of a model of the hub. Raises StageError (SpecInvalid) if the URI is of none."""
    match = _HUB_URI.match(uri)
    if match is None:
        raise StageError(
            Reason.SPEC_INVALID, f"{uri!r} is neither s3://bucket/prefix nor hf://organisation/name@revision."
        )
    return match["repo"], match["revision"]


def _failed(error: Exception, uri: str, secret: SecretKeyRef | None) -> StageError:
    return hub_error(
        error,
        uri,
        "model",
        missing=Reason.MODEL_NOT_FOUND,
        gated=Reason.GATED_MODEL_UNAUTHORIZED,
        secret=secret,
    )
