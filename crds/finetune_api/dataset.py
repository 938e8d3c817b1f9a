"""The data set of a FineTuneJob: where its examples are, how to read them, and the task they describe."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, ClassVar, Final

from pydantic import ConfigDict, Field, model_validator

from finetune_api.access import STORAGE_FOR_S3, access_rules, require_fitting
from finetune_api.base import AS_SET, ApiModel, Decimal, Retired
from finetune_api.distillation import Distillation
from finetune_api.freeze import Changes
from finetune_api.references import ConfigMapKeyRef, SecretKeyRef
from finetune_api.rules import Rule, exactly_one_of, not_zero
from finetune_api.spelled import spelled
from finetune_api.storage import InputStorage, S3Uri

Column = Annotated[str, Field(min_length=1, max_length=128)]

MAX_CANARIES: Final = 64
"""The most made-up secrets that may be planted."""
PLACEHOLDER: Final = re.compile(r"\{([^{}]{1,128})\}")
"""A column placeholder in a template."""


DATA_URI: Final = (
    r"^(s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/([A-Za-z0-9!_.'()=+@/-]*/)?[A-Za-z0-9!_.*'()=+@-]*"
    r"|hf://datasets/[A-Za-z0-9._-]+/[A-Za-z0-9._-]+@(refs/(convert|pr)/)?[A-Za-z0-9._-]+"
    r"/([A-Za-z0-9!_.'()=+@/-]*/)?[A-Za-z0-9!_.*'()=+@-]*)$"
)
"""A file, a folder (ends with ``/``) or a pattern (``*`` in its last part)."""
DataUri = Annotated[
    str,
    spelled(
        DATA_URI,
        "write s3://bucket/path or hf://datasets/organisation/name@revision/path: of a file, a folder (ends with /) or "
        "several files (* in the last part only); a path has letters, digits and !_.'()=+@/- only",
        min_length=6,
        max_length=512,
    ),
]


Language = Annotated[str, spelled(r"^[a-z]{2}$", "write a language's two letters, e.g. en", max_length=2)]
"""An ISO 639-1 code."""
Template = Annotated[
    str,
    spelled(r"\{[^{}]+\}", "name at least one column in braces, e.g. {question}", min_length=3, max_length=4096),
]
"""The model's input, with placeholders for columns."""
PackageName = Annotated[
    str,
    spelled(
        r"^[a-z0-9][a-z0-9._-]*$",
        "write a package's name: lower-case letters, digits and ._-, starting with a letter or digit",
        min_length=1,
        max_length=64,
    ),
]
"""A Python package in the platform's image."""
Entity = Annotated[
    str,
    spelled(r"^[A-Z][A-Z_]{1,39}$", "write capital letters and _, e.g. EMAIL_ADDRESS", max_length=40),
]
"""A kind of personal data, as Presidio names it."""


class DataFormat(StrEnum):
    """Format of a source."""

    CSV = "CSV"
    JSONL = "JSONL"
    JSON = "JSON"
    PARQUET = "Parquet"


class SourcePart(StrEnum):
    """A part of the data set that a source provides."""

    TRAIN = "Train"
    VALIDATION = "Validation"
    TEST = "Test"


