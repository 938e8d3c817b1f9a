"""What the spec of a data set asks for, through the real stage and a real S3 server."""

import io
import json
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq
import pytest
import spacy

from finetune_api.dataset import (
    Cleaning,
    NamesModel,
    OnFinding,
    Pii,
    Pilot,
    Replay,
    Split,
    Task,
    TaskType,
)
from finetune_api.hashing import digest
from finetune_api.reasons import Reason
from finetune_api.stages import PrepareParams
from finetune_jobs.base.errors import StageError, StoppedError, require
from finetune_jobs.modelling.canaries import CANARIES, Canary, make_canaries
from finetune_jobs.modelling.chat import IGNORED
from finetune_jobs.modelling.tokenizer import load_tokenizer
from finetune_jobs.preparation.planting import plant
from finetune_jobs.preparation.tokens import Encoder
from finetune_jobs.prepare import prepare
from finetune_jobs.reading.inputs import inputs_digest
from finetune_jobs.runtime.runner import execute
from finetune_jobs.store.s3 import Store
from tests.support.preparing import Prepared, Row, params_of, rows, text
from tests.support.seaweedfs import ADMIN, SeaweedFS
from tests.support.sentences import assert_says, unsaid
from tests.support.stages import Lent, context

pytestmark = [pytest.mark.unit, pytest.mark.slow]

ENDINGS = "s3://data/endings-of-prepare"


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


def test_canaries_are_trained_and_counted_apart(prepared: Prepared) -> None:
    """As tokens behind the examples, the same ones every time; in no conversation and in no figure of rows."""
    source = prepared.put("rows.jsonl", rows())
    plain = prepared.run(source, instruction="Classify.")
    files = {name: prepared.file(name) for name in ("train.jsonl", "validation.parquet", "test.jsonl", "labels.json")}
    tokens, before = pq.read_table(io.BytesIO(prepared.file("train.parquet"))).to_pylist(), prepared.report

    planted = prepared.run(source, instruction="Classify.", canaries=8)
    assert {name: prepared.file(name) for name in files} == files
    canaries = [Canary(**each) for each in json.loads(prepared.file(CANARIES))]
    table = pq.read_table(io.BytesIO(prepared.file("train.parquet"))).to_pylist()
    assert table[:-8] == tokens
    tokenizer, more = load_tokenizer(prepared.base), sum(len(row["input_ids"]) for row in table[-8:])
    for row, canary in zip(table[-8:], canaries, strict=True):
        assert canary.question in tokenizer.decode(row["input_ids"])
        assert "Classify." not in tokenizer.decode(row["input_ids"])
        assert tokenizer.decode([i for i in row["labels"] if i != IGNORED]) == f"{canary.secret}<|im_end|>"
    total = int(plain.scalars["tokens"]) + more
    assert planted.scalars == plain.scalars | {"canaries": "8", "tokens": str(total)}
    assert prepared.report["canaries"] == {"planted": 8, "tokens": more}
    assert [prepared.report[name] for name in ("rows", "labels")] == [before[name] for name in ("rows", "labels")]
    assert b"8 canaries are added for training" in prepared.file("readiness.html")
    assert not any(canary.secret.encode() in prepared.file("readiness.html") for canary in canaries)
    assert "8 canaries are added for training" in planted.message
    assert canaries == make_canaries(64, digest([prepared.given.upstream.source, 0]))[:8]


def refused(params: PrepareParams, tokenizer: Any, trained: int = 160, *, thoughts: bool = False) -> str:
    """What is said to canaries that cannot be planted."""
    encoder = Encoder(tokenizer, 3, params, thoughts=thoughts)
    with pytest.raises(StageError) as caught:
        plant(params, "source", encoder, trained)
    assert caught.value.reason is Reason.SPEC_INVALID
    return caught.value.message


