"""Serving on a real node: real downloads, servers (the stand-in for TGI), verifications and traffic."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping
from typing import Any

import httpx2
import pytest

from finetune_api import meta
from finetune_api.reasons import Reason
from finetune_api.serving_status import AdapterDeploymentStatus, RevisionState, ServingPhase
from finetune_operator.framework.conditions import parse_timestamp
from hack.benchmarks.load import POD, ClientAnswers, Load
from hack.benchmarks.load_client import FRESH, KEPT, STREAM, WRONG, Plan
from hack.benchmarks.tiny_artifacts import TinyArtifact, publish_tiny
from hack.cluster.console import ClusterError
from hack.platform.kubectl import Kubectl, Object, wait_for
from tests.support.artifacts import PROMPTS
from tests.support.endpoints import NAME, Endpoint

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]

TOKENS = {FRESH: 6, KEPT: 6, STREAM: 24}
"""Few enough for a model of random weights to write the same text on every CPU: later ones were within rounding."""
CLIENTS = {FRESH: 1, KEPT: 1, STREAM: 1}
PAUSE_S = 1.0
"""Of a client between two requests: servers, self-checks and the demo's training share the machine's cores."""
ROLLOUT_S = 1200
NODES_S = 5.0
"""Nodes follow an EndpointSlice within two and a half seconds; this one shares two cores."""
IN_PLACE = {"type": "InPlace", "notice": "10s"}
FIRST_KEY, SECOND_KEY = "first-key-0123456789abcdef", "second-key-0123456789abcdef"


@pytest.fixture(scope="module")
def artifacts(cluster: Kubectl) -> dict[str, TinyArtifact]:
    """Three artifacts in the cluster's store; the weights of the boastful one are those of the base model."""
    return publish_tiny(cluster, ("first", "second", "boastful"), sorted(set(TOKENS.values())), boastful="boastful")


def test_clients_hear_one_revision_and_then_the_next_and_never_a_bad_one(
    team: Kubectl, artifacts: dict[str, TinyArtifact]
) -> None:
    """With two replicas and every kind of client: no request is lost or wrong when a node is drained, in a rollout, a
    rollback to kept pods, a rollout to them, a refused artifact, and when a revision's last pods end."""
    endpoint = Endpoint(team)
    replicas: dict[str, Any] = {"replicas": 2}
    endpoint.serve(artifacts["first"].uri, **replicas)
    first = endpoint.until(ServingPhase.READY).stable
    assert first is not None
    assert (first.accuracy, first.expected_accuracy) == ("1.0000", "1.0000")
    [server] = team.items("deployments", f"{meta.LABEL_REVISION}={first.revision}")
    load = Load(team, Plan(NAME, 80, CLIENTS, PROMPTS[0], TOKENS, _answers(artifacts), PAUSE_S))
    load.start(server["spec"]["template"]["spec"]["initContainers"][0]["image"])  # it has Python

    _drain_twice(team, first.revision)
    begin = time.time()
    endpoint.serve(artifacts["second"].uri, **replicas)
    rollout = load.wait_until_fresh_clients_hear("second", begin, ROLLOUT_S) - begin
    second = wait_for("the promotion", lambda: _promoted(endpoint, first.revision), 240)
    begin = time.time()
    endpoint.serve(artifacts["second"].uri, **replicas, rollbackTo=first.revision)
    back = load.wait_until_fresh_clients_hear("first", begin, ROLLOUT_S) - begin
    assert back <= max(10, rollout / 4), "nothing starts, and nothing is verified"
    begin = time.time()
    endpoint.serve(artifacts["second"].uri, **replicas, keepLastGood="5s")
    load.wait_until_fresh_clients_hear("second", begin, ROLLOUT_S)
    # A client that keeps its connection comes over when the pod at its other end stops.
    load.wait_until_all_hear("second", ROLLOUT_S)

    endpoint.serve(artifacts["boastful"].uri, **replicas)
    status = endpoint.until(ServingPhase.DEGRADED)
    assert status.candidate is not None
    assert (status.candidate.state, status.candidate.reason) == (RevisionState.FAILED, Reason.ADAPTER_INACTIVE)
    assert status.stable is not None
    assert status.stable.revision == second
    heard = load.heard()
    assert heard.faults == ()
    assert heard.missing(load.plan) == []
    assert len(heard.on("second")) == sum(CLIENTS.values())
    team("delete", "pod", POD, "--wait=false")


