"""Command trace: which models contain a data set. It reads manifests, channels and marks, and no model.

The answer comes from what every manifest says of its upstream. Of two FineTuneJobs that arrive at the same model, its
manifest names the first; each has an artifact of its own, whose card names it.
"""

import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from finetune_api.layout import MANIFEST, ChannelPointer, Manifest, output_folder
from finetune_api.reasons import Reason
from finetune_api.stages import RunRef, Stage
from finetune_jobs.artifacts.folders import read_manifest
from finetune_jobs.artifacts.withdrawal import in_words, read_withdrawal
from finetune_jobs.base.documents import parse_json
from finetune_jobs.base.errors import StageError
from finetune_jobs.runtime.tools import open_store, parser, run_command
from finetune_jobs.store.s3 import Store

_ADDRESS: Final = re.compile(r"[0-9a-f]{64}")
_PLACES: Final = ("models", "evaluations", "artifacts")
"""Folders whose manifests are read; a data set itself is asked for by name."""


@dataclass(frozen=True)
class Descendant:
    """A result that contains the data set."""

    stage: Stage
    digest: str
    uri: str
    job: str
    """The FineTuneJob that made it, as namespace/name."""
    created_at: str
    withdrawn: str = ""
    """Of an artifact: its mark in words; empty without one."""

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        said = {"stage": self.stage.value, "digest": self.digest, "uri": self.uri, "job": self.job}
        return said | {"createdAt": self.created_at} | ({"withdrawn": self.withdrawn} if self.withdrawn else {})


@dataclass(frozen=True)
class Channel:
    """An output name that points to such an artifact."""

    name: str
    artifact: str
    owner: str

    def as_json(self) -> dict[str, str]:
        """For programs."""
        return {"name": self.name, "artifact": self.artifact, "owner": self.owner}


@dataclass(frozen=True)
class Trace:
    """The answer."""

    dataset: str
    uri: str
    published: bool
    """Whether the data set itself still stands in the store."""
    found: tuple[Descendant, ...]
    channels: tuple[Channel, ...]

    @property
    def jobs(self) -> list[str]:
        """Every FineTuneJob that has made or published one of them."""
        return sorted({each.job for each in self.found if each.job} | {each.owner for each in self.channels})

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "dataset": {"digest": self.dataset, "uri": self.uri, "published": self.published},
            "artifacts": [each.as_json() for each in self.found if each.stage is Stage.PUBLISH],
            "models": [each.as_json() for each in self.found if each.stage is not Stage.PUBLISH],
            "channels": [each.as_json() for each in self.channels],
            "jobs": self.jobs,
        }


def trace(store: Store, dataset: str) -> Trace:
    """What below a results' root contains the data set. Raises StageError: SpecInvalid for what is no digest,
    ArtifactCorrupt and ManifestNewer for a manifest that cannot be read: an answer without it would not be whole."""
    if not _ADDRESS.fullmatch(dataset):
        raise StageError(
            Reason.SPEC_INVALID,
            f"{dataset!r} is no digest of a data set: 64 hexadecimal digits, as in status.dataset.digest.",
        )
    found = tuple(sorted(_containing(store, dataset), key=lambda each: (each.stage, each.created_at)))
    artifacts = {each.digest for each in found if each.stage is Stage.PUBLISH}
    place = output_folder(Stage.PREPARE, dataset)
    return Trace(
        dataset=dataset,
        uri=store.uri(place),
        published=store.exists(f"{place}/{MANIFEST}"),
        found=found,
        channels=tuple(each for each in _channels(store) if each.artifact in artifacts),
    )


def _containing(store: Store, dataset: str) -> Iterator[Descendant]:
    for folder, manifest in _manifests(store):
        if manifest.lineage.upstream.dataset != dataset:
            continue
        digest, run = manifest.content_digest(), manifest.lineage.run
        mark = read_withdrawal(store, digest) if manifest.stage is Stage.PUBLISH else None
        yield Descendant(
            stage=manifest.stage,
            digest=digest,
            uri=store.uri(folder),
            job=_name(run) if run else "",
            created_at=manifest.lineage.created_at,
            withdrawn=in_words(mark) if mark else "",
        )


def _manifests(store: Store) -> Iterator[tuple[str, Manifest]]:
    """Every published folder but data sets."""
    for place in _PLACES:
        for entry in store.list(place):
            if entry.key.endswith(f"/{MANIFEST}"):
                folder = f"{place}/{entry.key.removesuffix(f'/{MANIFEST}')}"
                if manifest := read_manifest(store, folder):
                    yield folder, manifest


def _channels(store: Store) -> Iterator[Channel]:
    for entry in store.list("channels"):
        content = store.get(f"channels/{entry.key}")
        if content and entry.key.endswith(".json"):
            pointer = parse_json(content, ChannelPointer, entry.uri)
            yield Channel(entry.key.removesuffix(".json"), pointer.artifact_digest, _name(pointer.owner))


def _name(run: RunRef) -> str:
    return f"{run.namespace}/{run.name}"


def as_table(answer: Trace) -> str:
    """The answer for people."""
    channels: dict[str, list[str]] = {}
    for each in answer.channels:
        channels.setdefault(each.artifact, []).append(each.name)
    rows = [("STAGE", "DIGEST", "JOB", "CHANNELS", "WITHDRAWN")]
    rows += [
        (
            each.stage.value,
            each.digest[:12],
            each.job or "-",
            ", ".join(sorted(channels.get(each.digest, []))) or "-",
            each.withdrawn or "-",
        )
        for each in answer.found
    ]
    here = "still in the store" if answer.published else "no longer in the store"
    head = f"Data set {answer.dataset[:12]} ({here}): "
    if not answer.found:
        return f"{head}no model below this URI contains it."
    count = sum(each.stage is Stage.PUBLISH for each in answer.found)
    return f"{head}{count} published artifact{'' if count == 1 else 's'}.\n" + "\n".join(_aligned(rows))


def _aligned(rows: Sequence[tuple[str, ...]]) -> Iterable[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()


def main(argv: Sequence[str] | None = None) -> None:
    """``python -m finetune_jobs.trace``"""
    options = parser("trace", "Says which models, artifacts, channels and FineTuneJobs contain a data set.")
    options.add_argument("--uri", required=True, metavar="URI", help="a FineTuneJob's spec.output.uri")
    options.add_argument("--dataset", required=True, metavar="DIGEST", help="as in status.dataset.digest")
    options.add_argument("--json", action="store_true", help="print JSON instead of a table")
    given = options.parse_args(argv)

    def work() -> None:
        answer = trace(open_store(given, given.uri), given.dataset)
        text = json.dumps(answer.as_json(), indent=2, ensure_ascii=False) if given.json else as_table(answer)
        sys.stdout.write(f"{text}\n")

    run_command(work)


if __name__ == "__main__":
    main()
