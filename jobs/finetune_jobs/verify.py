"""Stage verify: prove that a candidate's server really serves the artifact, before any traffic reaches it.

Model servers fall back silently (an unknown adapter is answered by the base model), so a server that is healthy proves
nothing. What it must prove is a list of checks (``verification.checks``): it names the artifact's digest, finds given
texts as likely as the evaluated artifact did, ends its answers, is not worse on a sample of the test split, and gives
answers the form that clients ask for. A server that does not accept prompts of this length cannot be verified; that is
reported before it is asked.

Once all checks have passed, the stage says so (``meta.PROVED_FILE``) and stays until it sees the network open to
clients, so that nobody need wait for longer than the network does (``verification.door``).
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from finetune_api import meta
from finetune_api.api_keys import read_api_keys
from finetune_api.artifact_source import adapter_model, set_address
from finetune_api.endpoint_stages import DOOR_SECONDS, REPLACED_WITHDRAWN, AdapterRef, VerifyParams
from finetune_api.layout import output_folder
from finetune_api.reasons import Reason
from finetune_api.serving_status import CheckOutcome, VerificationCheck
from finetune_api.stages import Stage
from finetune_api.verification import WithdrawnPolicy
from finetune_jobs.artifacts.folders import fetch_folder
from finetune_jobs.artifacts.gates import require_gates
from finetune_jobs.artifacts.withdrawal import MAX_WORDS, in_words, read_withdrawal, require_standing
from finetune_jobs.base.errors import StageError, require
from finetune_jobs.base.wording import shorten
from finetune_jobs.evaluation.tasks import right_for
from finetune_jobs.runtime.runner import Context, StageOutput, artifact_root, run_stage
from finetune_jobs.store.s3 import Store
from finetune_jobs.verification import checks
from finetune_jobs.verification.checks import Observed
from finetune_jobs.verification.connection import wait_until_healthy
from finetune_jobs.verification.delivery import await_adapters, await_removed
from finetune_jobs.verification.door import Door
from finetune_jobs.verification.engine import ModelServer
from finetune_jobs.verification.observation import Before, Promise, observe, require_room
from finetune_jobs.verification.power import size_sample
from finetune_jobs.verification.promise import read_promise
from finetune_jobs.verification.reach import reach_server
from finetune_jobs.verification.servers import client_of

log = logging.getLogger(__name__)

_PROVED: Final = Path(meta.PROVED_FILE)
_OPENING_SECONDS: Final = 10.0
"""For how long the network may take to open. Afterwards the operator gives it as much time as the admin has said."""


@dataclass(frozen=True)
class Limit:
    """For how long a verification may take."""

    seconds: float
    since: float
    """By the monotonic clock."""

    @property
    def deadline(self) -> float:
        """When it is over."""
        return self.since + self.seconds

    def for_answers(self, promises: Sequence[Promise]) -> "Limit":
        """With the time that long answers take."""
        return replace(self, seconds=self.seconds + sum(each.long_answer_seconds for each in promises))


def verify(context: Context) -> StageOutput:
    """The stage. Raises StageError: ApiKeysMissing, CertificateUnusable, ArtifactWithdrawn, CandidateFailed,
    PromptsTooLong, AdapterInactive, VerificationFailed, as require_gates and fetch_folder."""
    params = require(context.input.params.verify, "params.verify")
    limit = Limit(params.timeout_seconds, time.monotonic())
    if params.pods:
        return _await_pods(context, params, limit.deadline)
    door = Door(params.door) if params.door else None
    passed = (_verify_adapters if params.adapters else _verify_artifact)(context, params, limit)
    scalars = passed.scalars | look_at_replaced(context, params)
    return replace(passed, scalars=scalars if door is None else scalars | _opening(door))


def look_at_replaced(context: Context, params: VerifyParams) -> dict[str, str]:
    """Whether what serves now was withdrawn, as a scalar: the traffic must not go back to it then. What the store does
    not say holds up nothing, and is told apart from "no" by the scalar's absence."""
    said: list[str] = []
    is_known = bool(params.replaced)
    for ref in params.replaced:
        try:
            store = context.places.open(artifact_root(ref.uri, ref.digest), context.input.storage)
            mark = read_withdrawal(store, ref.digest)
        except StageError as error:
            log.warning("whether what serves now was withdrawn is not known: %s", error.message)
            is_known = False
            continue
        if mark:
            said.append(f"{in_words(mark)}{f' (adapter {ref.name!r})' if ref.name else ''}")
    return {REPLACED_WITHDRAWN: shorten("; ".join(said), MAX_WORDS)} if said or is_known else {}


