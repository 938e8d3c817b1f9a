"""Serving on a real node: real downloads, servers (the stand-in for TGI), verifications and traffic."""

from __future__ import annotations

import base64
import time
from typing import Any

import httpx2
import pytest

from finetune_api import meta
from finetune_api.reasons import Reason
from finetune_api.serving_status import AdapterDeploymentStatus, RevisionState, ServingPhase
from hack.benchmarks.load import POD, Load
from hack.benchmarks.load_client import FRESH, KEPT, STREAM, Plan
from hack.benchmarks.tiny_artifacts import TinyArtifact, publish_tiny
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
FIRST_KEY, SECOND_KEY = "first-key-0123456789abcdef", "second-key-0123456789abcdef"


@pytest.fixture(scope="module")
def artifacts(cluster: Kubectl) -> dict[str, TinyArtifact]:
    """Three artifacts in the cluster's store; the weights of the boastful one are those of the base model."""
    return publish_tiny(cluster, ("first", "second", "boastful"), sorted(set(TOKENS.values())), boastful="boastful")


def test_clients_hear_one_revision_and_then_the_next_and_never_a_bad_one(
    team: Kubectl, artifacts: dict[str, TinyArtifact]
) -> None:
    """With two replicas and every kind of client: no request is lost or wrong in a rollout, a rollback to kept pods, a
    rollout to them, a refused artifact, and when a revision's last pods end."""
    endpoint = Endpoint(team)
    replicas: dict[str, Any] = {"replicas": 2}
    endpoint.serve(artifacts["first"].uri, **replicas)
    first = endpoint.until(ServingPhase.READY).stable
    assert first is not None
    assert (first.accuracy, first.expected_accuracy) == ("1.0000", "1.0000")
    [server] = team.items("deployments", f"{meta.LABEL_REVISION}={first.revision}")
    load = Load(team, Plan(NAME, 80, CLIENTS, PROMPTS[0], TOKENS, _answers(artifacts), PAUSE_S))
    load.start(server["spec"]["template"]["spec"]["initContainers"][0]["image"])  # it has Python

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


def test_a_canary_that_crashes_goes_back_and_takes_over_when_it_is_tried_again(
    team: Kubectl, artifacts: dict[str, TinyArtifact]
) -> None:
    """Clients hear it in its step, no request is lost, and the metrics of both servers let it take over."""
    endpoint = Endpoint(team)
    first = _serving(endpoint, artifacts["first"])
    [server] = team.items("deployments", f"{meta.LABEL_REVISION}={first}")
    answers = {name: {FRESH: artifacts[name].answers[TOKENS[FRESH]]} for name in ("first", "second")}
    load = Load(team, Plan(NAME, 80, {FRESH: 2}, PROMPTS[0], TOKENS, answers, PAUSE_S))
    load.start(server["spec"]["template"]["spec"]["initContainers"][0]["image"])  # it has Python

    begin = time.time()
    endpoint.serve(artifacts["second"].uri, strategy=_canary(pause="1h"))
    load.wait_until_fresh_clients_hear("second", begin, ROLLOUT_S)
    status = endpoint.status()
    assert status is not None
    canary = status.candidate
    assert canary is not None
    assert canary.canary is not None
    assert (canary.state, canary.canary.summary) == (RevisionState.CANARY, "1/1 50%")
    _crash(team, canary.revision)
    status = endpoint.until(ServingPhase.DEGRADED)
    assert status.stable is not None
    assert status.stable.revision == first
    assert status.candidate is not None
    assert (status.candidate.state, status.candidate.reason) == (RevisionState.FAILED, Reason.CANDIDATE_FAILED)
    load.wait_until_all_hear("first", ROLLOUT_S)

    begin = time.time()
    analysis = {"minRequests": 10, "maxErrorIncrease": "0.1", "maxLatencyIncrease": "9"}
    endpoint.serve(artifacts["second"].uri, strategy=_canary(pause="10s", analysis=analysis), rerun="again")
    load.wait_until_fresh_clients_hear("second", begin, ROLLOUT_S)
    wait_for("the promotion", lambda: _promoted(endpoint, first), ROLLOUT_S)
    load.wait_until_all_hear("second", ROLLOUT_S)
    # The crashed server was asked, too. Its clients could not but notice.
    assert [each for each in load.heard().faults if each["at"] > begin] == []
    team("delete", "pod", POD, "--wait=false")


def test_a_change_in_place_announces_its_gap_and_a_refused_artifact_ends_it(
    team: Kubectl, artifacts: dict[str, TinyArtifact]
) -> None:
    """The revision before comes back by itself, and answers as it did."""
    endpoint = Endpoint(team)
    first = _serving(endpoint, artifacts["first"])
    endpoint.serve(artifacts["boastful"].uri, strategy={"type": "InPlace", "notice": "10s"})
    assert wait_for("the announced gap", lambda: _gap(endpoint, "False"), ROLLOUT_S) == Reason.GAP_ANNOUNCED
    assert wait_for("the gap", lambda: _gap(endpoint, "True"), ROLLOUT_S) == Reason.GAP_IN_SERVICE
    status = wait_for("the way back", lambda: _serves_again(endpoint), ROLLOUT_S)
    assert status.stable is not None
    assert status.stable.revision == first
    assert status.candidate is not None
    assert status.candidate.reason == Reason.ADAPTER_INACTIVE
    with team.port_forward(f"service/{NAME}", 80) as port:
        assert _text(f"http://127.0.0.1:{port}/v1/chat/completions") == artifacts["first"].answers[TOKENS[FRESH]]


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


def _canary(**rest: Any) -> Object:
    """A strategy of one step: half of the pods. ``rest``: its pause and, if any, its analysis."""
    step = {"weight": 50, "pause": rest.pop("pause")}
    return {"type": "Canary", "canary": {"steps": [step]} | rest}


def _crash(team: Kubectl, revision: str) -> None:
    """Have a server's only process killed, as by the kernel: it may use no more processor time. Process 1 of a
    container ignores the signals of others in it."""
    [pod] = team.items("pods", f"{meta.LABEL_REVISION}={revision},{meta.LABEL_ROLE}=server")
    program = "import resource; resource.prlimit(1, resource.RLIMIT_CPU, (1, 1))"
    team("exec", pod["metadata"]["name"], "-c", "server", "--", "python", "-c", program)


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
