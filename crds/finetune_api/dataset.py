"""The examples of a FineTuneJob: where they are, how they are read, and what the model is for."""

import re
from enum import StrEnum
from typing import Annotated, Final

from pydantic import ConfigDict, Field, model_validator

from finetune_api.base import ApiModel
from finetune_api.rules import Rule, exactly_one_of
from finetune_api.storage import S3Uri

Column = Annotated[str, Field(min_length=1, max_length=128)]

PLACEHOLDER: Final = re.compile(r"\{([^{}]{1,128})\}")
"""A column in a template."""


class DataFormat(StrEnum):
    """Format of a source."""

    CSV = "CSV"
    JSONL = "JSONL"


class Source(ApiModel):
    """One file of examples."""

    uri: S3Uri
    """The object, e.g. s3://datasets/transactions.csv."""
    format: DataFormat | None = None
    """CSV or JSONL; left out, the file's ending decides."""


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


class Dataset(ApiModel):
    """Examples and how to read them."""

    sources: Annotated[list[Source], Field(min_length=1, max_length=16)]
    """Files that are read one after the other."""
    columns: Columns | None = None
    """Mapping of columns to an example; left out, every row holds chat `messages` that end with the answer."""
    instruction: Annotated[str, Field(max_length=4096)] = ""
    """System prompt that is put before every example, in training and in serving."""
    max_invalid_percent: Annotated[int, Field(ge=0, le=100)] = 5
    """Invalid rows are counted, named and left out up to this share; above it the job fails."""
    split: Split = Split()
    """Division into training, validation and test."""


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
    min_answer_words: Annotated[int, Field(ge=1, le=100)] = 1
    """An answer of fewer words is left out; 2 suits free text, where one word seldom teaches."""
    languages: Annotated[list[Annotated[str, Field(pattern=r"^[a-z]{2}$", max_length=2)]], Field(max_length=16)] = []
    """ISO 639-1 codes of the languages that stay, e.g. en; left out: all."""
    secrets: OnFinding = OnFinding.MASK
    """Keys, tokens and passwords that the scan finds: Mask them, Drop the row, Report only, or Off."""


class Pii(ApiModel):
    """Personal data in the examples. What is found is counted and never stored."""

    mode: OnFinding = OnFinding.MASK
    """Mask (with a pseudonym such as <EMAIL_ADDRESS_1>, one per value and example), Drop the row, Report, or Off."""
    entities: Annotated[
        list[Annotated[str, Field(pattern=r"^[A-Z][A-Z_]{1,39}$", max_length=40)]], Field(max_length=40)
    ] = []
    """What to look for, e.g. EMAIL_ADDRESS; left out: all that the recognisers know (docs/how-to/prepare-data.md)."""
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
