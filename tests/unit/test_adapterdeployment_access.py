"""Clients that need keys: what their endpoint's pods are made of, who reaches them, and that no step opens the door."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from finetune_api import meta
from finetune_api.api_keys import ApiKeys
from finetune_api.reasons import Reason
from finetune_api.serving_status import AnalysisOutcome
from finetune_api.storage import Storage
from finetune_jobs.base.errors import StageError
from finetune_jobs.verification.connection import with_key
from finetune_jobs.verify import client_key
from finetune_operator.adapterdeployment.health import Sighting, candidate_problem, serving_problem, watch
from finetune_operator.adapterdeployment.pod_problems import Outlook
from finetune_operator.adapterdeployment.revision import choice_of
from finetune_operator.framework.conditions import timestamp
from finetune_operator.framework.objects import CONFIG_MAPS, DEPLOYMENTS, JOBS, NETWORK_POLICIES, Object
from finetune_operator.framework.ownership import Owner
from finetune_operator.kinds import ADAPTERDEPLOYMENTS
from finetune_operator.resources.client_proxy import has_proxy, is_protected
from finetune_operator.resources.deployment import Serving, pod_template
from finetune_operator.resources.network_policy import candidate_policy, serving_policy
from finetune_operator.runtimes import serving_plan, vllm
from finetune_operator.runtimes.plan import ServedModel
from finetune_operator.settings import Engine, Runtime, ServingAccess
from finetune_proxy.__main__ import failure, nobody, parse
from tests.support.played_pods import BETTER, GOOD
from tests.support.promoted import passes, promoted, until
from tests.support.sentences import assert_says
from tests.support.serving import ServingCluster, condition, serving
from tests.support.serving_specs import SETTINGS, pinned, uri
from tests.unit.test_adapterdeployment_analysis import analysed, told
from tests.unit.test_adapterdeployment_canary import canary, has_share
from tests.unit.test_adapterdeployment_canary import until as step

pytestmark = pytest.mark.unit

OWNER: Final = Owner(ADAPTERDEPLOYMENTS, "team", "demo", "uid")
ACCESS: Final = {"apiKeys": {"secretRef": {"name": "clients"}}}
RUNTIMES: Final = {
    Engine.TGI: Runtime(engine=Engine.TGI, image="tgi:1", drain_seconds=7),
    Engine.VLLM: Runtime(engine=Engine.VLLM, image="vllm:1", drain_seconds=7),
}
OPEN: Final = Serving(uri(GOOD), GOOD, Storage(), "mine", RUNTIMES[Engine.VLLM])
KEYED: Final = replace(OPEN, api_keys_secret="clients")
NOW: Final = datetime(2026, 1, 1, 12, tzinfo=UTC)


def pod(engine: Engine = Engine.VLLM, secret: str = "clients") -> Object:
    made = replace(OPEN, runtime=RUNTIMES[engine], api_keys_secret=secret)
    spec: Object = pod_template(OWNER, made, SETTINGS, "0123abcd")["spec"]
    return spec


def proxy_of(spec: Object) -> Object:
    (found,) = [each for each in spec["initContainers"] if each["name"] == "proxy"]
    return dict(found)


class TestPods:
    def test_the_proxy_is_a_restricted_sidecar_that_ends_last(self) -> None:
        proxy = proxy_of(pod())
        assert proxy["image"] == SETTINGS.images.proxy
        assert proxy["restartPolicy"] == "Always"
        assert proxy["securityContext"]["readOnlyRootFilesystem"]
        assert proxy["lifecycle"] == {"preStop": {"exec": {"command": ["sh", "-c", "kill -USR1 1"]}}}
        assert proxy["readinessProbe"]["httpGet"] == {"path": "/ready", "port": meta.INNER_PORT}
        options = parse(proxy["args"])
        assert (options.secret, options.keys, options.told.drain_seconds) == ("clients", Path(meta.API_KEYS_DIR), 7)
        assert (options.told.port, options.told.inner_port) == (meta.CLIENT_PORT, meta.INNER_PORT)
        assert options.self_check == meta.SELF_CHECK_PORT

    @pytest.mark.parametrize("engine", Engine)
    def test_its_paths_are_those_that_answer(self, engine: Engine) -> None:
        told = parse(proxy_of(pod(engine))["args"]).told
        assert {"/health", "/v1/models"} <= {*told.read}
        assert {"/v1/chat/completions", "/v1/completions"} <= {*told.write}
        assert not [path for path in (*told.read, *told.write) if "lora" in path or "metrics" in path]
        assert ("/info" in told.read, "/generate" in told.write) == (engine is Engine.TGI, engine is Engine.TGI)

    @pytest.mark.parametrize("engine", Engine)
    def test_the_server_listens_to_its_own_pod_only(self, engine: Engine) -> None:
        (server,) = pod(engine)["containers"]
        env = {each["name"]: each.get("value") for each in server["env"]}
        assert "127.0.0.1" in (env.get("HOSTNAME"), *(each.partition("=")[2] for each in server.get("args", [])))
        assert server["readinessProbe"]["httpGet"]["port"] == meta.INNER_PORT
        assert {each["name"]: each["containerPort"] for each in server["ports"]} == {
            "http": 8081,
            "server-metrics": 9402,
        }
        others = [port["name"] for each in pod(engine)["initContainers"] for port in each.get("ports", [])]
        assert not {"http", "server-metrics"} & {*others}, "Prometheus finds a port by its name alone"

    @pytest.mark.parametrize("engine", Engine)
    def test_a_fault_of_the_proxy_restarts_the_proxy_and_no_server(self, engine: Engine) -> None:
        (server,) = pod(engine)["containers"]
        plain = serving_plan(RUNTIMES[engine], ServedModel("/models/x/model", "demo"))
        for name, probe in (("startupProbe", plain.startup), ("livenessProbe", plain.liveness)):
            asked, usual = dict(server[name]), dict(probe)
            assert [*asked.pop("exec")] == ["command"]
            assert usual.pop("httpGet") == {"path": "/health", "port": "http"}
            assert asked == usual, "as often and as patiently as without a proxy"
        alive, served = proxy_of(pod(engine))["livenessProbe"], server["livenessProbe"]
        patience = [each["periodSeconds"] * each["failureThreshold"] for each in (alive, served)]
        assert patience == sorted(patience)
        assert alive["httpGet"]["path"] != "/ready", "a Secret without keys restarts nothing"

    def test_only_the_proxy_gets_the_keys_and_its_files(self) -> None:
        spec = pod()
        for each in (*spec["initContainers"], *spec["containers"]):
            mounted = {mount["name"] for mount in each["volumeMounts"]} & {"api-keys", "proxy"}
            assert mounted == ({"api-keys", "proxy"} if each["name"] == "proxy" else set())
        (volume,) = [each for each in spec["volumes"] if each["name"] == "api-keys"]
        assert volume["secret"] == {"secretName": "clients", "optional": True}

    def test_without_keys_it_is_before_a_server_that_needs_it_and_asks_for_none(self) -> None:
        spec = pod(Engine.VLLM, "")
        options = parse(proxy_of(spec)["args"])
        assert (options.keys, options.certificate, options.told.asks_for_keys) == (None, None, False)
        assert (has_proxy({"spec": spec}), is_protected({"spec": spec})) == (True, False)
        assert is_protected({"spec": pod()})
        assert {each["name"]: each for each in spec["volumes"]}.keys().isdisjoint({"api-keys", "tls"})
        assert "--host=127.0.0.1" in spec["containers"][0]["args"]

    def test_nothing_of_it_is_in_other_pods_whose_clients_need_no_keys(self) -> None:
        spec = pod(Engine.TGI, "")
        assert not has_proxy({"spec": spec})
        (server,) = spec["containers"]
        assert {each["name"]: each["containerPort"] for each in server["ports"]} == {"http": 8080}
        assert "HOSTNAME" not in {each["name"] for each in server["env"]}

    def test_it_is_a_choice_and_none_is_as_it_was(self) -> None:
        keyed = [KEYED, replace(KEYED, api_keys_secret="others")]
        assert len({choice_of(each, SETTINGS) for each in (OPEN, *keyed)}) == 3
        moved = SETTINGS.images.model_copy(update={"proxy": "elsewhere/proxy:1"})
        newer = SETTINGS.images.model_copy(update={"proxy": "images/proxy:2"})
        for images, same in ((moved, False), (newer, True)):
            settings = SETTINGS.model_copy(update={"images": images})
            assert (choice_of(KEYED, settings) == choice_of(KEYED, SETTINGS)) is same
            assert choice_of(OPEN, settings) == choice_of(OPEN, SETTINGS)


class TestPolicies:
    CLIENTS: Final = {"podSelector": {"matchLabels": {"client": "yes"}}}
    READERS: Final = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    ADMIN: Final = ServingAccess(ingress_from=[CLIENTS], metrics_from=[READERS])

    def ports(self, policy: Object) -> dict[int, list[Object]]:
        return {rule["ports"][0]["port"]: rule["from"] for rule in policy["spec"]["ingress"]}

    def test_clients_reach_the_proxy_and_prometheus_the_metrics(self) -> None:
        found = self.ports(serving_policy(OWNER, "0123abcd", self.ADMIN, has_proxy=True, is_protected=True))
        assert found.keys() == {meta.CLIENT_PORT, meta.INNER_PORT, meta.SELF_CHECK_PORT}
        [verifier] = found[meta.SELF_CHECK_PORT]
        assert verifier["podSelector"]["matchLabels"][meta.LABEL_STAGE] == "verify"
        assert found[meta.CLIENT_PORT][1:] == [self.CLIENTS]
        analysis, *readers = found[meta.INNER_PORT]
        assert analysis["podSelector"]["matchLabels"][meta.LABEL_STAGE] == "analyse"
        assert readers == [self.READERS]

    def test_without_keys_clients_may_read_metrics_as_they_may_where_there_is_no_proxy(self) -> None:
        found = self.ports(serving_policy(OWNER, "0123abcd", self.ADMIN, has_proxy=True))
        assert found[meta.CLIENT_PORT][1:] == [self.CLIENTS]
        assert found[meta.INNER_PORT][1:] == [self.READERS, self.CLIENTS]

    def test_before_the_verification_only_the_verifier_does(self) -> None:
        found = self.ports(candidate_policy(OWNER, "0123abcd", self.ADMIN, has_proxy=True))
        (verifier,) = found[meta.CLIENT_PORT]
        assert verifier["podSelector"]["matchLabels"][meta.LABEL_STAGE] == "verify"

    def test_nobody_is_not_everybody(self) -> None:
        """A rule without peers lets everybody in."""
        found = self.ports(serving_policy(OWNER, "0123abcd", ServingAccess(), has_proxy=True))
        assert all(found.values())
        assert self.ports(candidate_policy(OWNER, "0123abcd", ServingAccess(), has_proxy=True)).keys() == {
            meta.CLIENT_PORT
        }

    def test_without_a_proxy_they_reach_the_server(self) -> None:
        found = self.ports(serving_policy(OWNER, "0123abcd", self.ADMIN))
        assert found.keys() == {meta.SERVING_PORT, meta.SELF_CHECK_PORT}

    @pytest.mark.parametrize("has_proxy", [True, False])
    def test_only_the_verifier_sees_the_door(self, *, has_proxy: bool) -> None:
        (peer,) = self.ports(serving_policy(OWNER, "0123abcd", self.ADMIN, has_proxy=has_proxy))[meta.SELF_CHECK_PORT]
        assert peer["podSelector"]["matchLabels"][meta.LABEL_STAGE] == "verify"


class TestRollouts:
    def open_ports(self, cluster: ServingCluster) -> dict[str, int]:
        policies = cluster.objects[NETWORK_POLICIES].values()
        return {
            each["metadata"]["labels"][meta.LABEL_REVISION]: each["spec"]["ingress"][0]["ports"][0]["port"]
            for each in policies
        }

    def test_asking_for_keys_is_another_revision_that_is_verified_with_one(self) -> None:
        cluster = serving()
        before = cluster.traffic()
        cluster.spec["access"] = ACCESS
        until(cluster, lambda: len(cluster.objects[JOBS]) == 2)
        new = cluster.status.candidate
        assert new is not None
        assert self.open_ports(cluster) == {before: meta.SERVING_PORT, new.revision: meta.CLIENT_PORT}
        (job,) = [each for each in cluster.objects[JOBS].values() if "api-keys" in str(each)]
        assert job["metadata"]["labels"][meta.LABEL_REVISION] == new.revision
        mounts = job["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
        assert meta.API_KEYS_DIR in [each["mountPath"] for each in mounts]
        given = cluster.objects[CONFIG_MAPS][job["metadata"]["name"]]
        assert '"apiKeysSecret":"clients"' in given["data"]["input.json"]
        cluster.settle()
        assert cluster.traffic() == new.revision
        assert self.open_ports(cluster) == {new.revision: meta.CLIENT_PORT}

    def test_the_record_knows_it(self) -> None:
        """Another release, with other pods, finds the revision again."""
        cluster = serving(access=ACCESS)
        revision = cluster.traffic()
        images = SETTINGS.images.model_copy(update={"proxy": "images/proxy:2"})
        cluster.settings = SETTINGS.model_copy(update={"images": images})
        cluster.settle()
        assert cluster.traffic() == revision
        live = cluster.objects[DEPLOYMENTS][f"demo-{revision}"]["spec"]["template"]
        assert proxy_of(live["spec"])["image"] == "images/proxy:1"
        cluster.objects[DEPLOYMENTS].clear()
        cluster.settle()
        assert cluster.revisions(DEPLOYMENTS) == {revision}
        assert self.open_ports(cluster) == {revision: meta.CLIENT_PORT}

    def test_vllm_of_an_earlier_release_is_reached_without_a_proxy_until_its_next_revision(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        runtimes = SETTINGS.runtimes | {"vllm": RUNTIMES[Engine.VLLM]}
        settings = SETTINGS.model_copy(update={"runtimes": runtimes})
        with monkeypatch.context() as before:
            before.setattr(vllm, "NEEDS_PROXY", False)
            cluster = ServingCluster(spec=pinned(GOOD, runtime="vllm", keepLastGood="0s"), settings=settings)
            cluster.settle()
        old = cluster.traffic()
        cluster.settle()
        assert (cluster.traffic(), self.open_ports(cluster)) == (old, {old: meta.SERVING_PORT})
        cluster.spec["source"] = pinned(BETTER)["source"]
        cluster.settle()
        assert cluster.traffic() != old
        assert self.open_ports(cluster) == {cluster.traffic(): meta.CLIENT_PORT}
        policy = cluster.objects[NETWORK_POLICIES][f"demo-{cluster.traffic()}"]
        metrics = next(each for each in policy["spec"]["ingress"] if each["ports"][0]["port"] == meta.INNER_PORT)
        assert SETTINGS.serving.ingress_from[0] in metrics["from"]

    def test_no_traffic_goes_back_to_a_revision_without_keys(self) -> None:
        cluster, old, open_one = promoted()
        passes(cluster)
        cluster.spec["access"] = ACCESS
        passes(cluster, 1)
        assert cluster.status.previous is None
        cluster.settle()
        keyed = cluster.traffic()
        assert keyed not in (old, open_one)
        cluster.spec["rollbackTo"] = open_one
        passes(cluster)
        assert cluster.traffic() == keyed
        assert condition(cluster.status, "Stalled") == ("True", Reason.REVISION_UNUSABLE)
        message = next(each.message for each in cluster.status.conditions if each.type == "Stalled")
        assert_says(message, "spec.rollbackTo", open_one, "spec.access", keyed)
        del cluster.spec["rollbackTo"]
        cluster.spec["source"] = pinned(GOOD)["source"]
        until(cluster, lambda: cluster.traffic() != keyed)
        assert set(self.open_ports(cluster).values()) == {meta.CLIENT_PORT}

    def test_a_canary_is_compared_behind_the_proxy_with_what_serves_without_one(self) -> None:
        cluster = serving(replicas=3)
        cluster.analysis = AnalysisOutcome.PASSED
        cluster.spec = canary(strategy=analysed(), access=ACCESS)
        step(cluster, has_share(1))
        cluster.reconcile()  # the Job follows its share
        given = told(cluster)
        ports = [{address.rpartition(":")[2] for address in each} for each in (given.canary, given.stable)]
        assert ports == [{str(meta.INNER_PORT)}, {str(meta.SERVING_PORT)}]

    def test_keys_that_are_no_longer_asked_for(self) -> None:
        cluster = serving(access=ACCESS)
        keyed = cluster.traffic()
        del cluster.spec["access"]
        cluster.settle()
        assert cluster.traffic() != keyed
        assert self.open_ports(cluster) == {cluster.traffic(): meta.SERVING_PORT}

    def test_a_policy_of_which_nothing_is_known_lets_nobody_past_the_proxy(self) -> None:
        cluster = ServingCluster(spec=pinned(BETTER, access=ACCESS))
        policies: set[int] = set()
        cluster.watch = lambda each: policies.update(self.open_ports(each).values()) if policies_of(each) else None
        cluster.settle()
        assert policies == {meta.CLIENT_PORT}


def policies_of(cluster: ServingCluster) -> dict[str, Object]:
    return cluster.objects.get(NETWORK_POLICIES, {})


def container(name: str, **state: Any) -> Object:
    return {"name": name, "image": f"{name}:1", "restartCount": 0, **state}


def started(proxy: Object, *, others: bool, ready: bool = False, seconds: float = 120) -> Object:
    """A pod that has had its node for so long; ``others``: whether server and self-check are ready."""
    since = timestamp(NOW - timedelta(seconds=seconds))
    running = {"ready": others, "started": others, "state": {"running": {}}}
    return {
        "metadata": {"name": "x", "creationTimestamp": since},
        "spec": {"nodeName": "gpu-7"},
        "status": {
            "phase": "Running",
            "startTime": since,
            "conditions": [{"type": "Ready", "status": str(ready), "lastTransitionTime": since}],
            "initContainerStatuses": [container("self-check", **running), proxy],
            "containerStatuses": [container("server", **running)],
        },
    }


DEPLOYMENT: Final = {"metadata": {}, "spec": {"replicas": 1, "progressDeadlineSeconds": 900}}
SAID: Final = nobody("clients", ApiKeys((), ("entry 'a' ends with a line break",)))
REFUSED: Final = container(
    "proxy",
    ready=False,
    state={"waiting": {"reason": "CrashLoopBackOff"}},
    lastState={"terminated": {"exitCode": 75, "message": failure(SAID)}},
)
KEYLESS: Final = container("proxy", ready=False, started=True, state={"running": {}})
FINE: Final = KEYLESS | {"ready": True}


class TestWithoutKeys:
    def test_a_new_pod_says_which_entry_is_none(self) -> None:
        problem = candidate_problem(DEPLOYMENT, [started(REFUSED, others=False)], NOW)
        assert problem is not None
        assert (problem.reason, problem.outlook) == (Reason.API_KEYS_MISSING, Outlook.WAIT)
        assert_says(problem.message, "Secret 'clients'", "entry 'a'", "line break")

    def test_it_gives_its_node_back_and_is_tried_again(self) -> None:
        problem = candidate_problem(DEPLOYMENT, [started(REFUSED, others=False, seconds=901)], NOW)
        assert problem is not None
        assert problem.outlook is Outlook.GIVE_BACK

    def test_a_pod_that_serves_says_that_it_has_lost_them(self) -> None:
        problem = serving_problem(DEPLOYMENT, [started(KEYLESS, others=True)])
        assert problem.reason is Reason.API_KEYS_MISSING
        assert_says(problem.message, "pod x", "spec.access.apiKeys", "kubectl logs x -c proxy")

    def test_no_traffic_goes_back_for_want_of_keys(self) -> None:
        """The revision before asks for the same, though its pods may not have heard yet that they are gone."""
        assert watch(None, [started(KEYLESS, others=True)], NOW - timedelta(hours=1), NOW) == Sighting()

    @pytest.mark.parametrize(
        "pod",
        [
            started(KEYLESS, others=False),
            started(FINE, others=True, ready=True),
            started(FINE | {"lastState": REFUSED["lastState"]}, others=False),
        ],
        ids=["it starts with the others", "it has keys", "it has keys by now"],
    )
    def test_nor_does_one_that_has(self, pod: Object) -> None:
        assert serving_problem(DEPLOYMENT, [pod]).reason is Reason.SERVER_UNAVAILABLE


class TestTheVerifier:
    def test_sends_one(self, tmp_path: Path) -> None:
        (tmp_path / "b").write_text("second-0123456789abcdef")
        (tmp_path / "a").write_text("first-0123456789abcdef")
        assert client_key("clients", tmp_path) == "first-0123456789abcdef"
        assert with_key("x") == {"Authorization": "Bearer x"}

    def test_sends_none_where_none_is_asked_for(self, tmp_path: Path) -> None:
        assert (client_key("", tmp_path), with_key("")) == ("", {})

    def test_is_tried_again_where_there_is_none(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_text("secret")
        with pytest.raises(StageError) as caught:
            client_key("clients", tmp_path)
        assert (caught.value.reason, caught.value.retriable) == (Reason.API_KEYS_MISSING, True)
        assert_says(str(caught.value), "Secret 'clients'", "entry 'a'", "20 characters")
