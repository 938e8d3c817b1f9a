"""The transactions of the examples as conversations, for benchmarks that tune a model."""

from __future__ import annotations

import csv
import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hack.cluster.layout import REPOSITORY

if TYPE_CHECKING:
    from finetune_jobs.modelling.token_files import Conversation

INSTRUCTION = "Book the transaction to one account. Answer with its name only."


def transactions(work: Path, rows: int) -> list[Conversation]:
    """So many generated transactions, less the few that lack a text, in a fixed random order; ``work``: a folder for
    their table."""
    from finetune_jobs.modelling.token_files import Conversation

    table = work / "transactions.csv"
    program = REPOSITORY / "examples" / "transactions" / "generate.py"
    subprocess.run([sys.executable, str(program), "--rows", str(rows), "--out", str(table)], check=True)
    with table.open(encoding="utf-8", newline="") as file:
        found = [row for row in csv.DictReader(file) if row["description"] and row["category"]]
    random.Random(0).shuffle(found)
    system = {"role": "system", "content": INSTRUCTION}
    return [
        Conversation(
            [
                system,
                {"role": "user", "content": row["description"]},
                {"role": "assistant", "content": row["category"]},
            ]
        )
        for row in found
    ]
