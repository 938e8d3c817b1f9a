"""The verification of a candidate: a Job that sends its server the golden prompts and a sample of the test split."""

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from finetune_api.endpoint_stages import (
    ANSWER_SECONDS,
    DOOR_SECONDS,
    REPLACED_WITHDRAWN,
    AdapterRef,
    LatencyObjectives,
    VerifyParams,
    long_answer_seconds,
)
from finetune_api.hashing import without_defaults
from finetune_api.meta import ADAPTERDEPLOYMENT, LABEL_REVISION, SELF_CHECK_PORT
from finetune_api.reasons import remedy
from finetune_api.serving_status import RevisionStatus
from finetune_api.stages import Params, Stage, StageInput
from finetune_api.verification import duration_seconds
from finetune_operator.adapterdeployment.adapters import judged, read_back
from finetune_operator.adapterdeployment.health import LONG_WAIT_SECONDS, PASSING
from finetune_operator.adapterdeployment.observe import ObservedDeployment
from finetune_operator.adapterdeployment.pod_problems import ServerProblem
from finetune_operator.adapterdeployment.target import Target
from finetune_operator.framework.conditions import parse_timestamp
from finetune_operator.framework.objects import JOBS
from finetune_operator.outcome.job import UNFINISHED, State, Verdict, judge
from finetune_operator.outcome.no_pod import look_after
from finetune_operator.outcome.pod import find_condition
from finetune_operator.resources.deployment import FETCH_SECONDS
from finetune_operator.resources.self_check import has_self_check
from finetune_operator.resources.service import candidate_service_name, service_url
from finetune_operator.resources.stage_job import says_proved
from finetune_operator.resources.stage_request import StageRequest, run_ref
from finetune_operator.settings import PodShape

_MORE_ANSWERS: Final = 32 + 20 + 12
"""Golden prompts, streams, chats with tools, whole and streamed, and with a schema, at most: a verification asks for
them beside the sample."""
_PATIENCE: Final = timedelta(seconds=LONG_WAIT_SECONDS)
"""For how long its pod may wait for a node, while the candidate's holds a GPU."""
_VERIFIED: Final = frozenset({State.SUCCEEDED, State.LOST})
"""The Job's exit code decides; its report may be lost with its pod."""
_WORDS: Final = 512
"""The API's limit for a mark's words; pods are not trusted to respect it."""
_SHAPE: Final = PodShape(
    requests={"cpu": "100m", "memory": "256Mi"}, limits={"cpu": "1", "memory": "1Gi"}, scratch_size="1Gi"
)


