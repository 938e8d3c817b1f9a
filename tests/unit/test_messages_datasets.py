"""What a user is told about a data set as a whole, and about rules that nothing can follow: exact messages."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from finetune_api.dataset import Cleaning, Columns, Pii, Task, TaskType
from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.splitting import leakage
from finetune_jobs.text.pii.ner import package_folder
from finetune_jobs.text.pii.recognition import Recognition
from tests.support.preparing import Reader
from tests.support.sentences import unsaid
from tests.support.tiny_model import build_tiny_llama

pytestmark = pytest.mark.unit

CLASSES: Final = {"columns": Columns(input="text", label="label"), "task": Task()}
TEXTS: Final = {"columns": Columns(input="text", label="label"), "task": Task(type=TaskType.TEXT)}

LONG: Final = "; ".join(f"s3://data/rows.jsonl line {line} has 277" for line in range(3, 8))
LANGUAGES: Final = (
    "af, am, an, ar, as, az, ba, be, bg, bn, br, bs, ca, cs, cy, da, de, dz, el, en, eo, es, et, eu, fa, fi, fo, fr, "
    "fy, ga, gd, gl, gu, ha, he, hi, hr, ht, hu, hy, id, ig, is, it, ja, jv, ka, kk, km, kn, ko, ku, ky, la, lb, lg, "
    "ln, lo, lt, lv, mg, mk, ml, mn, mr, ms, mt, my, ne, nl, nn, no, oc, om, or, pa, pl, ps, pt, qu, ro, ru, rw, sa, "
    "se, si, sk, sl, sn, so, sq, sr, st, sv, sw, ta, te, tg, th, tk, tl, tr, tt, ug, uk, ur, uz, vi, vo, wa, xh, yo, "
    "zh, zu"
)
ENTITIES: Final = (
    "AU_MEDICARE, AU_TFN, CA_SIN, CREDIT_CARD, CRYPTO, DATE_OF_BIRTH, DATE_TIME, DE_ID_CARD, DE_SOCIAL_SECURITY, "
    "DE_TAX_ID, EMAIL_ADDRESS, ES_NIE, ES_NIF, FI_PERSONAL_IDENTITY_CODE, IBAN_CODE, IN_AADHAAR, IP_ADDRESS, "
    "IT_FISCAL_CODE, MAC_ADDRESS, MEDICAL_LICENSE, PHONE_NUMBER, PL_PESEL, SE_PERSONNUMMER, SG_NRIC_FIN, "
    "UK_DRIVING_LICENCE, UK_NHS, UK_NINO, URL, US_BANK_NUMBER, US_DRIVER_LICENSE, US_ITIN, US_PASSPORT, US_SSN, UUID"
)


def labelled(labels: Sequence[str]) -> bytes:
    """A row for each label."""
    return b"".join(
        json.dumps({"text": f"text {n}", "label": label}).encode() + b"\n" for n, label in enumerate(labels)
    )


REFUSED: Final[list[tuple[dict[str, Any], bytes, Reason, str]]] = [
    (
        CLASSES,
        labelled(["refund"] * 9 + ["", "7"]),
        Reason.DATASET_INVALID,
        "1 of 11 rows are invalid, 0 % are allowed: s3://data/rows.jsonl line 10, label: is empty. Correct these rows, "
        "or raise spec.dataset.maxInvalidPercent.",
    ),
    (
        CLASSES,
        labelled(["refund"] * 40),
        Reason.DATASET_INVALID,
        "All 40 examples have the label 'refund': a classification needs two labels at least. Check "
        "spec.dataset.columns.label.",
    ),
    (
        CLASSES,
        labelled([f"reason {n}" for n in range(40)]),
        Reason.DATASET_INVALID,
        "40 examples have 40 different labels ('reason 0', 'reason 1', 'reason 10', …): nothing can be learnt from "
        "labels that hardly repeat. Check spec.dataset.columns.label, or set spec.task.type to Text or Extraction.",
    ),
    (
        CLASSES,
        labelled(["refund", "question"] * 20),
        Reason.DATASET_TOO_SMALL,
        "4 for validation, 4 for test: each part needs 10 examples at least. Of 40 rows, 0 were invalid, 0 duplicates "
        "and 0 left out by rules; 40 examples are left.",
    ),
    (
        TEXTS | {"max_length": 40},
        labelled(["an answer"] * 2 + ["an answer of many words " * 20] * 7),
        Reason.DATASET_INVALID,
        f"7 examples are longer than spec.training.maxLength 40 tokens ({LONG}): set maxLength to 277, or let "
        "spec.dataset.cleaning.tooLong say what becomes of them (Drop, Truncate, Split).",
    ),
    (
        TEXTS | {"cleaning": Cleaning(languages=["en", "xx"])},
        labelled(["an answer"]),
        Reason.SPEC_INVALID,
        f"spec.dataset.cleaning.languages: 'xx' cannot be recognised. There are: {LANGUAGES}.",
    ),
    (
        TEXTS | {"pii": Pii(entities=["EMAIL"])},
        labelled(["an answer"]),
        Reason.SPEC_INVALID,
        f"spec.dataset.pii.entities: nothing finds 'EMAIL'. There are: {ENTITIES}.",
    ),
    (
        TEXTS | {"pii": Pii(entities=["EMAIL_ADRESS"])},
        labelled(["an answer"]),
        Reason.SPEC_INVALID,
        f"spec.dataset.pii.entities: nothing finds 'EMAIL_ADRESS'. Did you mean 'EMAIL_ADDRESS'? There are: "
        f"{ENTITIES}.",
    ),
    (
        TEXTS | {"pii": Pii(entities=["PERSON"])},
        labelled(["an answer"]),
        Reason.SPEC_INVALID,
        "spec.dataset.pii.entities: nothing finds 'PERSON'. Names and places need a spaCy pipeline: name one in "
        "spec.dataset.pii.ner.",
    ),
]
"""What the spec asks for, the rows, and how prepare refuses them."""


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return Reader(build_tiny_llama(tmp_path_factory.mktemp("messages") / "base"))


@pytest.mark.parametrize(("spec", "rows", "reason", "message"), REFUSED, ids=map(str, range(len(REFUSED))))
def test_a_data_set_that_is_refused(
    reader: Reader, tmp_path: Path, spec: dict[str, Any], rows: bytes, reason: Reason, message: str
) -> None:
    with pytest.raises(StageError) as error:
        reader.read(tmp_path, rows, **spec)
    assert (error.value.reason, error.value.message) == (reason, message)


LEAKS: Final = [
    (1, "a (test) and b (training)"),
    (7, f"{'; '.join(['a (test) and b (training)'] * 5)}; and 2 more"),
]
LEAK: Final = (
    "{count} test examples are duplicates of training examples, or nearly, or in one group with them: {pairs}. The "
    "score would be too good. Put both of a pair into one part, remove one of them, or leave their part to the "
    "division."
)


@pytest.mark.parametrize(("count", "pairs"), LEAKS)
def test_a_test_that_is_trained_names_the_pairs(count: int, pairs: str) -> None:
    error = leakage.refusal([("a", "b")] * count)
    assert (error.reason, error.message) == (Reason.DATASET_INVALID, LEAK.format(count=count, pairs=pairs))


COMPONENT: Final = '[nlp]\nlang = "en"\npipeline = ["{0}"]\n[components]\n[components.{0}]\nfactory = "{0}"\n'
PIPELINES: Final = [
    (None, "there is no config.cfg in the folder"),
    ("[nlp]\nlang = ", "config.cfg is no pipeline of spaCy (KeyError)"),
    (
        '[nlp]\nlang = "en"\npipeline = []\n[components]\n',
        "it finds no entities: it has no component, and needs one of beam_ner, entity_ruler, ner, span_ruler",
    ),
    (
        COMPONENT.format("transformer"),
        "it finds no entities: it has transformer, and needs one of beam_ner, entity_ruler, ner, span_ruler",
    ),
    (COMPONENT.format("ner"), "spaCy cannot load it (OSError)"),
]
"""The configuration of a pipeline that finds names, and what is wrong with it."""
NO_PACKAGE: Final = "no such package is installed in the image of prepare"
UNUSABLE: Final = "pipeline 'en_names' for names: {problem}. Give a spaCy 3 pipeline with a component ner."


@pytest.mark.parametrize(("config", "problem"), PIPELINES)
def test_a_pipeline_that_cannot_be_used(tmp_path: Path, config: str | None, problem: str) -> None:
    folder = tmp_path / "en_names"
    folder.mkdir()
    if config is not None:
        (folder / "config.cfg").write_text(config)
    with pytest.raises(StageError) as error:
        Recognition(Pii(), ner=folder)
    assert (error.value.reason, error.value.message) == (Reason.SPEC_INVALID, UNUSABLE.format(problem=problem))


def test_a_package_that_is_not_installed() -> None:
    with pytest.raises(StageError) as error:
        package_folder("en_names")
    assert (error.value.reason, error.value.message) == (Reason.SPEC_INVALID, UNUSABLE.format(problem=NO_PACKAGE))


@pytest.mark.parametrize(
    "module",
    [
        "readiness.preparation_report",
        "splitting.leakage",
        "preparation.tokens",
        "text.language",
        "text.pii.recognition",
        "text.pii.ner",
    ],
)
def test_every_sentence_of_a_refusal_is_in_a_table(module: str) -> None:
    refusals = [*(refused[-1] for refused in REFUSED), *(LEAK.format(count=n, pairs=pairs) for n, pairs in LEAKS)]
    refusals += [UNUSABLE.format(problem=problem) for problem in (NO_PACKAGE, *(each for _, each in PIPELINES))]
    assert [each for each in unsaid(f"finetune_jobs.{module}", refusals) if each not in TAKEN] == []


TAKEN: Final = (
    "{} rows gave {} examples for training, {} for validation and {} for the test.",
    " {} duplicates were left out.",
    " Rules left out {} ({}).",
    " {} invalid rows were left out ({}): {}",
    "{} of {} rows of spec.dataset.{} are invalid and were left out ({})",
    "Labels differ only in letter case, or in how a number is written: {}.",
)
"""What is said of a data set that is taken (test_preparation_report, test_prepare_roles)."""
