"""Stage resolve: what only the store knows, checked before any other resource is requested.

Can the output be written, safely and under this name; which files are the sources, the base model and the data of
metric containers; which stages have been done before for exactly this input; does what is still to be done fit the
profile.
"""

import logging
import uuid
from typing import Final

from finetune_api.layout import UNSIGNED, gates_folder, provenance_object, run_folder
from finetune_api.reasons import Reason
from finetune_api.stages import FOUND_SCALARS, PIPELINE, Found, Params, Stage, StageResult, Upstream, input_key
from finetune_api.storage import Encryption
from finetune_jobs.artifacts.ancestry import require_standing_base
from finetune_jobs.artifacts.channel import channel_of, read_channel, require_name
from finetune_jobs.artifacts.folders import read_own_record, read_record
from finetune_jobs.artifacts.push import Copies
from finetune_jobs.artifacts.withdrawal import read_withdrawal
from finetune_jobs.base.errors import StageError, require
from finetune_jobs.evaluation.applicable import require_applicable
from finetune_jobs.evaluation.custom.data import data_digest
from finetune_jobs.evaluation.judging.admission import require_judge
from finetune_jobs.fit.preflight import facts, preflight
from finetune_jobs.modelling.base_model import model_of
from finetune_jobs.reading.inputs import inputs_digest
from finetune_jobs.reports.index import write_index
from finetune_jobs.run_report.stored import write_run_report
from finetune_jobs.run_report.verdict import RunVerdict
from finetune_jobs.runtime.runner import Context, StageOutput, run_stage
from finetune_jobs.store.s3 import Store

log = logging.getLogger(__name__)

_NEVER: Final = '"00000000000000000000000000000000"'
"""The ETag of no object."""


def resolve(context: Context) -> StageOutput:
    """The stage. Raises StageError with a reason that a person can act on."""
    given, store = context.input, context.store
    if given.upstream.source:
        return _look_up(context)
    prepare = require(given.params.prepare, "params.prepare")
    _require_goals(given.params)
    context.progress.report(0, "checking the output")
    store.require_bucket()
    require_name(store, require(given.output, "output").name, given.run)
    if given.params.publish and (judge := given.params.publish.judge):
        require_judge(judge, given.run, require(given.output, "output").name, given.base_model_uri)
    probe_writes(store, f"{run_folder(given.run)}/probe-{uuid.uuid4().hex}")
    context.progress.report(0.3, "checking the sources")
    sources = inputs_digest(context.places, prepare.dataset)
    context.progress.report(0.6, "checking the base model")
    _require_standing(context, given.base_model_uri)  # before it is looked for: its files may have been erased
    model = model_of(context)
    if model.pinned != given.base_model_uri:
        _require_standing(context, model.pinned)
    metrics = data_digest(context.places, given.params.evaluate.metrics) if given.params.evaluate else ""
    context.progress.report(0.9, "looking for results to reuse")
    known = Upstream(source=sources, model=model.digest, metrics=metrics)
    found = find_results(context, known) if given.reuse else []
    _index(context, found)
    done = [entry.stage for entry in found]
    admission = preflight(given, context.places, model, context.scratch, done=done)
    context.progress.report(1, "done")
    scalars = {"sourceDigest": sources, "modelDigest": model.digest, **({"metricsDigest": metrics} if metrics else {})}
    scalars |= facts(admission, given.hardware)
    return StageOutput(scalars=scalars, found=found, message=f"{_message(found)} {admission.message}".strip())


def _look_up(context: Context) -> StageOutput:
    """Of a run that has begun, only its results are asked for, one of which was lost with its pod. What it was made
    from may have changed since, or be gone. What it has made itself counts before what its inputs gave elsewhere."""
    found = find_results(context, context.input.upstream, own=True)
    _index(context, found)
    return StageOutput(found=found, message=f"Results in the store: {_names(found)}.")


def _require_standing(context: Context, base: str) -> None:
    storage = context.input.base_model_storage
    require_standing_base(lambda uri: context.places.open(uri, storage), context.store, base)


def _require_goals(params: Params) -> None:
    """Raises StageError (SpecInvalid) for goals that mean nothing, before anything is paid for."""
    if params.publish and params.evaluate:
        canaries = params.prepare.dataset.canaries if params.prepare else None
        gates, judge, asked = params.publish.gates, params.publish.judge, params.evaluate
        require_applicable(gates, asked.task, asked.evaluation, canaries, judge, asked.metrics)


def probe_writes(store: Store, path: str) -> None:
    """Prove on a temporary object that the store encrypts as requested and honours conditional writes.

    Raises StageError: S3EncryptionRefused, S3ConditionalWritesUnsupported, S3AccessDenied, as Store.
    """
    created = _create(store, path)
    try:
        _require_encryption(store, path)
        if store.put_if_absent(path, b"again"):
            raise _unsupported(store, "If-None-Match: *")
        if store.replace(path, b"again", _NEVER):
            raise _unsupported(store, "If-Match")
    finally:
        if created:
            _remove(store, path)