def verify_request(
    observed: ObservedDeployment, target: Target, stable: RevisionStatus | None = None, retry: int = 0
) -> StageRequest:
    """The stage that verifies a candidate. Its name changes with what is verified, with ``spec.rerun`` and with the
    number of the retry, and not with what serves until then (``stable``), of which it tells whether it was
    withdrawn."""
    owner, spec, settings = observed.owner, observed.resource.spec, observed.settings
    asked, serving = spec.verification, target.serving
    seconds = (600 + ANSWER_SECONDS * asked.most_samples) * max(1, len(serving.adapters))
    uri, digest = serving.first
    service = candidate_service_name(owner, target.revision)
    watches = settings.policy_seconds and has_self_check(target.record.template)
    params = VerifyParams(
        endpoint=service_url(owner, service, tls=bool(serving.tls_secret)),
        engine=target.serving.runtime.engine.value,
        samples=asked.most_samples,
        min_agreement_percent=asked.min_agreement_percent,
        timeout_seconds=seconds,
        withdrawn=spec.policy.withdrawn,
        gates=spec.policy.gates,
        required_gates=spec.policy.required_gates,
        api_keys_secret=serving.api_keys_secret,
        tls_secret=serving.tls_secret,
        tls_host=serving.door(owner).host,
        max_distance=None if asked.max_distance is None else float(asked.max_distance),
        require_probabilities=asked.require_probabilities,
        detect_drop=None if asked.detect_drop is None else float(asked.detect_drop),
        objectives=LatencyObjectives(
            first_token=_seconds(asked.objectives.time_to_first_token),
            output_token=_seconds(asked.objectives.time_per_output_token),
        ),
        model=owner.name if serving.adapters else "",
        adapters=serving.refs,
        door=service_url(owner, service, SELF_CHECK_PORT) if watches else "",
    )
    run = run_ref(owner, f"{target.revision}-{target.spec_hash[:6]}")
    given = StageInput(
        stage=Stage.VERIFY,
        run=run,
        storage=serving.storage,
        artifact_uri=uri,
        artifact_digest=digest,
        params=Params(verify=params),
    )
    identity = without_defaults(given)
    if replaced := _replaced(stable, target):
        told = Params(verify=params.model_copy(update={"replaced": replaced}))
        given = given.model_copy(update={"params": told})
    return StageRequest(
        owner=owner,
        input=given,
        identity=[identity, str(retry)] if retry else identity,
        image=settings.images.of(Stage.VERIFY),
        images=settings.images,
        proxy=settings.proxy,
        shape=_SHAPE,
        service_account=serving.runtime.service_account_name,
        labels={LABEL_REVISION: target.revision},
        # The stage itself gives up long before. A store that fails for longer: ``retries.py``.
        deadline_seconds=2 * seconds + _for_long_answers(target, asked.most_samples),
        retries=2,
    )


def _for_long_answers(target: Target, samples: int) -> int:
    """What a verification may take beside, at most, for answers that are long: the stage counts what it asks for. Of an
    artifact of which the operator does not know how long they are, they fit the runtime."""
    serving = target.serving
    longest = target.answer_tokens or serving.runtime.max_total_tokens
    answers = (samples + _MORE_ANSWERS) * max(1, len(serving.adapters))
    return math.ceil(answers * long_answer_seconds(longest))


def _replaced(stable: RevisionStatus | None, target: Target) -> list[AdapterRef]:
    """The artifacts of what serves, as far as the verification can reach them: with the keys of its own store."""
    if stable is None or stable.storage != target.serving.storage:
        return []
    if stable.adapters:
        return [AdapterRef(name=each.name, uri=each.uri, digest=each.digest) for each in read_back(stable.adapters)]
    return [AdapterRef(name="", uri=stable.artifact_uri, digest=stable.artifact_digest)] if stable.artifact_uri else []


def _seconds(duration: str | None) -> float | None:
    return None if duration is None else duration_seconds(duration)


