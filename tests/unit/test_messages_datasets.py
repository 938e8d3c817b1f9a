"""What a user is told about a data set as a whole, and about settings that cannot be followed."""

import json
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Final

import pytest

from finetune_api.dataset import Cleaning, Columns, Pii, Task, TaskType
from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.splitting import leakage
from finetune_jobs.text.pii.ner import package_folder
from finetune_jobs.text.pii.recognition import Recognition
from tests.support.preparing import Reader
from tests.support.sentences import assert_says, unsaid
from tests.support.tiny_model import build_tiny_llama

pytestmark = pytest.mark.unit

CLASSES: Final = {"columns": Columns(input="text", label="label"), "task": Task()}
TEXTS: Final = {"columns": Columns(input="text", label="label"), "task": Task(type=TaskType.TEXT)}

LONG: Final = [f"s3://data/rows.jsonl line {line} has 277" for line in range(3, 8)]
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


REFUSED: Final[list[tuple[dict[str, Any], bytes, Reason, tuple[str, ...]]]] = [
    (
        CLASSES,
        labelled(["refund"] * 9 + ["", "7"]),
        Reason.DATASET_INVALID,
        (
            *("1 of 11", "0 %", "s3://data/rows.jsonl line 10, label:", "empty"),
            *("Fix", "raise spec.dataset.maxInvalidPercent"),
        ),
    ),
    (
        CLASSES,
        labelled(["refund"] * 40),
        Reason.DATASET_INVALID,
        ("40 examples", "'refund'", "two labels", "Check spec.dataset.columns.label"),
    ),
    (
        CLASSES,
        labelled([f"reason {n}" for n in range(40)]),
        Reason.DATASET_INVALID,
        (
            *("40 examples", "40 different labels", "'reason 0', 'reason 1', 'reason 10', …", "repeat"),
            *("Check spec.dataset.columns.label", "set spec.task.type", "Text", "Extraction"),
        ),
    ),
    (
        CLASSES,
        labelled(["refund", "question"] * 20),
        Reason.DATASET_TOO_SMALL,
        (
            *("4 for validation", "4 for test", "each part", "10 examples", "40 rows", "0 were invalid"),
            *("0 duplicates", "0 dropped", "rules", "40 examples"),
        ),
    ),
    (
        TEXTS | {"group_by": "label"},
        labelled(["one group"] * 150),
        Reason.DATASET_TOO_SMALL,
        (
            *(
                "0 for validation, 0 for test",
                "150 rows",
                "150 examples remain",
                "150 of them",
                "one group",
                "one part",
            ),
            *("smaller groups in spec.dataset.groupBy", "raise spec.dataset.duplicates.nearPercent"),
        ),
    ),
    (
        TEXTS | {"max_length": 40},
        labelled(["an answer"] * 2 + ["an answer of many words " * 20] * 7),
        Reason.DATASET_INVALID,
        (
            *("7 examples", "spec.training.maxLength", "40 tokens", *LONG, "set maxLength to 277"),
            *("spec.dataset.cleaning.tooLong", "Drop", "Truncate", "Split"),
        ),
    ),
    (
        TEXTS | {"cleaning": Cleaning(languages=["en", "xx"])},
        labelled(["an answer"]),
        Reason.SPEC_INVALID,
        ("spec.dataset.cleaning.languages", "'xx'", f"Supported: {LANGUAGES}."),
    ),
    (
        TEXTS | {"pii": Pii(entities=["EMAIL"])},
        labelled(["an answer"]),
        Reason.SPEC_INVALID,
        ("spec.dataset.pii.entities", "'EMAIL'", f"Supported: {ENTITIES}."),
    ),
    (
        TEXTS | {"pii": Pii(entities=["EMAIL_ADRESS"])},
        labelled(["an answer"]),
        Reason.SPEC_INVALID,
        ("spec.dataset.pii.entities", "'EMAIL_ADRESS'", "Did you mean 'EMAIL_ADDRESS'", f"Supported: {ENTITIES}."),
    ),
    (
        TEXTS | {"pii": Pii(entities=["PERSON"])},
        labelled(["an answer"]),
        Reason.SPEC_INVALID,
        ("spec.dataset.pii.entities", "'PERSON'", "spaCy pipeline", "set spec.dataset.pii.ner"),
    ),
]
"""What the spec asks for, the rows, and how prepare refuses them: the reason and parts of the message."""


