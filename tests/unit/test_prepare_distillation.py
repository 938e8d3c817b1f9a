"""Prompts that a teacher answers, through the real stage prepare."""

import json
from collections import Counter
from typing import Any

import pytest

from finetune_api.dataset import (
    AcrossParts,
    Duplicates,
    OnFinding,
    OnNear,
    Pii,
    Source,
    SourcePart,
    Task,
    TaskType,
)
from finetune_api.distillation import Distillation, TeacherRef
from finetune_jobs.base.errors import StageError
from finetune_jobs.distillation.collect import NearAnswers
from tests.support.preparing import WORDS, Prepared, Row, text
from tests.support.teacher_server import Reply, TeacherServer, says

pytestmark = [pytest.mark.unit, pytest.mark.slow]


def test_a_prompt_for_training_and_for_the_test_is_refused_before_it_is_asked(prepared: Prepared) -> None:
    own = prepared.put("own.jsonl", [{"prompt": f"What is {text(n)}?"} for n in range(40)], part=SourcePart.TRAIN)
    test = prepared.put("test.jsonl", [{"prompt": f"what is {text(7)}?"}], part=SourcePart.TEST)
    with TeacherServer.running(lambda _prompt, _nth: says("No.")) as server:
        config = Distillation(teacher=TeacherRef(url=server.url, model="large"))
        fields = {"columns": None, "task": Task(type=TaskType.TEXT), "distillation": config}
        with pytest.raises(StageError) as caught:
            prepared.run(own, test, duplicates=Duplicates(across_parts=AcrossParts.FAIL), **fields)
        assert server.received == []
    assert f"{test.uri} line 1 (test) and {own.uri} line 8 (training)" in caught.value.message


def test_a_prompt_for_training_that_your_test_has_too_is_not_asked_twice(prepared: Prepared) -> None:
    numbers = {
        SourcePart.TRAIN: range(40),
        SourcePart.TEST: (7, *range(100, 112)),
        SourcePart.VALIDATION: range(200, 212),
    }
    sources = [
        prepared.put(f"{part}.jsonl", [{"prompt": f"What is {text(n)}?"} for n in some], part=part)
        for part, some in numbers.items()
    ]
    with TeacherServer.running(lambda prompt, _nth: says(f"In short, {prompt.removeprefix('What is ')}")) as server:
        config = Distillation(teacher=TeacherRef(url=server.url, model="large"))
        prepared.run(*sources, columns=None, task=Task(type=TaskType.TEXT), distillation=config)
        assert len(server.received) == 39 + 13 + 12
    assert prepared.report["filters"] == {"inTest": 1}
    assert prepared.report["rows"]["read"] == 40 + 13 + 12
    assert [prepared.report["rows"][part] for part in ("train", "validation", "test")] == [39, 12, 13]
    assert prepared.report["acrossParts"]["first"] == [
        {"test": f"{sources[1].uri} line 1", "training": f"{sources[0].uri} line 8"}
    ]


def test_a_prompt_of_a_benchmark_is_not_paid_for_and_not_learned(prepared: Prepared) -> None:
    """The teacher is asked with pseudonyms, in which the benchmark's text cannot be found any more."""
    question = f"{' '.join(WORDS[:6])} anna@example.org {' '.join(WORDS[6:12])}"
    benchmark = prepared.put("benchmark.jsonl", [{"question": question}])
    prompts = [{"prompt": f"What is {text(n)}?"} for n in range(200)] + [{"prompt": f"Well: {question}"}]
    with TeacherServer.running(lambda prompt, _nth: says(f"In short, {prompt.removeprefix('What is ')}")) as server:
        config = Distillation(teacher=TeacherRef(url=server.url, model="large"))
        fields = {"columns": None, "task": Task(type=TaskType.TEXT), "distillation": config}
        prepared.run(prepared.put("prompts.jsonl", prompts), benchmarks=[benchmark], **fields)
        assert len(server.received) == 200
    assert prepared.report["filters"] == {"inBenchmark": 1}
    assert prepared.report["rows"]["read"] == 201


