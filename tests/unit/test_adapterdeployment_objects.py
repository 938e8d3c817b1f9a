"""The objects of an AdapterDeployment: what a serving pod may do, who reaches it, and how long names get."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from finetune_api import meta
from finetune_api.adapterdeployment import AdapterDeploymentSpec
from finetune_api.endpoint_stages import SelfCheckLimits
from finetune_api.references import ConfigMapKeyRef, SecretRef
from finetune_api.stages import StageInput
from finetune_api.storage import CaBundle, Storage
from finetune_api.strategy import QualityWatch
from finetune_jobs.self_check import parse as parse_self_check
from finetune_operator.adapterdeployment.observe import Source
from finetune_operator.adapterdeployment.revision import spec_hash
from finetune_operator.adapterdeployment.side_jobs import stage_objects
from finetune_operator.adapterdeployment.target import Target, find_target
from finetune_operator.adapterdeployment.verification import verify_request
from finetune_operator.framework.actions import Apply, Create, Delete
from finetune_operator.framework.objects import CONFIG_MAPS, DEPLOYMENTS, JOBS, SERVICES
from finetune_operator.framework.ownership import Owner
from finetune_operator.kinds import ADAPTERDEPLOYMENTS
from finetune_operator.resources.deployment import Adapter, Serving, deployment, fetch_request, pod_template
from finetune_operator.resources.drift import ensure, ensure_exists, holds
from finetune_operator.resources.network_policy import candidate_policy, serving_policy
from finetune_operator.resources.pod import repository
from finetune_operator.resources.self_check import has_self_check, self_check_config_map
from finetune_operator.resources.service import candidate_service, public_service, service_url
from finetune_operator.resources.stage_job import input_config_map, stage_job
from finetune_operator.resources.stage_request import StageRequest
from finetune_operator.settings import PodShape, Proxy, ServingAccess
from tests.support.copies import copied
from tests.support.played_pods import BETTER, GOOD, INACTIVE
from tests.support.serving import ServingCluster
from tests.support.serving_specs import SETTINGS, following, pinned, published, uri

pytestmark = pytest.mark.unit

OWNER = Owner(ADAPTERDEPLOYMENTS, "team", "a" * meta.MAX_NAME, "uid")
REVISION = "0123abcd"
PUBLIC_KEY = "-----BEGIN PUBLIC KEY-----\nabcd\n-----END PUBLIC KEY-----\n"
CHANNEL = {"output": {"uri": "s3://models/team", "name": "intents"}}
STORAGE = Storage(endpoint="http://s3.svc:8333", secret_ref=SecretRef(name="s3-read"))


def serving(**runtime: Any) -> Serving:
    known = SETTINGS.runtimes["tgi"].model_copy(update=runtime)
    return Serving(uri(GOOD), GOOD, STORAGE, "tgi", known)


def pod(**runtime: Any) -> dict[str, Any]:
    return pod_template(OWNER, serving(**runtime), SETTINGS, REVISION)


def containers(**runtime: Any) -> Iterator[dict[str, Any]]:
    spec = pod(**runtime)["spec"]
    yield from (*spec["initContainers"], *spec["containers"])


def test_every_container_is_restricted() -> None:
    spec = pod()["spec"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not spec["automountServiceAccountToken"]
    assert not spec["enableServiceLinks"]
    for container in containers():
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_pods_of_a_revision_keep_apart_if_there_is_room() -> None:
    spread = pod()["spec"]["topologySpreadConstraints"]
    assert [each["topologyKey"] for each in spread] == ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]
    for each in spread:
        assert each["whenUnsatisfiable"] == "ScheduleAnyway", "a pod starts wherever there is a GPU"
        assert each["labelSelector"]["matchLabels"] == pod()["metadata"]["labels"]


def test_the_server_reads_what_fetch_wrote_and_cannot_change_it() -> None:
    fetch, check, server = ({m["mountPath"]: m for m in each["volumeMounts"]} for each in containers())
    assert not fetch["/models"].get("readOnly")
    assert server["/models"]["readOnly"]
    assert check["/models"]["readOnly"]
    assert fetch["/models"]["name"] == server["/models"]["name"] == check["/models"]["name"]
    env = {variable["name"]: variable.get("value") for variable in list(containers())[2]["env"]}
    assert env["MODEL_ID"] == f"/models/{GOOD}/model"


def test_only_fetch_has_the_keys_and_only_as_references() -> None:
    fetch, *others = containers()
    keys = [variable for variable in fetch["env"] if "secretKeyRef" in variable.get("valueFrom", {})]
    references = [variable["valueFrom"]["secretKeyRef"] for variable in keys]
    assert [each["key"] for each in references] == [
        *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    ]
    assert {each["name"] for each in references} == {"s3-read"}
    theirs = [variable for each in others for variable in each["env"]]
    assert not [variable for variable in theirs if "secretKeyRef" in variable.get("valueFrom", {})]
    assert not [each for each in (fetch, *others) if "envFrom" in each]


def test_only_fetch_trusts_the_stores_private_authority() -> None:
    storage = STORAGE.model_copy(
        update={"ca_bundle": CaBundle(config_map_key_ref=ConfigMapKeyRef(name="corp", key="ca.crt"))}
    )
    asked = replace(serving(), storage=storage)
    spec = pod_template(OWNER, asked, SETTINGS, REVISION)["spec"]
    [volume] = [each for each in spec["volumes"] if each["name"] == "store-ca"]
    assert [each["configMap"]["name"] for each in volume["projected"]["sources"]] == ["corp"]
    every = [*spec["initContainers"], *spec["containers"]]
    fetch, others = every[0], every[1:]
    assert "store-ca" in {mount["name"] for mount in fetch["volumeMounts"]}
    assert "store-ca" not in {mount["name"] for each in others for mount in each["volumeMounts"]}


def test_only_fetch_goes_through_the_proxy() -> None:
    proxy = Proxy(https_proxy="http://proxy.corp:3128", no_proxy=".svc")
    settings = SETTINGS.model_copy(update={"proxy": proxy})
    spec = pod_template(OWNER, serving(), settings, REVISION)["spec"]
    every = [*spec["initContainers"], *spec["containers"]]
    fetch, others = every[0], every[1:]
    found = {variable["name"]: variable.get("value") for variable in fetch["env"]}
    assert found.items() >= {"HTTPS_PROXY": "http://proxy.corp:3128", "NO_PROXY": ".svc"}.items()
    assert "HTTP_PROXY" not in found
    assert "PROXY" not in str([each["env"] for each in others])


def test_fetch_runs_its_stage_on_an_immutable_input() -> None:
    request = fetch_request(OWNER, serving(), SETTINGS, REVISION)
    config_map = input_config_map(request)
    assert config_map["immutable"]
    [volume] = [each for each in pod()["spec"]["volumes"] if each["name"] == "input"]
    assert volume["configMap"]["name"] == config_map["metadata"]["name"]
    stage_input = StageInput.model_validate(json.loads(config_map["data"]["input.json"]))
    assert (stage_input.artifact_uri, stage_input.artifact_digest) == (uri(GOOD), GOOD)
    assert next(containers())["command"][:3] == ["python", "-m", "finetune_jobs.fetch"]


def test_no_pod_is_ready_before_it_has_proved_itself() -> None:
    """The self-check reads what fetch downloaded, asks the server beside it, and outlives it without holding it up."""
    spec = pod()["spec"]
    assert [each["name"] for each in spec["initContainers"]] == ["fetch", "self-check"]
    check = spec["initContainers"][1]
    assert (check["restartPolicy"], check["image"]) == ("Always", SETTINGS.images.data)
    assert check["readinessProbe"]["httpGet"] == {"path": "/ready", "port": check["ports"][0]["name"]}
    assert check["command"][:3] == ["python", "-m", "finetune_jobs.self_check"]
    given = parse_self_check(check["command"][3:])
    assert (given.digest, given.engine) == (GOOD, "tgi")
    assert str(given.artifact) == f"/models/{GOOD}/artifact"
    assert (given.endpoint, given.port) == ("http://127.0.0.1:8080", check["ports"][0]["containerPort"])
    assert given.result == "/dev/termination-log"
    [volume] = [each for each in spec["volumes"] if each["name"] == "self-check"]
    mounted = {mount["name"]: mount["mountPath"] for mount in check["volumeMounts"]}
    made = self_check_config_map(OWNER, volume["configMap"]["name"], {}, SelfCheckLimits(), "")
    assert [f"{mounted['self-check']}/{key}" for key in made["data"]] == [str(given.limits)]


def test_limits_of_the_spec_reach_the_pods_and_make_no_other_ones() -> None:
    cluster = ServingCluster()
    cluster.settle()
    before = copied(cluster.objects[DEPLOYMENTS])
    [name] = before
    assert limits_of(cluster, name) == SelfCheckLimits(watch_seconds=300)
    cluster.spec["verification"] = {"maxDistance": "0.7", "minAgreementPercent": 80}
    cluster.settle()
    assert limits_of(cluster, name) == SelfCheckLimits(min_agreement_percent=80, max_distance=0.7, watch_seconds=300)
    assert cluster.objects[DEPLOYMENTS] == before
    del cluster.objects[CONFIG_MAPS][name]
    cluster.settle()
    assert limits_of(cluster, name).max_distance == 0.7
    loosened = SelfCheckLimits(max_distance=9.9).model_dump_json(by_alias=True)
    cluster.objects[CONFIG_MAPS][name]["data"]["limits.json"] = loosened
    cluster.settle()
    assert limits_of(cluster, name).max_distance == 0.7, "what somebody has written into it does not stay"


def verification_of(**verification: Any) -> StageRequest:
    """The verification of what a spec asks for."""
    observed = ServingCluster(spec=pinned(GOOD, verification=verification)).observe()
    target = find_target(observed)
    assert isinstance(target, Target)
    return verify_request(observed, target)


def test_required_probabilities_reach_the_verification_and_the_pods() -> None:
    """What says nothing of them is verified under the name that it had before there was such a field."""
    asked, silent = verification_of(requireProbabilities=True), verification_of()
    assert asked.input.params.verify is not None
    assert asked.input.params.verify.require_probabilities
    assert asked.name != silent.name == verification_of(requireProbabilities=False).name
    assert "requireProbabilities" not in json.dumps(silent.identity)
    cluster = ServingCluster(spec=pinned(GOOD))
    cluster.settle()
    before, jobs = copied(cluster.objects[DEPLOYMENTS]), set(cluster.objects[JOBS])
    [name] = before
    assert not limits_of(cluster, name).require_probabilities
    cluster.spec["verification"] = {"requireProbabilities": True}
    cluster.settle()
    assert limits_of(cluster, name).require_probabilities
    assert (cluster.objects[DEPLOYMENTS], set(cluster.objects[JOBS])) == (before, jobs), "no other pods, no other proof"


@pytest.mark.parametrize(
    "fixed", [{"immutable": True}, {"data": None, "binaryData": {"limits.json": "e30="}}], ids=["immutable", "binary"]
)
def test_limits_that_cannot_be_changed_back_are_made_anew(fixed: dict[str, Any]) -> None:
    """The API server refuses each change of an immutable ConfigMap, and a key of data that is in binaryData too."""
    cluster = ServingCluster()
    cluster.settle()
    [name] = cluster.objects[DEPLOYMENTS]
    before, found = limits_of(cluster, name), cluster.objects[CONFIG_MAPS][name]
    found["data"]["limits.json"] = SelfCheckLimits(max_distance=9.9).model_dump_json(by_alias=True)
    found |= fixed
    made = cluster.reconcile()
    assert made.actions == (Delete(CONFIG_MAPS, name, found["metadata"]["uid"]),)
    cluster.settle()
    assert limits_of(cluster, name) == before
    assert cluster.objects[CONFIG_MAPS][name].keys().isdisjoint(fixed.keys() - {"data"})


def test_a_verification_asks_for_what_the_operator_wrote() -> None:
    """The names of Jobs and inputs can be told beforehand, and whoever may write ConfigMaps may name any owner."""
    cluster = ServingCluster()
    observed = cluster.observe()
    target = find_target(observed)
    assert isinstance(target, Target)
    request = verify_request(observed, target)
    for action in stage_objects(observed, request):
        cluster.apply_action(action)
    written = cluster.objects[CONFIG_MAPS][request.name]
    job = cluster.objects[JOBS].pop(request.name)
    assert stage_objects(cluster.observe(), request) == (Create(JOBS, stage_job(request)),)
    written["data"] = {"input.json": "{}"}
    [removed] = stage_objects(cluster.observe(), request)
    assert removed == Delete(CONFIG_MAPS, request.name, written["metadata"]["uid"])
    cluster.objects[JOBS][request.name] = job
    assert stage_objects(cluster.observe(), request) == (), "the pod refuses it, and the Job's end says so"


@pytest.mark.parametrize(
    ("spec", "source"),
    [
        pytest.param(pinned(INACTIVE), None, id="another artifact, which fails"),
        pytest.param(pinned(BETTER, runtime="unknown"), None, id="nothing that could serve"),
        pytest.param(following(), Source("Training", None, Storage()), id="a source that has published nothing"),
        pytest.param(following(source=CHANNEL), None, id="a channel at which no Job has looked yet"),
    ],
)
def test_what_serves_keeps_the_limits_that_it_was_verified_with(spec: dict[str, Any], source: Source | None) -> None:
    """Its next pod would not become ready by tighter ones."""
    cluster = ServingCluster()
    cluster.settle()
    name = f"demo-{cluster.traffic()}"
    cluster.spec = spec | {"verification": {"minAgreementPercent": 100}}
    cluster.source, cluster.generation = source, 2
    cluster.settle()
    assert f"demo-{cluster.traffic()}" == name
    assert limits_of(cluster, name) == SelfCheckLimits(watch_seconds=300)


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(None, id="its FineTuneJob is deleted"),
        pytest.param(Source("Training", None, Storage()), id="its FineTuneJob has no artifact any more"),
    ],
)
def test_limits_of_what_serves_can_be_changed_without_its_source(source: Source | None) -> None:
    """Or nobody could loosen them for a right server that is refused. Those for another source are not meant for it."""
    cluster = ServingCluster(spec=following(), source=published(GOOD))
    cluster.settle()
    name = f"demo-{cluster.traffic()}"
    cluster.spec = following() | {"verification": {"maxDistance": "0.7"}}
    cluster.source, cluster.generation = source, 2
    cluster.settle()
    assert f"demo-{cluster.traffic()}" == name
    assert limits_of(cluster, name) == SelfCheckLimits(max_distance=0.7, watch_seconds=300)
    cluster.spec = following() | {"source": {"fineTuneJob": {"name": "other"}}}
    cluster.generation = 3
    cluster.settle()
    assert f"demo-{cluster.traffic()}" == name
    assert limits_of(cluster, name) == SelfCheckLimits(max_distance=0.7, watch_seconds=300)


@pytest.mark.parametrize(
    ("interval", "longest", "seconds"),
    [
        (None, "0s", 300),
        ("30s", "0s", 30),
        ("2h", "0s", 7200),
        ("0s", "0s", 0),
        ("0s", "15m", 900),
        ("2h", "15m", 900),
        ("1m", "15m", 60),
    ],
)
def test_how_often_pods_are_watched_reaches_them_and_makes_no_other_ones(
    interval: str | None, longest: str, seconds: int
) -> None:
    """Nor another verification, or another try of what has failed: it says nothing of what is to be proved."""
    cluster = ServingCluster(settings=SETTINGS.model_copy(update={"serving": ServingAccess()}))
    cluster.settle()
    before = copied([cluster.objects[DEPLOYMENTS], cluster.objects[JOBS]])
    [name] = cluster.objects[DEPLOYMENTS]
    cluster.settings = SETTINGS.model_copy(update={"serving": ServingAccess(longest_watch_interval=longest)})
    cluster.spec |= {} if interval is None else {"qualityWatch": {"interval": interval}}
    cluster.settle()
    assert limits_of(cluster, name) == SelfCheckLimits(watch_seconds=seconds)
    assert [cluster.objects[DEPLOYMENTS], cluster.objects[JOBS]] == before
    plain = AdapterDeploymentSpec.model_validate(cluster.spec)
    assert spec_hash(plain) == spec_hash(plain.model_copy(update={"quality_watch": QualityWatch(interval="9h")}))


def test_pods_of_an_earlier_release_get_no_limits() -> None:
    template = pod()
    assert has_self_check(template)
    template["spec"]["initContainers"].pop()
    assert not has_self_check(template)


def limits_of(cluster: ServingCluster, name: str) -> SelfCheckLimits:
    """What the pods of a revision prove themselves by."""
    return SelfCheckLimits.model_validate_json(cluster.objects[CONFIG_MAPS][name]["data"]["limits.json"])


@pytest.mark.parametrize(("shards", "memory"), [(1, None), (2, {"medium": "Memory", "sizeLimit": "1Gi"})])
def test_shards_get_shared_memory(shards: int, memory: dict[str, str] | None) -> None:
    volumes = {each["name"]: each for each in pod(num_shard=shards)["spec"]["volumes"]}
    assert volumes.get("shared-memory", {}).get("emptyDir") == memory
    paths = [mount["mountPath"] for mount in list(containers(num_shard=shards))[2]["volumeMounts"]]
    assert ("/dev/shm" in paths) is (memory is not None)


def test_every_mount_has_its_volume_and_every_path_is_mounted_once() -> None:
    volumes = {each["name"] for each in pod(num_shard=2)["spec"]["volumes"]}
    for container in containers(num_shard=2):
        paths = [mount["mountPath"] for mount in container["volumeMounts"]]
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        assert len(paths) == len(set(paths))


def test_the_pod_drains_before_it_ends() -> None:
    spec = pod(drain_seconds=15, termination_grace_seconds=225)["spec"]
    [server] = spec["containers"]
    assert server["lifecycle"] == {"preStop": {"sleep": {"seconds": 15}}}
    assert spec["terminationGracePeriodSeconds"] == 225


def test_the_runtimes_shape_and_account_are_the_pods() -> None:
    shape = PodShape(
        limits={"nvidia.com/gpu": "1"},
        node_selector={"gpu": "l4"},
        tolerations=[{"key": "gpu", "operator": "Exists"}],
        runtime_class_name="nvidia",
    )
    spec = pod(pod=shape, service_account_name="runner")["spec"]
    assert spec["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": "1"}
    assert spec["nodeSelector"] == {"gpu": "l4"}
    assert spec["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
    assert (spec["runtimeClassName"], spec["serviceAccountName"]) == ("nvidia", "runner")
    assert "nvidia.com/gpu" not in spec["initContainers"][0]["resources"]["limits"]


def test_selectors_agree() -> None:
    made = deployment(OWNER, serving(), REVISION, 1, pod())
    labels = made["spec"]["template"]["metadata"]["labels"]
    assert made["spec"]["selector"]["matchLabels"] == labels
    for service in (public_service(OWNER, REVISION), candidate_service(OWNER, REVISION)):
        assert service["spec"]["selector"] == labels
    policies = [make(OWNER, REVISION, ServingAccess()) for make in (candidate_policy, serving_policy)]
    for policy in policies:
        assert policy["spec"]["podSelector"]["matchLabels"] == labels
    assert len({policy["metadata"]["name"] for policy in policies}) == 1


def test_the_longest_names_fit() -> None:
    names = [
        public_service(OWNER, REVISION)["metadata"]["name"],
        candidate_service(OWNER, REVISION)["metadata"]["name"],
        fetch_request(OWNER, serving(), SETTINGS, REVISION).name,
        # The Deployment controller's ReplicaSet: a hyphen and a hash of ten characters.
        deployment(OWNER, serving(), REVISION, 1, pod())["metadata"]["name"] + "-0123456789",
    ]
    assert max(map(len, names)) <= 63
    assert service_url(OWNER, "x") == "http://x.team.svc:80"


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("data", "data"),
        ("data:1", "data"),
        ("registry/path/data:1", "registry/path/data"),
        ("registry:5000/data", "registry:5000/data"),
        ("registry:5000/data:1", "registry:5000/data"),
        ("registry:5000/data@sha256:0123", "registry:5000/data"),
        ("registry:5000/data:1@sha256:0123", "registry:5000/data"),
        ("", ""),
    ],
)
def test_where_an_image_is(image: str, name: str) -> None:
    assert repository(image) == name


@pytest.mark.parametrize(
    ("live", "desired", "same"),
    [
        ({"a": 1, "added": 2}, {"a": 1}, True),
        ({"a": 2}, {"a": 1}, False),
        ({}, {"a": 1}, False),
        ({"a": None}, {"a": {}}, True),
        ({}, {"a": []}, True),
        ({"a": ["x"]}, {"a": []}, False),
        ({}, {"a": ""}, True),
        ({"a": "x"}, {"a": ""}, False),
        ({"env": [{"name": "A"}]}, {"env": [{"name": "A", "value": ""}]}, True),
        ({"env": [{"name": "B"}]}, {"env": [{"name": "A", "value": ""}]}, False),
        ({"memory": "1Gi"}, {"memory": "1024Mi"}, True),
        ({"cpu": "1"}, {"cpu": "1000m"}, True),
        ({"cpu": "1"}, {"cpu": "1001m"}, False),
        ({"cpu": "1500m"}, {"cpu": "1.5"}, True),
        ({"m": "1M"}, {"m": "1Mi"}, False),
        ({"env": [{"name": "B"}, {"name": "A", "value": "1"}]}, {"env": [{"name": "A", "value": "1"}]}, True),
        ({"env": [{"name": "A", "value": "2"}]}, {"env": [{"name": "A", "value": "1"}]}, False),
        ({"args": ["a", "b"]}, {"args": ["a"]}, False),
        ({"ingress": [{"from": [1], "ports": [2]}]}, {"ingress": [{"ports": [2]}]}, False),
        ({"selector": {"a": "1", "b": "2"}}, {"selector": {"a": "1"}}, False),
    ],
)
def test_what_counts_as_a_change(live: Any, desired: Any, same: bool) -> None:
    assert holds(live, desired) is same


def test_missing_is_created_changed_is_applied_and_equal_is_left_alone() -> None:
    desired = public_service(OWNER, REVISION)
    other = public_service(OWNER, "ffffffff")
    assert ensure(SERVICES, desired, None) == (Create(SERVICES, desired),)
    assert ensure(SERVICES, desired, other) == (Apply(SERVICES, desired),)
    assert ensure(SERVICES, desired, desired) == ()
    listed = {"metadata": desired["metadata"], "spec": desired["spec"]}
    assert ensure(SERVICES, desired, listed) == ()
    assert ensure_exists(SERVICES, None, lambda: desired) == (Create(SERVICES, desired),)
    assert ensure_exists(SERVICES, other, lambda: pytest.fail("rendered")) == ()


def test_the_keys_of_a_policy_are_part_of_the_revision() -> None:
    """Pods with another policy are other pods: they prove themselves before clients reach them."""
    plain, signed = serving(), replace(serving(), public_keys=("PEM",))
    inputs = [fetch_request(OWNER, each, SETTINGS, REVISION) for each in (plain, signed)]
    assert [each.input.params.fetch and each.input.params.fetch.public_keys for each in inputs] == [None, ["PEM"]]
    assert inputs[0].name != inputs[1].name


def test_a_target_has_the_keys_of_its_spec() -> None:
    policy = {"signature": {"publicKeys": [PUBLIC_KEY]}}
    targets = [find_target(ServingCluster(spec=pinned(GOOD) | extra).observe()) for extra in ({}, {"policy": policy})]
    assert [each.serving.public_keys for each in targets if isinstance(each, Target)] == [(), (PUBLIC_KEY,)]
    assert len({each.revision for each in targets if isinstance(each, Target)}) == 2


@pytest.mark.parametrize(
    ("fetched", "adapters", "seconds"),
    [
        (0, 0, 900),  # as earlier releases have it
        (1, 0, 901),
        (140_000_000_000, 0, 900 + 2671),  # 70 billion parameters in 16 bits
        (1 << 30, 1, 900 + 21),
        (1 << 30, 8, 900 + 21 + 7 * 120),
    ],
)
def test_a_pod_has_time_to_start_by_what_it_downloads_and_proves(fetched: int, adapters: int, seconds: int) -> None:
    served = [Adapter(str(number), uri(GOOD), GOOD) for number in range(adapters)]
    asked = replace(serving(startup_timeout_seconds=600), fetched_bytes=fetched, adapters=tuple(served))
    assert asked.start_seconds == 600 + seconds
    template = pod_template(OWNER, serving(), SETTINGS, REVISION)
    assert deployment(OWNER, asked, REVISION, 1, template)["spec"]["progressDeadlineSeconds"] == asked.start_seconds


@pytest.mark.parametrize(
    ("size", "known"),
    [(5 << 30, 5 << 30), (None, 20 << 30)],
    ids=["what was published has a size", "or it fits the volume"],
)
def test_the_size_of_a_download_is_recorded_with_the_revision(size: int | None, known: int) -> None:
    """Afterwards it may be gone: another release, or no FineTuneJob, knows none."""
    source = published(GOOD)
    assert source.artifact is not None
    source = replace(source, artifact=source.artifact.model_copy(update={"size_bytes": size}))
    cluster = ServingCluster(spec=following(), source=source)
    cluster.reconcile()
    cluster.source = published(GOOD)
    target = find_target(cluster.observe())
    assert isinstance(target, Target)
    assert target.serving.fetched_bytes == known