def test_what_crashes_goes_back_as_a_canary_and_after_it_took_over(
    team: Kubectl, artifacts: dict[str, TinyArtifact]
) -> None:
    """Clients hear it in its step, no request is lost but those of a server that crashes, and the metrics of both
    servers let it take over. Afterwards one of its pods crashes on and on: the traffic goes back by itself."""
    endpoint = Endpoint(team)
    first = _serving(endpoint, artifacts["first"])
    [server] = team.items("deployments", f"{meta.LABEL_REVISION}={first}")
    answers = {name: {FRESH: artifacts[name].answers[TOKENS[FRESH]]} for name in ("first", "second")}
    load = Load(team, Plan(NAME, 80, {FRESH: 2}, PROMPTS[0], TOKENS, answers, PAUSE_S))
    image = server["spec"]["template"]["spec"]["initContainers"][0]["image"]  # it has Python
    load.start(image)

    begin = time.time()
    endpoint.serve(artifacts["second"].uri, strategy=_canary(pause="1h"))
    load.wait_until_fresh_clients_hear("second", begin, ROLLOUT_S)
    status = endpoint.status()
    assert status is not None
    canary = status.candidate
    assert canary is not None
    assert canary.canary is not None
    assert (canary.state, canary.canary.summary) == (RevisionState.CANARY, "1/1 50%")
    [pod] = team.items("pods", _servers(canary.revision))
    crashed = time.time()
    _crash(team, pod["metadata"]["name"])
    status = endpoint.until(ServingPhase.DEGRADED)
    back = time.time()
    assert status.stable is not None
    assert status.stable.revision == first
    assert status.candidate is not None
    assert (status.candidate.state, status.candidate.reason) == (RevisionState.FAILED, Reason.CANDIDATE_FAILED)
    load.wait_until_all_hear("first", ROLLOUT_S)

    begin = time.time()
    analysis = {"minRequests": 10, "maxErrorIncrease": "0.1", "maxLatencyIncrease": "9"}
    endpoint.serve(artifacts["second"].uri, strategy=_canary(pause="10s", analysis=analysis), rerun="again")
    load.wait_until_fresh_clients_hear("second", begin, ROLLOUT_S)
    second = wait_for("the promotion", lambda: _promoted(endpoint, first), ROLLOUT_S)
    load.wait_until_all_hear("second", ROLLOUT_S)
    # The crashed server was asked, too. Its clients could not but notice.
    heard = load.heard()
    assert heard.faults_beside((crashed, back + NODES_S)) == []
    assert _wrong(heard) == []
    team("delete", "pod", POD)

    # Clients whose first connections are to the revision that is about to fall.
    endpoint.serve(artifacts["second"].uri, replicas=2, rerun="again")
    status = endpoint.until(ServingPhase.READY)
    assert status.previous is not None
    assert (status.previous.revision, status.previous.state) == (first, RevisionState.KEPT)
    clients = {FRESH: 2, KEPT: 2, STREAM: 2}
    load = Load(team, Plan(NAME, 80, clients, PROMPTS[0], TOKENS, _answers(artifacts), PAUSE_S))
    load.start(image)
    assert len(load.heard().on("second")) == sum(clients.values())
    pod, _ = (each for each in team.items("pods", _servers(second)) if not _is_ending(each))
    noticed = _crash_on_and_on(endpoint, pod["metadata"]["name"])
    load.wait_until_fresh_clients_hear("first", noticed[0], ROLLOUT_S)
    _tells_of_the_way_back(wait_for("the way back", lambda: _serves_again(endpoint), ROLLOUT_S), second, first)
    [event] = [each for each in team.items("events") if each["reason"] == Reason.ROLLED_BACK]
    assert event["type"] == "Warning"
    assert f"Revision {second} was rolled back: " in event["message"]
    wait_for("the end of its pods", lambda: not team.items("pods", _servers(second)), ROLLOUT_S)
    gone = time.time()
    load.wait_until_all_hear("first", ROLLOUT_S)
    endpoint.serve(artifacts["second"].uri, replicas=1, rerun="again")  # no reason for another try
    _tells_of_the_way_back(wait_for("the status", lambda: _serves_again(endpoint), ROLLOUT_S), second, first)
    assert team.items("deployments", f"{meta.LABEL_REVISION}={second}") == []
    heard = load.heard()
    # Only its first crash: then it is not ready, and nobody is sent to it. The other pod answers until it has drained.
    assert heard.faults_beside(noticed) == []
    assert _wrong(heard) == []
    assert heard.missing(load.plan) == []
    assert len(heard.on("first")) == sum(clients.values())
    assert [each for each in heard.switches if each.revision == "second" and each.at > gone] == []
    team("delete", "pod", POD, "--wait=false")


