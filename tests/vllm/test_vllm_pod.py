"""The real vLLM in pods of the local cluster, behind an AdapterDeployment (`make test-vllm`)."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file

from finetune_api.reasons import Reason
from finetune_api.serving_status import CheckOutcome, RevisionState, ServingPhase
from finetune_api.storage import Storage
from hack.cluster.layout import cache_directory
from hack.models import ensure_smollm2
from hack.platform import local, object_store
from hack.platform.kubectl import Kubectl
from tests.support.artifacts import LIMIT, PROMPTS, answers_of, publish_artifact
from tests.support.endpoints import NAME, Endpoint
from tests.support.planted import write_artifact
from tests.support.teams import team_namespace

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(3600)]

LOST = range(8, 12)
"""Layers that the base model lacks, so that the artifact can be told from it without a training."""
PROMOTION_S = 900
"""Fetch, load in the CPU build, and verify, on two cores that do other things too."""


@dataclass(frozen=True)
class Artifacts:
    """URIs of two published artifacts, and what the good one answers to the first prompt."""

    good: str
    boastful: str
    """It recorded the good one's answers, and has the base model's weights."""
    answer: str


@pytest.fixture(scope="module")
def team() -> Iterator[Kubectl]:
    """A namespace on the local cluster, whose operator has the runtime."""
    kubectl = local.kubectl()
    local.install_platform(kubectl)
    local.install_vllm_runtime(kubectl)
    with team_namespace(kubectl) as namespace:
        yield namespace


@pytest.fixture(scope="module")
def artifacts(team: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Artifacts:
    folder, model = tmp_path_factory.mktemp("artifacts"), ensure_smollm2(cache_directory())
    weights = load_file(model / "model.safetensors")
    lost = tuple(f"model.layers.{layer}.mlp.down_proj." for layer in LOST)
    without = {name: torch.zeros_like(each) if name.startswith(lost) else each for name, each in weights.items()}
    tuned, base = write_artifact(folder / "tuned", model, weights), write_artifact(folder / "base", model, without)
    with (
        pytest.MonkeyPatch.context() as environment,
        team.within(object_store.NAMESPACE).port_forward(f"service/{object_store.NAME}", object_store.PORT) as port,
    ):
        environment.setenv("AWS_ACCESS_KEY_ID", object_store.OWNER.access_key_id)
        environment.setenv("AWS_SECRET_ACCESS_KEY", object_store.OWNER.secret_access_key)
        storage = Storage(endpoint=f"http://127.0.0.1:{port}")
        place = f"s3://artifacts/vllm-{folder.name}"
        good, boastful = (
            publish_artifact(storage, f"{place}/{name}", folder / name, base=base, tuned=tuned, exported=exported)
            for name, exported in (("good", tuned), ("boastful", base))
        )
    return Artifacts(good.scalars["artifactUri"], boastful.scalars["artifactUri"], answers_of(tuned)[0])


def test_it_is_verified_serves_and_gives_way_to_no_bad_artifact(team: Kubectl, artifacts: Artifacts) -> None:
    endpoint = Endpoint(team, runtime="vllm-cpu")
    endpoint.serve(artifacts.good)
    status = endpoint.until(ServingPhase.READY, PROMOTION_S)
    assert status.stable is not None
    checks = {check.name: check.outcome for check in status.stable.verification}
    print(*(f"{check.name}: {check.outcome} ({check.seen})" for check in status.stable.verification), sep="\n")
    assert CheckOutcome.FAILED not in checks.values()
    weights = ("modelName", "promptTokens", "differsFromBase", "logProbabilities")
    assert {name: checks[name] for name in weights} == dict.fromkeys(weights, CheckOutcome.PASSED)
    assert ask(team) == artifacts.answer

    endpoint.serve(artifacts.boastful)
    after = endpoint.until(ServingPhase.DEGRADED, PROMOTION_S)
    assert after.candidate is not None
    assert (after.candidate.state, after.candidate.reason) == (RevisionState.FAILED, Reason.ADAPTER_INACTIVE)
    assert after.stable is not None
    assert after.stable.revision == status.stable.revision
    assert ask(team) == artifacts.answer


def ask(team: Kubectl) -> str:
    """The endpoint's answer to the first prompt, by the name under which it offers the model."""
    body = {"model": NAME, "messages": PROMPTS[0], "max_tokens": LIMIT, "temperature": 0}
    with team.port_forward(f"service/{NAME}", 80) as port:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as response:
            answer: str = json.load(response)["choices"][0]["message"]["content"]
    return answer
