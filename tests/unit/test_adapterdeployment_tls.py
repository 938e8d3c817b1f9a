"""Endpoints that speak TLS: what their pods and Services are made of, and how an endpoint comes to it and back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from finetune_api import meta
from finetune_api.endpoint_stages import VerifyParams
from finetune_api.reasons import Reason
from finetune_api.stages import StageInput
from finetune_api.storage import Storage
from finetune_operator.adapterdeployment.health import Sighting, candidate_problem, watch
from finetune_operator.adapterdeployment.pod_problems import Outlook
from finetune_operator.adapterdeployment.revision import choice_of
from finetune_operator.framework.objects import (
    CONFIG_MAPS,
    HTTP_ROUTES,
    INGRESSES,
    JOBS,
    NETWORK_POLICIES,
    SERVICES,
    Object,
)
from finetune_operator.framework.ownership import Owner
from finetune_operator.kinds import ADAPTERDEPLOYMENTS
from finetune_operator.resources.client_proxy import has_proxy, speaks_tls
from finetune_operator.resources.deployment import Serving, pod_template
from finetune_operator.resources.route import backends_of
from finetune_operator.settings import Engine, Runtime
from finetune_proxy.__main__ import Certificate, failure, parse, unusable
from tests.support.played_pods import GOOD
from tests.support.promoted import passes, until
from tests.support.sentences import assert_says
from tests.support.serving import ServingCluster, condition, serving
from tests.support.serving_specs import SETTINGS, uri
from tests.unit.test_adapterdeployment_access import DEPLOYMENT, NOW, container, started
from tests.unit.test_adapterdeployment_canary import canary, has_share
from tests.unit.test_adapterdeployment_canary import until as step
from tests.unit.test_adapterdeployment_route import HTTP, INGRESS, OFFERED, open_to_the_world, says

pytestmark = pytest.mark.unit

OWNER: Final = Owner(ADAPTERDEPLOYMENTS, "team", "demo", "uid")
TLS: Final = {"tls": {"secretRef": {"name": "servers"}}}
PLAIN: Final = Serving(uri(GOOD), GOOD, Storage(), "mine", Runtime(engine=Engine.VLLM, image="vllm:1", drain_seconds=7))
SEALED: Final = replace(PLAIN, tls_secret="servers")


def pod(made: Serving = SEALED) -> Object:
    spec: Object = pod_template(OWNER, made, SETTINGS, "0123abcd")["spec"]
    return spec


def proxy_of(spec: Object) -> Object:
    (found,) = [each for each in spec["initContainers"] if each["name"] == "proxy"]
    return dict(found)


def port(service: Object) -> tuple[str, int, str]:
    """Name, number and target of a Service's port for clients."""
    first, *_ = service["spec"]["ports"]
    return first["name"], first["port"], first["targetPort"]


class TestPods:
    @pytest.mark.parametrize("keys", ["", "clients"])
    def test_the_proxy_is_told_where_the_certificate_is_and_what_for(self, keys: str) -> None:
        options = parse(proxy_of(pod(replace(SEALED, api_keys_secret=keys)))["args"])
        assert options.certificate == Certificate(Path(meta.TLS_DIR), "servers", "demo.team.svc")
        assert (options.told.speaks_tls, options.told.asks_for_keys, options.secret) == (True, bool(keys), keys)
        assert options.keys == (Path(meta.API_KEYS_DIR) if keys else None)

    def test_only_the_proxy_has_the_private_key_and_nothing_of_it_is_on_a_disk(self) -> None:
        spec = pod()
        for each in (*spec["initContainers"], *spec["containers"]):
            mounted = {mount["name"] for mount in each["volumeMounts"]} & {"tls", "proxy"}
            assert mounted == ({"tls", "proxy"} if each["name"] == "proxy" else set())
        volumes = {each["name"]: each for each in spec["volumes"]}
        assert volumes["tls"]["secret"] == {"secretName": "servers", "optional": True}
        assert volumes["proxy"]["emptyDir"]["medium"] == "Memory"
        assert "api-keys" not in volumes

    def test_its_port_has_another_name_and_the_server_listens_on_loopback(self) -> None:
        (server,) = pod()["containers"]
        assert {each["name"]: each["containerPort"] for each in server["ports"]} == {
            "https": meta.CLIENT_PORT,
            "server-metrics": meta.INNER_PORT,
        }
        assert "--host=127.0.0.1" in server["args"]

    def test_pods_with_keys_alone_are_as_they_were(self) -> None:
        spec = pod(replace(PLAIN, api_keys_secret="clients"))
        assert not any("tls" in argument for argument in proxy_of(spec)["args"])
        assert {each["name"]: each for each in spec["volumes"]}["proxy"]["emptyDir"] == {"sizeLimit": "16Mi"}
        assert (has_proxy({"spec": spec}), speaks_tls({"spec": spec})) == (True, False)
        assert speaks_tls({"spec": pod()})

    def test_it_is_a_choice_and_none_is_as_it_was(self) -> None:
        made = (PLAIN, SEALED, replace(SEALED, tls_secret="others"), replace(PLAIN, api_keys_secret="servers"))
        assert len({choice_of(each, SETTINGS) for each in made}) == 4