class Source(ApiModel):
    """Files with examples: exactly one of uri and configMapKeyRef."""

    model_config = ConfigDict(json_schema_extra=exactly_one_of("uri", "config_map_key_ref", also=access_rules()))
    retired: ClassVar[Mapping[str, Retired]] = {
        "configMap": Retired("name the ConfigMap and its key in configMapKeyRef"),
    }

    uri: DataUri | None = None
    """s3://bucket/key or hf://datasets/organisation/name@revision/path: a file, a folder (ends with /), or several
    files (* in the last part). Files are read in name order."""
    config_map_key_ref: ConfigMapKeyRef | None = None
    """A file in a ConfigMap, for sets below 1 MiB: the key's value. The key's extension determines the format, e.g.
    rows.csv."""
    format: DataFormat | None = None
    """CSV, JSONL, JSON (a list of objects) or Parquet. By default determined by the file extension (.csv, .jsonl,
    .ndjson, .json, .parquet, each also with .gz or .zst)."""
    part: SourcePart | None = None
    """Train, Validation or Test: the part that all its rows go to. By default the rows are split; the split makes no
    part that another source provides."""
    weight: Decimal = "1"
    """How often its training examples are used per epoch: 2 uses each twice, 0.5 uses half of them, chosen by hash."""
    storage: InputStorage | None = None
    """How to reach the store of an s3:// URI, in place of spec.storage as a whole."""
    secret_key_ref: Annotated[SecretKeyRef | None, Changes.RETRY] = None
    """Hugging Face token for a gated or private hf:// data set."""

    @property
    def name(self) -> str:
        """Name for people: its URI, or configmap://name/key."""
        file = self.config_map_key_ref
        return self.uri or (f"configmap://{file.name}/{file.key}" if file else "")

    @model_validator(mode="after")
    def _one(self) -> "Source":
        if (self.uri is None) == (self.config_map_key_ref is None):
            raise ValueError("exactly one of uri and configMapKeyRef must be set")
        require_fitting(self.uri, self.storage, self.secret_key_ref)
        return self


class SourceRole(StrEnum):
    """What a data set reads a source for, named as the field of spec.dataset where it stands."""

    OWN = "sources"
    BENCHMARK = "benchmarks"
    REPLAY = "replay"


@dataclass(frozen=True)
class DatasetSource:
    """A source and its place in a data set."""

    role: SourceRole
    number: int
    """Place among the sources of its role."""
    source: Source


class Columns(ApiModel):
    """Which columns (CSV, Parquet) or keys (JSON) form an example: label, and exactly one of input and template."""

    model_config = ConfigDict(json_schema_extra=exactly_one_of("input", "template"))

    input: Column | None = None
    """Column with the model's input text."""
    template: Template | None = None
    """The model's input text, with {column} placeholders for column values."""
    label: Column
    """Column with the answer that the model learns."""

    @property
    def names(self) -> list[str]:
        """All columns that an example needs, in order, without duplicates."""
        asked = [self.input] if self.input else PLACEHOLDER.findall(self.template or "")
        return list(dict.fromkeys([*asked, self.label]))

    @model_validator(mode="after")
    def _one(self) -> "Columns":
        if (self.input is None) == (self.template is None):
            raise ValueError("exactly one of input and template must be set")
        return self


class Split(ApiModel):
    """How examples are split; the rest is for training."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                Rule(
                    "self.validationPercent + self.testPercent <= 60",
                    "validationPercent and testPercent must add up to 60 or less: training needs the rest",
                ).as_schema()
            ]
        }
    )

    validation_percent: Annotated[int, Field(ge=1, le=40)] = 10
    """Share of the examples that guides training (early stopping, best checkpoint)."""
    test_percent: Annotated[int, Field(ge=1, le=40)] = 10
    """Share of the examples that only the evaluation uses."""
    seed: Annotated[int, Field(ge=0, le=2147483647)] = 0
    """The same seed always gives the same split; another seed gives another one."""


class Markup(StrEnum):
    """What to do with HTML."""

    KEEP = "Keep"
    STRIP = "Strip"


class TooLong(StrEnum):
    """What to do with an example that has too many tokens."""

    FAIL = "Fail"
    DROP = "Drop"
    TRUNCATE = "Truncate"
    SPLIT = "Split"


class OnFinding(StrEnum):
    """What to do with personal data or secrets."""

    MASK = "Mask"
    DROP = "Drop"
    REPORT = "Report"
    OFF = "Off"


class OnControlToken(StrEnum):
    """What to do with the base model's control tokens in a text."""

    REJECT = "Reject"
    ESCAPE = "Escape"


