"""Command withdraw: mark a published artifact so that no new rollout serves it. Nothing is deleted, nothing is moved.

It needs the right to read the artifact's manifest and to write ``artifacts/<digest>/withdrawn.json``, no other.
"""

import sys
from collections.abc import Sequence

from finetune_api.layout import Withdrawal, output_folder
from finetune_api.stages import Stage
from finetune_jobs.artifacts.push import read_pushes
from finetune_jobs.artifacts.withdrawal import in_words, withdraw
from finetune_jobs.runtime.runner import now
from finetune_jobs.runtime.tools import open_store, parser, run_command, split_artifact


def main(argv: Sequence[str] | None = None) -> None:
    """``python -m finetune_jobs.withdraw``"""
    options = parser("withdraw", "Marks a published artifact as withdrawn. An existing mark is kept unchanged.")
    options.add_argument("--artifact", required=True, metavar="URI", help="s3://bucket/prefix/artifacts/<digest>")
    options.add_argument(
        "--reason",
        required=True,
        metavar="TEXT",
        help="the reason; shown in the status of every endpoint that serves it",
    )
    options.add_argument("--by", required=True, metavar="NAME", help="who decided")
    given = options.parse_args(argv)

    def work() -> None:
        root, digest = split_artifact(given.artifact)
        store = open_store(given, root)
        standing = withdraw(store, digest, Withdrawal(reason=given.reason, by=given.by, withdrawn_at=now()))
        place = store.uri(output_folder(Stage.PUBLISH, digest))
        sys.stdout.write(f"{place} is {in_words(standing)}\n")
        for copy in read_pushes(store, digest):
            sys.stdout.write(f"Not reached, delete it there: {copy.to} ({copy.digest}), pushed {copy.pushed_at[:10]}\n")

    run_command(work)


if __name__ == "__main__":
    main()
