"""Trains a small adapter, for the benchmarks of what follows a training: export, evaluation, serving."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune_jobs.modelling.token_files import Conversation
    from finetune_jobs.modelling.tuning import Tuning

BATCH = 8
"""Examples of a step."""
LEARNING_RATE = 1e-3
"""At its peak; that of examples/transactions."""
WARM_UP = 0.03
"""Share of the steps, as in the stage train."""
KEPT_EVERY = 5
"""Steps after which a training that is stopped would go on."""


def tune(
    base: Path,
    examples: Sequence[Conversation],
    out: Path,
    tuning: Tuning,
    *,
    rank: int = 16,
    seed: int = 0,
    start: Path | None = None,
) -> None:
    """Write an adapter that has seen the examples once, in their order, BATCH at a time, with the stage train's
    schedule of the learning rate; and what it is, as that stage does. Without examples it is one that adds nothing.
    ``start``: an adapter to go on from, whose rank it has.

    A training that was stopped goes on where it was kept last, in a file beside ``out``, and comes to the same weights:
    nothing is drawn once the adapter is there."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import get_cosine_schedule_with_warmup

    from finetune_jobs.modelling.tokenizer import load_tokenizer, stop_token
    from finetune_jobs.modelling.tuning import write_tuning

    torch.manual_seed(seed)
    model = load_unpacked(base, tuning)
    if start:
        model = PeftModel.from_pretrained(model, start, is_trainable=True)
    else:
        model = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))
    tokenizer = load_tokenizer(base)
    stop = stop_token(base, tokenizer)
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=LEARNING_RATE)
    steps = math.ceil(len(examples) / BATCH)
    schedule = get_cosine_schedule_with_warmup(optimizer, math.ceil(steps * WARM_UP), steps)
    kept = _Kept(out.with_name(f"{out.name}.kept"), model, optimizer, schedule)
    for step in range(kept.step(), steps):
        _loss(model, tokenizer, stop, examples[step * BATCH : (step + 1) * BATCH]).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if (step + 1) % KEPT_EVERY == 0:
            kept.keep(step + 1)
    model.save_pretrained(out)
    write_tuning(out, tuning)
    kept.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Kept:
    """The state of a training in a file."""

    path: Path
    model: Any
    optimizer: Any
    schedule: Any

    def keep(self, step: int) -> None:
        """After so many steps."""
        import torch
        from peft import get_peft_model_state_dict

        state = {
            "step": step,
            "adapter": get_peft_model_state_dict(self.model),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }
        part = self.path.with_name(f"{self.path.name}.part")
        torch.save(state, part)
        os.replace(part, self.path)

    def step(self) -> int:
        """Go on as it was kept; the number of steps that are done."""
        import torch
        from peft import set_peft_model_state_dict

        if not self.path.exists():
            return 0
        state = torch.load(self.path, weights_only=True)
        set_peft_model_state_dict(self.model, state["adapter"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        return int(state["step"])


def load_unpacked(base: Path, tuning: Tuning) -> Any:
    """The base that an adapter is trained on, in 32 bits on every machine."""
    import torch

    from finetune_jobs.modelling.loading import load_base, unpacked

    return unpacked(load_base(base, tuning.quantization, dtype=torch.float32))


def _loss(model: Any, tokenizer: Any, stop: int, examples: Sequence[Conversation]) -> Any:
    """Mean loss of the answers' tokens; only their positions go through the output layer."""
    import torch

    from finetune_jobs.modelling import chat

    encoded = [chat.encode(tokenizer, each.messages, stop) for each in examples]
    width = max(len(each.input_ids) for each in encoded)
    ids = torch.tensor([each.input_ids + [stop] * (width - len(each.input_ids)) for each in encoded])
    labels = torch.tensor([each.labels + [chat.IGNORED] * (width - len(each.labels)) for each in encoded])[:, 1:]
    tuned = model.get_base_model()
    hidden = tuned.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    learnt = labels != chat.IGNORED
    return torch.nn.functional.cross_entropy(tuned.get_output_embeddings()(hidden[learnt]), labels[learnt])
