"""``docs/reference/reasons.md``: every reason of both kinds: what it means, what to do, and what happens next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Final

from finetune_api import meta
from finetune_api.reasons import MEANINGS, UNSCHEDULABLE_MINUTES, Reason, remedy


class Then(StrEnum):
    """What the operator does when a reason occurs."""

    NEWS = "nothing"
    WAITS = "waits, then continues"
    WAITS_FOR_PEOPLE = "waits for people, then continues"
    WAITS_A_WHILE = "waits, then tries again later"
    TRIES = "retries, then fails"
    TRIES_FREELY = "retries without limit"
    FAILS = "fails"


FINETUNEJOB: Final[dict[Then, tuple[Reason, ...]]] = {
    Then.WAITS: (
        *(Reason.PROFILE_UNKNOWN, Reason.NOT_ALLOWED, Reason.RUNNER_SERVICE_ACCOUNT_MISSING, Reason.SECRET_MISSING),
        *(Reason.METRIC_UNKNOWN, Reason.GENERATOR_UNKNOWN),
        *(Reason.QUOTA_EXCEEDED, Reason.UNSCHEDULABLE, Reason.IMAGE_PULL_FAILED, Reason.POD_REJECTED),
        *(Reason.NAME_TAKEN, Reason.OUTPUT_NAME_CONFLICT, Reason.API_CALLS_FAIL, Reason.STATUS_UNREADABLE),
        *(Reason.JOB_SUSPENDED, Reason.NODE_LOST),
    ),
    Then.WAITS_FOR_PEOPLE: (Reason.AWAITING_REVIEW,),
    Then.FAILS: (
        *(Reason.SPEC_INVALID, Reason.DATASET_INVALID, Reason.DATASET_TOO_SMALL, Reason.DATASET_NOT_FOUND),
        *(Reason.MODEL_NOT_FOUND, Reason.MODEL_UNSUPPORTED, Reason.FIT_REFUSED, Reason.GATED_MODEL_UNAUTHORIZED),
        *(Reason.GATED_DATASET_UNAUTHORIZED, Reason.RUNTIME_UNSUITABLE),
        *(Reason.BUCKET_NOT_FOUND, Reason.S3_ACCESS_DENIED, Reason.S3_CONDITIONAL_WRITES_UNSUPPORTED),
        *(Reason.S3_ENCRYPTION_REFUSED, Reason.ARTIFACT_CORRUPT, Reason.ARTIFACT_NOT_FOUND, Reason.TEACHER_REFUSED),
        *(Reason.CUDA_OUT_OF_MEMORY, Reason.LOSS_NOT_FINITE, Reason.LOSS_DIVERGED, Reason.DEADLINE_EXCEEDED),
        *(Reason.GPU_UNUSABLE, Reason.BUDGET_EXCEEDED, Reason.RESULT_LOST, Reason.MANIFEST_NEWER, Reason.KEY_UNUSABLE),
        *(Reason.GATE_FAILED, Reason.ARTIFACT_WITHDRAWN, Reason.REGISTRY_ACCESS_DENIED, Reason.REPOSITORY_NOT_FOUND),
        *(Reason.PUSH_REFUSED, Reason.TAG_TAKEN, Reason.EXPORT_MISMATCH, Reason.METRIC_FAILED),
        *(Reason.METRIC_DATA_NOT_FOUND, Reason.GENERATOR_FAILED),
    ),
    Then.TRIES: (
        *(
            Reason.REGISTRY_UNREACHABLE,
            Reason.S3_UNREACHABLE,
            Reason.TEACHER_UNAVAILABLE,
            Reason.OUT_OF_MEMORY,
            Reason.SCRATCH_FULL,
        ),
        *(Reason.STEP_HUNG, Reason.SUPERSEDED, Reason.PEERS_UNREACHABLE),
        *(Reason.STAGE_CRASHED, Reason.INTERNAL_ERROR),
    ),
    Then.TRIES_FREELY: (Reason.PREEMPTED, Reason.PEER_LOST),
    Then.NEWS: (
        *(Reason.WAITING, Reason.RUN_STARTED, Reason.STAGE_STARTED, Reason.STAGE_SUCCEEDED, Reason.STAGE_REUSED),
        *(
            Reason.STAGE_RETRIED,
            Reason.RUN_SUCCEEDED,
            Reason.SUSPENDED,
            Reason.QUEUED,
            Reason.RESUMED,
            Reason.SPEC_CHANGED,
        ),
        *(Reason.SETTINGS_DISCOURAGED, Reason.TRAINING_COMPLETED, Reason.PLATEAU, Reason.OVERFITTING),
    ),
}
"""The reasons of a FineTuneJob, by what happens next."""

ADAPTERDEPLOYMENT: Final[dict[Then, tuple[Reason, ...]]] = {
    Then.WAITS: (
        *(Reason.SOURCE_NOT_READY, Reason.SOURCE_NOT_FOUND, Reason.RUNTIME_UNKNOWN, Reason.NOT_ALLOWED),
        *(Reason.BELOW_VERIFICATION_FLOOR, Reason.CHANNEL_NOT_FOUND, Reason.OUTPUT_NAME_FOREIGN),
        *(Reason.RUNNER_SERVICE_ACCOUNT_MISSING, Reason.NAME_TAKEN, Reason.SPEC_INVALID, Reason.SERVER_UNAVAILABLE),
        Reason.SELF_CHECK_FAILED,
        Reason.ADAPTER_STAYS,
        *(Reason.ROUTE_PENDING, Reason.ROUTE_REFUSED, Reason.ROUTE_TAKEN, Reason.ROUTE_UNAVAILABLE),
        *(Reason.API_CALLS_FAIL, Reason.STATUS_UNREADABLE, Reason.REVISION_UNUSABLE),
        Reason.ANALYSIS_INCONCLUSIVE,
        *(Reason.UNSCHEDULABLE, Reason.QUOTA_EXCEEDED, Reason.POD_REJECTED, Reason.PREEMPTED, Reason.NODE_LOST),
    ),
    Then.WAITS_A_WHILE: (
        *(Reason.SECRET_MISSING, Reason.API_KEYS_MISSING, Reason.IMAGE_PULL_FAILED, Reason.S3_UNREACHABLE),
        Reason.CERTIFICATE_UNUSABLE,
    ),
    Then.TRIES: (
        *(Reason.OUT_OF_MEMORY, Reason.SCRATCH_FULL, Reason.CANDIDATE_FAILED),
        *(Reason.STAGE_CRASHED, Reason.INTERNAL_ERROR),
    ),
    Then.FAILS: (
        *(Reason.MODEL_UNSUPPORTED, Reason.BUCKET_NOT_FOUND, Reason.S3_ACCESS_DENIED, Reason.S3_ENCRYPTION_REFUSED),
        *(Reason.ARTIFACT_NOT_FOUND, Reason.ARTIFACT_CORRUPT, Reason.ADAPTER_INACTIVE, Reason.VERIFICATION_FAILED),
        *(Reason.PROMPTS_TOO_LONG, Reason.RUNTIME_UNSUITABLE, Reason.DEADLINE_EXCEEDED, Reason.MANIFEST_NEWER),
        *(Reason.ADAPTERS_UNSUITABLE,),
        *(Reason.KEY_UNUSABLE, Reason.SIGNATURE_MISSING, Reason.SIGNATURE_INVALID, Reason.ARTIFACT_WITHDRAWN),
        *(Reason.GATES_NOT_PASSED, Reason.ANALYSIS_FAILED),
    ),
    Then.NEWS: (
        *(Reason.WAITING, Reason.CANDIDATE_STARTING, Reason.VERIFYING, Reason.VERIFIED, Reason.PROMOTED),
        *(Reason.SERVING, Reason.ROLLOUT_QUEUED, Reason.ROLLED_BACK, Reason.GAP_ANNOUNCED, Reason.GAP_IN_SERVICE),
        *(Reason.CANARY_STEP, Reason.ANALYSIS_PASSED, Reason.ADAPTER_REMOVED),
        *(Reason.DISRUPTION_BUDGET_REFUSED, Reason.ROUTE_ACCEPTED, Reason.MODEL_CACHE_UNUSED),
    ),
}
"""The reasons of an AdapterDeployment."""

# Lines of the page.
# ruff: noqa: E501
_INTRODUCTION: Final = f"""\
<!-- Generated from crds/finetune_api/reasons.py by `make manifests`; do not edit. -->
# Reasons

