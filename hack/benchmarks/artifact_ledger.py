"""What each export format costs: the loss on the answers of unseen rows, artifact against adapter.

SmolLM2-135M is tuned with QLoRA on examples/transactions and exported to every format. Adapter and artifacts then read
the same rows, answer included (teacher forcing): nothing is generated, so nothing diverges, and a loss moves where an
accuracy does not yet. An answer counts as right if each of its tokens is the likeliest one, which is what greedy
decoding would write. Needs no GPU. ``--rows`` takes fewer, the first of them, and ``--only`` some formats.

``--work`` is a folder that keeps what was made, so that the same command goes on where it was stopped: a training loses
the last KEPT_EVERY steps, a reading the last PIECE rows, an export all. So it can be run in pieces, by ``timeout 25m``
for instance. In the folder of planted_models no model is trained again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_api.export import WHOLE_MODELS, ExportFormat
from finetune_api.hashing import short
from hack.benchmarks.gated import FIRST, Bench, once
from hack.benchmarks.result import Result
from hack.benchmarks.transactions import transactions
from hack.benchmarks.tuned import load_unpacked
from hack.cluster.console import say

if TYPE_CHECKING:
    from finetune_jobs.modelling.token_files import Conversation

ROWS = 2000
"""Unseen rows that every model reads."""
PIECE = 250
"""Rows of a reading that are kept together."""
TOGETHER = 16
"""Rows that share a pass."""
GENERATED = 1.5
"""Rows generated for each that is needed: some lack a text or a category, or were trained on."""
DRAWS = 2000
BOUNDS = dict.fromkeys((ExportFormat.INT4, ExportFormat.INT4_AWQ), 0.05)
OTHERWISE = 0.02
"""The most that a format may add to the loss of a token, in nats."""


@dataclass(frozen=True)
class Reading:
    """How a model found the answers of some rows."""

    losses: list[float]
    """Negative log-probability of each row's answer, in nats, the token that ends it included."""
    tokens: list[int]
    right: list[bool]

    @classmethod
    def joined(cls, parts: Sequence[Reading]) -> Reading:
        """Of all rows, from those of some each."""
        return cls(
            [loss for part in parts for loss in part.losses],
            [count for part in parts for count in part.tokens],
            [right for part in parts for right in part.right],
        )

    @property
    def loss(self) -> float:
        """Nats a token."""
        return sum(self.losses) / sum(self.tokens)

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return sum(self.right) / len(self.right)


def run(rows: int = ROWS, work: Path | None = None, formats: Sequence[ExportFormat] = WHOLE_MODELS) -> Result:
    """Tune, export and read; the value is the largest share of its bound that a format uses."""
    from finetune_jobs.exporting.offload import load_artifact
    from finetune_jobs.modelling.loading import load_adapter

    if work is None:
        with tempfile.TemporaryDirectory(prefix="finetune-ledger-") as folder:
            return run(rows, Path(folder), formats)
    work.mkdir(parents=True, exist_ok=True)
    bench = Bench(work)
    adapter = bench.good(FIRST)
    unseen = _unseen(bench, rows)

    def reading(name: str, load: Callable[[], Any]) -> Reading:
        model, pieces = cache(load), [unseen[first : first + PIECE] for first in range(0, len(unseen), PIECE)]
        found = Reading.joined([read_once(work, name, model, bench.base, piece) for piece in pieces])
        say(f"    {name}: {found.loss:.4f} nats a token, {found.accuracy:.1%} right")
        return found

    def tuned() -> Any:
        return load_adapter(load_unpacked(bench.base, bench.tuning), adapter)

    def exported(kind: ExportFormat) -> Any:
        return load_artifact(bench.artifact(adapter, kind))

    before = reading("base model", lambda: load_unpacked(bench.base, bench.tuning))
    after = reading("adapter", tuned)
    found = {kind.value: compared(reading(kind.value, partial(exported, kind)), after) for kind in formats}
    used = [each["increase"] / BOUNDS.get(ExportFormat(kind), OTHERWISE) for kind, each in found.items()]
    return Result(
        name="artifact_ledger",
        value=max(used),
        unit="of the bound on the loss",
        baseline=None,
        goal="≤ 1: at most 0.02 nats a token more than the adapter, 0.05 with 4 bits",
        details={
            "rows": len(unseen),
            "base": {"loss": before.loss, "accuracy": before.accuracy},
            "adapter": {"loss": after.loss, "accuracy": after.accuracy},
            **found,
        },
    )


