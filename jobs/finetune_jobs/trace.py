"""Command trace: which models contain a data set. It reads manifests, channels, marks and notes of pushes, no model.

The answer comes from what every manifest says of its upstream: the data set, its sources, and the base model, which may
be a model that contains them. Of two FineTuneJobs that arrive at the same model, its manifest names the first; each has
an artifact of its own, whose card names it.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from finetune_api.layout import MANIFEST, ChannelPointer, Manifest, PushRecord, output_folder, run_folder
from finetune_api.reasons import Reason
from finetune_api.stages import RunRef, Stage
from finetune_jobs.artifacts.ancestry import may_be_copy, published_model
from finetune_jobs.artifacts.folders import is_address, read_manifest
from finetune_jobs.artifacts.push import read_pushes
from finetune_jobs.artifacts.withdrawal import in_words, read_withdrawal
from finetune_jobs.base.documents import parse_json
from finetune_jobs.base.errors import StageError
from finetune_jobs.runtime.tools import open_store, parser, run_command
from finetune_jobs.store.s3 import Store

_PLACES: Final = ("datasets", "models", "evaluations", "artifacts")
"""Folders whose manifests are read."""


Manifests = Sequence[tuple[str, Manifest]]
"""Folders with their manifests."""
Pushed = Sequence[tuple[PushRecord, str]]
"""Copies on hubs and in registries, with the digest of the artifact."""


@dataclass(frozen=True)
class Descendant:
    """A result that contains the data set."""

    stage: Stage
    digest: str
    uri: str
    job: str
    """The FineTuneJob that made it, as namespace/name."""
    created_at: str
    through: str = ""
    """The base model by which the data are in it; empty: it was trained on them itself."""
    withdrawn: str = ""
    """Of an artifact: its mark in words; empty without one."""
    copies: tuple[PushRecord, ...] = ()
    """Of an artifact: where it was pushed to."""

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        said: dict[str, Any] = {"stage": self.stage.value, "digest": self.digest, "uri": self.uri, "job": self.job}
        said["createdAt"] = self.created_at
        copies = [{"to": each.to, "digest": each.digest, "pushedAt": each.pushed_at} for each in self.copies]
        known = {"throughModel": self.through, "withdrawn": self.withdrawn, "copies": copies}
        return said | {name: value for name, value in known.items() if value}


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

    asked: str
    """The digest of a data set, or of the sources of several."""
    uri: str
    """Of a data set with this digest."""
    datasets: tuple[str, ...]
    """The digests of those that still stand in the store."""
    found: tuple[Descendant, ...]
    channels: tuple[Channel, ...]
    runs: tuple[str, ...]
    """What stands in the store of their FineTuneJobs' runs: checkpoints are trained weights, and answers of teachers
    and judges and logs may quote the data."""

    @property
    def jobs(self) -> list[str]:
        """Every FineTuneJob that has made or published one of them."""
        return sorted({each.job for each in self.found if each.job} | {each.owner for each in self.channels})

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "dataset": {"digest": self.asked, "uri": self.uri, "published": bool(self.datasets)},
            "datasets": list(self.datasets),
            "artifacts": [each.as_json() for each in self.found if each.stage is Stage.PUBLISH],
            "models": [each.as_json() for each in self.found if each.stage is not Stage.PUBLISH],
            "channels": [each.as_json() for each in self.channels],
            "jobs": self.jobs,
            "runs": list(self.runs),
        }


def trace(store: Store, asked: str) -> Trace:
    """What below a results' root contains a data set, or the sources with this digest, of which there may be several
    data sets. Raises StageError: SpecInvalid for what is no digest, ArtifactCorrupt and ManifestNewer for a manifest
    that cannot be read: an answer without it would not be whole."""
    if not is_address(asked):
        raise StageError(
            Reason.SPEC_INVALID,
            f"{asked!r} is not the digest of a data set: 64 hexadecimal digits, as in status.dataset.digest; or of its "
            "sources, as in status.run.sourceDigest.",
        )
    manifests = list(_manifests(store))
    pushed = _pushed(store, manifests)
    containing = list(_containing(manifests, asked, pushed))
    found = [_described(store, *each, pushed) for each in containing]
    artifacts = {each.digest for each in found if each.stage is Stage.PUBLISH}
    datasets = [manifest for _, manifest in manifests if _is_dataset(manifest, asked)]
    histories = [each.lineage for each in (*datasets, *(manifest for _, manifest, _ in containing))]
    return Trace(
        asked=asked,
        uri=store.uri(output_folder(Stage.PREPARE, asked)),
        datasets=tuple(sorted(each.content_digest() for each in datasets)),
        found=tuple(sorted(found, key=lambda each: (each.stage, each.created_at))),
        channels=tuple(each for each in _channels(store) if each.artifact in artifacts),
        runs=_standing_runs(store, {run_folder(each.run) for each in histories if each.run}),
    )


def _is_dataset(manifest: Manifest, asked: str) -> bool:
    return manifest.stage is Stage.PREPARE and asked in (manifest.content_digest(), manifest.lineage.upstream.source)


def _containing(manifests: Manifests, asked: str, pushed: Pushed) -> Iterator[tuple[str, Manifest, str]]:
    """Folder, manifest and, where it is not the data set itself, the base model that brought the data in (pure).

    What is trained on a model that contains the data contains them too, and so on; so this is repeated until nothing is
    added."""
    models, left = set[str](), [each for each in manifests if each[1].stage is not Stage.PREPARE]
    added = True
    while added:
        added = False
        for folder, manifest in list(left):
            history = manifest.lineage
            base = history.base_model_uri if _bases(history.base_model_uri, pushed) & models else ""
            if asked not in (history.upstream.dataset, history.upstream.source) and not base:
                continue
            left.remove((folder, manifest))
            models |= {manifest.content_digest(), history.upstream.adapter, history.upstream.export} - {""}
            added = True
            yield folder, manifest, "" if asked in (history.upstream.dataset, history.upstream.source) else base


def _bases(uri: str, pushed: Pushed) -> set[str]:
    """The addresses of a base model that FineTuneJobs have made: that in its URI, or of all that it may have been on
    the hub."""
    known = published_model(uri)
    return {known[2]} if known else {digest for record, digest in pushed if may_be_copy(uri, record)}


def _pushed(store: Store, manifests: Manifests) -> Pushed:
    """Every copy, with the digest of what it is a copy of."""
    artifacts = [each.content_digest() for _, each in manifests if each.stage is Stage.PUBLISH]
    return [(record, digest) for digest in artifacts for record in read_pushes(store, digest)]


def _described(store: Store, folder: str, manifest: Manifest, through: str, pushed: Pushed) -> Descendant:
    digest, run, published = manifest.content_digest(), manifest.lineage.run, manifest.stage is Stage.PUBLISH
    mark = read_withdrawal(store, digest) if published else None
    return Descendant(
        stage=manifest.stage,
        digest=digest,
        uri=store.uri(folder),
        job=_name(run) if run else "",
        created_at=manifest.lineage.created_at,
        through=through,
        withdrawn=in_words(mark) if mark else "",
        copies=tuple(record for record, artifact in pushed if artifact == digest and published),
    )


def _manifests(store: Store) -> Iterator[tuple[str, Manifest]]:
    """Every published folder."""
    for place in _PLACES:
        for entry in store.list(place):
            if entry.key.endswith(f"/{MANIFEST}"):
                folder = f"{place}/{entry.key.removesuffix(f'/{MANIFEST}')}"
                if manifest := read_manifest(store, folder):
                    yield folder, manifest


def _standing_runs(store: Store, folders: Iterable[str]) -> tuple[str, ...]:
    return tuple(store.uri(folder) for folder in sorted(folders) if next(iter(store.list(folder)), None))


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
    rows = [("STAGE", "DIGEST", "JOB", "CHANNELS", "THROUGH", "WITHDRAWN")]
    rows += [
        (
            each.stage.value,
            each.digest[:12],
            each.job or "-",
            ", ".join(sorted(channels.get(each.digest, []))) or "-",
            _short(each.through) or "-",
            each.withdrawn or "-",
        )
        for each in answer.found
    ]
    others = [each[:12] for each in answer.datasets if each != answer.asked]
    name = f"Sources {answer.asked[:12]} of {', '.join(others)}" if others else f"Data set {answer.asked[:12]}"
    here = "still in the store" if answer.datasets else "no longer in the store"
    head = f"{name} ({here}): "
    runs = [f"Run: {uri}" for uri in answer.runs]
    if not answer.found:
        return "\n".join([f"{head}no model below this URI contains it.", *runs])
    count = sum(each.stage is Stage.PUBLISH for each in answer.found)
    copies = [f"Copy of {each.digest[:12]}: {to.to} ({to.digest})" for each in answer.found for to in each.copies]
    lines = [f"{head}{count} published artifact{'' if count == 1 else 's'}.", *_aligned(rows), *copies, *runs]
    return "\n".join(lines)


def _short(base: str) -> str:
    known = published_model(base)
    return known[2][:12] if known else base


def _aligned(rows: Sequence[tuple[str, ...]]) -> Iterable[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()


def main(argv: Sequence[str] | None = None) -> None:
    """``python -m finetune_jobs.trace``"""
    options = parser("trace", "Says which models, artifacts, channels and FineTuneJobs contain a data set.")
    options.add_argument("--uri", required=True, metavar="URI", help="a FineTuneJob's spec.output.uri")
    options.add_argument(
        "--dataset",
        required=True,
        metavar="DIGEST",
        help="as in status.dataset.digest, or of its sources, as in status.run.sourceDigest",
    )
    options.add_argument("--json", action="store_true", help="print JSON instead of a table")
    given = options.parse_args(argv)

    def work() -> None:
        answer = trace(open_store(given, given.uri), given.dataset)
        text = json.dumps(answer.as_json(), indent=2, ensure_ascii=False) if given.json else as_table(answer)
        sys.stdout.write(f"{text}\n")

    run_command(work)


if __name__ == "__main__":
    main()