def _opening(door: Door) -> dict[str, str]:
    """All checks have passed: say so, and see the network open. A door that is open already shows nothing."""
    if not door.is_closed():
        return {}
    try:
        _PROVED.touch()
    except OSError as error:
        log.warning("the operator is not told that all checks have passed: %s", error)
        return {}
    log.info("all checks have passed; waiting for the network to open to clients")
    waited = door.opens(_OPENING_SECONDS)
    if waited is None:
        log.info("it was not seen to open in %.0f s", _OPENING_SECONDS)
        return {}
    log.info("it is open, %.1f s later", waited)
    return {DOOR_SECONDS: f"{waited:.2f}"}


def _verify_artifact(context: Context, params: VerifyParams, limit: Limit) -> StageOutput:
    """The artifact by its own record."""
    digest = context.input.artifact_digest
    promise = _read_promise(context, context.store, digest, params)
    limit = limit.for_answers([promise])
    context.progress.report(0, "waiting for the server")
    key = client_key(params.api_keys_secret)
    reach_server(params.endpoint, params.tls_secret, params.tls_host)
    wait_until_healthy(params.endpoint, limit.deadline, key)
    server = client_of(params.engine, params.endpoint, key=key)
    made, observed = _prove(server, promise, digest, params, _before(context, limit))
    return StageOutput(
        output_digest=digest,
        scalars=_scalars([observed]),
        message=_summary(made, observed),
        checks=made,
    )


def client_key(secret: str, folder: Path = Path(meta.API_KEYS_DIR)) -> str:
    """A key with which clients get in; empty where they need none. Raises StageError (ApiKeysMissing): there is none
    yet, or any more."""
    if not secret:
        return ""
    keys = read_api_keys(folder)
    if not keys.accepted:
        why = "; ".join(keys.refused) or "it does not exist, or is empty"
        said = f"Secret {secret!r} has no key to send to the server: {why}."
        raise StageError(Reason.API_KEYS_MISSING, said, retriable=True)
    return keys.accepted[0]


def _prove(
    server: ModelServer, promise: Promise, digest: str, params: VerifyParams, before: Before
) -> tuple[list[VerificationCheck], Observed]:
    """All checks of an artifact, passed."""
    served = server.served()
    first = checks.digest_check(served.model, digest)
    checks.require_all([first], params.endpoint)
    require_room([*promise.golden, *promise.sample], served.limits)
    if params.require_probabilities:
        checks.require_all([first, *checks.unproved(promise.references, served.limits)], params.endpoint)
    observed = observe(server, promise, served.limits, before)
    made = [first, *checks.make_checks(observed, params.min_agreement_percent)]
    for check in made:
        log.info("%s: %s (expected: %s; seen: %s)", check.name, check.outcome, check.expected or "-", check.seen)
    checks.require_all(made, params.endpoint)
    return made, observed


def _verify_adapters(context: Context, params: VerifyParams, limit: Limit) -> StageOutput:
    """Each adapter by its own record, under its own name, then the base under theirs."""
    promises = [_adapter_promise(context, each, params) for each in params.adapters]
    limit = limit.for_answers(promises)
    context.progress.report(0, "waiting for the server")
    key = client_key(params.api_keys_secret)
    reach_server(params.endpoint, params.tls_secret, params.tls_host)
    wait_until_healthy(params.endpoint, limit.deadline, key)
    told: list[VerificationCheck] = []
    seen: list[Observed] = []
    for number, (ref, promise) in enumerate(zip(params.adapters, promises, strict=True)):
        begin, end = number / len(promises), (number + 1) / len(promises)
        progress = context.progress.within(begin, end, f"adapter {ref.name}: ")
        before = _before(replace(context, progress=progress), limit)
        server = client_of(params.engine, params.endpoint, key=key, adapter=adapter_model(params.model, ref.name))
        try:
            made, observed = _prove(server, promise, ref.digest, params, before)
        except StageError as error:
            failed = checks.of_adapter(ref.name, error.checks) if error.checks else []
            raise error.of(f"Adapter {ref.name!r}", [*told, *failed]) from error
        told += checks.of_adapter(ref.name, made)
        seen.append(observed)
    told.append(_base_check(client_of(params.engine, params.endpoint, key=key), seen, params.max_distance))
    checks.require_all(told, params.endpoint)
    found = [checks.count(each) for each in seen]
    right, asked = sum(each.correct for each in found), sum(each.samples for each in found)
    return StageOutput(
        output_digest=set_address({each.name: each.digest for each in params.adapters}),
        scalars=_scalars(seen),
        message=f"All checks of the adapters passed ({_names(params)}); {right} of {asked} test examples are right "
        f"(evaluation: {sum(each.expected for each in found)}).",
        checks=told,
    )


