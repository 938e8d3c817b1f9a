"""Serving on a real node: real downloads, servers (the stand-in for TGI), verifications and traffic."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass

import httpx2
import pytest

from finetune_api import meta
from finetune_api.reasons import Reason
from finetune_api.serving_status import RevisionState, ServingPhase
from finetune_api.storage import Storage
from hack.platform import object_store
from hack.platform.kubectl import Kubectl, Object, wait_for
from tests.support.artifacts import LIMIT, PROMPTS, answers_of, publish_artifact
from tests.support.endpoints import NAME, Endpoint
from tests.support.restricted import pod
from tests.support.tiny_model import build_tiny_llama

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

CLIENT = """
import json, sys, time, urllib.error, urllib.request
url, prompt, seconds, limit = sys.argv[1], json.loads(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
for _ in range(300):
    try:
        urllib.request.urlopen(url + "/health", timeout=5).close()
        break
    except urllib.error.URLError as error:
        if not isinstance(error.reason, ConnectionRefusedError):
            raise
        time.sleep(0.1)
print("let in", flush=True)
body = json.dumps({"messages": prompt, "max_tokens": limit, "temperature": 0, "model": "tgi"}).encode()
answers, errors, begin = {}, [], time.monotonic()
while True:
    request = urllib.request.Request(url + "/v1/chat/completions", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            text = json.load(response)["choices"][0]["message"]["content"]
            answers[text] = answers.get(text, 0) + 1
    except OSError as error:
        errors.append(f"after {time.monotonic() - begin:.1f} s: {error}")
    if time.monotonic() - begin > seconds:
        break
print(json.dumps({"answers": answers, "errors": errors}))
"""
"""Asks one prompt again and again, each time on a new connection, and counts answers and errors. It begins once the
endpoint lets it in: network policies name pods by their address, and a node learns a new pod's up to a second late."""


@dataclass(frozen=True)
class Artifacts:
    """URIs of published artifacts, and what their models answer to the first prompt."""

    first: str
    second: str
    boastful: str
    """Its weights are those of the base model."""
    answers: dict[str, str]


@pytest.fixture(scope="module")
def artifacts(cluster: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Artifacts:
    """Three artifacts of tiny models in the cluster's store."""
    folder = tmp_path_factory.mktemp("artifacts")
    base, one, two = (build_tiny_llama(folder / f"model-{seed}", seed=seed) for seed in (1, 2, 3))
    key = object_store.OWNER
    with (
        pytest.MonkeyPatch.context() as environment,
        cluster.within(object_store.NAMESPACE).port_forward(f"service/{object_store.NAME}", object_store.PORT) as port,
    ):
        environment.setenv("AWS_ACCESS_KEY_ID", key.access_key_id)
        environment.setenv("AWS_SECRET_ACCESS_KEY", key.secret_access_key)
        storage = Storage(endpoint=f"http://127.0.0.1:{port}")
        models = {"first": (one, None), "second": (two, None), "boastful": (one, base)}
        published = {
            name: publish_artifact(
                storage,
                f"s3://artifacts/serving-{folder.name}/{name}",
                folder / name,
                base=base,
                tuned=tuned,
                exported=exported,
            ).scalars["artifactUri"]
            for name, (tuned, exported) in models.items()
        }
    return Artifacts(**published, answers={"first": answers_of(one)[0], "second": answers_of(two)[0]})


class AskedEndpoint(Endpoint):
    """One whose clients are pods."""

    def client(self, name: str, seconds: float) -> Object:
        """A pod that asks the endpoint for so many seconds."""
        prompt, url = json.dumps(PROMPTS[0]), f"http://{NAME}"
        [server, *_] = self.team.items("deployments", f"{meta.LABEL_OWNER_NAME}={NAME}")
        image = server["spec"]["template"]["spec"]["initContainers"][0]["image"]  # it has Python
        return pod(name, image, "python", "-c", CLIENT, url, prompt, str(seconds), str(LIMIT))

    def heard(self, name: str) -> str:
        """What a client has printed so far; nothing before it runs."""
        running = self.team.get("pod", name)["status"]["phase"] != "Pending"
        return self.team("logs", name) if running else ""

    def asked(self, name: str) -> tuple[dict[str, int], list[str]]:
        """What a client has heard: answers with their number, and errors."""
        wait_for(f"client {name}", lambda: self.team.get("pod", name)["status"]["phase"] == "Succeeded", 400)
        heard = json.loads(self.heard(name).splitlines()[-1])
        return heard["answers"], heard["errors"]


@pytest.fixture
def endpoint(team: Kubectl) -> AskedEndpoint:
    """Nothing is served yet."""
    return AskedEndpoint(team)


def test_serving_from_the_first_revision_to_the_next_and_none_by_a_bad_one(
    endpoint: AskedEndpoint, artifacts: Artifacts
) -> None:
    """The served answers are the artifact's; an update loses no request; a bad artifact changes nothing."""
    endpoint.serve(artifacts.first)
    first = endpoint.until(ServingPhase.READY).stable
    assert first is not None
    assert (first.accuracy, first.expected_accuracy) == ("1.0000", "1.0000")
    endpoint.team.apply(endpoint.client("during-update", 90))
    wait_for("the client", lambda: "let in" in endpoint.heard("during-update"), 180)
    endpoint.serve(artifacts.second)
    second = wait_for("the promotion", lambda: _promoted(endpoint, first.revision), 400)
    answers, errors = endpoint.asked("during-update")
    assert errors == []
    assert set(answers) <= {artifacts.answers["first"], artifacts.answers["second"]}
    assert artifacts.answers["first"] in answers

    endpoint.serve(artifacts.boastful)
    status = endpoint.until(ServingPhase.DEGRADED)
    assert status.candidate is not None
    assert (status.candidate.state, status.candidate.reason) == (RevisionState.FAILED, Reason.ADAPTER_INACTIVE)
    assert status.stable is not None
    assert status.stable.revision == second
    endpoint.team.apply(endpoint.client("after-failure", 0))
    assert endpoint.asked("after-failure") == ({artifacts.answers["second"]: 1}, [])

    endpoint.team.apply(_clients(one="first-key-0123456789abcdef"))
    endpoint.serve(artifacts.second, access={"apiKeys": {"secretRef": {"name": "clients"}}})
    keyed = wait_for("the promotion", lambda: _promoted(endpoint, second), 400)
    pods = f"{meta.LABEL_OWNER_NAME}={NAME},{meta.LABEL_REVISION}={keyed},{meta.LABEL_ROLE}=server"
    [pod] = endpoint.team.items("pods", pods)
    with endpoint.team.port_forward(f"service/{NAME}", 80) as port:
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        assert [_status(url, key) for key in ("", "second-key-0123456789abcdef")] == [401, 401]
        assert _status(url, "first-key-0123456789abcdef") == 200
        assert _status(f"http://127.0.0.1:{port}/metrics", "first-key-0123456789abcdef") == 404
        endpoint.team.apply(_clients(two="second-key-0123456789abcdef"))
        # The kubelet looks at a Secret about once a minute.
        wait_for("the other key", lambda: _status(url, "second-key-0123456789abcdef") == 200, 240)
        assert _status(url, "first-key-0123456789abcdef") == 401
    [same] = endpoint.team.items("pods", pods)
    assert same["metadata"]["uid"] == pod["metadata"]["uid"]
    statuses = [*same["status"]["initContainerStatuses"], *same["status"]["containerStatuses"]]
    assert {each["name"]: each["restartCount"] for each in statuses if each["restartCount"]} == {}


def _clients(**keys: str) -> Object:
    """The Secret with clients' keys, and no others."""
    data = {name: base64.b64encode(key.encode()).decode() for name, key in keys.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "clients"}, "data": data}


def _status(url: str, key: str) -> int:
    """The status of an answer to the first prompt."""
    body = {"messages": PROMPTS[0], "max_tokens": 1, "model": NAME}
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx2.post(url, json=body, headers=headers, timeout=60).status_code


def _promoted(endpoint: AskedEndpoint, before: str) -> str:
    """The serving revision, once it is another one."""
    stable = endpoint.team.get("adep", NAME)["status"].get("stable", {})
    revision: str = stable.get("revision", before)
    return "" if revision == before else revision