def asked(cluster: ServingCluster, revision: str) -> VerifyParams:
    """What the verification of a revision is told."""
    [job] = [
        each for each in cluster.objects[JOBS].values() if each["metadata"]["labels"][meta.LABEL_REVISION] == revision
    ]
    given = cluster.objects[CONFIG_MAPS][job["metadata"]["name"]]["data"]["input.json"]
    params = StageInput.model_validate_json(given).params.verify
    assert params is not None
    return params


class TestRollouts:
    def test_an_endpoint_comes_to_speak_tls_and_back(self) -> None:
        """Each is another revision, which is asked as its clients will ask it; the Service follows in one write."""
        cluster = serving()
        plain = cluster.traffic()
        assert cluster.status.endpoint == "http://demo.team.svc:80"
        cluster.spec["access"] = TLS
        until(cluster, lambda: len(cluster.objects[JOBS]) == 2)
        new = cluster.status.candidate
        assert new is not None
        service = f"demo-{new.revision}-candidate"
        assert port(cluster.objects[SERVICES][service]) == ("https", 443, "https")
        params = asked(cluster, new.revision)
        assert (params.endpoint, params.tls_secret, params.tls_host) == (
            f"https://{service}.team.svc:443",
            "servers",
            "demo.team.svc",
        )
        [job] = [each for each in cluster.objects[JOBS].values() if "finetune-tls" in str(each)]
        [volume] = [each for each in job["spec"]["template"]["spec"]["volumes"] if each["name"] == "tls"]
        assert [each["key"] for each in volume["secret"]["items"]] == ["tls.crt", "ca.crt"], "not the private key"
        seen: set[tuple[str, tuple[str, int, str]]] = set()

        def led(each: ServingCluster) -> None:
            public = each.objects[SERVICES]["demo"]
            assert len(public["spec"]["ports"]) == 1
            seen.add((each.traffic(), port(public)))

        cluster.watch = led
        cluster.settle()
        assert cluster.traffic() == new.revision
        assert cluster.status.endpoint == "https://demo.team.svc:443"
        [policy] = cluster.objects[NETWORK_POLICIES].values()
        assert policy["spec"]["ingress"][0]["ports"][0]["port"] == meta.CLIENT_PORT
        assert condition(cluster.status, "Ready")[0] == "True"
        del cluster.spec["access"]
        cluster.settle()
        assert cluster.status.endpoint == "http://demo.team.svc:80"
        sealed, opened = ("https", 443, "https"), ("http", 80, "http")
        assert seen == {(plain, opened), (new.revision, sealed), (cluster.traffic(), opened)}

    def test_a_service_whose_port_somebody_has_changed_is_restored(self) -> None:
        """A Service with one port need not name it."""
        cluster = serving()
        live = cluster.objects[SERVICES]["demo"]
        live["spec"]["ports"] = [{"port": 80, "targetPort": 8080, "protocol": "TCP"}]
        cluster.settle()
        assert port(cluster.objects[SERVICES]["demo"]) == ("http", 80, "http")
        assert len(cluster.objects[SERVICES]["demo"]["spec"]["ports"]) == 1

    def test_another_secret_is_another_revision_with_one_behind_the_same_port(self) -> None:
        cluster = serving(access=TLS)
        first = cluster.traffic()
        cluster.spec["access"] = {"tls": {"secretRef": {"name": "others"}}}
        cluster.settle()
        assert cluster.traffic() != first
        assert port(cluster.objects[SERVICES]["demo"]) == ("https", 443, "https")

    def test_no_traffic_goes_back_to_a_revision_that_does_not_encrypt(self) -> None:
        cluster = serving()
        plain = cluster.traffic()
        cluster.spec["access"] = TLS
        cluster.settle()
        sealed = cluster.traffic()
        cluster.spec["rollbackTo"] = plain
        passes(cluster)
        assert cluster.traffic() == sealed
        assert condition(cluster.status, "Stalled") == ("True", Reason.REVISION_UNUSABLE)
        said = next(each.message for each in cluster.status.conditions if each.type == "Stalled")
        assert_says(said, plain, "certificate", sealed)

    def test_the_record_knows_it(self) -> None:
        cluster = serving(access=TLS)
        revision = cluster.traffic()
        newer = SETTINGS.images.model_copy(update={"proxy": "images/proxy:2"})
        cluster.settings = SETTINGS.model_copy(update={"images": newer})
        cluster.settle()
        assert (cluster.traffic(), cluster.status.endpoint) == (revision, "https://demo.team.svc:443")


