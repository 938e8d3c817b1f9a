"""Where a review lies in the store: the pairs in the evaluation's folder, the votes of each reviewer beside it."""

from dataclasses import dataclass, field

from finetune_api.layout import output_folder, votes_folder
from finetune_api.reasons import Reason
from finetune_api.stages import Stage
from finetune_jobs.artifacts.artifact import REVIEW
from finetune_jobs.artifacts.folders import get_listed, require_manifest
from finetune_jobs.base.documents import parse_json
from finetune_jobs.base.errors import StageError
from finetune_jobs.evaluation.review.sheet import ReviewSheet
from finetune_jobs.evaluation.review.votes import Tally, VotesFile, read_votes, require_size, tally
from finetune_jobs.store.s3 import Store


@dataclass(frozen=True)
class ReviewState:
    """What people have said so far."""

    sheet: ReviewSheet
    tally: Tally
    problems: list[str] = field(default_factory=list)
    """Of each object among the votes that is not counted: why, for people."""


def read_sheet(store: Store, evaluation: str) -> ReviewSheet:
    """The pairs of an evaluation. Raises StageError: ArtifactNotFound, ArtifactCorrupt, ManifestNewer."""
    folder = output_folder(Stage.EVALUATE, evaluation)
    manifest = require_manifest(store, folder)
    if not any(file.path == REVIEW for file in manifest.files):
        raise StageError(
            Reason.ARTIFACT_NOT_FOUND,
            f"{store.uri(folder)} contains no {REVIEW}: an earlier version made this evaluation. To evaluate again, "
            "set spec.rerun of the FineTuneJob to a new value.",
        )
    content = get_listed(store, folder, manifest, REVIEW)
    return parse_json(content, ReviewSheet, store.uri(f"{folder}/{REVIEW}"))


def read_review(store: Store, evaluation: str) -> ReviewState:
    """The pairs and all votes on them. What is no file of votes on this review is named and not counted.

    Raises StageError as read_sheet and Store.
    """
    sheet, files, problems = read_sheet(store, evaluation), list[VotesFile](), list[str]()
    folder = votes_folder(evaluation)
    for entry in store.list(folder):
        try:
            require_size(entry.size, entry.uri)
            content = store.get(f"{folder}/{entry.key}")
            if content is None:  # deleted since
                continue
            votes = read_votes(content, entry.uri, sheet)
        except StageError as error:
            problems.append(f"Not counted: {error.message}")
            continue
        if entry.key == votes_object(votes.reviewer):
            files.append(votes)
        else:
            problems.append(f"Not counted: {entry.uri} is of reviewer {votes.reviewer!r}, whose file has another name.")
    return ReviewState(sheet, tally(sheet, files), problems)


def store_votes(store: Store, evaluation: str, reviewer: str, content: bytes) -> None:
    """Store a checked file, in place of an earlier one of the same reviewer."""
    store.put(f"{votes_folder(evaluation)}/{votes_object(reviewer)}", content)


def votes_object(reviewer: str) -> str:
    """Name of a reviewer's file: never that of a manifest, which marks a folder."""
    return f"by-{reviewer}.json"
