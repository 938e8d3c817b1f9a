"""What an evaluation asks as preflight counts it, against what an evaluation asks; and how long that takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_api.budget import HardwareFacts
from finetune_api.dataset import TaskType
from finetune_api.evaluation import Coverage, Examination
from finetune_api.timing import Pace, evaluate_seconds
from finetune_api.training import Method, Training
from finetune_jobs.evaluation import asking as evaluation
from finetune_jobs.evaluation import generate, passages, reference, shots
from finetune_jobs.evaluation.behaviour import probe
from finetune_jobs.evaluation.behaviour.items import sets_for
from finetune_jobs.fit import answering, asked
from finetune_jobs.fit.admission import admit
from finetune_jobs.fit.asked import LABEL_TOKENS, Asking, asking
from finetune_jobs.fit.fitting import After
from finetune_jobs.fit.memory import INT8
from finetune_jobs.modelling.tuning import Tuning
from tests.support.fit import A100, CPU, L4, LLAMA_8B, SMOLLM
from tests.support.tiny_model import build_tiny_llama
from tests.support.training import rows, write_dataset

pytestmark = [pytest.mark.unit, pytest.mark.slow]

OFF = {"general": Coverage.OFF, "adversarial": Coverage.OFF}
FULL = {"general": Coverage.FULL, "adversarial": Coverage.FULL}


def answers(counted: Asking, examples: int, formats: int) -> int:
    """How many answers that are, of all models together."""
    models = (counted.base, counted.tuned, *[counted.exported] * formats)
    return sum(each.answers * examples + each.beside for each in models)


@pytest.mark.parametrize("coverage", list(Coverage))
def test_the_sets_have_as_many_questions(coverage: Coverage) -> None:
    for general, adversarial in ((coverage, Coverage.OFF), (Coverage.OFF, coverage)):
        sets = sets_for(Examination(general=general, adversarial=adversarial))
        assert asked.GENERAL[general] == len(sets.general)
        assert asked.ADVERSARIAL[adversarial] == len(sets.adversarial)


def test_what_is_known_in_two_places_is_the_same() -> None:
    assert asked.ROOM == generate.ROOM
    assert asked.BESIDE_TOKENS == probe.ANSWER_TOKENS
    assert asked.PASSAGES == passages.CANDIDATES
    assert asked.LONG_TOKENS == passages.LONG * passages.LONG_TOKENS
    assert asked.NOISY == reference.SHORT
    assert answering.TOGETHER == evaluation.BATCH_SIZE
    assert answering.BESIDE_TOGETHER == probe.BATCH_SIZE


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model, and a data set with as much to validate and to test as is asked."""
    root = tmp_path_factory.mktemp("asked")
    build_tiny_llama(root / "base")
    write_dataset(root / "dataset", validation=rows(15, first=30), test=rows(15, first=60))
    return root


@pytest.mark.parametrize("task", list(TaskType))
@pytest.mark.parametrize("sets", [OFF, {}, FULL], ids=["Off", "Sample", "Full"])
def test_as_many_answers_are_counted_as_an_evaluation_asks_for(
    task: TaskType, sets: dict[str, Any], prepared: Path
) -> None:
    """In one format and in several, and what each model is asked in other ways than that."""
    examination = Examination(max_samples=12, **sets)
    tuning = Tuning.of(Training(method=Method.LORA))
    paper = evaluation.set_paper(prepared / "base", prepared / "dataset", tuning, task, examination)
    counted = asking(task, examination, Training())
    assert [answers(counted, 12, formats) for formats in (1, 2, 5)] == [paper.answers(n) for n in (1, 2, 5)]
    assert counted.base.likelihoods * 12 == len(paper.expected)
    chosen = LABEL_TOKENS if task is TaskType.CLASSIFICATION else 0
    room = sum(asked.limit - paper.questions.limit for asked in (paper.roomy, paper.shown))
    assert counted.base.more_tokens == room + chosen


@pytest.mark.parametrize("room", [0, -1, -60])
def test_no_more_are_shown_than_the_model_has_positions_for(tmp_path: Path, room: int) -> None:
    """A thousand tokens of characters are several thousand in many scripts: vLLM would refuse such a prompt, and with
    it the evaluation. ``room``: what is left after the longest question behind all examples."""
    base = build_tiny_llama(tmp_path / "base")
    dataset, tuning = write_dataset(tmp_path / "dataset"), Tuning.of(Training(method=Method.LORA))
    asked = TaskType.CLASSIFICATION, Examination(general=Coverage.OFF, adversarial=Coverage.OFF)
    paper = evaluation.set_paper(base, dataset, tuning, *asked)
    assert len(paper.shots) == shots.SHOTS
    config = json.loads((base / "config.json").read_text())
    lengths = [len(ids) for ids in paper.shown.encoded(paper.tokenizer)]
    positions = max(lengths) + paper.shown.limit + room
    (base / "config.json").write_text(json.dumps(config | {"max_position_embeddings": positions}))
    found = evaluation.set_paper(base, dataset, tuning, *asked)
    assert found.shots == paper.shots[: len(found.shots)]
    assert (len(found.shots) == shots.SHOTS) is (room == 0)
    longest = max(len(ids) for ids in found.shown.encoded(found.tokenizer)) + found.shown.limit
    assert found.shots
    assert longest <= positions


