"""Several adapters on one base: what is asked of the server, what is shown, and what cannot share one."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from finetune_api.adapterdeployment import AdapterDeploymentSpec
from finetune_api.artifact_source import adapter_model, set_address
from finetune_api.endpoint_stages import WantedAdapters
from finetune_api.job_status import ArtifactStatus, ArtifactTokens
from finetune_api.reasons import Reason
from finetune_api.serving_status import AdapterDeploymentStatus, CheckOutcome, ServingPhase
from finetune_api.stages import StageInput
from finetune_api.storage import Storage
from finetune_jobs.runtime.runner import results_root
from finetune_operator.adapterdeployment.followed import FollowedJob, followed_job
from finetune_operator.adapterdeployment.observe import Source
from finetune_operator.framework.objects import CONFIG_MAPS, CONTROLLER_REVISIONS, DEPLOYMENTS, Object
from finetune_operator.settings import Engine, Runtime
from tests.support.played_pods import BETTER, GOOD, INACTIVE
from tests.support.promoted import passes
from tests.support.sentences import assert_says
from tests.support.serving import ServingCluster, condition
from tests.support.serving_specs import SETTINGS, uri
from tests.unit.test_adapterdeployment_walk import ANALYSED

pytestmark = pytest.mark.unit

BASE, OTHER = "1" * 64, "2" * 64
BOTH = {"de": BETTER, "fr": GOOD}
VLLM = SETTINGS.model_copy(
    update={"runtimes": {**SETTINGS.runtimes, "vllm": Runtime(engine=Engine.VLLM, image="images/vllm:0.32.0")}}
)
STORE = Storage(endpoint="http://s3.storage.svc:8333")


def published(digest: str, base: str = BASE, rank: int = 16, **artifact: Any) -> Source:
    """A FineTuneJob that has published an adapter."""
    fields = {"format": "Adapter", "storage": STORE, "architecture": "llama"} | artifact
    status = ArtifactStatus(digest=digest, uri=uri(digest), base_digest=base, rank=rank, **fields)
    return Source("Succeeded", status, STORE)


def serving(runtime: str = "vllm", **jobs: Source | str) -> ServingCluster:
    """A resource with an adapter for each: what a FineTuneJob of its name has published, or a pinned artifact."""
    adapters: list[dict[str, Any]] = []
    for name, source in jobs.items():
        if isinstance(source, str):
            storage = STORE.model_dump(by_alias=True, exclude_defaults=True)
            adapters.append({"name": name, "artifact": {"uri": uri(source), "storage": storage}})
        else:
            adapters.append({"name": name, "fineTuneJob": {"name": name}})
    spec = {"source": {"adapters": adapters}, "runtime": runtime, "keepLastGood": "0s"}
    sources = {name: source for name, source in jobs.items() if isinstance(source, Source)}
    return ServingCluster(spec=spec, settings=VLLM, sources=sources)


def only(cluster: ServingCluster, kind: Any) -> Object:
    [found] = cluster.objects[kind].values()
    return found


def digests(cluster: ServingCluster) -> dict[str, str]:
    """Of the adapters that serve, by their names."""
    stable = cluster.status.stable
    return {each.name: each.artifact_digest for each in stable.adapters} if stable else {}


def test_each_is_served_and_verified_under_its_own_name() -> None:
    cluster = serving(fr=published(GOOD, rank=8), de=published(BETTER, rank=16))
    passes(cluster, 2, seconds=0)
    pod = only(cluster, DEPLOYMENTS)["spec"]["template"]["spec"]
    args = pod["containers"][0]["args"]
    both = set_address(BOTH)
    assert {f"--model=/models/{both}/model", "--served-model-name=demo", "--max-lora-rank=16"} <= {*args}
    inputs = "".join(str(each["data"]) for each in cluster.objects[CONFIG_MAPS].values())
    assert_says(inputs, '"maxRank":16', f'"name":"fr","uri":"{uri(GOOD)}"', '"model":"demo"')
    [wanted] = [each["data"] for each in cluster.objects[CONFIG_MAPS].values() if "adapters.json" in each["data"]]
    told = WantedAdapters.model_validate_json(wanted["adapters.json"]).adapters
    assert {each.name: each.digest for each in told if each.required} == BOTH
    assert_says(inputs, '"timeoutSeconds":2200')  # twice that of one artifact
    cluster.settle()
    stable = cluster.status.stable
    assert cluster.status.phase is ServingPhase.READY
    assert stable is not None
    assert (stable.artifact_digest, stable.artifact_uri) == (both, "")
    shown = [(each.name, each.artifact_digest, each.rank, each.outcome) for each in stable.adapters]
    assert shown == [("de", BETTER, 16, CheckOutcome.PASSED), ("fr", GOOD, 8, CheckOutcome.PASSED)]


def test_another_artifact_is_another_revision_and_another_order_is_not() -> None:
    cluster = serving(fr=published(GOOD), de=published(BETTER))
    cluster.settle()
    both = cluster.traffic()
    cluster.spec = cluster.spec | {"source": {"adapters": cluster.spec["source"]["adapters"][::-1]}}
    cluster.settle()
    assert cluster.traffic() == both
    cluster.sources = {**cluster.sources, "fr": published(BETTER)}
    cluster.settle()
    assert cluster.traffic() != both
    assert digests(cluster) == {"de": BETTER, "fr": BETTER}
    cluster.spec = cluster.spec | {"rollbackTo": both}
    cluster.settle()
    assert cluster.traffic() == both
    assert digests(cluster) == BOTH


def test_one_that_fails_keeps_all_from_traffic_and_is_named() -> None:
    cluster = serving(fr=published(GOOD), de=published(BETTER))
    cluster.settle()
    good = cluster.traffic()
    cluster.sources = {**cluster.sources, "fr": published(INACTIVE)}
    cluster.settle()
    candidate = cluster.status.candidate
    assert (cluster.traffic(), cluster.revisions(DEPLOYMENTS)) == (good, {good})
    assert candidate is not None
    assert candidate.reason == Reason.ADAPTER_INACTIVE
    assert [(e.name, e.outcome) for e in candidate.adapters] == [
        ("de", CheckOutcome.PASSED),
        ("fr", CheckOutcome.FAILED),
    ]


@pytest.mark.parametrize(
    ("jobs", "runtime", "says"),
    [
        ({"fr": published(GOOD), "de": published(BETTER, OTHER)}, "vllm", "'de' … 'fr' … different base models"),
        ({"fr": published(GOOD, format="INT8")}, "vllm", "'fr' is a whole model (INT8)"),
        ({"fr": published(GOOD, rank=513)}, "vllm", "'fr' has rank 513 … at most 512"),
        ({"fr": published(GOOD)}, "tgi", "serves no adapters … tgi"),
        ({"fr": published(GOOD), "de": published(BETTER, storage=Storage())}, "vllm", "different access settings"),
    ],
)
def test_what_cannot_share_a_server_starts_nothing(jobs: dict[str, Source], runtime: str, says: str) -> None:
    cluster = serving(runtime, **jobs)
    cluster.settle()
    assert (cluster.status.phase, cluster.objects) == (ServingPhase.FAILED, {})
    assert condition(cluster.status, "Stalled") == ("True", Reason.ADAPTERS_UNSUITABLE)
    [stalled] = [each for each in cluster.status.conditions if each.type == "Stalled"]
    assert_says(stalled.message, *says.split(" … "), "spec.source.adapters")


def test_an_adapter_alone_is_not_taken_for_a_whole_model() -> None:
    spec = {"source": {"fineTuneJob": {"name": "fr"}}, "runtime": "vllm"}
    cluster = ServingCluster(spec=spec, settings=VLLM, source=published(GOOD))
    cluster.settle()
    assert cluster.objects == {}
    assert condition(cluster.status, "Stalled") == ("True", Reason.ADAPTERS_UNSUITABLE)


def test_of_pinned_ones_the_download_finds_out_what_they_are() -> None:
    """There is room for rank 64 by then, or for what the admin says."""
    cluster = serving(fr=GOOD, de=published(BETTER, rank=8))
    cluster.settle()
    assert cluster.status.phase is ServingPhase.READY
    args = only(cluster, DEPLOYMENTS)["spec"]["template"]["spec"]["containers"][0]["args"]
    assert "--max-lora-rank=64" in args


def test_what_serves_stays_while_one_of_the_sources_is_gone() -> None:
    cluster = serving(fr=published(GOOD), de=published(BETTER))
    cluster.settle()
    before = cluster.traffic()
    cluster.sources = {"de": published(BETTER)}
    cluster.settle()
    assert cluster.traffic() == before
    assert condition(cluster.status, "Stalled") == ("True", Reason.SOURCE_NOT_FOUND)
    [stalled] = [each for each in cluster.status.conditions if each.type == "Stalled"]
    assert_says(stalled.message, "FineTuneJob 'fr'", "keeps serving its adapters")


def test_the_longest_prompt_of_all_has_to_fit() -> None:
    short, long = (ArtifactTokens(golden_prompt=count, answer=8) for count in (100, 5000))
    cluster = serving(fr=published(GOOD, tokens=short), de=published(BETTER, tokens=long))
    cluster.settle()
    assert condition(cluster.status, "Stalled") == ("True", Reason.PROMPTS_TOO_LONG)


def test_a_record_that_was_stored_is_read_back() -> None:
    """Another operator renders nothing anew: the pods are those that were proved."""
    cluster = serving(fr=published(GOOD), de=published(BETTER))
    cluster.settle()
    before = cluster.traffic()
    assert [each["name"] for each in only(cluster, CONTROLLER_REVISIONS)["data"]["adapters"]] == ["de", "fr"]
    cluster.settings = VLLM.model_copy(update={"images": VLLM.images.model_copy(update={"data": "images/data:2"})})
    cluster.settle()
    assert cluster.traffic() == before


def test_a_resource_without_status_finds_its_adapters() -> None:
    cluster = serving(fr=published(GOOD), de=published(BETTER))
    cluster.settle()
    before, cluster.status = cluster.traffic(), AdapterDeploymentStatus()
    cluster.settle()
    stable = cluster.status.stable
    assert stable is not None
    assert (stable.revision, [each.name for each in stable.adapters]) == (before, ["de", "fr"])


def test_every_finetunejob_of_the_list_wakes_it() -> None:
    adapters = [
        {"name": "a", "fineTuneJob": {"name": "x"}},
        {"name": "b", "artifact": {"uri": uri(GOOD)}},
        {"name": "c", "fineTuneJob": {"name": "y"}},
    ]
    resource: Object = {"metadata": {"namespace": "team"}, "spec": {"source": {"adapters": adapters}}}
    found = [followed_job(resource, number) for number in range(4)]
    assert found == [FollowedJob("team", "x"), None, FollowedJob("team", "y"), None]


@pytest.mark.parametrize(
    "source",
    [
        {"adapters": [{"name": "a", "fineTuneJob": {"name": "x"}}] * 2},
        {"adapters": []},
        {"adapters": [{"name": "a"}]},
        {"adapters": [{"name": "a", "fineTuneJob": {"name": "x"}, "output": {"uri": "s3://m/t", "name": "x"}}]},
        {"adapters": [{"name": "A", "fineTuneJob": {"name": "x"}}]},
        {"adapters": [{"name": "a", "fineTuneJob": {"name": "x"}}], "fineTuneJob": {"name": "x"}},
        {"adapters": [{"name": f"a{n}", "fineTuneJob": {"name": "x"}} for n in range(9)]},
    ],
)
def test_what_names_no_adapters_is_refused(source: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AdapterDeploymentSpec.model_validate({"source": source, "runtime": "vllm"})


def test_clients_ask_for_deployment_and_adapter() -> None:
    assert adapter_model("support", "fr") == "support:fr"


def test_the_analysis_of_a_canary_is_told_of_an_artifact_that_there_is() -> None:
    """A stage finds its place by one artifact: several adapters have none together."""
    cluster = serving(fr=published(GOOD, rank=8), de=published(BETTER, rank=16))
    cluster.settle()
    cluster.spec |= {"strategy": ANALYSED}
    cluster.sources = {**cluster.sources, "fr": published(BETTER)}
    passes(cluster, 12)
    [given] = [each["data"]["input.json"] for name, each in cluster.objects[CONFIG_MAPS].items() if "-analyse-" in name]
    told = StageInput.model_validate_json(given)
    assert results_root(told) == uri(GOOD).removesuffix(f"/artifacts/{GOOD}")
