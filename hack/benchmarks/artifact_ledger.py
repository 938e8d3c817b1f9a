"""What each export format costs: the loss on the answers of unseen rows, artifact against adapter.

SmolLM2-135M is tuned with QLoRA on examples/transactions and exported to every format. Adapter and artifacts then read
the same rows, answer included (teacher forcing): nothing is generated, so nothing diverges, and a loss moves where an
accuracy does not yet. An answer counts as right if each of its tokens is the likeliest one, which is what greedy
decoding would write. Needs no GPU; about an hour on two idle cores, and ``--rows`` takes fewer.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.finetunejob import WHOLE_MODELS, ExportFormat
from finetune_api.training import Method, Quantization
from hack.benchmarks.exported import export
from hack.benchmarks.result import Result
from hack.benchmarks.transactions import transactions
from hack.benchmarks.tuned import BATCH, tune
from hack.cluster.console import say, step
from hack.cluster.layout import cache_directory
from hack.models import ensure_smollm2

ROWS = 2000
"""Unseen rows that every model reads."""
STEPS = 60
GENERATED = 1.15
"""Rows generated for each that is needed: some lack a text or a category."""
DRAWS = 2000
BOUNDS = {ExportFormat.INT4: 0.05}
OTHERWISE = 0.02
"""The most that a format may add to the loss of a token, in nats."""


@dataclass(frozen=True)
class Reading:
    """How a model found the answers of some rows."""

    losses: list[float]
    """Negative log-probability of each row's answer, in nats, the token that ends it included."""
    tokens: list[int]
    right: list[bool]

    @property
    def loss(self) -> float:
        """Nats a token."""
        return sum(self.losses) / sum(self.tokens)

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return sum(self.right) / len(self.right)


def run(rows: int = ROWS) -> Result:
    """Tune, export and read; the value is the largest share of its bound that a format uses."""
    from finetune_jobs.exporting.offload import load_artifact
    from finetune_jobs.modelling.loading import load_adapter, load_base
    from finetune_jobs.modelling.tuning import Tuning

    base = ensure_smollm2(cache_directory())
    with tempfile.TemporaryDirectory(prefix="finetune-ledger-") as folder:
        work = Path(folder)
        examples = transactions(work, int((rows + STEPS * BATCH) * GENERATED))
        trained, unseen = examples[: STEPS * BATCH], examples[STEPS * BATCH :][:rows]
        tuned, dataset = work / "tuned", work / "dataset"
        tuning = Tuning(method=Method.QLORA, quantization=Quantization.NF4)
        with step(f"tune {base.name} for {STEPS} steps"):
            tune(base, trained, tuned, tuning)
        dataset.mkdir()
        lines = [json.dumps({"messages": each.messages}) + "\n" for each in trained]
        (dataset / "train.jsonl").write_text("".join(lines), encoding="utf-8")
        with step(f"read {len(unseen)} rows with base and adapter"):
            before = read(load_base(base, tuning.quantization), base, unseen)
            adapter = read(load_adapter(load_base(base, tuning.quantization), tuned), base, unseen)
        say(f"    base {before.loss:.4f}, adapter {adapter.loss:.4f} nats a token, {adapter.accuracy:.1%} right")
        found: dict[str, dict[str, float]] = {}
        for kind in WHOLE_MODELS:
            with step(f"export to {kind.value} and read"):
                out = work / kind.value
                export(base, tuned, dataset, out, kind)
                found[kind.value] = compared(read(load_artifact(out), out, unseen), adapter)
            say(f"    {kind.value}: {found[kind.value]}")
    used = {kind: found[kind.value]["increase"] / BOUNDS.get(kind, OTHERWISE) for kind in WHOLE_MODELS}
    return Result(
        name="artifact_ledger",
        value=max(used.values()),
        unit="of the bound on the loss",
        baseline=None,
        goal="≤ 1: at most 0.02 nats a token more than the adapter, 0.05 with INT4",
        details={
            "rows": len(unseen),
            "base": {"loss": before.loss, "accuracy": before.accuracy},
            "adapter": {"loss": adapter.loss, "accuracy": adapter.accuracy},
            **found,
        },
    )


def read(model: Any, folder: Path, rows: Sequence[Any]) -> Reading:
    """Every row's answer, after its prompt, in the model's own template; ``folder`` has the tokenizer."""
    import torch

    from finetune_jobs.modelling import chat
    from finetune_jobs.modelling.tokenizer import load_tokenizer, stop_token

    tokenizer = load_tokenizer(folder)
    stop = stop_token(folder, tokenizer)
    losses, tokens, right = [], [], []
    with torch.inference_mode():
        for row in rows:
            encoded = chat.encode(tokenizer, row.messages, stop)
            answer = [label for label in encoded.labels if label != chat.IGNORED]
            ids = torch.tensor([encoded.input_ids])
            kept = len(answer) + 1  # each token is predicted from the one before it
            logits = model(input_ids=ids, logits_to_keep=kept).logits[0, :-1].float()
            expected = torch.tensor(answer)
            losses.append(float(torch.nn.functional.cross_entropy(logits, expected, reduction="sum")))
            tokens.append(len(answer))
            right.append(bool((logits.argmax(-1) == expected).all()))
    return Reading(losses, tokens, right)


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
    result = run(parser.parse_args().rows)
    result.write()
    say(json.dumps(result.details, indent=1))
