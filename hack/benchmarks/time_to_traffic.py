"""How long another revision takes to get traffic, and what of that the operator adds.

A tiny artifact on the stand-in for TGI on the local cluster, one replica, one client that asks on new connections all
the time. ``--runtime vllm-cpu``: a small one on vLLM. From the moment the API server has a spec that names another
published artifact, until that client hears it.
In turn with it, the bare baseline: a pod with the same init container and the same server, made by hand, until the
server is ready. Both have the probes of the chart. Then, with the pods of the revision before still there,
``spec.rollbackTo``, until the client hears that one again. About ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from finetune_api import meta
from finetune_api.endpoint_stages import DOOR_SECONDS
from finetune_api.serving_status import RevisionStatus, ServingPhase
from finetune_operator.adapterdeployment.pod_problems import is_ready
from finetune_operator.outcome.pod import read_result
from finetune_operator.resources.deployment import FETCH, SERVER
from finetune_operator.resources.self_check import SELF_CHECK
from hack.benchmarks.load import ClientAnswers, Load
from hack.benchmarks.load_client import FRESH, Plan
from hack.benchmarks.result import Result
from hack.benchmarks.tiny_artifacts import RUNTIMES, TinyArtifact, install, publish_tiny
from hack.benchmarks.watching import Watched, watched
from hack.cluster.console import say
from hack.platform import local
from hack.platform.kubectl import Kubectl, Object, wait_for

ROUNDS = 3
ROLLOUT_S = 600
TOKENS = {FRESH: 6}
FIRST, SECOND = "first", "second"


@dataclass(frozen=True)
class Moments:
    """When each part of a rollout was over, in seconds since 1970, in this order."""

    asked: float
    """The API server has the spec."""
    pod_made: float
    fetched: float
    """The init container has ended, and the server's is started."""
    server_ready: float
    """The server's probes have passed."""
    pod_ready: float
    """Its self-check has passed, too."""
    job_made: float
    """The operator has created the Job of the verification."""
    verified: float
    """All checks of the verification have passed: its pod has ended, less the time for which it then waited for the
    network."""
    moved: float
    """The public Service names the revision."""
    heard: float
    """A client on a new connection got its answer."""


@dataclass(frozen=True)
class Split:
    """Seconds of a rollout by what they are for."""

    total: float
    fetch: float
    """From the pod's creation to the end of its init container: the scheduler, the kubelet, the download."""
    server: float
    """Until the server's probes have passed."""
    verification: float
    """The self-check of the pod, and the Job with its pod."""
    to_pod: float
    """The operator: from the spec to the pod."""
    to_job: float
    """The operator: from the ready pod to the Job."""
    to_service: float
    """The operator: from the end of the verification's checks to the Service, with the time that the network takes."""
    to_answer: float
    """The nodes: from the Service to the first answer."""

    @property
    def without_verification(self) -> float:
        """All that the bare baseline is compared with."""
        return self.total - self.verification


def split(moments: Moments) -> Split:
    """The parts, which add up to the whole."""
    at = moments
    return Split(
        total=at.heard - at.asked,
        fetch=at.fetched - at.pod_made,
        server=at.server_ready - at.fetched,
        verification=at.pod_ready - at.server_ready + at.verified - at.job_made,
        to_pod=at.pod_made - at.asked,
        to_job=at.job_made - at.pod_ready,
        to_service=at.moved - at.verified,
        to_answer=at.heard - at.moved,
    )


def run(runtime: str = "tgi-cpu") -> Result:
    """Measure; the value is what a rollout takes without its verification, the baseline is the bare pod."""
    from tests.support.teams import team_namespace

    kubectl = local.kubectl()
    install(kubectl, runtime)
    artifacts = publish_tiny(kubectl, (FIRST, SECOND), sorted(set(TOKENS.values())), engine=RUNTIMES[runtime])
    with team_namespace(kubectl) as team, watched(team) as seen:
        return _measured(team, runtime, artifacts, seen)


def _measured(team: Kubectl, runtime: str, artifacts: Mapping[str, TinyArtifact], seen: Watched) -> Result:
    from tests.support.artifacts import PROMPTS
    from tests.support.endpoints import NAME, Endpoint

    answers = {name: {kind: each.answers[limit] for kind, limit in TOKENS.items()} for name, each in artifacts.items()}
    load = Load(team, Plan(NAME, 80, {FRESH: 1}, PROMPTS[0], TOKENS, answers, pause=0.1))
    endpoint = Endpoint(team, runtime)
    endpoint.serve(artifacts[FIRST].uri)
    stable = endpoint.until(ServingPhase.READY, ROLLOUT_S).stable
    assert stable is not None
    before = stable.revision
    server = team.get("deployment", f"{NAME}-{before}")["spec"]["template"]["spec"]
    load.start(server["initContainers"][0]["image"])
    rollouts, bare, rollbacks = [], [], []
    for number in range(ROUNDS):
        bare.append(_bare(team, f"bare-{number}", server, seen))
        since = time.time()
        endpoint.serve(artifacts[SECOND].uri)
        heard = load.wait_until_fresh_clients_hear(SECOND, since, ROLLOUT_S)
        after = endpoint.until(ServingPhase.READY, ROLLOUT_S).stable  # the watches have seen all of it by then
        assert after is not None
        rollouts.append(split(moments_of(seen, NAME, after, since, heard)))
        say(f"    bare {bare[-1]:.1f} s, {rollouts[-1]}")
        since = time.time()
        endpoint.serve(artifacts[SECOND].uri, rollbackTo=before)
        heard = load.wait_until_fresh_clients_hear(FIRST, since, ROLLOUT_S)
        asked, _ = seen.first("adep", lambda each: each["spec"].get("rollbackTo") == before, since)
        rollbacks.append(heard - asked)
        say(f"    rollback {rollbacks[-1]:.1f} s")
        # The next round starts the second one anew.
        endpoint.serve(artifacts[FIRST].uri, keepLastGood="0s")
        wait_for("the other pods to end", lambda: len(_servers(team)) == 1, ROLLOUT_S)
    return _result(rollouts, bare, rollbacks, load.heard())


