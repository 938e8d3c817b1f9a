"""The real vLLM in pods of the local cluster, behind an AdapterDeployment (`make test-vllm`)."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import httpx2
import pytest
import torch
from safetensors.torch import load_file

from finetune_api import meta
from finetune_api.dataset import TaskType
from finetune_api.reasons import Reason
from finetune_api.serving_status import AdapterDeploymentStatus, CheckOutcome, RevisionState, ServingPhase
from finetune_api.storage import Storage
from finetune_operator.adapterdeployment.pod_problems import is_ready
from hack.cluster.console import ClusterError
from hack.cluster.layout import cache_directory
from hack.models import ensure_smollm2
from hack.platform import local, object_store
from hack.platform.kubectl import Kubectl, Object, wait_for
from tests.support.artifacts import LIMIT, PROMPTS, answers_of, publish_adapter, publish_artifact
from tests.support.endpoints import NAME, Endpoint
from tests.support.planted import write_artifact
from tests.support.teams import team_namespace

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(3600)]

LOST = range(8, 12)
"""Layers that the base model lacks, so that the artifact can be told from it without a training."""
PROMOTION_S = 900
"""Fetch, load in the CPU build, and verify, on two cores that do other things too."""

KEY = "vllm-key-0123456789abcdef"
SEEDS = {"de": 0, "fr": 4}
"""Of adapters whose answers to the first prompt differ, from each other's and from the base model's."""
SERVERS = f"{meta.LABEL_OWNER_NAME}=shared,{meta.LABEL_ROLE}=server"
KILL_ENGINE = """
import os, pathlib, signal
for process in pathlib.Path("/proc").glob("[0-9]*"):
    if b"EngineCore" in (process / "cmdline").read_bytes():
        os.kill(int(process.name), signal.SIGKILL)