def test_your_test_stays_one_where_a_folder_of_prompts_holds_it_too(prepared: Prepared) -> None:
    test = prepared.put(
        "prompts/test.jsonl", [{"prompt": f"What is {text(n)}?"} for n in range(12)], part=SourcePart.TEST
    )
    prepared.put("prompts/rest.jsonl", [{"prompt": f"What is {text(n)}?"} for n in range(100, 300)])
    folder = Source(uri=f"{prepared.store.uri('prompts')}/")
    with TeacherServer.running(lambda prompt, _nth: says(f"In short, {prompt.removeprefix('What is ')}")) as server:
        config = Distillation(teacher=TeacherRef(url=server.url, model="large"))
        prepared.run(folder, test, columns=None, task=Task(type=TaskType.TEXT), distillation=config)
        assert len(server.received) == 212
    assert prepared.texts("test") == [f"What is {text(n)}?" for n in range(12)]


def test_a_row_without_its_group_is_found_before_the_teacher_is_paid(prepared: Prepared) -> None:
    prompts = [{"prompt": f"What is {text(n)}?", "tiket": n} for n in range(40)]
    with TeacherServer.running(lambda prompt, _nth: says(f"In short, {prompt}")) as server:
        config = Distillation(teacher=TeacherRef(url=server.url, model="large"))
        fields = {"columns": None, "task": Task(type=TaskType.TEXT), "distillation": config}
        with pytest.raises(StageError, match=r"40 of 40 .* ticket: is empty"):
            prepared.run(prepared.put("prompts.jsonl", prompts), group_by="ticket", **fields)
        assert server.received == []


@pytest.mark.parametrize(
    ("task", "right", "wrong", "kind"),
    [
        (Task(type=TaskType.EXTRACTION), '```json\n{"about": "%s"}\n```', "I see no record in %s.", "answerNotJson"),
        (Task(labels=["a", "b"]), "a", "It is a.", "unknownLabel"),
    ],
    ids=["Extraction", "Classification"],
)
def test_answers_that_the_task_cannot_use_are_left_out(
    prepared: Prepared, task: Task, right: str, wrong: str, kind: str
) -> None:
    """Like all others that are no good, however many they are: no row is invalid because of them."""

    def answer(prompt: str, _nth: int) -> Reply:
        last = prompt[-2]
        said = wrong if last == "7" else "b" if task.labels and last in "02468" else right
        return says(said % prompt if "%s" in said else said)

    prompts = [{"prompt": f"What is {text(n)}?"} for n in range(200)]
    with TeacherServer.running(answer) as server:
        config = Distillation(teacher=TeacherRef(url=server.url, model="large"))
        source = prepared.put("prompts.jsonl", prompts)
        scalars = prepared.run(source, columns=None, task=task, distillation=config).scalars
    assert prepared.report["filters"] == {kind: 20}
    assert (scalars["rowsRead"], scalars["rowsInvalid"], scalars["rowsDropped"]) == ("200", "0", "20")
    answers = {json.loads(line)["messages"][-1]["content"] for line in prepared.file("train.jsonl").splitlines()}
    assert answers == {"a", "b"} if task.labels else all(json.loads(each) for each in answers)