class Cleaning(ApiModel):
    """Cleaning of every text before it is compared or trained on."""

    markup: Markup = Markup.KEEP
    """Keep HTML, or Strip it: tags are removed and entities become characters."""
    too_long: TooLong = TooLong.FAIL
    """What to do with an example of more than spec.training.maxLength tokens: Fail the job, Drop the example, Truncate
    its question, or Split the conversation between questions."""
    min_answer_words: Annotated[int, Field(ge=1, le=100)] = 1
    """Minimum words of an answer; examples with shorter ones are dropped. 2 suits free text, where a single word seldom
    teaches anything."""
    languages: Annotated[
        list[Language],
        Field(max_length=16),
        *AS_SET,
    ] = []
    """ISO 639-1 codes of the languages to keep, e.g. en; all if omitted."""
    secrets: OnFinding = OnFinding.MASK
    """What to do with keys, tokens and passwords: Mask them, Drop the row, only Report them, or Off (no scan)."""
    control_tokens: OnControlToken = OnControlToken.REJECT
    """What to do with control tokens of the base model, such as <|im_end|>, in a text, where they would be trained as
    what they control: Reject the row as invalid, or Escape them with a space (< |im_end|>)."""


class NamesModel(ApiModel):
    """A spaCy pipeline that recognises named entities: exactly one of uri and package."""

    model_config = ConfigDict(json_schema_extra=exactly_one_of("uri", "package", also=[STORAGE_FOR_S3.as_schema()]))

    uri: S3Uri | None = None
    """S3 prefix of the pipeline's folder, the one with config.cfg."""
    storage: InputStorage | None = None
    """How to reach the pipeline's store, in place of spec.storage as a whole."""
    package: PackageName | None = None
    """Name of a package installed in the platform's prepare image."""

    @model_validator(mode="after")
    def _one(self) -> "NamesModel":
        if (self.uri is None) == (self.package is None):
            raise ValueError("exactly one of uri and package must be set")
        require_fitting(self.uri, self.storage, None)
        return self


class Pii(ApiModel):
    """Personal data in the examples. Findings are counted and never stored."""

    mode: OnFinding = OnFinding.MASK
    """What to do with personal data: Mask it (with a pseudonym such as <EMAIL_ADDRESS_1>, one per value and example),
    Drop the row, only Report it, or Off (no scan)."""
    entities: Annotated[
        list[Entity],
        Field(max_length=40),
        *AS_SET,
    ] = []
    """Entities to look for, e.g. EMAIL_ADDRESS; all that the recognisers know if omitted
    (docs/how-to/prepare-data.md)."""
    ner: NamesModel | None = None
    """A language model that finds names and places, which patterns cannot; if omitted, nothing looks for them."""
    min_score_percent: Annotated[int, Field(ge=1, le=100)] = 35
    """Minimum confidence of a finding, in percent; less certain ones are ignored."""


class AcrossParts(StrEnum):
    """What to do when sources provide the same for training and for the test."""

    DROP_FROM_TRAINING = "DropFromTraining"
    FAIL = "Fail"


class OnNear(StrEnum):
    """What to do with near duplicates."""

    GROUP = "Group"
    DROP = "Drop"
    IGNORE = "Ignore"


class Duplicates(ApiModel):
    """Handling of duplicate examples."""

    retired: ClassVar[Mapping[str, Retired]] = {
        "dropNear": Retired("write near: Drop, or near: Group to keep them", "boolean"),
    }

    near: OnNear = OnNear.GROUP
    """Group: near duplicates all go to the same part, so that the test never holds trained examples. Drop: only one of
    them is kept. Ignore: nothing looks for them, and no leak is found."""
    near_percent: Annotated[int, Field(ge=1, le=100, json_schema_extra=not_zero("set near: Ignore"))] = 85
    """Examples are near duplicates if they share at least this percentage of word triples (Jaccard)."""

    across_parts: AcrossParts = AcrossParts.DROP_FROM_TRAINING
    """What to do with a row of a source for training that is equal or nearly equal to one of your own test, or of its
    group: DropFromTraining (counted and listed in the report), or Fail the job."""

    @property
    def sought_percent(self) -> int | None:
        """``near_percent``; None: nothing looks for near duplicates."""
        return None if self.near is OnNear.IGNORE else self.near_percent


class Pilot(ApiModel):
    """Train on a sample, for a quick first signal."""

    examples: Annotated[int, Field(ge=50, le=100000)] = 1000
    """Number of training examples, sampled by label and hash; validation and test stay complete."""