Refused = Callable[[int], StageError]


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> Refused:
    """How prepare refuses the data sets of REFUSED, by number; each is provoked once."""
    reader = Reader(build_tiny_llama(tmp_path_factory.mktemp("messages") / "base"))

    @cache
    def refuse(number: int) -> StageError:
        spec, rows, *_ = REFUSED[number]
        with pytest.raises(StageError) as error:
            reader.read(tmp_path_factory.mktemp("rows"), rows, **spec)
        return error.value

    return refuse


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_a_data_set_that_is_refused(refused: Refused, number: int) -> None:
    *_, reason, parts = REFUSED[number]
    error = refused(number)
    assert error.reason is reason
    assert_says(error.message, *parts)


PAIR: Final = "a (test) and b (training)"
LEAKS: Final = [(1, (PAIR,)), (7, (*[PAIR] * 5, "2 more"))]


@pytest.mark.parametrize(("count", "pairs"), LEAKS)
def test_a_test_that_is_trained_names_the_pairs(count: int, pairs: tuple[str, ...]) -> None:
    error = leakage.refusal([("a", "b")] * count)
    assert error.reason is Reason.DATASET_INVALID
    assert error.message.count(PAIR) == pairs.count(PAIR)
    remedies = ("score", "same part", "remove one", "let the operator")
    assert_says(error.message, f"{count} test examples", "training examples", "group", *pairs, *remedies)


COMPONENT: Final = '[nlp]\nlang = "en"\npipeline = ["{0}"]\n[components]\n[components.{0}]\nfactory = "{0}"\n'
FINDERS: Final = "beam_ner, entity_ruler, ner, span_ruler"
PIPELINES: Final[list[tuple[str | None, tuple[str, ...]]]] = [
    (None, ("folder", "config.cfg")),
    ("[nlp]\nlang = ", ("config.cfg", "KeyError")),
    ('[nlp]\nlang = "en"\npipeline = []\n[components]\n', ("entities", "no component", "needs one", FINDERS)),
    (COMPONENT.format("transformer"), ("entities", "transformer", "needs one", FINDERS)),
    (COMPONENT.format("ner"), ("spaCy cannot load", "OSError")),
]
"""The configuration of a pipeline that finds names, and parts of what is wrong with it."""


@pytest.fixture(scope="module")
def unusable(tmp_path_factory: pytest.TempPathFactory) -> Refused:
    """How the pipelines of PIPELINES are refused, by number, and below 0 a package that is not installed."""

    @cache
    def refuse(number: int) -> StageError:
        folder = tmp_path_factory.mktemp("pipeline") / "en_names"
        folder.mkdir()
        config = PIPELINES[number][0] if number >= 0 else None
        if config is not None:
            (folder / "config.cfg").write_text(config)
        with pytest.raises(StageError) as error:
            Recognition(Pii(), ner=folder) if number >= 0 else package_folder("en_names")
        return error.value

    return refuse


@pytest.mark.parametrize("number", range(-1, len(PIPELINES)))
def test_a_pipeline_that_cannot_be_used(unusable: Refused, number: int) -> None:
    problem = PIPELINES[number][1] if number >= 0 else ("not installed", "prepare")
    error = unusable(number)
    assert error.reason is Reason.SPEC_INVALID
    assert_says(error.message, "spec.dataset.pii.ner", "'en_names'", *problem, "spaCy 3 pipeline", "ner")


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
def test_every_sentence_of_a_refusal_is_provoked(refused: Refused, unusable: Refused, module: str) -> None:
    messages = [refused(number).message for number in range(len(REFUSED))]
    messages += [unusable(number).message for number in range(-1, len(PIPELINES))]
    messages += [leakage.refusal([("a", "b")] * count).message for count, _ in LEAKS]
    assert [each for each in unsaid(f"finetune_jobs.{module}", messages) if each not in TAKEN] == []


TAKEN: Final = (
    "{} rows gave {} training, {} validation and {} test examples.",
    " inTest: training rows that (nearly) repeat your test, such as {} ({}).",
    " {} test examples contain placeholders; the evaluation scores them separately.",
    " {} examples have thoughts, which the model learns",
    "; {} have none.",
    " {} canaries are added for training.",
    " Too long, and left out of conversations that were split: {}.",
    " Control tokens were escaped with a space ({}).",
    " {} duplicates dropped.",
    " Rules dropped {} ({}).",
    " {} invalid rows dropped ({}): {}",
    "{} of {} rows of spec.dataset.{} are invalid and were dropped ({})",
    "Labels differ only in letter case, or in how a number is written: {}.",
)
"""What is said of a data set that is taken (test_preparation_report, test_prepare_roles,
test_prepare_thoughts, test_dataset_prepare)."""
