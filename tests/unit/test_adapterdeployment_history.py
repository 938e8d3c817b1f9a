"""The history in the status, and the records that let an upgrade of the operator leave every endpoint as it is."""

from __future__ import annotations

import copy
import math
from datetime import timedelta
from typing import Any

import pytest

from finetune_api import meta
from finetune_api.hashing import short
from finetune_api.reasons import Reason
from finetune_api.serving_status import HISTORY, AdapterDeploymentStatus, RevisionState, RevisionStatus, ServingPhase
from finetune_api.storage import Storage
from finetune_operator.adapterdeployment import record
from finetune_operator.adapterdeployment import revision as revisions
from finetune_operator.adapterdeployment.history import Current, history
from finetune_operator.framework.conditions import timestamp
from finetune_operator.framework.objects import CONFIG_MAPS, CONTROLLER_REVISIONS, DEPLOYMENTS, Object
from finetune_operator.resources import deployment
from finetune_operator.resources.deployment import SERVER
from finetune_operator.resources.stage_request import StageRequest
from finetune_operator.settings import PodShape, Proxy, Settings
from tests.support.played_cluster import START
from tests.support.played_pods import BETTER, GOOD, INACTIVE
from tests.support.sentences import assert_says
from tests.support.serving import ServingCluster, serving
from tests.support.serving_specs import SETTINGS, pinned

pytestmark = pytest.mark.unit

RUNTIME = SETTINGS.runtimes["tgi-cpu"]
SHAPES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"node_selector": {"gpu": "l4", "pool": "old"}}, {"node_selector": {"gpu": "l4"}}),
    ({"node_selector": {"pool": "old"}}, {}),
    ({"limits": {"memory": "1Gi", "nvidia.com/gpu": "1"}}, {"limits": {"nvidia.com/gpu": "1"}}),
    ({"requests": {"memory": "1Gi"}}, {}),
    ({"tolerations": [{"key": "a", "operator": "Exists"}]}, {}),
    ({"priority_class_name": "high"}, {}),
    ({"runtime_class_name": "nvidia"}, {}),
    ({"scratch_size": "200Gi"}, {}),
]
"""Shapes of a pod that differ in what the admin decides."""


def lines(status: AdapterDeploymentStatus) -> list[tuple[str, str]]:
    """Artifact and state of each revision."""
    return [(line.artifact_digest, line.state) for line in status.revisions]


def with_runtime(**fields: Any) -> Settings:
    changed = RUNTIME.model_copy(update=fields)
    return SETTINGS.model_copy(update={"runtimes": SETTINGS.runtimes | {"tgi-cpu": changed}})


