"""The verification of a candidate: a Job that sends its server the golden prompts and a sample of the test split."""

from datetime import datetime
from typing import Final

from finetune_api.adapterdeployment import AdapterDeploymentSpec
from finetune_api.meta import LABEL_REVISION
from finetune_api.stages import Params, RunRef, Stage, StageInput, VerifyParams
from finetune_operator.adapterdeployment.health import ServerProblem
from finetune_operator.adapterdeployment.observe import ObservedDeployment
from finetune_operator.adapterdeployment.target import Target
from finetune_operator.framework.conditions import parse_timestamp
from finetune_operator.framework.objects import JOBS
from finetune_operator.framework.ownership import Owner
from finetune_operator.outcome.job import UNFINISHED, State, Verdict, judge
from finetune_operator.resources.deployment import FETCH_SECONDS
from finetune_operator.resources.service import candidate_service_name, service_url
from finetune_operator.resources.stage_request import StageRequest
from finetune_operator.settings import PodShape, Settings

ANSWER_SECONDS: Final = 10
"""How long one answer may take: about 20 tokens on a CPU."""
VERIFIED: Final = frozenset({State.SUCCEEDED, State.LOST})
"""The Job's exit code decides; its report may be lost with its pod."""
_SHAPE: Final = PodShape(
    requests={"cpu": "100m", "memory": "256Mi"}, limits={"cpu": "1", "memory": "1Gi"}, scratch_size="1Gi"
)


def verify_request(owner: Owner, target: Target, spec: AdapterDeploymentSpec, settings: Settings) -> StageRequest:
    """The stage that verifies a candidate. Its name changes with what is verified and with ``spec.rerun``."""
    seconds = 600 + ANSWER_SECONDS * spec.verification.samples
    params = VerifyParams(
        endpoint=service_url(owner, candidate_service_name(owner, target.revision)),
        samples=spec.verification.samples,
        min_agreement_percent=spec.verification.min_agreement_percent,
        timeout_seconds=seconds,
    )
    run = RunRef(
        kind=owner.resource.kind,
        namespace=owner.namespace,
        name=owner.name,
        uid=owner.uid,
        id=f"{target.revision}-{target.spec_hash[:6]}",
    )
    serving = target.serving
    return StageRequest(
        owner=owner,
        input=StageInput(
            stage=Stage.VERIFY,
            run=run,
            storage=serving.storage,
            artifact_uri=serving.artifact_uri,
            artifact_digest=serving.artifact_digest,
            params=Params(verify=params),
        ),
        image=settings.images.of(Stage.VERIFY),
        images=settings.images,
        proxy=settings.proxy,
        shape=_SHAPE,
        service_account=serving.runtime.service_account_name,
        labels={LABEL_REVISION: target.revision},
        # The stage itself gives up after half of it. The store may fail for a while; a wrong answer stays wrong.
        deadline_seconds=2 * seconds,
        retries=2,
    )


def find_verdict(observed: ObservedDeployment, job_name: str) -> Verdict | None:
    """The verdict on a verification Job; None without one."""
    job = observed.child(JOBS, job_name)
    return judge(job, observed.job_pods(job)) if job is not None else None


def verify_overdue(observed: ObservedDeployment, request: StageRequest, now: datetime) -> ServerProblem | None:
    """Why the verification does not run, while the candidate holds hardware for it; None while it may still start.

    Once its pod has a node, the pod's own deadline ends it.
    """
    job = observed.child(JOBS, request.name)
    if job is None:
        return None
    verdict = judge(job, observed.job_pods(job))
    age = (now - parse_timestamp(job["metadata"]["creationTimestamp"])).total_seconds()
    limit = request.deadline_seconds + FETCH_SECONDS
    if verdict.state not in UNFINISHED - {State.RUNNING} or age < limit:
        return None
    return ServerProblem(verdict.reason, f"The verification has not run within {limit} s. {verdict.message}")
