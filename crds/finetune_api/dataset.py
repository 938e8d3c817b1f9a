"""The examples of a FineTuneJob: where they are, how they are read, and what the model is for."""

import re
from enum import StrEnum
from typing import Annotated, Final

from pydantic import ConfigDict, Field, model_validator

from finetune_api.base import ApiModel, Decimal
from finetune_api.distillation import Distillation
from finetune_api.rules import Rule, exactly_one_of
from finetune_api.storage import SECRET_NAME, S3Uri

Column = Annotated[str, Field(min_length=1, max_length=128)]

PLACEHOLDER: Final = re.compile(r"\{([^{}]{1,128})\}")
"""A column in a template."""


DATA_URI: Final = (
    r"^(s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/([A-Za-z0-9!_.'()=+@/-]*/)?[A-Za-z0-9!_.*'()=+@-]*"
    r"|hf://datasets/[A-Za-z0-9._-]+/[A-Za-z0-9._-]+@(refs/(convert|pr)/)?[A-Za-z0-9._-]+"
    r"/([A-Za-z0-9!_.'()=+@/-]*/)?[A-Za-z0-9!_.*'()=+@-]*)$"
)
"""A file, a folder (ends with ``/``) or a pattern (``*`` in its last part)."""
CONFIG_MAP_KEY: Final = r"^\.?[-_a-zA-Z0-9][-._a-zA-Z0-9]*$"


class DataFormat(StrEnum):
    """Format of a source."""

    CSV = "CSV"
    JSONL = "JSONL"
    JSON = "JSON"
    PARQUET = "Parquet"


class ConfigMapKey(ApiModel):
    """A file in a ConfigMap of the same namespace, for sets below 1 MiB."""

    name: Annotated[str, Field(pattern=SECRET_NAME, min_length=1, max_length=253)]
    """Name of the ConfigMap."""
    key: Annotated[str, Field(pattern=CONFIG_MAP_KEY, min_length=1, max_length=253)]
    """Key whose value is the file, e.g. rows.csv; its ending says the format."""


class SourcePart(StrEnum):
    """A part of the data set that a source provides."""

    TRAIN = "Train"
    VALIDATION = "Validation"
    TEST = "Test"


class Source(ApiModel):
    """Files of examples: exactly one of uri and configMap."""

    model_config = ConfigDict(json_schema_extra=exactly_one_of("uri", "config_map"))

    uri: Annotated[str, Field(pattern=DATA_URI, min_length=6, max_length=512)] | None = None
    """s3://bucket/key or hf://datasets/organisation/name@revision/path: one file, a folder (ends with /), or several
    files (* in the last part), which are read in the order of their names."""
    config_map: ConfigMapKey | None = None
    """A key of a ConfigMap."""
    format: DataFormat | None = None
    """CSV, JSONL, JSON (a list of objects) or Parquet; left out, the files' endings decide (.csv, .jsonl, .ndjson,
    .json, .parquet, and each of them with .gz or .zst)."""
    part: SourcePart | None = None
    """Train, Validation or Test: where all its rows go. Left out, the division decides, and it makes no part that
    another source provides."""
    weight: Decimal = "1"
    """How often its training examples are used in an epoch: 2 each of them twice, 0.5 the half that a hash chooses."""

    @property
    def name(self) -> str:
        """What people call it: its URI, or configmap://name/key."""
        return self.uri or (f"configmap://{self.config_map.name}/{self.config_map.key}" if self.config_map else "")

    @model_validator(mode="after")
    def _one(self) -> "Source":
        if (self.uri is None) == (self.config_map is None):
            raise ValueError("exactly one of uri and configMap must be set")
        return self


