"""API calls that fail again and again: the status says so after a minute, and no more once they succeed."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

import pytest

from finetune_api.job_status import FineTuneJobStatus, Phase
from finetune_api.meta import FINETUNEJOB
from finetune_api.reasons import Reason, remedy
from finetune_operator.controller import INDEXES
from finetune_operator.finetunejob.kind import fine_tune_job_kind
from finetune_operator.framework.api_failures import LASTING
from finetune_operator.framework.cache import Cache
from finetune_operator.framework.client import ApiError
from finetune_operator.framework.objects import CONFIG_MAPS, EVENTS, JOBS, SERVICE_ACCOUNTS, Object, Resource
from finetune_operator.framework.ownership import Key
from finetune_operator.framework.reconcile import Reconciler
from finetune_operator.kinds import FINETUNEJOBS
from finetune_operator.settings import Images, Profile, Settings
from tests.support.memory_cluster import NAMESPACE, MemoryCluster, fine_tune_job, read_all, runner
from tests.support.sentences import assert_says

pytestmark = pytest.mark.unit

SETTINGS = Settings(
    images=Images(data="d", prepare="p", jobs="j", quantize="q", proxy="x"), profiles={"small": Profile()}
)
KEY = Key(FINETUNEJOB, NAMESPACE, "job")
Call = tuple[str, Resource]
ACCOUNT: Call = ("get", SERVICE_ACCOUNTS)
STATUS: Call = ("patch_status", FINETUNEJOBS)


def words(call: Call) -> str:
    """What the server answers to a call that fails."""
    return f"failed calling webhook for {call[0]} {call[1].kind}: connection refused"


def told(call: Call) -> tuple[str, str]:
    """What the status says of it, in parts."""
    return f"500 InternalError: {words(call)}.", remedy(Reason.API_CALLS_FAIL, FINETUNEJOB)


@dataclass
class FailingCluster(MemoryCluster):
    """A cluster of which some calls fail."""

    failing: set[Call] = field(default_factory=set)
    asked: list[Call] = field(default_factory=list)
    refused: str = ""
    """A field of the status that the server does not take."""

    def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        self._ask("get", resource)
        return super().get(resource, namespace, name)

    def create(self, resource: Resource, body: Object) -> Object:
        self._ask("create", resource)
        return super().create(resource, body)

    def patch_status(self, resource: Resource, namespace: str, name: str, body: Object) -> Object:
        self._ask("patch_status", resource)
        if self.refused in body["status"]:
            raise ApiError(422, "Invalid", f"status.{self.refused}: Invalid value")
        return super().patch_status(resource, namespace, name, body)

    def _ask(self, verb: str, resource: Resource) -> None:
        self.asked.append((verb, resource))
        if (verb, resource) in self.failing:
            raise ApiError(500, "InternalError", words((verb, resource)))


class Operator:
    """A FineTuneJob, and the reconciler for it."""

    def __init__(self) -> None:
        self.cluster = FailingCluster()
        self.cluster.create(SERVICE_ACCOUNTS, runner())
        self.cluster.create(FINETUNEJOBS, fine_tune_job("job"))
        self.restart()

    def restart(self) -> None:
        """A new process, which remembers nothing."""
        self._cache = Cache(INDEXES)
        kind = fine_tune_job_kind(self.cluster, self._cache, SETTINGS)
        self._reconciler = Reconciler(self.cluster, self._cache, {KEY.kind: kind}, lambda: self.cluster.now)

    def turn(self, after: timedelta = timedelta()) -> str:
        """A pass, some time after the one before; what fails, in the server's words."""
        self.cluster.now += after
        read_all(self._cache, self.cluster)
        try:
            self._reconciler.reconcile(KEY)
        except ApiError as error:
            return error.message
        return ""

    @property
    def status(self) -> FineTuneJobStatus:
        return FineTuneJobStatus.model_validate(self.cluster.objects[KEY.kind, "job"]["status"])

    def condition(self, kind: str) -> tuple[str, str]:
        return next((c.status, c.reason) for c in self.status.conditions if c.type == kind)

    def message(self, kind: str) -> str:
        return next(each.message for each in self.status.conditions if each.type == kind)

    def writes(self) -> int:
        """Attempts to write the status."""
        return self.cluster.asked.count(STATUS)


