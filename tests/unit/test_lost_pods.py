"""Pods that are lost between their last write and their end: the next one finds what they made, whatever the stage."""

from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_api.finetunejob import Output
from finetune_api.layout import MANIFEST, output_folder
from finetune_api.stages import PIPELINE, Stage, StageInput, StageResult
from finetune_jobs.artifacts import folders
from finetune_jobs.runtime.runner import Context, StageOutput, Work, execute
from finetune_jobs.store.s3 import Store
from tests.support.first_stages import never
from tests.support.seaweedfs import SeaweedFS
from tests.support.stages import RUN, context, pipeline_params, stage_input

pytestmark = [pytest.mark.unit, pytest.mark.slow]

KEY = "7" * 64


class LostError(BaseException):
    """The node is gone: nothing more of the pod is done."""


def lost(_context: Context, _result: StageResult) -> StageResult:
    raise LostError


@pytest.fixture
def asked(s3: SeaweedFS, store: Store) -> Callable[[Stage, bool], StageInput]:
    """What the operator gives a stage of a run with ``spec.reuse``, or of one with ``Never``."""
    output = Output(uri=store.uri(), name="transactions")
    whole = stage_input(Stage.RESOLVE, s3.storage, output, pipeline_params([], output))

    def of(stage: Stage, reuse: bool) -> StageInput:
        return whole.model_copy(update={"stage": stage, "input_key": KEY, "reuse": reuse, "reuse_own": not reuse})

    return of


def writing(content: str, *, reusable: bool = True) -> Work:
    """A stage whose result is one file."""

    def work(context: Context) -> StageOutput:
        folder = context.scratch / "out"
        folder.mkdir()
        (folder / "file").write_text(content)
        return StageOutput(folder=folder, scalars={"of": content}, message=f"wrote {content}", reusable=reusable)

    return work


@pytest.mark.parametrize("reuse", [True, False], ids=["Allowed", "Never"])
@pytest.mark.parametrize("stage", PIPELINE)
def test_the_next_pod_finds_what_a_lost_one_has_written(
    asked: Callable[[Stage, bool], StageInput], store: Store, tmp_path: Path, stage: Stage, reuse: bool
) -> None:
    """Not what an earlier run made of the same input, where the run uses nothing of others."""
    given, other = asked(stage, reuse), RUN.model_copy(update={"id": "r0"})
    if not reuse:
        execute(context(given.model_copy(update={"run": other}), tmp_path), writing("another run's"))
    with pytest.raises(LostError):
        execute(context(given, tmp_path), writing("its own"), after=lost)
    ends = list[StageResult]()

    def after(_context: Context, result: StageResult) -> StageResult:
        ends.append(result)
        return result

    found = execute(context(given, tmp_path), never, after=after)

    assert (found.scalars, found.message, ends) == ({"of": "its own"}, "wrote its own", [found])
    assert found.reused is reuse, "nothing of other runs was used"
    store.delete(f"{output_folder(stage, found.output_digest)}/{MANIFEST}")
    assert execute(context(given, tmp_path), writing("its own again")).message == "wrote its own again"


@pytest.mark.parametrize("reuse", [True, False], ids=["Allowed", "Never"])
@pytest.mark.parametrize("until", ["publish_folder", "publish_record"])
def test_what_is_half_written_is_made_again(
    asked: Callable[[Stage, bool], StageInput],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    until: str,
    reuse: bool,
) -> None:
    """The files may be there, also all of them: what nothing leads to is no result."""
    given = asked(Stage.EXPORT, reuse)
    with monkeypatch.context() as patch:
        patch.setattr(folders, until if reuse or until == "publish_folder" else "publish_own_record", lost_at_once)
        with pytest.raises(LostError):
            execute(context(given, tmp_path), writing("half"))
    assert execute(context(given, tmp_path), writing("whole")).message == "wrote whole"


def lost_at_once(*_arguments: object, **_named: object) -> None:
    raise LostError


@pytest.mark.parametrize("reuse", [True, False], ids=["Allowed", "Never"])
def test_of_two_pods_of_a_stage_the_first_one_is_right_for_both(
    asked: Callable[[Stage, bool], StageInput], tmp_path: Path, reuse: bool
) -> None:
    """A node that was given up may still run its pod. The operator has read what the other one said."""
    given = asked(Stage.EVALUATE, reuse)

    def overtaken(late: Context) -> StageOutput:
        execute(context(given, tmp_path), writing("of the pod that was first"))
        return writing("of the pod that was given up")(late)

    result = execute(context(given, tmp_path), overtaken)
    assert result.message == "wrote of the pod that was first"
    assert execute(context(given, tmp_path), never).output_digest == result.output_digest


def test_what_may_be_decided_otherwise_later_is_not_found(
    asked: Callable[[Stage, bool], StageInput], tmp_path: Path
) -> None:
    """People may vote between two pods."""
    for content in ("undecided", "decided"):
        found = execute(context(asked(Stage.PUBLISH, False), tmp_path), writing(content, reusable=False))
        assert found.message == f"wrote {content}"


def test_by_hand_nothing_is_found_without_reuse(asked: Callable[[Stage, bool], StageInput], tmp_path: Path) -> None:
    """A person edits an input and starts the stage again, under the run's old name."""
    given = asked(Stage.PREPARE, False).model_copy(update={"reuse_own": False})
    for content in ("first", "edited"):
        assert execute(context(given, tmp_path), writing(content)).message == f"wrote {content}"