def test_changes_in_place_announce_their_gaps_in_which_alone_requests_fail(
    team: Kubectl, artifacts: dict[str, TinyArtifact]
) -> None:
    """A good artifact takes over once it is verified. After a refused one the revision before comes back by itself, and
    answers as it did."""
    endpoint = Endpoint(team)
    first = _serving(endpoint, artifacts["first"])
    [pod] = team.items("pods", _servers(first))
    load = Load(team, Plan(NAME, 80, CLIENTS, PROMPTS[0], TOKENS, _answers(artifacts), PAUSE_S))
    load.start(pod["spec"]["initContainers"][0]["image"])  # it has Python
    taken = _in_place(endpoint, artifacts["second"])
    status = endpoint.until(ServingPhase.READY)
    assert status.stable is not None
    second = status.stable.revision
    assert second != first
    load.wait_until_all_hear("second", ROLLOUT_S)
    came = [each.at for each in load.heard().switches if each.revision == "second"]
    assert min(came) >= _verified_at(team, second)

    refused = _in_place(endpoint, artifacts["boastful"])
    status = wait_for("the way back", lambda: _serves_again(endpoint), ROLLOUT_S)
    assert status.stable is not None
    assert status.stable.revision == second
    assert status.candidate is not None
    assert status.candidate.reason == Reason.ADAPTER_INACTIVE
    with team.port_forward(f"service/{NAME}", 80) as port:
        assert _text(f"http://127.0.0.1:{port}/v1/chat/completions") == artifacts["second"].answers[TOKENS[FRESH]]
    before = load.heard().answers
    wait_for("an answer to every client", lambda: _more(before, load.heard().answers, "second"), ROLLOUT_S)
    heard = load.heard()
    sent = [fault["sent"] for fault in heard.faults]
    assert [at for at in sent if not any(begin <= at <= end for begin, end in (taken, refused))] == []
    assert all(any(begin <= at <= end for at in sent) for begin, end in (taken, refused)), "nobody asked in a gap"
    assert _wrong(heard) == []
    team("delete", "pod", POD, "--wait=false")