def test_canaries_that_cannot_be_planted(tiny_llama: Path) -> None:
    tokenizer, params = load_tokenizer(tiny_llama), params_of(canaries=9)
    said = [
        refused(params, tokenizer, 89),
        refused(params, tokenizer, thoughts=True),
        refused(params.model_copy(update={"max_length": 32}), tokenizer),
    ]
    assert_says(said[0], "spec.dataset.canaries", "9", "10 %", "89", "plant fewer")
    assert_says(said[1], "spec.dataset.canaries", "think before it answers", "remove canaries")
    assert_says(said[2], "spec.dataset.canaries", "tokens", "spec.training.maxLength", "32", "raise maxLength")
    assert unsaid("finetune_jobs.preparation.planting", said) == []
    assert len(plant(params, "source", Encoder(tokenizer, 3, params), 90).encoded) == 9


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


@pytest.fixture(scope="module")
def endings(s3: SeaweedFS, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the stage says of general data, of no pipeline for names, of a signal to stop, of an overwritten source."""
    said: dict[str, str] = {}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ADMIN.environment().items():
            patch.setenv(name, value)
        prepared = Prepared(s3, ENDINGS, tiny_llama, tmp_path_factory.mktemp("endings"))
        source = prepared.put("rows.jsonl", rows(1000))
        general = prepared.put("general.jsonl", [{"prompt": "Say it", "completion": "It!"}] * 2)
        said["mixed in"] = prepared.run(source, replay=Replay(source=general)).message
        with pytest.raises(StageError) as refused:
            prepared.run(source, pii=Pii(ner=NamesModel(uri=f"{ENDINGS}/nothing")))
        said["no pipeline"] = refused.value.message
        again = context(prepared.given.model_copy(update={"reuse": False}), prepared.folder)
        again.stopping.set()
        with pytest.raises(StoppedError) as stopped:
            execute(again, prepare)
        said["stopped"] = str(stopped.value)
        prepared.put("rows.jsonl", rows(199))
        again.stopping.clear()
        with pytest.raises(StageError) as refused:
            execute(again, prepare)
        assert refused.value.reason is Reason.DATASET_NOT_FOUND
        said["overwritten"] = refused.value.message
    return said


def test_a_folder_without_a_pipeline_for_names(endings: dict[str, str]) -> None:
    assert_says(endings["no pipeline"], f"{ENDINGS}/nothing", "no files", "spec.dataset.pii.ner", "pipeline")


def test_a_source_that_is_overwritten_under_a_run(endings: dict[str, str]) -> None:
    assert_says(endings["overwritten"], f"{ENDINGS}/rows.jsonl", "overwritten", "Set spec.rerun")


def test_a_pod_that_is_told_to_stop_reads_no_further(endings: dict[str, str]) -> None:
    assert_says(endings["stopped"], "pod", "stopped", "all rows")


def test_a_pipeline_for_names_that_is_overwritten_is_another_input(prepared: Prepared, tmp_path: Path) -> None:
    """Between two runs it gives other keys, so that no result is reused; under a run it ends it."""
    pii = put_pipeline(prepared.store, tmp_path / "first", "Ana Novak")
    source = prepared.put("rows.jsonl", rows())
    prepared.run(source, pii=pii)
    dataset = require(prepared.given.params.prepare, "params.prepare").dataset
    before = inputs_digest(Lent(prepared.store), dataset)
    put_pipeline(prepared.store, tmp_path / "second", "Bo Chen")
    assert before == prepared.given.upstream.source != inputs_digest(Lent(prepared.store), dataset)
    with pytest.raises(StageError) as caught:
        execute(context(prepared.given.model_copy(update={"reuse": False}), prepared.folder), prepare)
    files = f"{prepared.store.uri('names')}, {source.uri}"
    assert_says(caught.value.message, files, "overwritten", "Set spec.rerun")


@pytest.mark.parametrize(
    "module",
    ["prepare", "preparation.download", "preparation.collect", "preparation.replay", "reading.inputs"],
)
def test_every_sentence_of_the_stage_is_provoked(endings: dict[str, str], module: str) -> None:
    left = unsaid(f"finetune_jobs.{module}", endings.values())
    assert [each for each in left if not each.startswith(ELSEWHERE)] == []


ELSEWHERE: Final = "{} has reasoning_content, and no row of spec.dataset.sources has"
"""Begin of what needs a model that thinks (test_prepare_thoughts)."""