def test_a_label_is_short_and_other_answers_follow_the_longest_example() -> None:
    found = {
        (task, length): asking(task, Examination(), Training(max_length=length)).answer_tokens
        for task in (TaskType.CLASSIFICATION, TaskType.EXTRACTION, TaskType.TEXT)
        for length in (32, 4096)
    }
    assert {found[TaskType.CLASSIFICATION, length] for length in (32, 4096)} == {LABEL_TOKENS}
    assert found[TaskType.TEXT, 4096] == found[TaskType.EXTRACTION, 4096] == 1024
    assert found[TaskType.EXTRACTION, 32] == LABEL_TOKENS


def pace(
    hardware: HardwareFacts,
    task: TaskType = TaskType.CLASSIFICATION,
    *,
    config: dict[str, Any] = LLAMA_8B,
    formats: int = 1,
    bfloat16: bool = True,
    sets: dict[str, Any] = OFF,
    **training: Any,
) -> Pace:
    """As preflight finds it."""
    after = After(evaluation=Examination(**sets), task=task, exported=[INT8] * formats)
    admission = admit(config, Training(**training), hardware, after=after, bfloat16=bfloat16)
    assert admission.forecast is not None
    return admission.forecast.pace


def test_answers_are_decoded_not_trained() -> None:
    """A token for sixteen prompts at a time, by reading all weights; labels are short."""
    short, long = (pace(A100, task).answer_seconds for task in (TaskType.CLASSIFICATION, TaskType.TEXT))
    # 3 × 16 + 80 steps of 57 ms of an unpacked base, 2 × 16 of 34 ms, a sixteenth of them for each, and five prompts.
    assert short == pytest.approx((128 * 0.057 + 32 * 0.034) / 16 + 5 * 512 / 3 / 3626, rel=0.05)
    assert long > 2 * short
    assert pace(L4).answer_seconds > 2 * short


def test_a_cpu_computes_what_it_writes_and_reads_whole_weights() -> None:
    """Sixteen tokens take it longer than to read the weights of a small model; in float32 these are twice as large."""
    demo: dict[str, Any] = {"config": SMOLLM, "max_length": 128}
    usual = pace(CPU, **demo)
    token = 1 / 3 / usual.tokens_per_second
    read, computed = 2 * 134.5e6 / 20e9, 16 * token
    step = (read**2 + computed**2) ** 0.5
    assert usual.answer_seconds == pytest.approx(5 * 128 * token + 160 * step / 16, rel=0.01)
    whole = pace(CPU, method="LoRA", **demo)
    assert whole.answer_seconds == pytest.approx(usual.answer_seconds), "a base in 4 bits is unpacked once"
    assert 1.05 < pace(CPU, bfloat16=False, **demo).answer_seconds / usual.answer_seconds < 1.5


def test_each_format_answers() -> None:
    """The test part and the validation part, and what is asked about safety."""
    one, two, four = (pace(A100, formats=formats, sets={}) for formats in (1, 2, 4))
    assert four.answer_seconds - two.answer_seconds == pytest.approx(2 * (two.answer_seconds - one.answer_seconds))
    assert two.answer_seconds > 1.15 * one.answer_seconds
    assert four.beside_seconds - two.beside_seconds == pytest.approx(2 * (two.beside_seconds - one.beside_seconds))


def test_questions_beside_the_task_take_their_time() -> None:
    """However many examples are asked; without them, texts are still looked at token by token."""
    none, some, all_ = (pace(L4, sets=sets) for sets in (OFF, {}, FULL))
    assert none.answer_seconds == some.answer_seconds == all_.answer_seconds
    assert 0 < none.beside_seconds < some.beside_seconds < all_.beside_seconds / 4
    # Base and tuned model write 13 batches each, the exported model 6: 32 steps of some 125 ms and 60 ms.
    assert all_.beside_seconds > 26 * 32 * 0.1 + 6 * 32 * 0.05
    assert evaluate_seconds(all_, 200) - evaluate_seconds(none, 200) == pytest.approx(
        all_.beside_seconds - none.beside_seconds
    )


def test_the_exported_model_reads_the_recorded_texts_again() -> None:
    """Each format three times, and half of the examples twice more: for wrong positions and for noise."""
    one, two = (pace(CPU, formats=formats, max_length=128, config=SMOLLM) for formats in (1, 2))
    token = 1 / 3 / one.tokens_per_second
    once = (16 * 128 + 2 * 1008) * token
    exported = 3 * once + 2 * 8 * 128 * token
    assert two.beside_seconds - one.beside_seconds == pytest.approx(exported, rel=0.001)
    assert one.beside_seconds == pytest.approx(2 * once + exported, rel=0.001)


def test_the_demo_of_the_page() -> None:
    """docs/concepts/fit.md compares these seconds with measured ones."""
    settings: dict[str, Any] = {"config": SMOLLM, "max_length": 128, "batch_size": 8, "gradient_accumulation": 1}
    found = pace(CPU, sets={}, **settings)
    seconds, load = round(evaluate_seconds(found, 100)), round(found.load_seconds)
    page = " ".join((Path(__file__).parents[2] / "docs/concepts/fit.md").read_text().split())
    assert f"the evaluation of `make demo` the estimate is {seconds} s on two of them, {load} of which are" in page


def test_without_an_evaluation_nothing_is_asked() -> None:
    found = admit(LLAMA_8B, Training(), L4).forecast
    assert found is not None
    assert (found.pace.answer_seconds, found.pace.beside_seconds) == (0, 0)