def _servers(team: Kubectl) -> list[Object]:
    return team.items("pods", f"{meta.LABEL_ROLE}={SERVER}")


def moments_of(seen: Watched, name: str, after: RevisionStatus, since: float, heard: float) -> Moments:
    """When each part of the rollout to a revision was over, as the watches saw it."""
    revision, uri = after.revision, after.artifact_uri

    def of(each: Object) -> bool:
        return (each["metadata"].get("labels") or {}).get(meta.LABEL_REVISION) == revision

    asked, _ = seen.first("adep", lambda each: each["spec"]["source"]["artifact"]["uri"] == uri, since)
    made, first = seen.first(
        "pod", lambda each: of(each) and each["metadata"]["labels"].get(meta.LABEL_ROLE) == SERVER, since
    )
    pod = first["metadata"]["name"]

    def when(fits: Any) -> float:
        return seen.first("pod", lambda each: each["metadata"]["name"] == pod and fits(each), since)[0]

    job_made, job = seen.first("job", of, since)
    label = f"{job['metadata']['name']}-"
    ended = ("Succeeded", "Failed")
    ended_at, verifier = seen.first(
        "pod", lambda each: each["metadata"]["name"].startswith(label) and each["status"]["phase"] in ended, made
    )
    moved, _ = seen.first(
        "service",
        lambda each: each["metadata"]["name"] == name and each["spec"]["selector"].get(meta.LABEL_REVISION) == revision,
        since,
    )
    return Moments(
        asked=asked,
        pod_made=made,
        fetched=when(lambda each: _has_ended(each, FETCH)),
        server_ready=when(lambda each: _is_ready(each, SERVER)),
        pod_ready=when(is_ready),
        job_made=job_made,
        verified=ended_at - _waited_for_the_network(verifier),
        moved=moved,
        heard=heard,
    )


def _waited_for_the_network(verifier: Object) -> float:
    """Seconds for which a verification waited after its checks: they are the operator's, not its own."""
    result = read_result(verifier)
    return float(result.scalars.get(DOOR_SECONDS, 0)) if result else 0.0


def _bare(team: Kubectl, name: str, server: Object, seen: Watched) -> float:
    """Seconds from the creation of a pod with the same download and the same server, until that is ready."""
    spec = copy.deepcopy(server)
    spec["initContainers"] = [each for each in spec["initContainers"] if each["name"] != SELF_CHECK]
    spec["volumes"] = [each for each in spec["volumes"] if each["name"] != SELF_CHECK]
    since = time.time()
    team.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
    wait_for("the bare pod", lambda: is_ready(team.get("pod", name)), ROLLOUT_S)
    made, _ = seen.first("pod", lambda each: each["metadata"]["name"] == name, since)
    ready, _ = seen.first("pod", lambda each: each["metadata"]["name"] == name and is_ready(each), since)
    team("delete", "pod", name)
    return ready - made


def _statuses(pod: Object) -> list[Object]:
    status = pod.get("status") or {}
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


def _has_ended(pod: Object, container: str) -> bool:
    return any(each["name"] == container and "terminated" in each["state"] for each in _statuses(pod))


def _is_ready(pod: Object, container: str) -> bool:
    return any(each["name"] == container and each["ready"] for each in _statuses(pod))


def _result(
    rollouts: Sequence[Split], bare: Sequence[float], rollbacks: Sequence[float], heard: ClientAnswers
) -> Result:
    """The medians."""
    parts = {part: round(statistics.median(asdict(each)[part] for each in rollouts), 2) for part in asdict(rollouts[0])}
    return Result(
        name="time_to_traffic",
        value=round(statistics.median(each.without_verification for each in rollouts), 2),
        unit="s",
        baseline=round(statistics.median(bare), 2),
        goal="ratio ≤ 1.2; details.rollback ≤ 10 s",
        details={
            "rounds": len(rollouts),
            "median": parts,
            "rollback": round(max(rollbacks), 2),
            "rollouts": [asdict(each) for each in rollouts],
            "bare": list(bare),
            "rollbacks": list(rollbacks),
            "answers": heard.answers,
            "faults": [dict(fault) for fault in heard.faults],
        },
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runtime", choices=RUNTIMES, default="tgi-cpu")
    result = run(**vars(parser.parse_args()))
    result.write()
    say(json.dumps(result.details, indent=1))
