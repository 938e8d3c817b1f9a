"""What the spec of a data set asks for, through the real stage and a real S3 server."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import spacy

from finetune_api.dataset import (
    Cleaning,
    NamesModel,
    OnFinding,
    Pii,
    Pilot,
    Split,
    Task,
    TaskType,
)
from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError, StoppedError, require
from finetune_jobs.modelling.chat import IGNORED
from finetune_jobs.modelling.tokenizer import load_tokenizer
from finetune_jobs.prepare import prepare
from finetune_jobs.reading.inputs import inputs_digest
from finetune_jobs.runtime.runner import execute
from finetune_jobs.store.s3 import Store
from tests.support.preparing import Prepared, Row, rows, text
from tests.support.sentences import unsaid
from tests.support.stages import context

pytestmark = [pytest.mark.unit, pytest.mark.slow]


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


def test_a_pilot_trains_on_a_sample_of_each_label(prepared: Prepared) -> None:
    scalars = prepared.run(prepared.put("rows.jsonl", rows(400)), pilot=Pilot(examples=50)).scalars
    assert (scalars["rowsTrain"], scalars["rowsValidation"], scalars["rowsTest"]) == ("50", "40", "40")
    assert prepared.report["rows"]["outsidePilot"] == 270
    assert prepared.report["labels"]["a"]["train"] == 25


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