def _await_pods(context: Context, params: VerifyParams, deadline: float) -> StageOutput:
    """Running pods load the adapters and prove them by themselves, or let go of them: wait for what they say."""
    if params.removed:
        gone = await_removed(params.pods, params.removed, deadline, context.progress.report)
        names = ", ".join(each.name for each in params.removed)
        said = f"No running pod ({len(params.pods)}) answers to these names any more: {names}."
        return StageOutput(output_digest=context.input.artifact_digest, message=said, checks=gone)
    checks = await_adapters(params.pods, params.adapters, deadline, context.progress.report, params.attempt)
    return StageOutput(
        output_digest=set_address({each.name: each.digest for each in params.adapters}),
        message=f"Every running pod ({len(params.pods)}) has proved and loaded: {_names(params)}.",
        checks=checks,
    )


def _names(params: VerifyParams) -> str:
    return ", ".join(each.name for each in params.adapters)


def _adapter_promise(context: Context, ref: AdapterRef, params: VerifyParams) -> Promise:
    store = context.places.open(artifact_root(ref.uri, ref.digest), context.input.storage)
    try:
        return _read_promise(context, store, ref.digest, params)
    except StageError as error:
        raise error.of(f"Adapter {ref.name!r}") from error


def _base_check(server: ModelServer, seen: Sequence[Observed], max_distance: float | None = None) -> VerificationCheck:
    """Under its own name the base answers as its evaluation did, without any adapter. It is recorded beside each
    adapter: one record is enough. The noise in it is the adapter's, so the base is held to what is usual,
    unless the spec says how far a server may be."""
    server.served()
    recorded = [([text for text in each.references if text.of_weights], each.usual_tolerance) for each in seen]
    short, usual = next((each for each in recorded if each[0]), recorded[0])
    tolerance = usual if max_distance is None else max_distance
    return checks.base_check(short, [server.log_probs(each) for each in short], tolerance)


def _before(context: Context, limit: Limit) -> Before:
    """Reports the progress, and ends a verification that takes too long."""

    def before(number: int, total: int) -> None:
        if time.monotonic() > limit.deadline:
            said = f"The server is too slow: no verdict in {limit.seconds:.0f} s."
            raise StageError(Reason.VERIFICATION_FAILED, said)
        context.progress.report(number / total, f"asked {number} of {total} prompts")

    return before


def _read_promise(context: Context, store: Store, digest: str, params: VerifyParams) -> Promise:
    if params.withdrawn is WithdrawnPolicy.REFUSE:
        require_standing(store, digest)
    require_gates(store, digest, params.gates, params.required_gates)
    folder = context.scratch / digest
    place = output_folder(Stage.PUBLISH, digest)
    fetch_folder(store, place, folder)
    promise = read_promise(folder, store.uri(place))
    right = right_for(promise.task)
    rights = [right(each.read(each.label), each.read(each.artifact)) for each in promise.sample]
    size = size_sample(rights, params.samples, params.detect_drop)
    return replace(
        promise,
        sample=promise.sample[: size.samples],
        size=size,
        max_distance=params.max_distance,
        objectives=params.objectives,
    )


def _summary(made: Sequence[VerificationCheck], observed: Observed) -> str:
    """Of checks of which none failed."""
    passed, counts = sum(check.outcome is CheckOutcome.PASSED for check in made), checks.count(observed)
    skipped = f", {len(made) - passed} skipped" if passed < len(made) else ""
    said = f"{passed} checks passed{skipped}; {counts.correct} of {counts.samples} test examples are right "
    said += f"(evaluation: {counts.expected})."
    if observed.too_long and not observed.references:
        said += f" The runtime has no room for any of the {observed.too_long} recorded texts, so the weights are not "
        said += "proved by their log-probabilities: raise its maxInputTokens or maxTotalTokens."
    elif not observed.references:
        said += " The artifact was published by an earlier version, without a record of log-probabilities: publish it "
        said += "again to have its weights proved."
    return said


def _scalars(seen: Sequence[Observed]) -> dict[str, str]:
    """Of all adapters together, where there are several."""
    found = [checks.count(each) for each in seen]
    samples = sum(each.samples for each in found)
    share = max(1, samples)
    return {
        "samples": str(samples),
        "accuracy": f"{sum(each.correct for each in found) / share:.4f}",
        "expectedAccuracy": f"{sum(each.expected for each in found) / share:.4f}",
        "agreementPercent": str(min(each.agreement_percent for each in seen)),
    }


def main() -> None:
    """``python -m finetune_jobs.verify``"""
    run_stage(Stage.VERIFY, verify)


if __name__ == "__main__":
    main()
