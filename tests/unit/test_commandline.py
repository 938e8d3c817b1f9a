"""The stages' command line: help that is enough to run one, and example inputs that are valid."""

import pytest

from finetune_api.meta import TEACHER_KEY_VARIABLE, ExitCode
from finetune_api.stages import PIPELINE, Stage, StageInput, input_key
from finetune_api.tracking import WANDB_KEY_VARIABLE
from finetune_jobs.runtime.commandline import example_input, parse

pytestmark = pytest.mark.unit

STAGES = pytest.mark.parametrize("stage", list(Stage))


@STAGES
def test_help_says_what_a_stage_needs_and_gives(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(stage, ["--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0
    for part in ("reads:", "writes:", "AWS_ACCESS_KEY_ID", "TMPDIR", "--example", "--metrics-port"):
        assert part in text
    assert f"python -m finetune_jobs.{stage} --input input.json" in text
    assert r"-o jsonpath='{.data.input\.json}'" in text
    assert all(f"\n  {code.value:2d}  " in text for code in ExitCode)
    assert (TEACHER_KEY_VARIABLE in text) is (stage is Stage.PREPARE)
    for key in ("MLFLOW_TRACKING_TOKEN", WANDB_KEY_VARIABLE):
        assert (key in text) is (stage is Stage.TRAIN)


@STAGES
def test_an_example_is_a_valid_input(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(stage, ["--example"])
    given = StageInput.model_validate_json(capsys.readouterr().out, extra="forbid")
    assert ended.value.code == ExitCode.OK
    assert given == example_input(stage)
    assert given.stage is stage


@pytest.mark.parametrize("stage", PIPELINE)
def test_an_example_holds_what_identifies_its_work(stage: Stage) -> None:
    given = example_input(stage)
    assert len(input_key(stage, given.upstream, given.params)) == 64
    assert given.output


def test_an_unknown_option_ends_with_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(Stage.TRAIN, ["--inputs", "x"])
    assert ended.value.code == 2
    assert "usage: python -m finetune_jobs.train" in capsys.readouterr().err
