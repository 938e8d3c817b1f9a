"""Who answers in an evaluation: the same questions to transformers and to vLLM, and what is said where vLLM cannot.

In vLLM's place is a package that keeps its contract (``tests/support/vllm_stand_in``), in a process like its own.
"""

import json
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finetune_api.dataset import TaskType
from finetune_api.evaluation import Coverage, Evaluation
from finetune_api.evaluation import Generator as Asked
from finetune_api.reasons import Reason
from finetune_api.training import Method, Training
from finetune_jobs.artifacts.artifact import ANSWERS, METRICS, REFERENCE, read_answers
from finetune_jobs.base.errors import StageError
from finetune_jobs.base.progress import Progress
from finetune_jobs.evaluate import EvaluationFiles, Setting, evaluate_models
from finetune_jobs.evaluate import _generators as generators_of
from finetune_jobs.evaluation.behaviour.likelihood import encode
from finetune_jobs.evaluation.generate import Questions
from finetune_jobs.evaluation.generators import vllm_process
from finetune_jobs.evaluation.generators.on_transformers import TransformersGenerator
from finetune_jobs.evaluation.generators.on_vllm import VllmGenerators
from finetune_jobs.evaluation.generators.protocol import Exported, Generator
from finetune_jobs.evaluation.passages import Passage
from finetune_jobs.exporting.adapter import write_base
from finetune_jobs.exporting.offload import load_artifact
from finetune_jobs.modelling import chat
from finetune_jobs.modelling.loading import load_adapter, load_base
from finetune_jobs.modelling.tokenizer import load_tokenizer, stop_token
from finetune_jobs.modelling.tuning import Tuning
from tests.support.sentences import assert_says
from tests.support.tiny_model import edit_json
from tests.support.training import LABELS, rows

pytestmark = [pytest.mark.unit, pytest.mark.slow]

LORA = Tuning.of(Training(method=Method.LORA))
QUESTIONS = Questions([each["messages"][:-1] for each in rows(6)], limit=12, batch_size=4)


def quiet(_done: int, _total: int) -> None:
    """No progress."""


def generators(folder: Path, work: Path, tuning: Tuning = LORA, tuned: str = "adapter") -> VllmGenerators:
    return VllmGenerators(folder / "base", folder / tuned, tuning, 128, work, write_base, load_artifact)


def everything(generator: Generator, base: Path) -> dict[str, Any]:
    """What an evaluation asks of a model."""
    tokenizer = load_tokenizer(base)
    stop = stop_token(base, tokenizer)
    given = [encode(tokenizer, prompt, LABELS[0], stop) for prompt in QUESTIONS.prompts]
    codes = [[*chat.answer_ids(tokenizer, label), stop] for label in LABELS]
    written = generator.write(QUESTIONS, quiet, weighed=True)
    again, chosen = generator.write_and_choose(QUESTIONS, LABELS, stop, quiet)
    assert [each.text for each in again] == [each.text for each in written]
    return {
        "answers": [(each.text, list(each.tokens), each.ended) for each in written],
        "chosen": chosen,
        "likely": [each.log_probability for each in written],
        "losses": generator.losses(given, quiet),
        "codes": generator.weigh(given[0].prompt, codes),
        "passage": generator.log_probs(Passage("", [*given[0].prompt, *given[0].answer])),
    }


def test_both_programs_are_asked_and_say_the_same(model_folder: Path, tmp_path: Path, fresh_vllm: Path) -> None:
    """Base and adapter in one process; what transformers says in float32."""
    base = model_folder / "base"
    model, tokenizer = load_base(base).float(), load_tokenizer(base)
    with generators(model_folder, tmp_path / "vllm") as models:
        for name in ("base", "tuned"):
            found = everything(models.base() if name == "base" else models.tuned(), base)
            model = model if name == "base" else load_adapter(model, model_folder / "adapter")
            expected = everything(TransformersGenerator(model, tokenizer), base)
            for each in ("answers", "chosen"):
                assert found[each] == expected[each], (name, each)
            for each in ("likely", "losses", "codes", "passage"):
                assert found[each] == pytest.approx(expected[each], abs=2e-2), (name, each)
        assert models.program == "vLLM 0.32.0+stand-in"
        with pytest.raises(StageError) as error:
            models.tuned().log_probs(Passage("", [5] * 200))
    assert error.value.reason is Reason.GENERATOR_FAILED
    assert_says(
        error.value.message, "for the base model", "could not answer", "is longer than the maximum", "Transformers"
    )