def test_a_teacher_answers_prompts_that_hold_no_personal_data(prepared: Prepared) -> None:
    """Prompts become examples; what is refused, or has no prompt, is counted and left out."""

    def answer(prompt: str, _nth: int) -> Reply:
        if prompt.endswith("7?"):
            return says("I'm sorry, but I can't help with that.")
        return says(f"In short, it is about {prompt.removeprefix('What is ')}")

    prompts = [{"prompt": f"What is {text(n)}?"} for n in range(200)]
    prompts += [{"prompt": "Who is ana@example.org?"}, {"question": "no prompt"}, prompts[0]]
    with TeacherServer.running(answer) as server:
        teacher = TeacherRef(url=server.url, model="large")
        result = prepared.run(
            prepared.put("prompts.jsonl", prompts),
            columns=None,
            task=Task(type=TaskType.TEXT),
            distillation=Distillation(teacher=teacher),
        )
        asked = [received.prompt for received in server.received]
    assert len(asked) == 201
    assert "Who is <EMAIL_ADDRESS_1>?" in asked
    assert prepared.report["filters"] == {"missingColumn": 1, "refusal": 20}
    assert prepared.report["rows"]["duplicates"] == 1
    assert prepared.report["distillation"]["answered"] == 201
    scalars = result.scalars
    assert sum(int(scalars[f"rows{part}"]) for part in ("Train", "Validation", "Test")) == 181
    assert (scalars["rowsRead"], scalars["rowsInvalid"], scalars["rowsDropped"]) == ("203", "1", "20")
    assert "201 of 201 answers" in result.message
    example = json.loads(prepared.file("train.jsonl").splitlines()[0])["messages"]
    assert example[1]["content"] == f"In short, it is about {example[0]['content'].removeprefix('What is ')}"


@pytest.mark.parametrize(("wrong", "private", "refused"), [(6, 0, True), (5, 30, False)])
def test_prompts_are_checked_before_the_teacher_is_paid(
    prepared: Prepared, wrong: int, private: int, refused: bool
) -> None:
    """Many answers to each prompt do not make wrong ones fewer; what a rule leaves out is not wrong."""
    prompts: list[Row] = [{"prompt": f"What is {text(n)}?"} for n in range(100 - wrong - private)]
    prompts += [{"question": "no prompt"}] * wrong + [{"prompt": f"Who is ana{n}@example.org?"} for n in range(private)]
    with TeacherServer.running(lambda prompt, nth: says(f"{prompt} Answer {nth}.")) as server:
        fields: dict[str, Any] = {
            "columns": None,
            "task": Task(type=TaskType.TEXT),
            "pii": Pii(mode=OnFinding.DROP),
            "distillation": Distillation(teacher=TeacherRef(url=server.url, model="large"), samples_per_prompt=3),
        }
        source = prepared.put("prompts.jsonl", prompts)
        if refused:
            with pytest.raises(StageError, match=r"6 of 100 .* 5 %"):
                prepared.run(source, **fields)
            assert server.received == []
            return
        scalars = prepared.run(source, **fields).scalars
    assert prepared.report["filters"] == {"missingColumn": 5, "personalData": 30}
    assert (scalars["rowsRead"], scalars["rowsInvalid"], scalars["rowsDropped"]) == (str(35 + 3 * 65), "5", "30")


@pytest.mark.parametrize("near", [OnNear.IGNORE, OnNear.GROUP])
def test_every_good_answer_to_a_prompt_is_learnt_and_all_are_in_one_part(prepared: Prepared, near: OnNear) -> None:
    prompts = [{"prompt": f"What is {text(n)}?"} for n in range(60)]
    with TeacherServer.running(lambda prompt, nth: says(f"{prompt} Answer {nth}.")) as server:
        config = Distillation(teacher=TeacherRef(url=server.url, model="large"), samples_per_prompt=3)
        prepared.run(
            prepared.put("prompts.jsonl", prompts),
            columns=None,
            task=Task(type=TaskType.TEXT),
            distillation=config,
            duplicates=Duplicates(near=near),
        )
    parts = {part: Counter(prepared.texts(part)) for part in ("train", "validation", "test")}
    assert sum(parts.values(), Counter()) == {row["prompt"]: 3 for row in prompts}
    assert not parts["train"].keys() & parts["test"].keys()
    assert prepared.report["rows"]["duplicates"] == 0
    assert not prepared.report["rows"]["nearDuplicates"]


def test_near_answers_are_found_as_they_come() -> None:
    near = NearAnswers(80)
    words = " ".join(f"word{n}" for n in range(30))
    assert [near(words), near(f"{words} too"), near("something else"), near("something else")] == [
        *(False, True, False, True)
    ]
    assert not any(map(NearAnswers(0), ["same", "same"]))