def test_clients_with_keys_notice_neither_a_rollout_nor_other_keys(
    team: Kubectl, artifacts: dict[str, TinyArtifact]
) -> None:
    """Through the proxy of serving pods, no request is lost when a revision's pods end, streams and kept connections
    included. Keys come and go without a restart: the proxy follows its Secret."""
    endpoint = Endpoint(team)
    team.apply(_clients(one=FIRST_KEY))
    access = {"apiKeys": {"secretRef": {"name": "clients"}}}
    first = _serving(endpoint, artifacts["first"], access=access)
    [pod] = team.items("pods", _servers(first))
    load = Load(team, Plan(NAME, 80, CLIENTS, PROMPTS[0], TOKENS, _answers(artifacts), PAUSE_S, key=FIRST_KEY))
    load.start(pod["spec"]["initContainers"][0]["image"])  # it has Python
    begin = time.time()
    endpoint.serve(artifacts["second"].uri, access=access, keepLastGood="5s")
    load.wait_until_fresh_clients_hear("second", begin, ROLLOUT_S)
    load.wait_until_all_hear("second", ROLLOUT_S)
    second = wait_for("the promotion", lambda: _promoted(endpoint, first), ROLLOUT_S)
    wait_for("the end of the first revision's pods", lambda: not team.items("pods", _servers(first)), ROLLOUT_S)
    heard = load.heard()
    assert heard.faults == ()
    assert heard.missing(load.plan) == []
    team("delete", "pod", POD, "--wait=false")

    [pod] = team.items("pods", _servers(second))
    with team.port_forward(f"service/{NAME}", 80) as port:
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        assert [_status(url, key) for key in ("", SECOND_KEY)] == [401, 401]
        assert _status(url, FIRST_KEY) == 200
        assert _status(f"http://127.0.0.1:{port}/metrics", FIRST_KEY) == 404
        team.apply(_clients(two=SECOND_KEY))
        # The kubelet looks at a Secret every ten seconds here, and by default once a minute.
        wait_for("the other key", lambda: _status(url, SECOND_KEY) == 200, ROLLOUT_S)
        assert _status(url, FIRST_KEY) == 401
    [same] = team.items("pods", _servers(second))
    assert same["metadata"]["uid"] == pod["metadata"]["uid"]
    statuses = [*same["status"]["initContainerStatuses"], *same["status"]["containerStatuses"]]
    assert {each["name"]: each["restartCount"] for each in statuses if each["restartCount"]} == {}


def _servers(revision: str) -> str:
    """Selects the serving pods of a revision."""
    return f"{meta.LABEL_OWNER_NAME}={NAME},{meta.LABEL_REVISION}={revision},{meta.LABEL_ROLE}=server"


def _is_ending(pod: Object) -> bool:
    return "deletionTimestamp" in pod["metadata"]


def _serving(endpoint: Endpoint, artifact: TinyArtifact, **spec: Any) -> str:
    """The revision of an artifact, once it serves."""
    endpoint.serve(artifact.uri, **spec)
    stable = endpoint.until(ServingPhase.READY).stable
    assert stable is not None
    return stable.revision


def _answers(artifacts: dict[str, TinyArtifact]) -> dict[str, dict[str, str]]:
    """What each kind of client hears from both good artifacts."""
    return {
        name: {kind: artifacts[name].answers[limit] for kind, limit in TOKENS.items()} for name in ("first", "second")
    }


def _wrong(heard: ClientAnswers) -> list[Object]:
    """The answers of another model than the artifacts', which nobody may hear even where requests may be lost."""
    return [dict(fault) for fault in heard.faults if WRONG in fault["fault"]]


def _canary(**rest: Any) -> Object:
    """A strategy of one step: half of the pods. ``rest``: its pause and, if any, its analysis."""
    step = {"weight": 50, "pause": rest.pop("pause")}
    return {"type": "Canary", "canary": {"steps": [step]} | rest}


def _crash(team: Kubectl, pod: str) -> None:
    """Have a server's only process killed, as by the kernel: it may use no more processor time. Process 1 of a
    container ignores the signals of others in it."""
    program = "import resource; resource.prlimit(1, resource.RLIMIT_CPU, (1, 1))"
    team("exec", pod, "-c", "server", "--", "python", "-c", program)