def test_an_evaluation_whose_models_run_in_vllm(model_folder: Path, tmp_path: Path, vllm: Path) -> None:
    """The base is the 16-bit numbers that its rounded weights stand for; positions are changed by transformers."""
    files = EvaluationFiles(
        base=model_folder / "base",
        tuned=model_folder / "adapter",
        exported=[Exported("Adapter", "e" * 64, model_folder / "adapter", model_folder / "base")],
        dataset=model_folder / "two-canaries",
        out=tmp_path / "out",
    )
    asked = Evaluation(max_samples=10, general=Coverage.OFF, adversarial=Coverage.OFF, generator=Asked.VLLM)
    tuning = Tuning.of(Training(method=Method.QLORA))
    evaluate_models(files, tuning, Setting(TaskType.CLASSIFICATION, asked), Progress("evaluate"))
    answers = read_answers((tmp_path / "out" / ANSWERS).read_text().splitlines(), ANSWERS)
    assert len(answers) == 10
    assert all(each.tuned != each.base for each in answers)
    assert {each.constrained in LABELS for each in answers} == {True}
    assert all(each.log_probability is not None and each.log_probability < 0 for each in answers)
    metrics = json.loads((tmp_path / "out" / METRICS).read_text())
    assert metrics["generator"] == "vLLM 0.32.0+stand-in"
    references = [json.loads(line) for line in (tmp_path / "out" / REFERENCE).read_text().splitlines()]
    assert all(each["turned"] for each in references)
    assert [each["noise"] is None for each in references] == [
        each["long"] or each["positionsOnly"] for each in references
    ]
    assert [each["positionsOnly"] for each in references].count(True) == 2
    assert (tmp_path / "vllm" / "base" / "config.json").exists()
    assert "Answered by" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        ({"max_position_embeddings": 4096}, 4096),
        ({"max_position_embeddings": 8192}, 5000),
        ({"text_config": {"model_type": "gemma3_text"}, "max_position_embeddings": 1}, 5000),
    ],
    ids=["fewer", "more", "not said"],
)
def test_vllm_is_given_room_for_what_is_asked_as_far_as_the_model_takes_it(
    tmp_path: Path, config: dict[str, Any], longest: int
) -> None:
    """Gemma 3 leaves its number to the default of its architecture, which is more than what is asked."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    files = EvaluationFiles(base=tmp_path, tuned=tmp_path, exported=[], dataset=tmp_path, out=tmp_path / "out")
    paper: Any = SimpleNamespace(longest=5000)
    made = generators_of(files, LORA, paper, Asked.VLLM)
    assert isinstance(made, VllmGenerators)
    assert made.longest == longest


def test_no_other_program_answers_in_the_place_of_vllm(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = tmp_path / "ends"
    ends.write_text("#!/bin/sh\necho no kernel image is available >&2\nexit 7\n")
    ends.chmod(0o755)
    for program, said in {
        str(
            tmp_path / "none"
        ): "has no vLLM … does not exist … Transformers … images.evaluateVllm … images/evaluate-vllm",
        sys.executable: "for the base model, vLLM could not load it … No module named 'vllm' … Transformers",
        str(ends): "could not load it … code 7 … 'no kernel image is available' … Transformers",
    }.items():
        monkeypatch.setenv("FINETUNE_VLLM_PYTHON", program)
        with generators(model_folder, tmp_path / "vllm") as models, pytest.raises(StageError) as error:
            models.base()
        assert error.value.reason is Reason.GENERATOR_FAILED
        assert_says(error.value.message, "spec.evaluation.generator", *said.split(" … "))


def test_no_process_of_vllm_outlives_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With several GPUs it has some, which hold their memory: here one that heeds no SIGTERM, as its parent ends."""
    leaves = tmp_path / "leaves"
    child = f"trap '' TERM; echo $$ > {tmp_path}/child; exec sleep 600"
    leaves.write_text(f'#!/bin/sh\nsh -c "{child.replace("$", chr(92) + "$")}" > /dev/null &\n')
    with leaves.open("a") as program:
        program.write(f"until [ -s {tmp_path}/child ]; do sleep 0.01; done\nexit 7\n")
    leaves.chmod(0o755)
    monkeypatch.setenv("FINETUNE_VLLM_PYTHON", str(leaves))
    with pytest.raises(StageError, match="code 7"):
        vllm_process.VllmProcess(vllm_process.Loaded("a model", tmp_path, 8), tmp_path)
    left = Path("/proc", (tmp_path / "child").read_text().strip(), "stat")

    def runs() -> bool:
        """A zombie holds nothing."""
        try:
            return left.read_text().rpartition(")")[2].split()[0] != "Z"
        except (FileNotFoundError, ProcessLookupError):
            return False

    deadline = time.monotonic() + 30
    while runs() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not runs()


def test_an_adapter_that_vllm_does_not_load_is_refused_before_it_starts(model_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(model_folder / "base", tmp_path / "base")
    shutil.copytree(model_folder / "adapter", tmp_path / "dora")
    edit_json(tmp_path / "dora" / "adapter_config.json", use_dora=True)
    with generators(tmp_path, tmp_path / "vllm", tuned="dora") as models, pytest.raises(StageError) as error:
        models.base()
    assert error.value.reason is Reason.MODEL_UNSUPPORTED
    assert_says(error.value.message, "spec.evaluation.generator is VLLM", "use_dora", "Transformers")


def test_keys_of_the_store_stay_out_of_the_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    found = vllm_process._environment(tmp_path)
    assert "secret" not in found.values()
    assert (found["CUDA_VISIBLE_DEVICES"], found["HOME"], found["HF_HUB_OFFLINE"]) == ("0", str(tmp_path), "1")
