"""The example of extraction: its generator, and what the stage prepare makes of its invoices."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import subprocess
import sys
from collections import Counter
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from finetune_api.dataset import Dataset, TaskType
from finetune_api.finetunejob import FineTuneJob, FineTuneJobSpec
from finetune_api.layout import output_folder
from finetune_api.stages import PrepareParams, Stage, Upstream
from finetune_jobs.evaluation.tasks import right_for
from finetune_jobs.examples.validation import Example
from finetune_jobs.modelling.base_model import find_base_model
from finetune_jobs.prepare import prepare
from finetune_jobs.reading.rows import Row
from finetune_jobs.reading.sources import find_sources, source_digest
from finetune_jobs.runtime.runner import execute
from finetune_jobs.store.s3 import Store
from hack.cluster.layout import REPOSITORY, cache_directory
from hack.models import ensure_smollm2
from tests.support.preparing import intake_of
from tests.support.seaweedfs import SeaweedFS
from tests.support.stages import Lent, context, pipeline_params, prepare_params, stage_input

pytestmark = [pytest.mark.unit, pytest.mark.slow]

EXAMPLE = REPOSITORY / "examples" / "extraction"
DIGEST = "bead52801464c3f532b1d067a4cd8700a1d41e2ee6a7bb746481318a90e5ca39"
ROWS = 1200
SHOWS_PERSONAL_DATA = re.compile(r"@|\.example\b|[A-Z]{2}\d\d ?[A-Z0-9]{4}|555-01\d\d|7946 0|496 0|23125|99998|66969")
"""Addresses, accounts and the free telephone ranges that the generator draws from."""


def load() -> ModuleType:
    """The script as a module: examples are files to copy, not a package."""
    found = importlib.util.spec_from_file_location("extraction_generate", EXAMPLE / "generate.py")
    assert found
    assert found.loader
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module
    found.loader.exec_module(module)
    return module


generator = load()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that README.md has one make, by a process of its own, isolated from site packages."""
    out = tmp_path_factory.mktemp("data") / "invoices.jsonl"
    command = [
        sys.executable,
        "-I",
        str(EXAMPLE / "generate.py"),
        "--rows",
        str(ROWS),
        "--seed",
        "7",
        "--out",
        str(out),
    ]
    subprocess.run(command, check=True)
    return out


