"""Reading what a published artifact says of itself, from its folder."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from finetune_jobs.artifacts import artifact
from finetune_jobs.artifacts.artifact import ModelRef
from finetune_jobs.base.documents import read_json
from finetune_jobs.verification.observation import Promise

A = TypeVar("A")


def read_promise(folder: Path, place: str) -> Promise:
    """All golden prompts, reference texts and test examples of an artifact; ``place``: how messages call its folder.
    Raises StageError (ArtifactCorrupt)."""

    def read(name: str, parse: Callable[[Iterator[str], str], list[A]]) -> list[A]:
        with (folder / name).open(encoding="utf-8") as lines:
            return parse(lines, f"{place}/{name}")

    recorded, schema = (folder / artifact.REFERENCE).exists(), folder / artifact.SCHEMA
    model = read_json(folder / artifact.MODEL_REF, ModelRef)
    return Promise(
        golden=read(artifact.GOLDEN, artifact.read_answers),
        sample=read(artifact.SAMPLE, artifact.read_answers),
        references=read(artifact.REFERENCE, artifact.read_references) if recorded else [],
        task=model.task,
        format=model.format,
        answer_schema=schema.read_text(encoding="utf-8") if schema.exists() else "",
    )
