"""What the spec of a data set asks for, through the real stage and a real S3 server."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import spacy

from finetune_api.dataset import (
    Cleaning,
    Columns,
    Duplicates,
    NamesModel,
    OnFinding,
    Pii,
    Pilot,
    Replay,
    SourcePart,
    Split,
    Task,
    TaskType,
    TooLong,
)
from finetune_api.distillation import Distillation, TeacherRef
from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError, StoppedError, require
from finetune_jobs.distillation.collect import NearAnswers
from finetune_jobs.modelling.chat import IGNORED
from finetune_jobs.modelling.tokenizer import load_tokenizer
from finetune_jobs.prepare import prepare
from finetune_jobs.reading.inputs import inputs_digest
from finetune_jobs.runtime.runner import execute
from finetune_jobs.store.s3 import Store
from tests.support.preparing import Prepared
from tests.support.seaweedfs import SeaweedFS
from tests.support.sentences import unsaid
from tests.support.stages import context
from tests.support.teacher_server import Reply, TeacherServer, says
from tests.support.tiny_model import build_tiny_llama

pytestmark = [pytest.mark.unit, pytest.mark.slow]

Row = dict[str, Any]
COLUMNS = Columns(input="text", label="label")
NAMES = "amber basil cedar delta ember fjord grape hazel ivory jewel karma lemon mango noble olive pearl"
WORDS = NAMES.split(" ")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_llama(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture
def prepared(s3: SeaweedFS, place: str, base: Path, tmp_path: Path) -> Prepared:
    return Prepared(s3, place, base, tmp_path)


def text(number: int) -> str:
    """Words of which no two numbers share many."""
    return " ".join(WORDS[(number * prime + step) % len(WORDS)] + str(number) for step, prime in enumerate((3, 5, 7)))


def rows(count: int = 200, begin: int = 0) -> list[Row]:
    return [{"text": text(n), "label": "ab"[n % 2]} for n in range(begin, begin + count)]


def test_tokens_are_those_of_the_conversations(prepared: Prepared, tmp_path: Path) -> None:
    prepared.run(prepared.put("rows.jsonl", rows()), instruction="Classify.")
    tokenizer = load_tokenizer(prepared.base)
    (tmp_path / "train.parquet").write_bytes(prepared.file("train.parquet"))
    table = pq.read_table(tmp_path / "train.parquet").to_pylist()
    lines = [json.loads(line)["messages"] for line in prepared.file("train.jsonl").splitlines()]
    assert len(table) == len(lines) == 160
    for row, messages in zip(table, lines, strict=True):
        assert tokenizer.decode(row["input_ids"]).startswith("<|im_start|>system\nClassify.<|im_end|>")
        learnt = tokenizer.decode([i for i in row["labels"] if i != IGNORED])
        assert learnt == f"{messages[-1]['content']}<|im_end|>"
    assert prepared.result.scalars["tokens"] == str(sum(len(row["input_ids"]) for row in table))


def test_the_digest_is_that_of_rows_and_rules(prepared: Prepared) -> None:
    """Any row and any rule that matters give another data set; a rule that changes nothing gives the same one, which
    nobody trains on again (test_input_keys: its key is another one all the same)."""
    given = [*rows(), {"text": "An invalid row.", "label": ""}]

    def digest(content: list[Row], **rules: Any) -> str:
        return prepared.run(prepared.put("rows.jsonl", content), **rules).output_digest

    same = digest(given)
    assert digest(given, max_invalid_percent=6) == same
    others = [
        digest([{**given[0], "text": "Another text."}, *given[1:]]),
        digest([{**given[0], "label": "b"}, *given[1:]]),
        digest([given[1], given[0], *given[2:]]),
        digest([*given[:-1], {"text": "Another invalid row.", "label": ""}]),
        digest(given, split=Split(seed=1)),
        digest(given, instruction="Classify."),
        digest(given, pii=Pii(mode=OnFinding.REPORT)),
    ]
    assert len({same, *others}) == 8


def test_texts_are_cleaned_and_personal_data_gets_pseudonyms(prepared: Prepared) -> None:
    dirty = [
        *rows(),
        {"text": "Write\u00a0to\u200b ana@example.org or ana@example.org!", "label": "a"},
        {"text": "My key is ghp_" + "a1B2" * 9, "label": "b"},
    ]
    prepared.run(prepared.put("rows.jsonl", dirty))
    texts = [each for part in ("train", "validation", "test") for each in prepared.texts(part)]
    assert "Write to <EMAIL_ADDRESS_1> or <EMAIL_ADDRESS_1>!" in texts
    assert not any("ghp_" in each for each in texts)
    assert prepared.report["pii"] == {"mode": "Mask", "counts": {"EMAIL_ADDRESS": 2}}
    assert sum(prepared.report["secrets"]["counts"].values()) == 1
    assert b"ana@" not in prepared.file("report.json") + prepared.file("readiness.html")


@pytest.mark.parametrize(
    ("mode", "left"), [(OnFinding.DROP, 200), (OnFinding.REPORT, 201), (OnFinding.OFF, 201), (OnFinding.MASK, 201)]
)
def test_what_becomes_of_personal_data_is_the_users_choice(prepared: Prepared, mode: OnFinding, left: int) -> None:
    source = prepared.put("rows.jsonl", [*rows(), {"text": "Write to ana@example.org", "label": "a"}])
    scalars = prepared.run(source, pii=Pii(mode=mode)).scalars
    assert sum(int(scalars[f"rows{part}"]) for part in ("Train", "Validation", "Test")) == left
    assert scalars["rowsDropped"] == str(201 - left)
    assert prepared.report["filters"] == ({"personalData": 1} if mode is OnFinding.DROP else {})


def test_near_duplicates_stay_together_or_go(prepared: Prepared) -> None:
    long = [" ".join(f"{word}{n}" for word in WORDS) for n in range(40)]
    near = [{"text": f"{each} {end}", "label": "ab"[n % 2]} for n, each in enumerate(long) for end in ("now", "then")]
    source = prepared.put("rows.jsonl", rows() + near)
    prepared.run(source)
    places = {each: part for part in ("train", "validation", "test") for each in prepared.texts(part)}
    assert all(places[f"{each} now"] == places[f"{each} then"] for each in long)
    assert set(places.values()) == {"train", "validation", "test"}
    assert prepared.report["rows"]["nearDuplicates"] == 40
    scalars = prepared.run(source, duplicates=Duplicates(drop_near=True)).scalars
    assert (scalars["rowsDropped"], prepared.report["rows"]["nearDropped"]) == ("40", 40)
    assert "Rules left out 40 (nearDuplicate 40)." in prepared.result.message


LONG = " ".join(f"rule{n}" for n in range(70))


@pytest.mark.parametrize(
    ("frame", "fields"),
    [
        ("template", {"columns": Columns(template=f"{LONG} {{text}} {LONG[::-1]}", label="label")}),
        ("instruction", {"columns": None}),
        ("messages", {"columns": None}),
    ],
)
def test_a_text_around_all_rows_makes_none_a_near_duplicate(
    prepared: Prepared, frame: str, fields: dict[str, Any]
) -> None:
    """What varies are a few words, some of which a tenth of the rows shares; only real near duplicates are found."""
    asked = [f"{text(n)} {'please help me' if n % 10 == 0 else ''}" for n in range(200)]
    long = [" ".join(f"{word}{n}" for word in (*WORDS, *reversed(WORDS), *WORDS)) for n in range(3)]
    asked += [f"{each} {end}" for each in long for end in ("now", "then")]
    given: list[Row] = [{"text": each, "label": "ab"[n % 2]} for n, each in enumerate(asked)]
    if frame == "instruction":
        given = [{"instruction": LONG, "input": row["text"], "output": row["label"]} for row in given]
    elif frame == "messages":
        turns = [(f"{LONG} {row['text']}", row["label"]) for row in given]
        roles = ("user", "assistant")
        given = [
            {"messages": [{"role": role, "content": each} for role, each in zip(roles, turn, strict=True)]}
            for turn in turns
        ]
    prepared.run(prepared.put("rows.jsonl", given), max_length=2048, **fields)
    assert prepared.report["rows"]["nearDuplicates"] == 3
    assert [prepared.report["rows"][part] for part in ("train", "validation", "test")] == [166, 20, 20]
    prepared.run(prepared.put("rows.jsonl", given), max_length=2048, duplicates=Duplicates(drop_near=True), **fields)
    assert prepared.report["rows"]["nearDropped"] == 3


def test_groups_are_never_torn_apart(prepared: Prepared) -> None:
    grouped = [row | {"ticket": n // 5} for n, row in enumerate(rows(300))]
    prepared.run(prepared.put("rows.jsonl", grouped), group_by="ticket")
    part_of = {each: part for part in ("train", "validation", "test") for each in prepared.texts(part)}
    parts = [{part_of[row["text"]] for row in grouped[n : n + 5]} for n in range(0, 300, 5)]
    assert all(len(each) == 1 for each in parts)


def test_pieces_of_a_conversation_are_never_torn_apart(prepared: Prepared) -> None:
    turns = [[f"{text(n)} {turn}" for turn in range(6)] for n in range(120)]
    given = [
        {"messages": [{"role": ("user", "assistant")[n % 2], "content": each} for n, each in enumerate(conversation)]}
        for conversation in turns
    ]
    task, cleaning = Task(type=TaskType.TEXT), Cleaning(too_long=TooLong.SPLIT)
    prepared.run(prepared.put("rows.jsonl", given), columns=None, task=task, cleaning=cleaning, max_length=60)
    assert prepared.report["rows"]["added"] >= 120
    words = {part: {asked.split()[0] for asked in prepared.texts(part)} for part in ("train", "validation", "test")}
    assert not words["train"] & words["test"]
    assert not words["train"] & words["validation"]


def test_parts_that_sources_provide_are_respected(prepared: Prepared) -> None:
    own, test = prepared.put("own.jsonl", rows()), prepared.put("test.jsonl", rows(30, 900), part=SourcePart.TEST)
    prepared.run(own, test)
    assert prepared.texts("test") == [row["text"] for row in rows(30, 900)]
    assert len(prepared.texts("validation")) == 23


def test_a_test_that_is_trained_is_refused(prepared: Prepared) -> None:
    shared = " ".join(f"{word}x" for word in WORDS)
    own = prepared.put("own.jsonl", [*rows(), {"text": f"{shared} now", "label": "a"}], part=SourcePart.TRAIN)
    tested = [*rows(30, 900), {"text": f"{shared} then", "label": "a"}]
    test = prepared.put("test.jsonl", tested, part=SourcePart.TEST)
    validation = prepared.put("validation.jsonl", rows(30, 1800), part=SourcePart.VALIDATION)
    with pytest.raises(StageError) as caught:
        prepared.run(own, test, validation)
    assert caught.value.reason is Reason.DATASET_INVALID
    assert caught.value.message.startswith(
        "1 test examples are duplicates of training examples, or nearly, or in one group with them: "
        f"{test.uri} line 31 (test) and {own.uri} line 201 (training). The score would be too good."
    )


@pytest.mark.parametrize("test_first", [False, True])
@pytest.mark.parametrize("task", [TaskType.CLASSIFICATION, TaskType.TEXT])
def test_your_own_test_stays_whole_when_its_rows_stand_in_another_source_too(
    prepared: Prepared, test_first: bool, task: TaskType
) -> None:
    """As all.csv and test.csv, a part of it: what is in the test is not trained, with the answers that the test has."""
    tested = [row | ({} if task is TaskType.CLASSIFICATION else {"label": "another way to say it"}) for row in rows(20)]
    test = prepared.put("test.jsonl", tested, part=SourcePart.TEST)
    sources = [prepared.put("all.jsonl", rows()), prepared.put("known.jsonl", rows(25, 10), part=SourcePart.VALIDATION)]
    prepared.run(*([test, *sources] if test_first else [*sources, test]), task=Task(type=task))
    assert prepared.texts("test") == [row["text"] for row in rows(20)]
    assert prepared.texts("validation") == [row["text"] for row in rows(15, 20)]
    assert prepared.texts("train") == [row["text"] for row in rows(165, 35)]
    assert prepared.report["rows"]["duplicates"] == 45
    answers = [json.loads(line)["messages"][-1]["content"] for line in prepared.file("test.jsonl").splitlines()]
    assert answers == [row["label"] for row in tested]


@pytest.mark.parametrize("near_percent", [0, 85])
@pytest.mark.parametrize("test_first", [False, True])
def test_a_row_for_training_and_for_the_test_is_refused(
    prepared: Prepared, test_first: bool, near_percent: int
) -> None:
    own = prepared.put("own.jsonl", [*rows(), *rows(2, 901)], part=SourcePart.TRAIN)
    test = prepared.put("test.jsonl", rows(30, 900), part=SourcePart.TEST)
    with pytest.raises(StageError) as caught:
        prepared.run(*([test, own] if test_first else [own, test]), duplicates=Duplicates(near_percent=near_percent))
    assert caught.value.reason is Reason.DATASET_INVALID
    assert caught.value.message.startswith(
        "2 test examples are duplicates of training examples, or nearly, or in one group with them: "
        f"{test.uri} line 2 (test) and {own.uri} line 201 (training); {test.uri} line 3 (test) and"
    )


def test_a_prompt_for_training_and_for_the_test_is_refused_before_it_is_asked(prepared: Prepared) -> None:
    own = prepared.put("own.jsonl", [{"prompt": f"What is {text(n)}?"} for n in range(40)], part=SourcePart.TRAIN)
    test = prepared.put("test.jsonl", [{"prompt": f"what is {text(7)}?"}], part=SourcePart.TEST)
    with TeacherServer.running(lambda _prompt, _nth: says("No.")) as server:
        config = Distillation(teacher=TeacherRef(url=server.url, model="large"))
        with pytest.raises(StageError) as caught:
            prepared.run(own, test, columns=None, task=Task(type=TaskType.TEXT), distillation=config)
        assert server.received == []
    assert f"{test.uri} line 1 (test) and {own.uri} line 8 (training)" in caught.value.message


def test_of_near_duplicates_that_of_your_own_test_is_kept(prepared: Prepared) -> None:
    long = [" ".join(f"{word}{n}" for word in WORDS) for n in range(30)]
    own = [{"text": f"{each} now", "label": "a"} for each in long]
    tested = [{"text": f"{each} then", "label": "a"} for each in long]
    sources = [prepared.put("own.jsonl", rows() + own), prepared.put("test.jsonl", tested, part=SourcePart.TEST)]
    prepared.run(*sources, duplicates=Duplicates(drop_near=True))
    assert prepared.texts("test") == [row["text"] for row in tested]
    assert prepared.report["rows"]["nearDropped"] == 30


def test_a_pilot_trains_on_a_sample_of_each_label(prepared: Prepared) -> None:
    scalars = prepared.run(prepared.put("rows.jsonl", rows(400)), pilot=Pilot(examples=50)).scalars
    assert (scalars["rowsTrain"], scalars["rowsValidation"], scalars["rowsTest"]) == ("50", "40", "40")
    assert prepared.report["rows"]["outsidePilot"] == 270
    assert prepared.report["labels"]["a"]["train"] == 25


def test_weights_repeat_and_thin_out_training_examples_only(prepared: Prepared, tmp_path: Path) -> None:
    often = prepared.put("often.jsonl", rows(100), weight="2")
    seldom = prepared.put("seldom.jsonl", rows(100, 900), weight="0.5")
    scalars = prepared.run(often, seldom).scalars
    (tmp_path / "train.parquet").write_bytes(prepared.file("train.parquet"))
    trained = prepared.texts("train")
    twice = [each for each in trained if each in {row["text"] for row in rows(100)}]
    half = len(trained) - len(twice)
    assert 38 <= half <= 42
    assert pq.read_table(tmp_path / "train.parquet").num_rows == 2 * len(twice) + half == int(scalars["rowsTrain"])
    assert (scalars["rowsValidation"], scalars["rowsTest"]) == ("20", "20")


def test_general_data_is_mixed_in_unless_it_is_in_the_test(prepared: Prepared) -> None:
    general = [{"prompt": f"Say {text(n)}", "completion": f"{text(n)}!"} for n in range(5000, 5100)]
    general += [general[0], {"text": "of no form"}, {"prompt": "word " * 5000, "completion": "too long"}]
    source = prepared.put("own.jsonl", rows())
    replay = Replay(source=prepared.put("general.jsonl", general), percent=20)
    scalars = prepared.run(source, replay=replay, instruction="Classify.").scalars
    assert scalars["rowsTrain"] == "200"
    mixed = [json.loads(line)["messages"] for line in prepared.file("train.jsonl").splitlines()][-40:]
    assert all([m["role"] for m in messages] == ["user", "assistant"] for messages in mixed)
    assert prepared.report["rows"]["added"] == 40
    assert prepared.report["replay"] == {
        "read": 103,
        "usable": 100,
        "chosen": 40,
        "filters": {"duplicates": 1, "missingMessages": 1, "tooLong": 1},
    }
    assert prepared.result.message.endswith(
        "Of 103 rows of general data, 100 can be mixed in (left out: duplicates 1, missingMessages 1, tooLong 1), "
        "40 are."
    )


def test_what_a_benchmark_asks_is_not_trained(prepared: Prepared) -> None:
    question = " ".join(f"{word}q" for word in WORDS)
    benchmark = prepared.put("benchmark.jsonl", [{"question": question, "answer": "42"}])
    source = prepared.put("own.jsonl", [*rows(), {"text": f"As they ask: {question}!", "label": "a"}])
    prepared.run(source, benchmarks=[benchmark])
    assert prepared.report["filters"] == {"inBenchmark": 1}


def test_a_benchmark_as_your_own_test_stays_whole(prepared: Prepared) -> None:
    """Training and validation hold none of it, general data neither; that nobody learns from, the test may."""
    questions = [" ".join(f"{word}q{n}" for word in WORDS) for n in range(30)]
    benchmark = prepared.put("benchmark.jsonl", [{"question": question} for question in questions])
    tested = [{"text": question, "label": "ab"[n % 2]} for n, question in enumerate(questions)]
    sources = [
        prepared.put("own.jsonl", [*rows(), *tested[:2], tested[0]]),
        prepared.put("validation.jsonl", [*rows(30, 900), tested[2]], part=SourcePart.VALIDATION),
        prepared.put("test.jsonl", tested, part=SourcePart.TEST),
    ]
    general = [{"prompt": f"Say {text(n)}", "completion": f"{text(n)}!"} for n in range(5000, 5010)]
    general += [{"prompt": f"Say {question}", "completion": "No."} for question in questions]
    replay = Replay(source=prepared.put("general.jsonl", general), percent=50)
    prepared.run(*sources, benchmarks=[benchmark], replay=replay)
    assert prepared.texts("test") == questions
    assert not any(
        question in each for part in ("train", "validation") for each in prepared.texts(part) for question in questions
    )
    assert prepared.report["filters"] == {"inBenchmark": 4}
    assert (prepared.report["rows"]["duplicates"], prepared.report["rows"]["added"]) == (0, 10)
    assert prepared.report["benchmarks"] == {"read": 30, "filters": {}, "ownTest": 30}
    assert prepared.report["replay"]["filters"] == {"inBenchmark": 30}
    leakage = next(item for item in prepared.report["readiness"] if item["name"] == "leakage")
    assert leakage["evidence"].endswith("left out. 30 examples of your own test do; they stay in the test.")


def test_invalid_rows_beside_the_sources_are_told(prepared: Prepared) -> None:
    general: list[Row] = [{"prompt": f"Say {text(n)}", "completion": f"{text(n)}!"} for n in range(5000, 5100)]
    replay = Replay(source=prepared.put("general.jsonl", [*general, {"prompt": "no answer"}]))
    benchmark = prepared.put("benchmark.jsonl", [{"question": "What is it?"}])
    prepared.store.put("benchmark.jsonl", (prepared.store.get("benchmark.jsonl") or b"") + b"{\n")
    source = prepared.put("own.jsonl", rows())
    result = prepared.run(source, replay=replay, benchmarks=[benchmark])
    report = prepared.report
    assert [(each["file"], each["line"]) for each in report["errors"]] == [(replay.source.uri, 101), (benchmark.uri, 2)]
    assert report["replay"]["filters"] == {"missingMessages": 1}
    assert report["benchmarks"]["filters"] == {"malformedJson": 1}
    assert report["rows"]["invalid"] == 0
    assert [warning.split(" (")[0] for warning in report["warnings"]] == [
        "1 of 101 rows of spec.dataset.replay are invalid and were left out",
        "1 of 2 rows of spec.dataset.benchmarks are invalid and were left out",
    ]
    assert f"{replay.source.uri} line 101" in result.message
    assert f"{benchmark.uri} line 2" in result.message
    states = {item["name"]: item["state"] for item in report["readiness"]}
    assert (states["structured"], states["leakage"]) == ("Warn", "Warn")
    assert b"general.<wbr>jsonl" in prepared.file("readiness.html")
    with pytest.raises(StageError, match="1 of 101 rows are invalid, 0 % are allowed"):
        prepared.run(source, replay=replay, max_invalid_percent=0)


def test_languages_and_short_answers_are_left_out_and_counted(prepared: Prepared) -> None:
    task = Task(type=TaskType.TEXT)
    texts = [{"prompt": f"What about {text(n)}?", "completion": f"It is about {text(n)}."} for n in range(200)]
    german = "Bitte senden Sie mir die Rechnung für den vergangenen Monat noch einmal zu, vielen Dank im Voraus."
    texts += [{"prompt": german, "completion": "Wir senden Ihnen die Rechnung noch heute per E-Mail zu."}]
    texts += [{"prompt": "Is this the right place to ask?", "completion": "Yes"}]
    prepared.run(
        prepared.put("rows.jsonl", texts),
        columns=None,
        task=task,
        cleaning=Cleaning(languages=["en"], min_answer_words=2),
    )
    assert prepared.report["filters"] == {"answerTooShort": 1, "otherLanguage": 1}
    assert prepared.report["languages"]["de"] == 1
    assert sum(prepared.report["languages"].values()) == 201
    assert b"<h2>Languages</h2>" in prepared.file("readiness.html")
    assert json.loads(prepared.file("labels.json")) == []


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
    assert "The teacher gave 201 of 201 answers" in result.message
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
            with pytest.raises(StageError, match="6 of 100 rows are invalid, 5 % are allowed"):
                prepared.run(source, **fields)
            assert server.received == []
            return
        scalars = prepared.run(source, **fields).scalars
    assert prepared.report["filters"] == {"missingColumn": 5, "personalData": 30}
    assert (scalars["rowsRead"], scalars["rowsInvalid"], scalars["rowsDropped"]) == (str(35 + 3 * 65), "5", "30")


@pytest.mark.parametrize("near_percent", [0, 85])
def test_every_good_answer_to_a_prompt_is_learnt_and_all_are_in_one_part(prepared: Prepared, near_percent: int) -> None:
    prompts = [{"prompt": f"What is {text(n)}?"} for n in range(60)]
    with TeacherServer.running(lambda prompt, nth: says(f"{prompt} Answer {nth}.")) as server:
        config = Distillation(teacher=TeacherRef(url=server.url, model="large"), samples_per_prompt=3)
        prepared.run(
            prepared.put("prompts.jsonl", prompts),
            columns=None,
            task=Task(type=TaskType.TEXT),
            distillation=config,
            duplicates=Duplicates(near_percent=near_percent),
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


def put_pipeline(store: Store, folder: Path, name: str) -> Pii:
    """A spaCy pipeline in the store that knows one name."""
    pipeline = spacy.blank("en")
    ruler: Any = pipeline.add_pipe("entity_ruler")
    ruler.add_patterns([{"label": "PERSON", "pattern": name}])
    pipeline.to_disk(folder)
    for file in folder.rglob("*"):
        if file.is_file():
            store.put(f"names/{file.relative_to(folder)}", file.read_bytes())
    return Pii(ner=NamesModel(uri=store.uri("names")))


def test_a_pipeline_in_s3_finds_names(prepared: Prepared, tmp_path: Path) -> None:
    pii = put_pipeline(prepared.store, tmp_path, "Ana Novak")
    source = prepared.put("rows.jsonl", [*rows(), {"text": "Is Ana Novak there?", "label": "a"}])
    prepared.run(source, pii=pii)
    assert prepared.report["pii"]["counts"] == {"PERSON": 1}
    nothing = prepared.store.uri("nothing")
    with pytest.raises(StageError) as caught:
        prepared.run(source, pii=Pii(ner=NamesModel(uri=nothing)))
    assert caught.value.message == f"{nothing}{NO_PIPELINE}"


NO_PIPELINE = " holds no files: spec.dataset.pii.ner needs a pipeline."
CHANGED = (
    "The version of {uri} that this run began with is gone: a file was overwritten meanwhile. Set spec.rerun to a new "
    "value to use the new version."
)
STOPPED = "The pod was told to stop before the rows were read."


def test_a_source_that_is_overwritten_under_a_run(prepared: Prepared) -> None:
    source = prepared.put("rows.jsonl", rows())
    prepared.run(source)
    prepared.put("rows.jsonl", rows(199))
    again = prepared.given.model_copy(update={"reuse": False})
    with pytest.raises(StageError) as caught:
        execute(context(again, prepared.folder), prepare)
    assert (caught.value.reason, caught.value.message) == (
        Reason.DATASET_NOT_FOUND,
        CHANGED.format(uri=source.uri),
    )


def test_a_pipeline_for_names_that_is_overwritten_is_another_input(prepared: Prepared, tmp_path: Path) -> None:
    """Between two runs it gives other keys, so that no result is reused; under a run it ends it."""
    pii = put_pipeline(prepared.store, tmp_path / "first", "Ana Novak")
    source = prepared.put("rows.jsonl", rows())
    prepared.run(source, pii=pii)
    dataset = require(prepared.given.params.prepare, "params.prepare").dataset
    before = inputs_digest(prepared.store, dataset)
    put_pipeline(prepared.store, tmp_path / "second", "Bo Chen")
    assert before == prepared.given.upstream.source != inputs_digest(prepared.store, dataset)
    with pytest.raises(StageError) as caught:
        execute(context(prepared.given.model_copy(update={"reuse": False}), prepared.folder), prepare)
    assert caught.value.message == CHANGED.format(uri=f"{prepared.store.uri('names')}, {source.uri}")


def test_a_pod_that_is_told_to_stop_reads_no_further(prepared: Prepared) -> None:
    prepared.run(prepared.put("rows.jsonl", rows(1000)))
    told = context(prepared.given.model_copy(update={"reuse": False}), prepared.folder)
    told.stopping.set()
    with pytest.raises(StoppedError) as caught:
        execute(told, prepare)
    assert str(caught.value) == STOPPED


def test_every_sentence_of_the_stage_is_tested() -> None:
    mixed = [
        "Of {} rows of general data, {} can be mixed in",
        "{} (left out: {}), {} are.",
    ]  # what is said of general data that is taken, see above
    assert not unsaid("finetune_jobs.prepare", [])
    assert not unsaid("finetune_jobs.preparation.download", [CHANGED])
    assert not unsaid("finetune_jobs.preparation.collect", [STOPPED])
    assert unsaid("finetune_jobs.preparation.replay", []) == mixed
    assert not unsaid("finetune_jobs.reading.inputs", [NO_PIPELINE])