def _create(store: Store, path: str) -> bool:
    """Write the probe. If that fails, a write without encryption shows whether encryption is the cause."""
    try:
        return store.put_if_absent(path, b"probe")
    except StageError as error:
        if store.encryption is None or not _takes_plain(store.unencrypted(), path):
            raise
        raise StageError(
            Reason.S3_ENCRYPTION_REFUSED,
            f"The store of {store.uri()} accepts objects, but not with {_asked(store.encryption)}: {error.message}",
        ) from error


def _takes_plain(store: Store, path: str) -> bool:
    try:
        created = store.put_if_absent(path, b"probe")
    except StageError:
        return False
    if created:
        _remove(store, path)
    return True


def _require_encryption(store: Store, path: str) -> None:
    """Raises StageError (S3EncryptionRefused) if the store accepted the probe but did not encrypt it as requested."""
    if store.encryption is None:
        return
    found = store.algorithm(path)
    if found != store.encryption.algorithm:
        raise StageError(
            Reason.S3_ENCRYPTION_REFUSED,
            f"The store of {store.uri()} ignores {_asked(store.encryption)}: it reports "
            f"{found or 'no encryption'} for the object that it stored.",
        )


def _asked(encryption: Encryption) -> str:
    key = f", kmsKeyId {encryption.kms_key_id!r}" if encryption.kms_key_id else ""
    return f"storage.encryption (algorithm {encryption.algorithm}{key})"


def _remove(store: Store, path: str) -> None:
    """Everything else works with keys that may not delete, so this is not a failure."""
    try:
        store.delete(path)
    except StageError as error:
        log.warning("the probe was not deleted: %s", error.message)


def _unsupported(store: Store, header: str) -> StageError:
    return StageError(
        Reason.S3_CONDITIONAL_WRITES_UNSUPPORTED,
        f"The store of {store.uri()} ignores {header} on PUT: two runs could overwrite each other's results.",
    )


def find_results(context: Context, upstream: Upstream, *, own: bool = False) -> list[Found]:
    """Results of the pipeline's stages, in order, up to the first that has none for this input. ``own``: those that the
    run has noted for itself count first."""
    given, store = context.input, context.store
    found: list[Found] = []
    for stage in PIPELINE:
        key = input_key(stage, upstream, given.params)
        mine = read_own_record(store, given.run, stage, key) if own else None
        record = mine or read_record(store, stage, key, given.max_cost)
        if record is None or (stage is Stage.PUBLISH and not _stands(context, record.result)):
            break
        output, scalars = record.result.output_digest, record.result.scalars
        told = {name: value for name, value in scalars.items() if name in FOUND_SCALARS[stage]}
        run = record.lineage.run
        found.append(Found(stage=stage, output_digest=output, scalars=told, run=run.id if run else ""))
        upstream = upstream.with_output(stage, output)
    return found


def _index(context: Context, found: list[Found]) -> None:
    """Stages whose results are reused do not run: their reports are linked here."""
    chain = Upstream()
    for entry in found:
        chain = chain.with_output(entry.stage, entry.output_digest)
    if not found:
        return
    last = found[-1]
    published = last.output_digest if last.stage is Stage.PUBLISH else ""
    if published:  # nothing runs any more that would write it
        write_run_report(context, chain, RunVerdict(last.scalars, published))
    write_index(context, chain, published)


def _stands(context: Context, published: StageResult) -> bool:
    """Whether nothing is left to do for this artifact: its output name points to it, it stands, what is said of it lies
    beside it, no key is to sign it, and it goes to no registry. If not, publish runs again, which does these only, or
    says that the artifact is withdrawn. Whether the key is the one that has signed, and whether registries still have
    their copies, only publish can tell: it has the key and the logins."""
    output, digest, store = require(context.input.output, "output"), published.output_digest, context.store
    channel = channel_of(published.scalars)
    if output.signing or Copies(store, output, digest, channel).wanted:
        return False
    found = read_channel(store, output.name, channel)
    if found is None or found[0].artifact_digest != digest or read_withdrawal(store, digest):
        return False
    return store.exists(provenance_object(digest, UNSIGNED)) and any(store.list(gates_folder(digest)))


def _message(found: list[Found]) -> str:
    return f"Sources and base model found. Reusing: {_names(found)}."


def _names(found: list[Found]) -> str:
    return ", ".join(entry.stage for entry in found) or "nothing"


def main() -> None:
    """``python -m finetune_jobs.resolve``"""
    run_stage(Stage.RESOLVE, resolve)


if __name__ == "__main__":
    main()
