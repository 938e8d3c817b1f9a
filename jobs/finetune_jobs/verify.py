"""Stage verify: prove that a candidate's server really serves the artifact, before any traffic reaches it.

Model servers fall back silently (an unknown adapter is answered by the base model), so a server that is healthy proves
nothing. What it must prove is a list of checks (``verification.checks``): it names the artifact's digest, finds given
texts as likely as the evaluated artifact did, ends its answers, and is not worse on a sample of the test split. A
server that does not accept prompts of this length cannot be verified; that is reported before it is asked.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from finetune_api import meta
from finetune_api.adapterdeployment import CheckOutcome, VerificationCheck, WithdrawnPolicy
from finetune_api.api_keys import read_api_keys
from finetune_api.layout import output_folder
from finetune_api.reasons import Reason
from finetune_api.stages import Stage, VerifyParams
from finetune_jobs.artifacts.folders import fetch_folder
from finetune_jobs.artifacts.withdrawal import require_standing
from finetune_jobs.base.errors import StageError, require
from finetune_jobs.evaluation.tasks import right_for
from finetune_jobs.runtime.runner import Context, StageOutput, run_stage
from finetune_jobs.verification import checks
from finetune_jobs.verification.checks import Observed
from finetune_jobs.verification.connection import wait_until_healthy
from finetune_jobs.verification.observation import Before, Promise, observe, require_room
from finetune_jobs.verification.power import size_sample
from finetune_jobs.verification.promise import read_promise
from finetune_jobs.verification.servers import client_of

log = logging.getLogger(__name__)


def verify(context: Context) -> StageOutput:
    """The stage. Raises StageError: ApiKeysMissing, ArtifactWithdrawn, CandidateFailed, PromptsTooLong,
    AdapterInactive, VerificationFailed, as fetch_folder."""
    params = require(context.input.params.verify, "params.verify")
    if params.withdrawn is WithdrawnPolicy.REFUSE:
        require_standing(context.store, context.input.artifact_digest)
    deadline = time.monotonic() + params.timeout_seconds
    promise = _read_promise(context, params)
    context.progress.report(0, "waiting for the server")
    key = client_key(params.api_keys_secret)
    wait_until_healthy(params.endpoint, deadline, key)
    server = client_of(params.engine, params.endpoint, key)
    served = server.served()
    digest = checks.digest_check(served.model, context.input.artifact_digest)
    checks.require_all([digest], params.endpoint)
    require_room([*promise.golden, *promise.sample], served.limits)
    observed = observe(server, promise, served.limits, _before(context, params, deadline))
    made = [digest, *checks.make_checks(observed, params.min_agreement_percent)]
    for check in made:
        log.info("%s: %s (expected: %s; seen: %s)", check.name, check.outcome, check.expected or "-", check.seen)
    checks.require_all(made, params.endpoint)
    return StageOutput(
        output_digest=context.input.artifact_digest,
        scalars=_scalars(observed),
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


def _before(context: Context, params: VerifyParams, deadline: float) -> Before:
    """Reports the progress, and ends a verification that takes too long."""

    def before(number: int, total: int) -> None:
        if time.monotonic() > deadline:
            said = f"The server is too slow: no verdict in {params.timeout_seconds} s."
            raise StageError(Reason.VERIFICATION_FAILED, said)
        context.progress.report(number / total, f"asked {number} of {total} prompts")

    return before


def _read_promise(context: Context, params: VerifyParams) -> Promise:
    folder = context.scratch / "artifact"
    place = output_folder(Stage.PUBLISH, context.input.artifact_digest)
    fetch_folder(context.store, place, folder)
    promise = read_promise(folder, context.store.uri(place))
    right = right_for(promise.task)
    rights = [right(each.label, each.artifact) for each in promise.sample]
    size = size_sample(rights, params.samples, params.detect_drop)
    return replace(
        promise,
        sample=promise.sample[: size.samples],
        size=size,
        max_distance=params.max_distance,
        objectives=params.objectives,
    )


def _summary(made: Sequence[VerificationCheck], observed: Observed) -> str:
    passed, counts = sum(check.outcome is CheckOutcome.PASSED for check in made), checks.count(observed)
    said = f"{passed} of {len(made)} checks passed; {counts.correct} of {counts.samples} test examples are right "
    said += f"(evaluation: {counts.expected})."
    if not observed.references:
        said += " The artifact was published by an earlier version, without a record of log-probabilities: publish it "
        said += "again to have its weights proved."
    return said


def _scalars(observed: Observed) -> dict[str, str]:
    counts = checks.count(observed)
    share = max(1, counts.samples)
    return {
        "samples": str(counts.samples),
        "accuracy": f"{counts.correct / share:.4f}",
        "expectedAccuracy": f"{counts.expected / share:.4f}",
        "agreementPercent": str(observed.agreement_percent),
    }


def main() -> None:
    """``python -m finetune_jobs.verify``"""
    run_stage(Stage.VERIFY, verify)


if __name__ == "__main__":
    main()