"""


@dataclass(frozen=True)
class Artifacts:
    """URIs of two published artifacts, and what the base model answers to the first prompt."""

    good: str
    boastful: str
    """It recorded the good one's answers, and has the base model's weights."""
    base_answer: str


@pytest.fixture(scope="module")
def team() -> Iterator[Kubectl]:
    """A namespace on the local cluster, whose operator has the runtime."""
    kubectl = local.kubectl()
    local.install_platform(kubectl)
    local.install_vllm_runtime(kubectl)
    with team_namespace(kubectl) as namespace:
        yield namespace


@contextmanager
def stored(team: Kubectl) -> Iterator[Storage]:
    """The cluster's object store, with its owner's keys in the environment."""
    with (
        pytest.MonkeyPatch.context() as environment,
        team.within(object_store.NAMESPACE).port_forward(f"service/{object_store.NAME}", object_store.PORT) as port,
    ):
        environment.setenv("AWS_ACCESS_KEY_ID", object_store.OWNER.access_key_id)
        environment.setenv("AWS_SECRET_ACCESS_KEY", object_store.OWNER.secret_access_key)
        yield Storage(endpoint=f"http://127.0.0.1:{port}")


@pytest.fixture(scope="module")
def artifacts(team: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Artifacts:
    folder, model = tmp_path_factory.mktemp("artifacts"), ensure_smollm2(cache_directory())
    weights = load_file(model / "model.safetensors")
    lost = tuple(f"model.layers.{layer}.mlp.down_proj." for layer in LOST)
    without = {name: torch.zeros_like(each) if name.startswith(lost) else each for name, each in weights.items()}
    tuned, base = write_artifact(folder / "tuned", model, weights), write_artifact(folder / "base", model, without)
    with stored(team) as storage:
        place = f"s3://artifacts/vllm-{folder.name}"
        good, boastful = (
            publish_artifact(
                storage, f"{place}/{name}", folder / name, base=base, tuned=tuned, exported=exported, task=TaskType.TEXT
            )
            for name, exported in (("good", tuned), ("boastful", base))
        )
    return Artifacts(good.scalars["artifactUri"], boastful.scalars["artifactUri"], answers_of(base)[0])


def test_it_is_verified_serves_and_gives_way_to_no_bad_artifact(team: Kubectl, artifacts: Artifacts) -> None:
    """Clients need a key."""
    endpoint = Endpoint(team, runtime="vllm-cpu")
    team.apply(clients())
    access = {"apiKeys": {"secretRef": {"name": "clients"}}}
    endpoint.serve(artifacts.good, access=access)
    status = endpoint.until(ServingPhase.READY, PROMOTION_S)
    assert status.stable is not None
    checks = {check.name: check.outcome for check in status.stable.verification}
    print(*(f"{check.name}: {check.outcome} ({check.seen})" for check in status.stable.verification), sep="\n")
    assert CheckOutcome.FAILED not in checks.values()
    weights = ("modelName", "promptTokens", "differsFromBase", "logProbabilities")
    assert {name: checks[name] for name in weights} == dict.fromkeys(weights, CheckOutcome.PASSED)
    answer = ask(team)
    assert answer != artifacts.base_answer
    assert ask(team, key="") == 401

    endpoint.serve(artifacts.boastful, access=access)
    after = endpoint.until(ServingPhase.DEGRADED, PROMOTION_S)
    assert after.candidate is not None
    assert (after.candidate.state, after.candidate.reason) == (RevisionState.FAILED, Reason.ADAPTER_INACTIVE)
    assert after.stable is not None
    assert after.stable.revision == status.stable.revision
    assert ask(team) == answer


def test_adapters_come_and_go_while_a_pod_serves_and_are_there_after_a_crash(
    team: Kubectl, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """One more is loaded, proves itself and is offered, and one is taken away, without a restart. When the engine has
    died, the server that starts again offers what it did, and its pod proves itself before clients reach it. Nobody
    needs a key, and nobody can load anything."""
    folder, model = tmp_path_factory.mktemp("adapters"), ensure_smollm2(cache_directory())
    with stored(team) as storage:
        place = f"s3://artifacts/vllm-{folder.name}"
        published = {
            name: publish_adapter(storage, place, folder / name, base=model, seed=seed, scale=2)
            for name, seed in SEEDS.items()
        }
    uris = {name: result.scalars["artifactUri"] for name, result in published.items()}
    endpoint = Endpoint(team, "vllm-cpu", "shared")

    def offer(*names: str) -> AdapterDeploymentStatus:
        artifacts = {name: endpoint.artifact(uris[name]) for name in names}
        endpoint.serve_from(
            {"adapters": [{"name": name} | artifact for name, artifact in artifacts.items()]},
            # Adapters of random values are sure of few of their answers; their probabilities prove them.
            verification={"samples": 2, "minAgreementPercent": 1},
        )
        status = endpoint.until(ServingPhase.READY, PROMOTION_S)
        assert status.stable is not None
        assert [each.name for each in status.stable.adapters] == list(names)
        return status

    first = offer("de").stable
    assert first is not None
    [pod] = team.items("pods", SERVERS)
    said = ask(team, "shared", "shared:de")
    assert ask(team, "shared", "shared:fr") == 404
    assert post(team, "shared", "/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "/models"}) == 404
    both = offer("de", "fr").stable
    assert both is not None
    other = ask(team, "shared", "shared:fr")
    assert isinstance(other, str)
    assert ask(team, "shared", "shared:de") == said
    assert len({said, other, ask(team, "shared", "shared")}) == 3
    [same] = team.items("pods", SERVERS)
    assert (same["metadata"]["uid"], server(same)["restartCount"]) == (pod["metadata"]["uid"], 0)

    with suppress(ClusterError):  # the container may end before the program in it that kills the engine
        team("exec", pod["metadata"]["name"], "-c", "server", "--", "python3", "-c", KILL_ENGINE)
    wait_for("the end of the server", lambda: server(team.items("pods", SERVERS)[0])["restartCount"] == 1, PROMOTION_S)
    wait_for("the pod to be ready again", lambda: is_ready(team.items("pods", SERVERS)[0]), PROMOTION_S)
    assert (ask(team, "shared", "shared:de"), ask(team, "shared", "shared:fr")) == (said, other)
    offer("fr")
    assert ask(team, "shared", "shared:de") == 404, "as soon as the status says so"
    assert ask(team, "shared", "shared:fr") == other
    [same] = team.items("pods", SERVERS)
    assert (same["metadata"]["uid"], server(same)["restartCount"]) == (pod["metadata"]["uid"], 1)
    assert server(same)["lastState"]["terminated"]["exitCode"] == 0, "as that of a server that was asked to end"


def server(pod: Object) -> Object:
    """The status of the pod's server."""
    [found] = [each for each in pod["status"]["containerStatuses"] if each["name"] == "server"]
    return dict(found)


def clients() -> Object:
    """The Secret with the key of clients."""
    key = base64.b64encode(KEY.encode()).decode()
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "clients"}, "data": {"one": key}}


def ask(team: Kubectl, endpoint: str = NAME, model: str = NAME, key: str = KEY) -> str | int:
    """The endpoint's answer to the first prompt from the model that it offers under a name; the status of a refusal."""
    body = {"model": model, "messages": PROMPTS[0], "max_tokens": LIMIT, "temperature": 0}
    return post(team, endpoint, "/v1/chat/completions", body, key)


def post(team: Kubectl, endpoint: str, path: str, body: Object, key: str = "") -> str | int:
    """What is said in an answer; the status of a refusal."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with team.port_forward(f"service/{endpoint}", 80) as port:
        answer = httpx2.post(f"http://127.0.0.1:{port}{path}", json=body, headers=headers, timeout=120)
    if answer.status_code != 200:
        return answer.status_code
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text
