"""The parts of a data set, and which of them comes first where several have the same row."""

from enum import StrEnum
from typing import Final


class Part(StrEnum):
    """A part of the data set; also the name of its file."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


CLAIMS: Final = (Part.TEST, Part.VALIDATION, Part.TRAIN, None)
"""Parts that sources provide, and none: of rows that say (nearly) the same, the first in this order stays."""