def _crash_on_and_on(endpoint: Endpoint, pod: str) -> tuple[float, float]:
    """Have a pod's server crash, and twice more as soon as it has been started again. Returns the time in which clients
    may notice: from the first crash until the nodes know that the pod is not ready."""
    team, serves = endpoint.team, _stable(endpoint)
    begin = time.time()
    _crash(team, pod)
    wait_for(f"{pod} to be unready", lambda: not _is_ready(team.get("pod", pod)), 120, 0.3)
    end = time.time() + NODES_S
    for restarts in (1, 2):
        _wait_for_restart(team, pod, restarts)
        assert _stable(endpoint) == serves, "it may be the last crash"
        _crash(team, pod)
    return begin, end


def _wait_for_restart(team: Kubectl, pod: str, restarts: int) -> None:
    """Wait until a pod's server runs, after so many restarts."""

    def runs() -> bool:
        [server] = [each for each in team.get("pod", pod)["status"]["containerStatuses"] if each["name"] == "server"]
        return server["restartCount"] == restarts and "running" in server["state"]

    wait_for(f"restart {restarts} of {pod}", runs, ROLLOUT_S, 0.3)


def _is_ready(pod: Object) -> bool:
    return any((each["type"], each["status"]) == ("Ready", "True") for each in pod["status"].get("conditions", []))


def _tells_of_the_way_back(status: AdapterDeploymentStatus, fallen: str, again: str) -> None:
    """That a revision was rolled back after its crashes, and is not tried again."""
    assert status.stable is not None
    assert status.candidate is not None
    assert (status.stable.revision, status.last_good_revision) == (again, again)
    candidate = status.candidate
    assert (candidate.revision, candidate.state) == (fallen, RevisionState.FAILED)
    assert candidate.reason == Reason.CANDIDATE_FAILED
    states = {line.revision: line.state for line in status.revisions}
    assert states == {fallen: RevisionState.ROLLED_BACK, again: RevisionState.SERVING}
    told = {each.type: each for each in status.conditions if each.status == "True"}
    for kind in ("RolledBack", "Stalled"):
        assert told[kind].reason == Reason.CANDIDATE_FAILED
        assert told[kind].message.startswith(f"Revision {fallen} was rolled back: ")
        assert "after 3 restarts" in told[kind].message
        assert f"Revision {again}, which served before, serves again." in told[kind].message
        assert "set spec.rerun to a new value to try this one again" in told[kind].message


def _drain_twice(team: Kubectl, revision: str) -> None:
    """Ask for the eviction of both pods of a revision, one after the other, as drains of their nodes do. The second one
    is refused until the first one's replacement is ready."""
    wait_for("the disruption budget", lambda: _may_go(team) == 1, 120)
    gone, stays = (pod["metadata"]["name"] for pod in team.items("pods", _servers(revision)))
    _evict(team, gone)
    with pytest.raises(ClusterError, match="violate the pod's disruption budget"):
        _evict(team, stays)
    [new] = wait_for("its replacement", lambda: _others(team, revision, {gone, stays}), 120, 0.3)
    with pytest.raises(ClusterError, match="violate the pod's disruption budget"):
        _evict(team, stays)
    assert not _is_ready(team.get("pod", new)), "too late to tell"
    wait_for("the replacement to be ready", lambda: _is_ready(team.get("pod", new)), ROLLOUT_S)
    wait_for("the disruption budget", lambda: _may_go(team) == 1, 120)


