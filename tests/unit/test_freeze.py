"""Which changes of a spec are a change of what is made: the marks in the models, and the run that follows from them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import BaseModel

from finetune_api.base import ObjectMeta
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.freeze import Changes, made, means, places
from finetune_api.job_status import FineTuneJobStatus, Phase, RunStatus, StageState, StageStatus
from finetune_operator.finetunejob.observe import ObservedJob, means_hash, spec_hash
from finetune_operator.finetunejob.plan import current_run
from finetune_operator.framework.ownership import Owner
from finetune_operator.kinds import FINETUNEJOBS
from finetune_operator.settings import Images, Settings

pytestmark = pytest.mark.unit

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
THEN = "2026-01-01T10:00:00Z"
TEACHER: dict[str, Any] = {"url": "http://teacher/v1", "model": "m"}
GIVEN: dict[str, Any] = {
    "profile": "small",
    "model": {"uri": "s3://models/base"},
    "dataset": {"sources": [{"uri": "s3://data/rows.csv"}], "distillation": {"teacher": TEACHER}},
    "output": {"uri": "s3://artifacts/team", "name": "ft"},
    "budget": {"maxCost": "5"},
}
KEYS = {"name": "keys"}


def changed(path: str, value: Any) -> FineTuneJobSpec:
    """The spec with another value at a place."""

    def put(block: dict[str, Any], steps: list[str]) -> dict[str, Any]:
        first, *rest = steps
        return block | {first: put(block.get(first, {}), rest) if rest else value}

    return FineTuneJobSpec.model_validate(put(GIVEN, path.split(".")))


SPEC = changed("profile", "small")
NOTHING = {"suspend": True, "tracking": {"mlflow": {"url": "http://mlflow"}}, "retention": {"checkpoints": 9}}
MEANS = {
    "storage.secretRef": KEYS,
    "storage.caBundle": {"configMapKeyRef": {"name": "ca", "key": "ca.crt"}},
    "dataset.distillation.teacher.secretKeyRef": KEYS | {"key": "key"},
    "budget": {"maxCost": "6"},
    "output.signing": {"secretKeyRef": KEYS | {"key": "key"}},
}
MADE = {
    "profile": "large",
    "rerun": "2",
    "storage.region": "eu-west-1",
    "dataset.distillation.teacher.model": "n",
    "training.rank": 8,
    "output.pushTo": [{"oci": {"registry": "https://r", "repository": "a"}}],
    "dataset.pilot": {},
}


@pytest.mark.parametrize(("path", "value"), NOTHING.items())
def test_what_changes_nothing(path: str, value: Any) -> None:
    other = changed(path, value)
    assert (made(other), means(other)) == (made(SPEC), means(SPEC))


@pytest.mark.parametrize(("path", "value"), MEANS.items())
def test_the_means_are_told_apart_from_what_is_made(path: str, value: Any) -> None:
    """A block that is there for their sake only changes nothing either."""
    other = changed(path, value)
    assert made(other) == made(SPEC)
    assert means(other) != means(SPEC)


@pytest.mark.parametrize(("path", "value"), MADE.items())
def test_everything_else_is_what_is_made(path: str, value: Any) -> None:
    other = changed(path, value)
    assert made(other) != made(SPEC)
    assert means(other) == means(SPEC)


def fields(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, bool]]:
    """Every field at any depth, and whether it or a block around it is marked."""
    for place in places(model):
        here = f"{path}.{place.name}"
        yield here, place.changes is not None
        if place.below is not None:
            yield from ((name, marked or place.changes is not None) for name, marked in fields(place.below, here))


def test_no_way_to_name_a_secret_is_frozen() -> None:
    """Keys expire while a training runs: the next stage must be able to use others."""
    secrets = {name: marked for name, marked in fields(FineTuneJobSpec) if "secret" in name.rpartition(".")[2].lower()}
    assert not secrets.pop(".dataset.cleaning.secrets")  # what to do with those in the rows
    assert len(secrets) >= 4
    assert [name for name, marked in secrets.items() if not marked] == []


def test_the_marks_are_where_the_documentation_says() -> None:
    found = {name for name, marked in fields(FineTuneJobSpec) if marked}
    tops = {name for name in found if name.rpartition(".")[0] not in found}
    named = {".suspend", ".tracking", ".retention", ".budget"}
    assert named <= tops
    others = {name.rpartition(".")[2] for name in tops - named}
    assert others <= {"caBundle", "secretRef", "secretKeyRef", "signing"}, "of signing, the Secret is all there is"


def status(outcome: Phase, means_: str, at_work: bool = False, ended: str = "") -> FineTuneJobStatus:
    """Of a run of generation 1 that worked on SPEC."""
    finished = None if outcome is Phase.RUNNING else THEN
    hashes = {"spec_hash": spec_hash(SPEC), "means_hash": means_}
    run = RunStatus(id="r", number=1, generation=1, started_at=THEN, finished_at=finished, outcome=outcome, **hashes)
    state = StageState.RUNNING if outcome is Phase.RUNNING else StageState.SUCCEEDED
    row = StageStatus(name="train", state=state, working_since=THEN if at_work else None, ended=ended)
    return FineTuneJobStatus(phase=outcome, run=run, stages=[row])


def number(status_: FineTuneJobStatus, spec: FineTuneJobSpec) -> int:
    """Of the run that works on a spec of generation 2."""
    metadata = ObjectMeta(name="ft", namespace="team", uid="uid", generation=2)
    settings = Settings(images=Images(data="d", prepare="p", jobs="j", quantize="q", proxy="x"), profiles={})
    owner = Owner.of(FINETUNEJOBS, metadata)
    run = current_run(ObservedJob(owner, metadata, spec, status_, settings), NOW)
    assert (run.spec_hash, run.means_hash, run.generation) == (spec_hash(spec), means_hash(spec), 2)
    return run.number


KNOWN = means_hash(SPEC)


@pytest.mark.parametrize(("path", "value"), (NOTHING | MEANS).items())
def test_a_run_goes_on_with_what_may_change(path: str, value: Any) -> None:
    for at_work in (False, True):
        assert number(status(Phase.RUNNING, KNOWN, at_work), changed(path, value)) == 1


@pytest.mark.parametrize(
    ("before", "on_nothing", "on_means"),
    [
        (status(Phase.SUCCEEDED, KNOWN), 1, 1),
        (status(Phase.FAILED, KNOWN), 1, 2),
        (status(Phase.SUCCEEDED, KNOWN, ended="BudgetExceeded"), 1, 2),
        (status(Phase.FAILED, ""), 1, 1),
    ],
    ids=["succeeded", "failed", "cut short by its budget", "failed, of an older version"],
)
def test_other_means_try_again_what_they_ended(before: FineTuneJobStatus, on_nothing: int, on_means: int) -> None:
    assert {number(before, changed(path, value)) for path, value in NOTHING.items()} == {on_nothing}
    assert {number(before, changed(path, value)) for path, value in MEANS.items()} == {on_means}


@pytest.mark.parametrize(("path", "value"), MADE.items())
def test_another_artifact_is_another_run_unless_a_stage_is_at_work(path: str, value: Any) -> None:
    """Then the API server has refused it: only another version computes another hash."""
    assert number(status(Phase.RUNNING, KNOWN), changed(path, value)) == 2
    assert number(status(Phase.SUCCEEDED, KNOWN), changed(path, value)) == 2
    assert number(status(Phase.RUNNING, KNOWN, at_work=True), changed(path, value)) == 1


def test_the_freeze_is_of_fields_and_marks_only() -> None:
    """A budget is marked whole; the rule adds that it may not be lowered."""
    assert {place.name: place.changes for place in places(FineTuneJobSpec) if place.changes} == {
        "budget": Changes.RETRY,
        "tracking": Changes.NOTHING,
        "retention": Changes.NOTHING,
        "suspend": Changes.NOTHING,
    }