def _unseen(bench: Bench, rows: int) -> list[Conversation]:
    """Rows whose text the model was not trained on, each once."""
    seen = {str(each.prompt) for each in bench.rows}
    found: dict[str, Conversation] = {}
    generated = int(max(rows, ROWS) * GENERATED)  # the same for fewer, so that these are the first of more
    while len(found) < rows:
        with tempfile.TemporaryDirectory() as folder:
            drawn = transactions(Path(folder), generated)
        found = {
            str(each.prompt): each for each in drawn if each.label in bench.labels and str(each.prompt) not in seen
        }
        generated *= 2
    return list(found.values())[:rows]


def read_once(work: Path, name: str, load: Callable[[], Any], folder: Path, rows: Sequence[Conversation]) -> Reading:
    """As ``read``, unless an earlier run has read these rows; ``load``: the model, whose ``name`` it is."""

    def make(out: Path) -> None:
        out.write_text(json.dumps(asdict(read(load(), folder, rows))), encoding="utf-8")

    known = short([row.messages for row in rows])
    path = once(work / f"{name}.{known}.reading.json", f"read {len(rows)} rows: {name}", make)
    return Reading(**json.loads(path.read_text(encoding="utf-8")))


def read(model: Any, folder: Path, rows: Sequence[Any]) -> Reading:
    """Every row's answer, after its prompt, in the model's own template; ``folder`` has the tokenizer. Rows of like
    length share a pass."""
    import torch

    from finetune_jobs.modelling import chat
    from finetune_jobs.modelling.tokenizer import load_tokenizer, stop_token

    tokenizer = load_tokenizer(folder)
    stop = stop_token(folder, tokenizer)
    encoded = [chat.encode(tokenizer, row.messages, stop) for row in rows]
    by_length = sorted(range(len(rows)), key=lambda n: len(encoded[n].input_ids))
    found: dict[int, tuple[float, int, bool]] = {}
    with torch.inference_mode():
        for first in range(0, len(rows), TOGETHER):
            batch = by_length[first : first + TOGETHER]
            width = max(len(encoded[n].input_ids) for n in batch)
            # What follows a row's end is seen by none of its own tokens: attention is causal.
            ids = [encoded[n].input_ids + [stop] * (width - len(encoded[n].input_ids)) for n in batch]
            labels = [encoded[n].labels + [chat.IGNORED] * (width - len(encoded[n].labels)) for n in batch]
            expected = torch.tensor(labels)[:, 1:]
            kept = width - int((expected != chat.IGNORED).any(0).nonzero()[0])  # from the first answer on
            logits = model(input_ids=torch.tensor(ids), logits_to_keep=kept).logits[:, :-1].float()
            expected = expected[:, 1 - kept :]
            for n, row, said in zip(batch, logits, expected, strict=True):
                asked = said != chat.IGNORED
                loss = torch.nn.functional.cross_entropy(row[asked], said[asked], reduction="sum")
                right = (row[asked].argmax(-1) == said[asked]).all()
                found[n] = float(loss), int(asked.sum()), bool(right)
    losses, tokens, rights = zip(*(found[n] for n in range(len(rows))), strict=True)
    return Reading(list(losses), list(tokens), list(rights))


def compared(artifact: Reading, adapter: Reading) -> dict[str, float]:
    """What the export added to the loss of a token, with its 95 % interval (rows drawn again, paired), and the share
    of right answers of both."""
    import numpy as np

    added, tokens = np.array(artifact.losses) - np.array(adapter.losses), np.array(adapter.tokens)
    drawn = np.random.default_rng(0).integers(len(added), size=(DRAWS, len(added)))
    low, high = np.percentile(added[drawn].sum(1) / tokens[drawn].sum(1), [2.5, 97.5])
    found = {
        "increase": added.sum() / tokens.sum(),
        "low": low,
        "high": high,
        "loss": artifact.loss,
        "accuracy": artifact.accuracy,
        "adapterAccuracy": adapter.accuracy,
    }
    return {name: round(float(value), 5) for name, value in found.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--only", nargs="*", type=ExportFormat, default=list(WHOLE_MODELS), help="formats")
    arguments = parser.parse_args()
    result = run(arguments.rows, arguments.work, arguments.only)
    result.write()
    say(json.dumps(result.details, indent=1))