class Columns(ApiModel):
    """Which columns (CSV, Parquet) or keys (JSON) make an example: label, and exactly one of input and template."""

    model_config = ConfigDict(json_schema_extra=exactly_one_of("input", "template"))

    input: Column | None = None
    """The text that the model is given."""
    template: Annotated[str, Field(min_length=3, max_length=4096, pattern=r"\{[^{}]+\}")] | None = None
    """The text that the model is given, with {column} for the values of columns."""
    label: Column
    """The answer that the model must learn."""

    @property
    def names(self) -> list[str]:
        """All columns that an example needs, in order, without repetition."""
        asked = [self.input] if self.input else PLACEHOLDER.findall(self.template or "")
        return list(dict.fromkeys([*asked, self.label]))

    @model_validator(mode="after")
    def _one(self) -> "Columns":
        if (self.input is None) == (self.template is None):
            raise ValueError("exactly one of input and template must be set")
        return self


class Split(ApiModel):
    """How examples are divided; the rest is for training."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                Rule(
                    "self.validationPercent + self.testPercent <= 60",
                    "validationPercent and testPercent together may be 60 at most: training needs the rest",
                ).as_schema()
            ]
        }
    )

    validation_percent: Annotated[int, Field(ge=1, le=40)] = 10
    """Share of the examples that guides training (early stopping, best checkpoint)."""
    test_percent: Annotated[int, Field(ge=1, le=40)] = 10
    """Share that only the evaluation sees."""
    seed: Annotated[int, Field(ge=0, le=2147483647)] = 0
    """Another seed gives another split; the same seed always the same."""


class Markup(StrEnum):
    """What becomes of HTML."""

    KEEP = "Keep"
    STRIP = "Strip"


class TooLong(StrEnum):
    """What becomes of an example with too many tokens."""

    FAIL = "Fail"
    DROP = "Drop"
    TRUNCATE = "Truncate"
    SPLIT = "Split"


class OnFinding(StrEnum):
    """What becomes of personal data or secrets."""

    MASK = "Mask"
    DROP = "Drop"
    REPORT = "Report"
    OFF = "Off"


class Cleaning(ApiModel):
    """What is done to every text before anything is compared or learnt."""

    markup: Markup = Markup.KEEP
    """Keep; or Strip: tags of HTML go, its entities become characters."""
    too_long: TooLong = TooLong.FAIL
    """An example of more than spec.training.maxLength tokens: Fail the job, Drop it, Truncate its question, or Split it
    between questions of a conversation."""
    min_answer_words: Annotated[int, Field(ge=1, le=100)] = 1
    """An answer of fewer words is left out; 2 suits free text, where one word seldom teaches."""
    languages: Annotated[list[Annotated[str, Field(pattern=r"^[a-z]{2}$", max_length=2)]], Field(max_length=16)] = []
    """ISO 639-1 codes of the languages that stay, e.g. en; left out: all."""
    secrets: OnFinding = OnFinding.MASK
    """Keys, tokens and passwords that the scan finds: Mask them, Drop the row, Report only, or Off."""


class NamesModel(ApiModel):
    """A spaCy pipeline that recognises named entities: exactly one of uri and package."""

    model_config = ConfigDict(json_schema_extra=exactly_one_of("uri", "package"))

    uri: S3Uri | None = None
    """S3 prefix of the pipeline's folder, which holds config.cfg."""
    package: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", min_length=1, max_length=64)] | None = None
    """Name of a package that is installed in the platform's image for prepare."""

    @model_validator(mode="after")
    def _one(self) -> "NamesModel":
        if (self.uri is None) == (self.package is None):
            raise ValueError("exactly one of uri and package must be set")
        return self


class Pii(ApiModel):
    """Personal data in the examples. What is found is counted and never stored."""

    mode: OnFinding = OnFinding.MASK
    """Mask (with a pseudonym such as <EMAIL_ADDRESS_1>, one per value and example), Drop the row, Report, or Off."""
    entities: Annotated[
        list[Annotated[str, Field(pattern=r"^[A-Z][A-Z_]{1,39}$", max_length=40)]], Field(max_length=40)
    ] = []
    """What to look for, e.g. EMAIL_ADDRESS; left out: all that the recognisers know (docs/how-to/prepare-data.md)."""
    ner: NamesModel | None = None
    """A language model that finds names and places, which no pattern does; left out: nothing looks for them."""
    min_score_percent: Annotated[int, Field(ge=1, le=100)] = 35
    """Findings that the recognisers are less sure of are ignored."""


