"""The Jobs of an AdapterDeployment: what each finds follows from the artifacts that it is told of, and from what a test
sets."""

from dataclasses import dataclass, field

from finetune_api import meta
from finetune_api.endpoint_stages import PUBLISHED_AT, REPLACED_WITHDRAWN, AnalyseParams, FollowParams
from finetune_api.reasons import Reason
from finetune_api.serving_status import AnalysisOutcome, CheckOutcome, VerificationCheck
from finetune_api.stages import Outcome, Params, Stage, StageInput, StageResult
from finetune_api.verification import WithdrawnPolicy
from finetune_operator.adapterdeployment.delivery_job import is_of_delivery
from finetune_operator.adapterdeployment.look import is_of_look
from finetune_operator.framework.conditions import timestamp
from finetune_operator.framework.objects import CONFIG_MAPS, DEPLOYMENTS, JOBS, Object
from tests.support.played_cluster import START, PlayedCluster
from tests.support.played_pods import FATES, adapter_checks, checks, job_pod, killed_pod, outcome_of, served


@dataclass
class PlayedJobs(PlayedCluster):
    """A cluster in which Jobs end."""

    analysis: AnalysisOutcome = AnalysisOutcome.PASSED
    """What the servers' metrics say of a canary. Running: its analysis does not end."""
    analysed: list[AnalyseParams] = field(default_factory=list)
    """What the analyses that ended were told."""
    setbacks: list[Reason] = field(default_factory=list)
    """Why the next verifications, and Jobs that wait for adapters on running pods, fail for a cause outside of the
    revision, one after the other."""
    withdrawn: dict[str, str] = field(default_factory=dict)
    """By whom artifacts are marked as withdrawn in the store, by digest."""
    channel: str | Reason = ""
    """The digest to which the followed channel points, or why a look at it fails; empty: its Job does not end."""
    channels: dict[str, str | Reason] = field(default_factory=dict)
    """The same by the output's name, where several are followed."""
    channel_scalars: dict[str, str] = field(default_factory=dict)
    """What a look at it tells besides."""
    looks: list[FollowParams] = field(default_factory=list)
    """What the looks at the channel that ended were told."""
    asked_of: list[tuple[list[str], list[str]]] = field(default_factory=list)
    """Which pods the Jobs asked that wait for adapters on running pods, and for which adapters."""
    lasting: set[str] = field(default_factory=set)
    """Digests of adapters whose names running pods do not let go of: the Jobs that wait for that fail in the end."""
    killed_jobs: int = 0
    """How many of the next Jobs that wait for adapters on running pods end without a word."""

    def run_jobs(self) -> None:
        """Every Job that has not ended does, if it can."""
        for name, job in self.objects.get(JOBS, {}).items():
            if not job.get("status"):
                self._run_job(name, job)

    def _run_job(self, name: str, job: Object) -> None:
        if job["metadata"]["labels"][meta.LABEL_STAGE] == Stage.ANALYSE:
            self._analyse(name, job)
        elif is_of_look(job):
            self._look(name, job)
        elif is_of_delivery(job):
            self._deliver(name, job)
        else:
            self._verify(name, job)

    def _verify(self, name: str, job: Object) -> None:
        """Whether a revision's servers answer like its artifact."""
        revision = job["metadata"]["labels"][meta.LABEL_REVISION]
        deployment = self.objects[DEPLOYMENTS].get(f"demo-{revision}")
        if deployment is None or not deployment.get("status", {}).get("readyReplicas"):
            return
        asked = self._params(name).verify
        adapters = asked.adapters if asked else []
        bad = (each.digest for each in adapters if FATES[each.digest])  # the first one's fate is that of all
        digest = next(bad, served(deployment["spec"]["template"]["spec"]))
        fate = Reason.ARTIFACT_WITHDRAWN if self._is_refused(name, digest) else FATES[digest]
        setback = self.setbacks.pop(0) if self.setbacks else None
        if setback is not None:
            self._set_back(name, job, setback)
            return
        ended = "Complete" if fate is None else "Failed"
        job["status"] = {"conditions": [{"type": ended, "status": "True"}]}
        if fate is None:
            job["status"]["completionTime"] = timestamp(self.now)
        result = StageResult(
            stage=Stage.VERIFY,
            outcome=Outcome.SUCCEEDED if fate is None else Outcome.FAILED,
            reason=fate or Reason.VERIFIED,
            message="The answers agree." if fate is None else "The answers are those of the base model.",
            scalars={"accuracy": "0.9000", "expectedAccuracy": "0.9100", **self._told(name)} if fate is None else {},
            checks=adapter_checks(adapters) or checks(fate),
        )
        self.pods[name] = [job_pod(job, result)]

    def _set_back(self, name: str, job: Object, setback: Reason) -> None:
        """A verification that could not be done, in all of its Job's attempts."""
        ended = {"type": "Failed", "status": "True", "lastTransitionTime": timestamp(self.now)}
        job["status"] = {"conditions": [ended | {"reason": "BackoffLimitExceeded"}]}
        said = f"{setback}: it does not answer."
        result = StageResult(stage=Stage.VERIFY, outcome=Outcome.FAILED, reason=setback, message=said)
        self.pods[name] = [job_pod(job, result, meta.ExitCode.RETRIABLE)]

    def _is_refused(self, name: str, digest: str) -> bool:
        """Whether the policy that a verification is told of refuses the artifact."""
        asked = self._params(name).verify
        return digest in self.withdrawn and asked is not None and asked.withdrawn is WithdrawnPolicy.REFUSE

    def _told(self, name: str) -> dict[str, str]:
        """What a verification finds of the withdrawal of what serves until then."""
        asked = self._params(name).verify
        replaced = asked.replaced if asked else []
        said = [self.withdrawn[each.digest] for each in replaced if each.digest in self.withdrawn]
        return {REPLACED_WITHDRAWN: "; ".join(said)} if replaced else {}

    def _deliver(self, name: str, job: Object) -> None:
        """What running pods say of adapters that they are told of, by the fates of these."""
        asked = self._params(name).verify
        assert asked is not None
        self.asked_of.append((list(asked.pods), [each.name for each in (*asked.adapters, *asked.removed)]))
        if any(each.digest in self.loading for each in (*asked.adapters, *asked.removed)):
            return
        setback = self.setbacks.pop(0) if self.setbacks else None
        if setback is not None:
            self._set_back(name, job, setback)
            return
        if self.killed_jobs:
            self.killed_jobs -= 1
            ended = {"type": "Failed", "status": "True", "lastTransitionTime": timestamp(self.now)}
            job["status"] = {"conditions": [ended | {"reason": "BackoffLimitExceeded"}]}
            self.pods[name] = [killed_pod(job)]
            return
        fates = {each.name: FATES[each.digest] for each in asked.adapters}
        stays = Reason.ADAPTER_STAYS
        fates |= {each.name: stays if each.digest in self.lasting else None for each in asked.removed}
        made = [VerificationCheck(name=each, outcome=outcome_of(fate)) for each, fate in fates.items()]
        reasons = [fate for fate in fates.values() if fate]
        job["status"] = {"conditions": [{"type": "Failed" if reasons else "Complete", "status": "True"}]}
        result = StageResult(
            stage=Stage.VERIFY,
            outcome=Outcome.FAILED if reasons else Outcome.SUCCEEDED,
            reason=reasons[0] if reasons else Reason.VERIFIED,
            message=("Its server still answers." if asked.removed else "It answers like the base.")
            if reasons
            else "All of them have proved it.",
            checks=made,
        )
        self.pods[name] = [job_pod(job, result)]

    def _look(self, name: str, job: Object) -> None:
        """What a Job finds in the store."""
        asked = self._params(name).follow
        assert asked is not None
        pointed = self.channels.get(asked.name, self.channel)
        if not pointed:
            return
        self.looks.append(asked)
        fails = pointed if isinstance(pointed, Reason) else None
        ended = {"type": "Failed" if fails else "Complete", "status": "True", "lastTransitionTime": timestamp(self.now)}
        job["status"] = {"conditions": [ended], **({} if fails else {"completionTime": timestamp(self.now)})}
        result = StageResult(
            stage=Stage.FOLLOW,
            outcome=Outcome.FAILED if fails else Outcome.SUCCEEDED,
            reason=fails or Reason.STAGE_SUCCEEDED,
            message="s3://m/team/channels/demo/stable.json: nothing there." if fails else "It points there.",
            output_digest="" if fails else pointed,
            scalars={} if fails else {PUBLISHED_AT: timestamp(START), **self.channel_scalars},
        )
        self.pods[name] = [job_pod(job, result)]

    def _analyse(self, name: str, job: Object) -> None:
        """A canary fails its analysis at once; anything else shows at its end."""
        asked = self._params(name).analyse
        assert asked is not None
        failed = self.analysis is AnalysisOutcome.FAILED
        if self.analysis is AnalysisOutcome.RUNNING or (not failed and timestamp(self.now) < asked.until):
            return
        self.analysed.append(asked)
        job["status"] = {"conditions": [{"type": "Failed" if failed else "Complete", "status": "True"}]}
        outcomes = {AnalysisOutcome.FAILED: CheckOutcome.FAILED, AnalysisOutcome.PASSED: CheckOutcome.PASSED}
        outcome = outcomes.get(self.analysis, CheckOutcome.SKIPPED)
        result = StageResult(
            stage=Stage.ANALYSE,
            outcome=Outcome.FAILED if failed else Outcome.SUCCEEDED,
            reason=Reason.ANALYSIS_FAILED if failed else Reason.STAGE_SUCCEEDED,
            message=f"31 of 120 requests failed: {self.analysis}.",
            scalars={} if failed else {"analysis": self.analysis.value},
            checks=[VerificationCheck(name="failedRequests", expected="4 of 362", seen="31 of 120", outcome=outcome)],
        )
        self.pods[name] = [job_pod(job, result)]

    def _params(self, name: str) -> Params:
        """What a Job is told."""
        return StageInput.model_validate_json(self.objects[CONFIG_MAPS][name]["data"]["input.json"]).params