class TestCanaries:
    def test_nobody_can_talk_to_both_protocols_so_there_are_no_steps(self) -> None:
        cluster = serving(replicas=3)
        shared: list[bool] = []
        cluster.watch = lambda each: shared.append(each.shared())
        cluster.spec = canary(access=TLS)
        cluster.settle()
        assert not any(shared)
        assert cluster.status.endpoint == "https://demo.team.svc:443"

    def test_with_it_on_both_sides_there_are(self) -> None:
        cluster = serving(replicas=3, access=TLS)
        cluster.spec = canary(access=TLS)
        step(cluster, has_share(1))
        assert cluster.shared()
        assert port(cluster.objects[SERVICES]["demo"]) == ("https", 443, "https")

    def test_a_gateway_knows_no_policy_for_the_candidates_service_so_pods_give_the_share(self) -> None:
        access = TLS | {"route": HTTP}
        cluster = open_to_the_world(replicas=3)
        cluster.spec["access"] = access
        cluster.settle()
        says(cluster)
        cluster.settle()
        cluster.spec = canary(access=access)
        first = step(cluster, has_share(1))
        assert first.canary is not None
        assert first.canary.routed_weight is None
        assert cluster.shared()


@pytest.mark.parametrize(("given", "kind"), [(HTTP, HTTP_ROUTES), (INGRESS, INGRESSES)])
def test_a_way_in_from_outside_leads_to_the_port_of_what_serves(given: dict[str, Any], kind: Any) -> None:
    cluster = serving(access={"route": given})
    cluster.settings = OFFERED
    cluster.settle()

    def port_of_route() -> int:
        live = cluster.objects[kind]["demo"]
        if kind == HTTP_ROUTES:
            assert [each.service for each in backends_of(live)] == ["demo"]
            return int(live["spec"]["rules"][0]["backendRefs"][0]["port"])
        return int(live["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]["port"]["number"])

    assert port_of_route() == 80
    cluster.spec["access"] = TLS | {"route": given}
    passes(cluster, 1)
    assert port_of_route() == 80, "what serves still speaks HTTP"
    cluster.settle()
    assert port_of_route() == 443


SAID: Final = unusable(Certificate(Path("/tls"), "servers", "demo.team.svc"), "it has no tls.key")
REFUSED: Final = container(
    "proxy",
    ready=False,
    state={"waiting": {"reason": "CrashLoopBackOff"}},
    lastState={"terminated": {"exitCode": 75, "message": failure(SAID, "CertificateUnusable")}},
)


class TestWithoutACertificate:
    def test_a_new_pod_says_what_is_missing_and_waits(self) -> None:
        problem = candidate_problem(DEPLOYMENT, [started(REFUSED, others=False)], NOW)
        assert problem is not None
        assert (problem.reason, problem.outlook) == (Reason.CERTIFICATE_UNUSABLE, Outlook.WAIT)
        assert_says(problem.message, "Secret 'servers'", "demo.team.svc", "no tls.key")

    def test_it_gives_its_node_back_and_is_tried_again(self) -> None:
        problem = candidate_problem(DEPLOYMENT, [started(REFUSED, others=False, seconds=901)], NOW)
        assert problem is not None
        assert problem.outlook is Outlook.GIVE_BACK

    def test_no_traffic_goes_back_for_want_of_one(self) -> None:
        restarted = started(REFUSED, others=True)
        assert watch(None, [restarted], NOW, NOW) == Sighting()