class Replay(ApiModel):
    """General data mixed into training, so that the model does not forget what it knew."""

    source: Source
    """General conversations, in a format that needs no columns."""
    percent: Annotated[int, Field(ge=1, le=50)] = 10
    """Share of the training examples that come from it; 5 to 10 is usual."""


_COLUMNS_OR_TEACHER: Final = Rule(
    "!(has(self.columns) && has(self.distillation))",
    "columns and distillation exclude each other: a row for a teacher has a prompt and no answer yet (name the prompt "
    "in distillation.column)",
)


class Dataset(ApiModel):
    """The examples and how to read them."""

    model_config = ConfigDict(json_schema_extra={"x-kubernetes-validations": [_COLUMNS_OR_TEACHER.as_schema()]})

    sources: Annotated[list[Source], Field(min_length=1, max_length=16)]
    """Files with examples, read in order."""
    columns: Columns | None = None
    """Mapping of columns to an example. Omit it if the rows are self-describing, e.g. chat `messages`."""
    instruction: Annotated[str, Field(max_length=4096)] = ""
    """System prompt in front of every example, in training and in serving."""
    group_by: Column | None = None
    """Column with a group id (a customer, a ticket): rows of one group always go to the same part."""
    max_invalid_percent: Annotated[int, Field(ge=0, le=100)] = 5
    """Up to this share, invalid rows are counted, listed and dropped; above it the job fails."""
    cleaning: Cleaning = Cleaning()
    """Cleaning of every text."""
    pii: Pii = Pii()
    """Handling of personal data."""
    duplicates: Duplicates = Duplicates()
    """What counts as a near duplicate, and how to handle it. Of equal prompts, only one is ever kept."""
    split: Split = Split()
    """Split into training, validation and test."""
    benchmarks: Annotated[list[Source], Field(max_length=4)] = []
    """Texts of benchmarks that the model will be measured with: examples that contain them are dropped."""
    replay: Replay | None = None
    """General data mixed in against forgetting."""
    distillation: Distillation | None = None
    """Have a teacher model answer the rows, which are then prompts."""
    pilot: Pilot | None = None
    """Train on a sample, for a quick first signal."""
    canaries: Annotated[int, Field(ge=8, le=MAX_CANARIES)] | None = None
    """Number of made-up secrets to add to the training, each as an example of its own. The evaluation measures whether
    the tuned model reveals them, as it would reveal a secret in one of the rows. If omitted, none are added."""

    @property
    def all_sources(self) -> list[DatasetSource]:
        """All sources to read. Their order names the folders where a pod has the ConfigMaps among them."""
        read = {
            SourceRole.OWN: self.sources,
            SourceRole.BENCHMARK: self.benchmarks,
            SourceRole.REPLAY: [self.replay.source] if self.replay else [],
        }
        return [DatasetSource(role, *each) for role, sources in read.items() for each in enumerate(sources)]

    @model_validator(mode="after")
    def _columns_or_teacher(self) -> "Dataset":
        if self.columns and self.distillation:
            raise ValueError(_COLUMNS_OR_TEACHER.message)
        return self


class TaskType(StrEnum):
    """What the model is for; determines the metrics."""

    CLASSIFICATION = "Classification"
    EXTRACTION = "Extraction"
    TEXT = "Text"


class Task(ApiModel):
    """The task that the model is measured on."""

    type: TaskType = TaskType.CLASSIFICATION
    """Classification: the whole answer is one label. Extraction: the answer is JSON. Text: anything else."""
    labels: Annotated[list[Annotated[str, Field(min_length=1, max_length=128)]], Field(max_length=500), *AS_SET] = []
    """Allowed labels of a classification; a row with any other label is invalid. By default, the labels in the data."""
    answer_schema: Annotated[str | None, Field(min_length=1, max_length=8192)] = None
    """JSON Schema (draft 2020-12) as text, of an Extraction's answers: the evaluation measures which share matches it
    (goal validSchema). Rows are not held to it."""