@pytest.mark.parametrize("call", [ACCOUNT, ("create", CONFIG_MAPS), ("create", JOBS)])
def test_what_fails_for_a_minute_is_told_once_until_it_works(call: Call) -> None:
    """In the server's words and with the remedy, whether it is an observation or an action that fails."""
    operator = Operator()
    operator.cluster.failing = {call}
    assert operator.turn() == operator.turn(LASTING - timedelta(seconds=1)) == words(call)
    assert (operator.status, operator.writes()) == (FineTuneJobStatus(), 0)
    assert operator.turn(timedelta(seconds=1)) == words(call)
    assert (operator.status.phase, operator.writes()) == (Phase.PENDING, 1)
    assert operator.condition("Ready") == ("False", Reason.API_CALLS_FAIL)
    assert operator.condition("Stalled") == ("True", Reason.API_CALLS_FAIL)
    for kind in ("Ready", "Stalled"):
        assert_says(operator.message(kind), *told(call))
        assert operator.message(kind).count(remedy(Reason.API_CALLS_FAIL, FINETUNEJOB)) == 1
    assert operator.turn(LASTING) == words(call)
    assert operator.writes() == 1
    events = [found for (kind, _), found in operator.cluster.objects.items() if kind == EVENTS.kind]
    assert [(event["type"], event["reason"]) for event in events] == [("Warning", Reason.API_CALLS_FAIL)]
    operator.cluster.failing = set()
    assert operator.turn() == operator.turn() == ""
    assert operator.status.phase is Phase.RUNNING
    assert operator.condition("Stalled") == ("False", Reason.WAITING)


def test_a_success_in_between_begins_the_minute_anew() -> None:
    operator = Operator()
    operator.cluster.failing = {ACCOUNT}
    assert operator.turn()
    operator.cluster.failing = set()
    assert not operator.turn(LASTING)
    operator.cluster.failing = {("create", JOBS)}
    operator.cluster.remove(JOBS, next(name for kind, name in operator.cluster.objects if kind == JOBS.kind))
    assert operator.turn(LASTING)
    assert (operator.status, operator.writes()) == (FineTuneJobStatus(), 0)


def test_a_run_that_is_active_keeps_its_phase() -> None:
    """Its spec stays frozen; its Jobs go on without the operator."""
    operator = Operator()
    assert operator.turn() == operator.turn() == ""
    run = operator.status.run
    assert run
    operator.restart()
    operator.cluster.failing = {ACCOUNT}
    assert operator.turn()
    assert operator.turn(LASTING)
    assert (operator.status.phase, operator.status.run) == (Phase.RUNNING, run)
    assert operator.condition("Stalled") == ("True", Reason.API_CALLS_FAIL)
    assert_says(operator.message("Stalled"), *told(ACCOUNT))


def test_where_it_is_the_status_that_cannot_be_written_nothing_else_is_tried() -> None:
    operator = Operator()
    operator.cluster.failing = {STATUS}
    assert not operator.turn(), "makes the first Job, and tells of it in a turn of its own"
    for turns in range(1, 4):
        assert operator.turn(LASTING) == words(STATUS)
        assert operator.writes() == turns
    operator.cluster.failing = set()
    assert not operator.turn()
    assert operator.status.phase is Phase.RUNNING
    assert operator.condition("Stalled")[0] == "False"


def test_where_both_fail_the_first_error_is_the_one_that_counts() -> None:
    operator = Operator()
    operator.cluster.failing = {ACCOUNT, STATUS}
    assert operator.turn() == operator.turn(LASTING) == words(ACCOUNT)
    assert (operator.status, operator.writes()) == (FineTuneJobStatus(), 1)


def test_a_field_that_the_server_refuses_does_not_keep_the_conditions_from_being_told() -> None:
    """E.g. because its CRD is older than the operator."""
    operator = Operator()
    operator.cluster.refused = "stages"
    assert not operator.turn(), "makes the first Job"
    assert operator.turn() == operator.turn(LASTING - timedelta(seconds=1)) == "status.stages: Invalid value"
    assert operator.status == FineTuneJobStatus()
    assert operator.turn(timedelta(seconds=1)) == "status.stages: Invalid value"
    assert operator.condition("Stalled") == ("True", Reason.API_CALLS_FAIL)
    assert_says(operator.message("Stalled"), "422 Invalid: status.stages: Invalid value.")
    written = operator.status
    assert operator.turn(LASTING) == "status.stages: Invalid value"
    assert operator.status == written
    operator.cluster.refused = ""
    assert not operator.turn()
    assert operator.condition("Stalled")[0] == "False"
    assert operator.status.stages
