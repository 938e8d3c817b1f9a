"""The formats of one exported model: what export has made, and what evaluate found of each.

The first format's folder is export's output. It names the folders of the others (``formats.json``), so that its address
stands for all of them; each is a folder of its own, of which an artifact may name any.
"""

from pathlib import Path
from typing import Final

from finetune_api.base import WireModel
from finetune_jobs.artifacts.measurements import Difference
from finetune_jobs.base.documents import read_json

FORMATS: Final = "formats.json"


class ExportedFormat(WireModel):
    """The model in one format."""

    format: str
    digest: str
    """Of its folder."""


class Alternatives(WireModel):
    """Content of ``formats.json``: the other formats, in the order in which they are tried."""

    alternatives: list[ExportedFormat] = []


class MeasuredFormat(ExportedFormat):
    """What an evaluation found of a format."""

    served: bool
    """Whether it is the artifact."""
    accuracy: float
    """Share of right answers; of texts the exact match, which earlier versions read under this name."""
    f1: float
    chrf: float | None = None
    """Of texts only."""
    loss: Difference
    """Against the tuned model, in the task's main metric."""
    without_numbers: int = 0
    """Recorded texts for which it is broken, as of the artifact's own ``Measurements``."""


def read_alternatives(folder: Path) -> list[ExportedFormat]:
    """The other formats that an exported folder names; none where only one was made.

    Raises StageError (ArtifactCorrupt) for a file that cannot be read.
    """
    path = folder / FORMATS
    return read_json(path, Alternatives).alternatives if path.exists() else []


def write_alternatives(folder: Path, alternatives: list[ExportedFormat]) -> None:
    """The inverse of ``read_alternatives``."""
    text = Alternatives(alternatives=alternatives).model_dump_json(by_alias=True, indent=1)
    (folder / FORMATS).write_text(text + "\n", encoding="utf-8")