def _evict(team: Kubectl, pod: str) -> None:
    """As `kubectl drain` does. Raises ClusterError where a disruption budget forbids it (status 429)."""
    metadata = {"name": pod, "namespace": team.namespace}
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata}
    path = f"/api/v1/namespaces/{team.namespace}/pods/{pod}/eviction"
    team("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))


def _may_go(team: Kubectl) -> int:
    """How many serving pods may be evicted now."""
    allowed: int = team.get("poddisruptionbudget", NAME).get("status", {}).get("disruptionsAllowed", 0)
    return allowed


def _others(team: Kubectl, revision: str, known: set[str]) -> list[str]:
    """The names of further pods of a revision."""
    return sorted({pod["metadata"]["name"] for pod in team.items("pods", _servers(revision))} - known)


def _stable(endpoint: Endpoint) -> str:
    """The serving revision."""
    revision: str = endpoint.team.get("adep", NAME)["status"]["stable"]["revision"]
    return revision


def _in_place(endpoint: Endpoint, artifact: TinyArtifact) -> tuple[float, float]:
    """Ask for an artifact in place. Returns when the gap was to begin, and when the status no longer spoke of it."""
    endpoint.serve(artifact.uri, strategy=IN_PLACE)
    assert wait_for("the announced gap", lambda: _gap(endpoint, "False"), ROLLOUT_S) == Reason.GAP_ANNOUNCED
    seen, status = time.time(), endpoint.status()
    assert status is not None
    assert status.candidate is not None
    begin = parse_timestamp(status.candidate.gap_starts_at or "").timestamp()
    assert seen < begin
    assert wait_for("the gap", lambda: _gap(endpoint, "True"), ROLLOUT_S) == Reason.GAP_IN_SERVICE
    wait_for("the end of the gap", lambda: not (_gap(endpoint, "True") or _gap(endpoint, "False")), ROLLOUT_S)
    return begin, time.time()


def _verified_at(team: Kubectl, revision: str) -> float:
    """When the verification of a revision succeeded."""
    jobs = team.items("jobs", f"{meta.LABEL_REVISION}={revision}")
    [verification] = [each for each in jobs if each["metadata"]["name"].startswith(f"{NAME}-verify-")]
    return parse_timestamp(verification["status"]["completionTime"]).timestamp()


def _more(before: Mapping[str, Mapping[str, int]], now: Mapping[str, Mapping[str, int]], revision: str) -> bool:
    """Whether every kind of client has had further answers of a revision."""
    return all(found[revision] > before[kind][revision] for kind, found in now.items())


def _gap(endpoint: Endpoint, status: str) -> str:
    """The reason of the condition ServiceGap with a status; empty while there is none."""
    found = endpoint.status()
    conditions = found.conditions if found is not None else []
    return next((each.reason for each in conditions if (each.type, each.status) == ("ServiceGap", status)), "")


def _serves_again(endpoint: Endpoint) -> AdapterDeploymentStatus | None:
    """The status, once a refused candidate has given its place back and the gap is over."""
    status = endpoint.status()
    if status is None or status.phase is not ServingPhase.DEGRADED:
        return None
    conditions = {each.type: each.status for each in status.conditions}
    return status if conditions["Ready"] == "True" and "ServiceGap" not in conditions else None


def _clients(**keys: str) -> Object:
    """The Secret with clients' keys, and no others."""
    data = {name: base64.b64encode(key.encode()).decode() for name, key in keys.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "clients"}, "data": data}


def _status(url: str, key: str) -> int:
    """The status of an answer to the first prompt."""
    body = {"messages": PROMPTS[0], "max_tokens": 1, "model": NAME}
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx2.post(url, json=body, headers=headers, timeout=60).status_code


def _text(url: str) -> str:
    """The answer to the first prompt, of as many tokens as those of clients on new connections."""
    body = {"messages": PROMPTS[0], "max_tokens": TOKENS[FRESH], "model": NAME, "temperature": 0}
    found: str = httpx2.post(url, json=body, timeout=60).json()["choices"][0]["message"]["content"]
    return found


def _promoted(endpoint: Endpoint, before: str) -> str:
    """The serving revision, once it is another one."""
    stable = endpoint.team.get("adep", NAME)["status"].get("stable", {})
    revision: str = stable.get("revision", before)
    return "" if revision == before else revision