def next_release(monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Another release of the operator, which renders every pod otherwise and brings other images of its own."""
    render = deployment.pod_template

    def otherwise(*args: Any, **named: Any) -> Object:
        template = render(*args, **named)
        template["spec"]["containers"][0]["env"].append({"name": "NEW_IN_THIS_RELEASE", "value": "1"})
        template["spec"]["containers"][0]["readinessProbe"] = {"httpGet": {"path": "/ready", "port": 8080}}
        return template

    for module in (record, deployment, revisions):
        monkeypatch.setattr(module, "pod_template", otherwise)
    return SETTINGS.model_copy(update={"images": SETTINGS.images.model_copy(update={"data": "images/data:2"})})


def signed(*names: str) -> dict[str, Any]:
    """A policy that asks for signatures by these keys."""
    keys = [f"-----BEGIN PUBLIC KEY-----\n{name * 4}\n-----END PUBLIC KEY-----\n" for name in names]
    return {"signature": {"publicKeys": keys}} if keys else {}


class TestHistory:
    def test_what_became_of_each_revision(self) -> None:
        cluster = serving()
        served = cluster.now
        cluster.spec = pinned(INACTIVE)
        cluster.settle()
        cluster.spec = pinned(BETTER)
        cluster.settle()
        assert lines(cluster.status) == [
            (BETTER, RevisionState.SERVING),
            (INACTIVE, RevisionState.FAILED),
            (GOOD, RevisionState.SUPERSEDED),
        ]
        newest, failed, first = cluster.status.revisions
        assert (newest.runtime, newest.image, newest.ended_at) == ("tgi-cpu", "images/tgi-cpu:1", None)
        assert newest.promoted_at == (cluster.status.stable.since if cluster.status.stable else "")
        assert (failed.reason, failed.promoted_at) == (Reason.ADAPTER_INACTIVE, None)
        assert failed.message == "The answers are those of the base model."
        assert failed.ended_at is not None
        assert first.started_at == timestamp(START)
        assert first.promoted_at is not None
        assert first.ended_at is not None
        assert first.promoted_at <= timestamp(served) <= failed.ended_at <= first.ended_at
        assert first.message == f"Revision {newest.revision} serves instead."

    def test_one_that_was_given_up_before_it_served(self) -> None:
        cluster = serving()
        cluster.spec = pinned(BETTER)
        cluster.reconcile()
        cluster.now += timedelta(minutes=1)
        cluster.spec = pinned(GOOD)
        cluster.settle()
        assert lines(cluster.status) == [(BETTER, RevisionState.SUPERSEDED), (GOOD, RevisionState.SERVING)]
        given_up, stable = cluster.status.revisions
        assert given_up.promoted_at is None
        assert given_up.message == f"Revision {stable.revision} was asked for instead, before it served."

    def test_one_that_something_stood_in_the_way_of(self) -> None:
        cluster = serving()
        cluster.spec = pinned(BETTER)
        cluster.reconcile()
        cluster.spec = pinned(BETTER, runtime="not-offered")
        cluster.settle()
        assert lines(cluster.status) == [(BETTER, RevisionState.SUPERSEDED), (GOOD, RevisionState.SERVING)]
        assert_says(cluster.status.revisions[0].message, "given up before it served", "not-offered")

    def test_one_that_is_tried_again_has_one_line_which_begins_anew(self) -> None:
        cluster = serving(digest=GOOD)
        for rerun in ("", "again"):
            cluster.spec = pinned(INACTIVE, rerun=rerun)
            cluster.now += timedelta(hours=1)
            began = timestamp(cluster.now)
            cluster.settle()
        assert lines(cluster.status) == [(INACTIVE, RevisionState.FAILED), (GOOD, RevisionState.SERVING)]
        assert cluster.status.revisions[0].started_at == began

    def test_it_is_bounded_and_never_forgets_what_serves(self) -> None:
        stable = revision("stable", RevisionState.SERVING)
        before = history([], Current(stable), START)
        for number in range(HISTORY + 3):
            now = START + timedelta(minutes=number + 1)
            candidate = revision(f"try-{number}", RevisionState.STARTING, timestamp(now))
            before = history(before, Current(stable, candidate), now)
        assert len(before) == HISTORY
        assert before[0].revision == f"try-{HISTORY + 2}"
        assert before[-1].revision == "stable"

    def test_one_that_waits_for_its_turn_has_no_line_yet(self) -> None:
        assert history([], Current(candidate=revision("next", RevisionState.WAITING)), START) == []

    @pytest.mark.slow
    def test_records_go_with_their_lines(self) -> None:
        cluster = serving()
        for number in range(HISTORY + 2):
            cluster.spec = pinned(GOOD, runtime="tgi")
            cluster.settings = SETTINGS.model_copy(
                update={"runtimes": {"tgi": SETTINGS.runtimes["tgi"].model_copy(update={"image": f"tgi:{number}"})}}
            )
            cluster.settle()
        kept = {line.revision for line in cluster.status.revisions}
        assert len(kept) == HISTORY
        assert cluster.revisions(CONTROLLER_REVISIONS) == kept
        numbers = [each["revision"] for each in cluster.objects[CONTROLLER_REVISIONS].values()]
        assert max(numbers) == HISTORY + 3


class TestRecords:
    def test_an_upgrade_of_the_operator_moves_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        cluster = serving()
        before = copy.deepcopy((cluster.objects, cluster.status))
        cluster.settings = next_release(monkeypatch)
        made = cluster.plan()
        assert made.actions == ()
        assert (cluster.objects, made.status) == before

    @pytest.mark.parametrize("passes", range(1, 4))
    def test_an_upgrade_in_the_middle_of_a_rollout_goes_on_with_it(
        self, monkeypatch: pytest.MonkeyPatch, passes: int
    ) -> None:
        cluster = serving()
        cluster.spec = pinned(BETTER)
        for _ in range(passes):
            cluster.reconcile()
            cluster.run_controllers()
        assert cluster.status.candidate is not None
        under_way = cluster.status.candidate.revision
        cluster.settings = next_release(monkeypatch)
        cluster.settle()
        assert cluster.traffic() == under_way
        assert cluster.status.phase is ServingPhase.READY

    def test_what_failed_is_tried_with_the_pods_of_the_next_release(self, monkeypatch: pytest.MonkeyPatch) -> None:
        cluster = serving()
        cluster.spec = pinned(INACTIVE)
        cluster.settle()
        failed = cluster.status.candidate
        cluster.settings = next_release(monkeypatch)
        cluster.reconcile()
        assert failed is not None
        assert cluster.status.candidate is not None
        assert cluster.status.candidate.revision != failed.revision

    @pytest.mark.parametrize(
        "settings",
        [
            with_runtime(image="images/tgi-cpu:2"),
            with_runtime(max_input_tokens=99),
            SETTINGS.model_copy(update={"proxy": Proxy(https_proxy="http://proxy:1")}),
            SETTINGS.model_copy(update={"images": SETTINGS.images.model_copy(update={"pull_secrets": ["registry"]})}),
            SETTINGS.model_copy(update={"images": SETTINGS.images.model_copy(update={"data": "mirror:5000/data:1"})}),
        ],
    )
    def test_what_the_admin_changes_is_another_revision(self, settings: Settings) -> None:
        cluster = serving()
        old = cluster.traffic()
        cluster.settings = settings
        cluster.settle()
        assert cluster.traffic() != old

    @pytest.mark.parametrize("image", ["images/data:2", "images/data", "images/data:2@sha256:0123"])
    def test_the_version_of_the_image_of_fetch_comes_with_the_release(self, image: str) -> None:
        cluster = serving()
        images = SETTINGS.images.model_copy(update={"data": image})
        cluster.settings = SETTINGS.model_copy(update={"images": images})
        assert cluster.plan().actions == ()

    def test_a_description_is_for_people(self) -> None:
        cluster = serving()
        cluster.settings = with_runtime(description="For trying things out.")
        assert cluster.plan().actions == ()

    def test_deleted_objects_come_back_as_they_were_proved(self, monkeypatch: pytest.MonkeyPatch) -> None:
        cluster = serving()
        before = copy.deepcopy(cluster.objects)
        cluster.settings = next_release(monkeypatch)
        for resource in (DEPLOYMENTS, CONFIG_MAPS):
            cluster.objects[resource] = {
                name: child for name, child in cluster.objects[resource].items() if name.startswith("demo-verify-")
            }
        cluster.settle()
        for resource in (DEPLOYMENTS, CONFIG_MAPS):
            for name, child in before[resource].items():
                found = cluster.objects[resource][name]
                assert (found.get("spec"), found.get("data")) == (child.get("spec"), child.get("data"))

    @pytest.mark.parametrize("has_record", [True, False])
    def test_pods_of_a_release_that_did_not_spread_them_stay(self, has_record: bool) -> None:
        cluster = serving(replicas=3)
        [live], [kept] = cluster.objects[DEPLOYMENTS].values(), cluster.objects[CONTROLLER_REVISIONS].values()
        for template in (live["spec"]["template"], kept["data"]["template"]):
            assert len(template["spec"].pop("topologySpreadConstraints")) == 2
        if not has_record:
            cluster.objects[CONTROLLER_REVISIONS].clear()
        pods, old = copy.deepcopy(live["spec"]["template"]), cluster.traffic()
        cluster.settle()
        assert cluster.objects[DEPLOYMENTS][f"demo-{old}"]["spec"]["template"] == pods
        assert cluster.status.candidate is None

    def test_a_record_that_cannot_be_read_counts_as_missing(self) -> None:
        cluster = serving()
        [kept] = cluster.objects[CONTROLLER_REVISIONS].values()
        del kept["data"]["template"]
        cluster.settle()
        assert cluster.status.phase is ServingPhase.READY
        assert cluster.status.candidate is None


class TestWithoutRecords:
    """What an earlier version of the operator started."""

    def earlier(self, settings: Settings = SETTINGS, **spec: Any) -> ServingCluster:
        cluster = ServingCluster(spec=pinned(GOOD, **spec), settings=settings)
        cluster.settle()
        cluster.objects[CONTROLLER_REVISIONS].clear()
        cluster.status = cluster.status.model_copy(update={"revisions": []})
        return cluster

    def test_the_same_pods_get_a_record_and_nothing_else_is_written(self) -> None:
        cluster = self.earlier()
        made = cluster.reconcile()
        assert [action.resource for action in made.actions] == [CONTROLLER_REVISIONS]
        assert lines(cluster.status) == [(GOOD, RevisionState.SERVING)]
        assert cluster.plan().actions == ()

    def test_pods_that_this_release_would_make_otherwise_are_taken_over_as_they_are(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cluster = self.earlier()
        pods = copy.deepcopy(cluster.objects[DEPLOYMENTS])
        old = cluster.traffic()
        cluster.settings = next_release(monkeypatch)
        made = cluster.reconcile()
        assert [action.resource for action in made.actions] == [CONTROLLER_REVISIONS]
        [kept] = cluster.objects[CONTROLLER_REVISIONS].values()
        assert kept["metadata"]["labels"][meta.LABEL_REVISION] == old
        assert kept["data"]["template"] == pods[f"demo-{old}"]["spec"]["template"]
        cluster.settle()
        assert cluster.objects[DEPLOYMENTS] == pods
        assert cluster.status.candidate is None

    @pytest.mark.parametrize("seconds", [600, 601])
    def test_pods_that_were_asked_less_often_whether_they_had_started(self, seconds: int) -> None:
        """How often is the release's: what the values decide is for how long."""
        cluster = self.earlier(with_runtime(startup_timeout_seconds=seconds))
        [live] = cluster.objects[DEPLOYMENTS].values()
        server = next(each for each in live["spec"]["template"]["spec"]["containers"] if each["name"] == SERVER)
        server["startupProbe"] |= {"periodSeconds": 5, "failureThreshold": math.ceil(seconds / 5)}
        made = cluster.reconcile()
        assert [action.resource for action in made.actions] == [CONTROLLER_REVISIONS]
        cluster.settle()
        assert cluster.status.candidate is None

    @pytest.mark.parametrize("names", [("a",), ()])
    def test_an_input_whose_name_holds_its_defaults(
        self, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
    ) -> None:
        with monkeypatch.context() as before:
            before.setattr(StageRequest, "name", property(lambda self: f"demo-{self.stage}-{short(self.input)}"))
            cluster = self.earlier(policy=signed(*names))
        [pods] = copy.deepcopy(cluster.objects[DEPLOYMENTS]).values()
        made = cluster.reconcile()
        assert [action.resource for action in made.actions] == [CONTROLLER_REVISIONS]
        cluster.settle()
        assert [each["spec"] for each in cluster.objects[DEPLOYMENTS].values()] == [pods["spec"]]
        [kept] = cluster.objects[CONTROLLER_REVISIONS].values()
        assert kept["data"]["input"]["name"] in cluster.objects[CONFIG_MAPS]

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ({}, {"image": "images/tgi-cpu:2"}),
            ({}, {"env": {"NEW": "1"}}),
            ({"env": {"DTYPE": "float16"}}, {"env": {"DTYPE": "bfloat16"}}),
            ({}, {"max_input_tokens": 99}),
            ({}, {"num_shard": 2}),
            ({}, {"drain_seconds": 60}),
            ({}, {"startup_timeout_seconds": 3600}),
            ({}, {"termination_grace_seconds": 900}),
            ({}, {"service_account_name": "other"}),
            *(({"pod": PodShape(**one)}, {"pod": PodShape(**other)}) for one, other in SHAPES),
            *(({"pod": PodShape(**one)}, {"pod": PodShape(**other)}) for other, one in SHAPES),
        ],
    )
    def test_not_if_the_runtime_changed_too(
        self, monkeypatch: pytest.MonkeyPatch, before: dict[str, Any], after: dict[str, Any]
    ) -> None:
        cluster = self.earlier(with_runtime(**before))
        release = next_release(monkeypatch)
        cluster.settings = release.model_copy(update={"runtimes": with_runtime(**after).runtimes})
        cluster.reconcile()
        assert cluster.status.candidate is not None

    def test_an_empty_variable_as_the_api_server_keeps_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        cluster = self.earlier(with_runtime(env={"CUDA_GRAPHS": ""}))
        [live] = cluster.objects[DEPLOYMENTS].values()
        variables = live["spec"]["template"]["spec"]["containers"][0]["env"]
        next(each for each in variables if each["name"] == "CUDA_GRAPHS").pop("value")
        release = next_release(monkeypatch)
        cluster.settings = release.model_copy(update={"runtimes": cluster.settings.runtimes})
        made = cluster.reconcile()
        assert [action.resource for action in made.actions] == [CONTROLLER_REVISIONS]
        assert cluster.status.candidate is None

    @pytest.mark.parametrize("back", [False, True])
    @pytest.mark.parametrize(
        "change",
        [
            {"proxy": Proxy(https_proxy="http://proxy:1")},
            {"images": SETTINGS.images.model_copy(update={"pull_secrets": ["registry"]})},
            {"images": SETTINGS.images.model_copy(update={"pull_policy": "Always"})},
            {"images": SETTINGS.images.model_copy(update={"data": "mirror:5000/data:1"})},
        ],
    )
    def test_not_if_the_platform_changed_too(
        self, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], back: bool
    ) -> None:
        changed = SETTINGS.model_copy(update=change)
        cluster = self.earlier(changed if back else SETTINGS)
        next_release(monkeypatch)
        cluster.settings = SETTINGS if back else changed
        cluster.reconcile()
        assert cluster.status.candidate is not None

    def test_quantities_may_be_written_otherwise(self, monkeypatch: pytest.MonkeyPatch) -> None:
        shape = {"requests": {"cpu": "1000m"}, "limits": {"memory": "1024Mi"}, "scratch_size": "1024Mi"}
        cluster = self.earlier(with_runtime(pod=PodShape(**shape)))
        old, release = cluster.traffic(), next_release(monkeypatch)
        shape = {"requests": {"cpu": "1"}, "limits": {"memory": "1Gi"}, "scratch_size": "1Gi"}
        cluster.settings = release.model_copy(update={"runtimes": with_runtime(pod=PodShape(**shape)).runtimes})
        cluster.settle()
        assert cluster.traffic() == old

    @pytest.mark.parametrize(
        ("before", "after", "stays"),
        [
            pytest.param(signed("a"), signed("a"), True, id="the same keys"),
            pytest.param(signed(), signed("a"), False, id="keys that were not asked for"),
            pytest.param(signed("a"), signed("b"), False, id="other keys"),
            pytest.param(signed("a"), signed(), False, id="keys that are no longer asked for"),
        ],
    )
    def test_the_signature_was_checked_as_the_policy_asks(
        self, monkeypatch: pytest.MonkeyPatch, before: dict[str, Any], after: dict[str, Any], stays: bool
    ) -> None:
        cluster = self.earlier(policy=before)
        old = cluster.traffic()
        cluster.settings = next_release(monkeypatch)
        cluster.spec |= {"policy": after}
        cluster.generation += 1
        cluster.settle()
        assert cluster.status.phase is ServingPhase.READY
        assert (cluster.traffic() == old) is stays

    def test_an_input_that_is_gone_is_made_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        cluster = self.earlier(policy=signed("a"))
        before = copy.deepcopy(cluster.objects[CONFIG_MAPS])
        cluster.settings = next_release(monkeypatch)
        cluster.reconcile()
        cluster.objects[CONFIG_MAPS].clear()
        cluster.settle()
        made = cluster.objects[CONFIG_MAPS]
        assert all(made[name]["data"] == each["data"] for name, each in before.items() if "fetch" in name)


def revision(name: str, state: RevisionState, since: str = timestamp(START)) -> RevisionStatus:
    return RevisionStatus(
        revision=name,
        state=state,
        artifact_digest=GOOD,
        artifact_uri="s3://models/team/artifacts/1",
        deployment=f"demo-{name}",
        storage=Storage(),
        since=since,
    )