@pytest.fixture(scope="module")
def rows(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def spec() -> FineTuneJobSpec:
    return FineTuneJob.model_validate(yaml.safe_load((EXAMPLE / "finetunejob.yaml").read_text())).spec


# The generator


def test_same_bytes_on_every_machine(file: Path, rows: list[dict[str, str]]) -> None:
    assert hashlib.sha256(file.read_bytes()).hexdigest() == DIGEST
    assert len(rows) == ROWS
    assert len({row["text"] for row in rows}) == ROWS * 98 // 100


def test_every_record_has_the_fields_and_nothing_else(rows: list[dict[str, str]], spec: FineTuneJobSpec) -> None:
    records = [json.loads(row["record"]) for row in rows]
    assert all(list(record) == list(generator.FIELDS) for record in records)
    assert all(value is None or (isinstance(value, str) and value) for record in records for value in record.values())
    assert ", ".join(generator.FIELDS) in spec.dataset.instruction
    absent = Counter(name for record in records for name, value in record.items() if value is None)
    assert set(absent) == {"due", "order", "currency"}
    assert all(count >= 30 for count in absent.values())


def test_every_value_can_be_read_in_the_text_and_nothing_that_is_null(rows: list[dict[str, str]]) -> None:
    for row in rows:
        record, text = json.loads(row["record"]), row["text"]
        assert row["supplier"] == record["supplier"]
        assert all(record[name] in text for name in ("supplier", "number"))
        assert {record["date"], record["due"]} - {None} <= set(dates(text))
        assert re.sub(r"[.]", "", record["total"]) in {re.sub(r"[.,]", "", each) for each in amounts(text)}
        assert max(map(cents, amounts(text))) == cents(record["total"])
        assert record["currency"] == currency(text)
        ordered = re.search(r"(?:Your order|your order|Ihre Bestellung|betrifft Ihre Bestellung)\W+([A-Z0-9-]+)", text)
        assert record["order"] == (ordered[1].rstrip(".") if ordered else None)


def dates(text: str) -> list[str]:
    """The dates of a text, in its three forms, as ISO 8601 has them."""
    months = {name[:3]: number for number, name in enumerate(generator.MONTHS, start=1)}
    british = [(y, months[m[:3]], d) for d, m, y in re.findall(r"\b(\d{1,2}) ([A-Z][a-z]+) (\d{4})\b", text)]
    american = [(y, months[m], d) for m, d, y in re.findall(r"\b([A-Z][a-z]{2}) (\d{1,2}), (\d{4})\b", text)]
    german = [(y, m, d) for d, m, y in re.findall(r"\b(\d\d)\.(\d\d)\.(\d{4})\b", text)]
    return [date(int(y), int(m), int(d)).isoformat() for y, m, d in (*british, *american, *german)]


def amounts(text: str) -> list[str]:
    return re.findall(r"\b\d{1,3}(?:[.,]\d{3})*[.,]\d\d\b(?![.,]\d)", text)


def cents(amount: str) -> int:
    return int(re.sub(r"[.,]", "", amount))


def currency(text: str) -> str | None:
    signs = {"£": "GBP", "$": "USD", "€": "EUR"}
    return next((code for sign, code in signs.items() if sign in text or f" {code}" in text), None)


def test_every_layout_comes_from_every_country() -> None:
    kinds = Counter((supplier.home.form, supplier.layout) for supplier in generator.SUPPLIERS)
    assert len(kinds) == len(generator.HOMES) * len(generator.LAYOUTS)
    assert set(kinds.values()) == {4}
    assert len({supplier.name for supplier in generator.SUPPLIERS}) == len(generator.SUPPLIERS)


@pytest.mark.parametrize("count", ["0", "-5", "many"])
def test_refuses_a_wrong_number_of_rows(count: str, tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLE / "generate.py"), "--rows", count, "--out", str(tmp_path / "out.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert count in done.stderr
    assert not (tmp_path / "out.jsonl").exists()


# What prepare makes of it


def asked(spec: FineTuneJobSpec, **fields: Any) -> PrepareParams:
    """The stage's part of the example's spec."""
    given, names = spec.dataset, ("sources", "columns", "pii", "instruction", "group_by")
    values = {name: getattr(given, name) for name in names} | {"task": spec.task}
    return prepare_params(**values | {"max_length": spec.training.max_length} | fields)


def test_masking_takes_what_is_personal_and_leaves_every_record_alone(
    rows: list[dict[str, str]], spec: FineTuneJobSpec
) -> None:
    intake, right = intake_of(asked(spec)), right_for(TaskType.EXTRACTION)
    shown = 0
    for line, row in enumerate(rows, start=1):
        example = intake.take(Row(line, dict(row)))
        assert isinstance(example, Example), example
        shown += bool(SHOWS_PERSONAL_DATA.search(row["text"]))
        assert not SHOWS_PERSONAL_DATA.search(example.messages[1]["content"]), line
        assert example.label == row["record"]
        assert right(row["record"], example.label)
    assert shown > ROWS // 2
    assert set(intake.personal) == {"EMAIL_ADDRESS", "IBAN_CODE", "PHONE_NUMBER"}


def test_the_stage_takes_every_invoice_and_tears_no_supplier_apart(
    s3: SeaweedFS, place: str, tmp_path: Path, file: Path, spec: FineTuneJobSpec
) -> None:
    base = ensure_smollm2(cache_directory())
    store = Store.connect(s3.storage, place)
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        store.put(f"model/{name}", (base / name).read_bytes())
    store.put("model/chat_template.jinja", (base / "chat_template.jinja").read_bytes())
    store.put("model/model.safetensors", b"no weights are read here")
    store.upload("invoices.jsonl", file)
    sources = [spec.dataset.sources[0].model_copy(update={"uri": store.uri("invoices.jsonl")})]
    output = spec.output.model_copy(update={"uri": store.uri("out")})
    params = pipeline_params([], output)
    params = params.model_copy(update={"prepare": asked(spec, sources=sources)})
    upstream = Upstream(
        source=source_digest(find_sources(Lent(store), Dataset(sources=sources))),
        model=find_base_model(Lent(store), store.uri("model")).digest,
    )
    given = stage_input(Stage.PREPARE, s3.storage, output, params, upstream, base_model_uri=store.uri("model"))
    made = execute(context(given, tmp_path), prepare)
    counts = {name: int(made.scalars[name]) for name in ("rowsRead", "rowsInvalid", "rowsDropped", "rowsDuplicates")}
    assert counts == {"rowsRead": ROWS, "rowsInvalid": 0, "rowsDropped": 0, "rowsDuplicates": ROWS * 2 // 100}
    assert int(made.scalars["longest"]) <= spec.training.max_length
    suppliers = {part: suppliers_of(store, made.output_digest, part) for part in ("train", "validation", "test")}
    assert all(len(some) >= 4 for some in suppliers.values())
    assert sum(map(len, suppliers.values())) == len(generator.SUPPLIERS)
    assert len(set.union(*suppliers.values())) == len(generator.SUPPLIERS)


def suppliers_of(store: Store, digest: str, part: str) -> set[str]:
    """The suppliers in a part of the data set."""
    content = store.get(f"out/{output_folder(Stage.PREPARE, digest)}/{part}.jsonl") or b""
    return {json.loads(json.loads(line)["messages"][-1]["content"])["supplier"] for line in content.splitlines()}