A reason names the root cause in one word. It appears in conditions (`kubectl describe`), events and stage results. The message beside it describes
the case: the place, the value, and where the log is. It ends with the text under *what to do*.

| what happens next | |
| --- | --- |
| {Then.WAITS} | `Stalled` is True until the cause is gone (for a route, `RouteAccepted` is False; for pods that serve, `Ready` or `Reconciling` has the reason), then the operator continues; nothing is lost. A run whose pod is `Unschedulable` has {UNSCHEDULABLE_MINUTES} minutes before that, because a node may be on its way |
| {Then.WAITS_FOR_PEOPLE} | nothing is wrong and `Stalled` stays False; the run continues once they have decided, however long that takes |
| {Then.WAITS_A_WHILE} | a revision's pods may have a node for the runtime's `startupTimeoutSeconds` plus 15 minutes and 20 seconds for each GiB that they download, or 5 minutes to pull an image, and a verification that could not be done is started again up to four times within some ten minutes; then they give it back, and are tried again an hour later |
| {Then.TRIES} | the stage's Job makes up to `retries` more attempts (set in the profile), a revision's container three; then the run or the revision fails |
| {Then.TRIES_FREELY} | these attempts do not count as `retries`; each may take the profile's `deadlineSeconds` |
| {Then.FAILS} | immediately: another attempt would end the same way |

To restart a failed run, change its spec, or `spec.rerun` if the cause was outside the spec; finished stages are reused. If a revision fails, the
previous one keeps serving."""


def page() -> str:
    """The whole page."""
    lines = [_INTRODUCTION]
    for kind, reasons in ((meta.FINETUNEJOB, FINETUNEJOB), (meta.ADAPTERDEPLOYMENT, ADAPTERDEPLOYMENT)):
        lines += ["", f"## {kind}", *_troubles(kind, reasons)]
        lines += ["", f"### Reasons of {_with_article(kind)} that need no action", *_news(reasons[Then.NEWS])]
    return "\n".join(lines) + "\n"


def _troubles(kind: str, reasons: dict[Then, tuple[Reason, ...]]) -> Iterator[str]:
    yield "| reason | meaning | what to do | what happens next |"
    yield "| --- | --- | --- | --- |"
    found = ((reason, then) for then, some in reasons.items() if then is not Then.NEWS for reason in some)
    for reason, then in sorted(found):
        yield f"| `{reason}` | {_cell(MEANINGS[reason])} | {_cell(remedy(reason, kind))} | {then} |"


def _news(reasons: Iterable[Reason]) -> Iterator[str]:
    yield "| reason | meaning |"
    yield "| --- | --- |"
    yield from (f"| `{reason}` | {_cell(MEANINGS[reason])} |" for reason in reasons)


def _with_article(kind: str) -> str:
    return f"{'an' if kind.startswith('A') else 'a'} {kind}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
