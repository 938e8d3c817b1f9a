"""Command review: check files of votes, store them beside the evaluation that they are about, and count all of them.

A reviewer's file has the reviewer's name there, so that several lie side by side, and a newer file of the same reviewer
takes the place of the older one. The command needs the right to read the evaluation's folder and to write and list its
``votes/``, no other.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from finetune_api.layout import votes_folder
from finetune_api.reasons import Reason
from finetune_api.stages import Stage
from finetune_jobs.base.errors import StageError
from finetune_jobs.evaluation.judging.stored import read_judgements
from finetune_jobs.evaluation.judging.verdict import in_words as told
from finetune_jobs.evaluation.review.stored import ReviewState, read_review, read_sheet, store_votes
from finetune_jobs.evaluation.review.votes import in_words, read_votes
from finetune_jobs.runtime.tools import open_store, parser, run_command, split_output
from finetune_jobs.store.s3 import Store


def review(store: Store, evaluation: str, files: Sequence[Path]) -> ReviewState:
    """Store the votes of these files, all or none, and count what then lies there.

    Raises StageError: SpecInvalid for a file that is none of this review's, as read_sheet and Store.
    """
    sheet = read_sheet(store, evaluation)
    given = [(path, _content(path)) for path in files]
    checked = [(read_votes(content, str(path), sheet), content) for path, content in given]
    names = [votes.reviewer for votes, _ in checked]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise StageError(
            Reason.SPEC_INVALID,
            f"Two of the files are of reviewer {twice!r}. Name only the newer one, or let the other person give "
            "another name on the page and save again.",
        )
    for votes, content in checked:
        store_votes(store, evaluation, votes.reviewer, content)
    return read_review(store, evaluation)


def heard(store: Store, evaluation: str, found: ReviewState) -> list[str]:
    """What judges said of the same pairs, and how often they agree with people: a sentence each. Who may not read that
    can vote all the same."""
    try:
        return [told(each, found.tally.means) for each in read_judgements(store, evaluation, found.sheet)]
    except StageError as error:
        return [f"What judges said was not read: {error.message}"]


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StageError(Reason.SPEC_INVALID, f"{path} cannot be read: {error.strerror}.") from None


def main(argv: Sequence[str] | None = None) -> None:
    """``python -m finetune_jobs.review``"""
    options = parser(
        "review", "Checks files of votes, stores them beside their evaluation, and counts all votes on it."
    )
    options.add_argument("--evaluation", required=True, metavar="URI", help="status.evaluation.reportUri of the job")
    options.add_argument("files", nargs="*", type=Path, metavar="FILE", help="as the review page saves it; none: count")
    given = options.parse_args(argv)
    run_command(lambda: _report(given))


def _report(given: argparse.Namespace) -> None:
    root, evaluation = split_output(given.evaluation, Stage.EVALUATE)
    store = open_store(given, root)
    found = review(store, evaluation, given.files)
    place = store.uri(votes_folder(evaluation))
    lines = [f"{place}: {in_words(found.tally)}", *heard(store, evaluation, found), *found.problems]
    sys.stdout.write("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    main()