class Duplicates(ApiModel):
    """Examples that say the same."""

    near_percent: Annotated[int, Field(ge=0, le=100)] = 85
    """Examples that share so many word triples (Jaccard) are near duplicates of each other; 0: none are."""
    drop_near: bool = False
    """Leave near duplicates out. Kept ones all go to one part: the test never holds what was trained."""


class Pilot(ApiModel):
    """A quick first signal: train on a sample."""

    examples: Annotated[int, Field(ge=50, le=100000)] = 1000
    """Training examples, drawn by label and hash; validation and test stay whole."""


class Replay(ApiModel):
    """General data mixed into the training, so that the model does not forget what it could."""

    source: Source
    """Conversations of another kind, in a form that needs no columns."""
    percent: Annotated[int, Field(ge=1, le=50)] = 10
    """Share of the training examples that they make; 5 to 10 is usual."""


_COLUMNS_OR_TEACHER: Final = Rule(
    "!(has(self.columns) && has(self.distillation))",
    "columns and distillation exclude each other: a row that a teacher answers has a prompt and no answer yet "
    "(distillation.column names the prompt)",
)


class Dataset(ApiModel):
    """Examples and how to read them."""

    model_config = ConfigDict(json_schema_extra={"x-kubernetes-validations": [_COLUMNS_OR_TEACHER.as_schema()]})

    sources: Annotated[list[Source], Field(min_length=1, max_length=16)]
    """Files that are read one after the other."""
    columns: Columns | None = None
    """Mapping of columns to an example; left out, rows are in a form that says what is what, e.g. chat `messages`."""
    instruction: Annotated[str, Field(max_length=4096)] = ""
    """System prompt that is put before every example, in training and in serving."""
    group_by: Column | None = None
    """Column whose value names what belongs together (a customer, a ticket): it is never torn apart by the division."""
    max_invalid_percent: Annotated[int, Field(ge=0, le=100)] = 5
    """Invalid rows are counted, named and left out up to this share; above it the job fails."""
    cleaning: Cleaning = Cleaning()
    """What is done to every text."""
    pii: Pii = Pii()
    """What becomes of personal data."""
    duplicates: Duplicates = Duplicates()
    """What counts as a near duplicate, and what becomes of it. Equal prompts are always left out but for one."""
    split: Split = Split()
    """Division into training, validation and test."""
    benchmarks: Annotated[list[Source], Field(max_length=4)] = []
    """Texts of benchmarks that the model shall be measured with: examples that hold them are left out."""
    replay: Replay | None = None
    """General data against forgetting."""
    distillation: Distillation | None = None
    """The rows hold prompts, and a teacher model answers them."""
    pilot: Pilot | None = None
    """Train on a sample, for a quick first signal."""

    @model_validator(mode="after")
    def _columns_or_teacher(self) -> "Dataset":
        if self.columns and self.distillation:
            raise ValueError(_COLUMNS_OR_TEACHER.message)
        return self


class TaskType(StrEnum):
    """What the model is for; decides the metrics."""

    CLASSIFICATION = "Classification"
    EXTRACTION = "Extraction"
    TEXT = "Text"


class Task(ApiModel):
    """What is measured."""

    type: TaskType = TaskType.CLASSIFICATION
    """Classification: the whole answer is one label. Extraction: the answer is JSON. Text: any other answer."""
    labels: Annotated[list[Annotated[str, Field(min_length=1, max_length=128)]], Field(max_length=500)] = []
    """The allowed labels of a classification; a row with another one is invalid. Left out, those found in the data."""