@dataclass(frozen=True)
class Verification:
    """Where a verification Job stands."""

    verdict: Verdict
    age: timedelta
    """Since the Job was created."""
    limit: timedelta
    """For how long the candidate may hold hardware for a verification that does not run."""
    unplaced: timedelta | None = None
    """For how long its pod has had no node, or there has been none; None: it has had one, or that is not known."""
    has_passed: bool = False
    """Whether its pod says that all checks have passed, while it waits for the network to open."""
    ended_at: datetime | None = None
    """When the Job ended; None: it has not."""

    @property
    def succeeded(self) -> bool:
        """Whether the candidate may be promoted."""
        return self.verdict.state in _VERIFIED

    @property
    def saw_the_network_open(self) -> bool:
        """Whether it saw the policy in force that lets clients in."""
        result = self.verdict.result
        return self.succeeded and result is not None and DOOR_SECONDS in result.scalars

    @property
    def replaced_withdrawn(self) -> str | None:
        """What it found of the withdrawal of what serves until now; empty: there is none. None: it does not
        know, or its report is lost."""
        said = self.verdict.result.scalars.get(REPLACED_WITHDRAWN) if self.verdict.result else None
        return None if said is None else said[:_WORDS]

    @property
    def failure(self) -> ServerProblem | None:
        """Why the candidate must not be promoted, if the Job has failed for a cause of the candidate's."""
        failed = self.verdict.state is State.FAILED and self.verdict.reason not in PASSING
        return ServerProblem(self.verdict.reason, self.verdict.message) if failed else None

    @property
    def setback(self) -> ServerProblem | None:
        """Why the Job has failed, if that says nothing about the candidate."""
        passing = self.verdict.state is State.FAILED and self.verdict.reason in PASSING
        return ServerProblem(self.verdict.reason, self.verdict.message) if passing else None

    def recorded(self, candidate: RevisionStatus) -> RevisionStatus:
        """The candidate with what was compared, as far as it is known."""
        checks = self.verdict.result.checks if self.verdict.result else []
        return candidate.model_copy(update={"verification": checks, "adapters": judged(candidate.adapters, checks)})

    @property
    def overdue(self) -> ServerProblem | None:
        """Why it does not run, if it has not for too long. Once its pod has a node, the pod's own deadline ends it."""
        if self.verdict.state not in UNFINISHED - {State.RUNNING} or self._left > timedelta():
            return None
        late = self.limit if self.age >= self.limit else _PATIENCE
        said = f"The verification has not run within {late.total_seconds():.0f} s. {self.verdict.message}"
        return ServerProblem(self.verdict.reason, said)

    @property
    def _left(self) -> timedelta:
        """Until it has not run for too long."""
        left = self.limit - self.age
        return left if self.unplaced is None else min(left, _PATIENCE - self.unplaced)

    @property
    def blocker(self) -> ServerProblem | None:
        """What it waits for that a person can do something about."""
        if self.verdict.state is not State.WAITING or not remedy(self.verdict.reason, ADAPTERDEPLOYMENT):
            return None
        return ServerProblem(self.verdict.reason, f"Its verification waits. {self.verdict.message}")

    @property
    def has_begun(self) -> bool:
        """Whether its pod runs, or has run: one that replaces a lost one may wait too."""
        return self.verdict.attempts > 1 or self.verdict.state not in (State.WAITING, State.SUSPENDED)

    @property
    def refused(self) -> bool:
        """Whether the API server refuses its pod: nothing shows when it no longer would."""
        return self.verdict.needs_events and self.blocker is not None

    @property
    def due_after(self) -> float | None:
        """Seconds after which to look at it if nothing is heard of it; None if whatever happens to it is told."""
        if self.verdict.state not in UNFINISHED - {State.RUNNING}:
            return None
        left = max(0.0, self._left.total_seconds())
        return min(left, look_after(self.age)) if self.verdict.needs_events and not self.blocker else left


def find_verification(observed: ObservedDeployment, request: StageRequest, now: datetime) -> Verification | None:
    """The verification that was asked for; None as long as it has no Job."""
    job = observed.child(JOBS, request.name)
    if job is None:
        return None
    pods = observed.job_pods(job)
    verdict = judge(job, pods, observed.job_events.get(request.name, ()), now)
    age = now - parse_timestamp(job["metadata"]["creationTimestamp"])
    params = request.input.params.verify
    limit = timedelta(seconds=2 * (params.timeout_seconds if params else 0) + FETCH_SECONDS)
    ready = any(find_condition(pod.get("status") or {}, "Ready") for pod in pods)
    has_passed = says_proved(request) and verdict.state is State.RUNNING and ready
    ended = verdict.state not in UNFINISHED
    ended_at = parse_timestamp(verdict.finished_at or job["metadata"]["creationTimestamp"]) if ended else None
    return Verification(verdict, age, limit, _unplaced(verdict, age, now), has_passed, ended_at)


def _unplaced(verdict: Verdict, age: timedelta, now: datetime) -> timedelta | None:
    """For how long a verification has had no node: its pod finds none, or cannot even be created."""
    if verdict.unschedulable_since:
        return now - parse_timestamp(verdict.unschedulable_since)
    return None if verdict.attempts else age
