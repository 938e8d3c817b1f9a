"""The examples of a FineTuneJob: where they are, how they are read, and what the model is for."""

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field

from finetune_api.base import ApiModel
from finetune_api.rules import Rule
from finetune_api.storage import S3Uri

Column = Annotated[str, Field(min_length=1, max_length=128)]


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
    """Which columns (CSV) or keys (JSONL) make an example."""

    input: Column
    """The text that the model is given."""
    label: Column
    """The answer that the model must learn."""


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


class TaskType(StrEnum):
    """What the model is for; decides the metrics."""

    CLASSIFICATION = "Classification"


class Task(ApiModel):
    """What is measured."""

    type: TaskType = TaskType.CLASSIFICATION
    """Classification: the whole answer is one label; accuracy, precision, recall and F1 are measured."""
    labels: Annotated[list[Annotated[str, Field(min_length=1, max_length=128)]], Field(max_length=500)] = []
    """The allowed labels; a row with another one is invalid. Left out, the labels found in the data."""
