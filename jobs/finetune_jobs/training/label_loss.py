"""TRL's SFTTrainer, changed in two places.

Why it is subclassed at all (TRL 1.16): off CUDA its loss projects every position through the LM head, though only the
answer's few tokens carry a label; and with several processes its checkpoints hold no pod's random states but its own.
What the loss costs is described in docs/concepts/training.md.
"""

from pathlib import Path
from typing import Any, Final

import torch
from peft import PeftModel
from trl import SFTTrainer

from finetune_jobs.modelling import chat
from finetune_jobs.training.order import StepOrder
from finetune_jobs.training.packing import examples_in
from finetune_jobs.training.team import ALONE

SCALED_LOGITS: Final = (
    "final_logit_softcapping",
    "logit_scale",
    "output_multiplier",
    "lm_head_multiplier",
    "logits_scaling",
)
"""Settings by which a few architectures change the LM head's output; TRL's own loss knows them all."""


class LabelLossTrainer(SFTTrainer):  # type: ignore[misc] # trl has no types
    """SFTTrainer that, without CUDA, projects only the positions with a label through the LM head. The loss is the
    same.

    In a validation, the loss is per token of the whole split, however it is divided: a mean of batch means would change
    with the batch size, and with it which weights are the best.
    """

    labels_per_example = 0.0
    """Of the validation split, on average."""
    team = ALONE
    order: StepOrder | None = None
    """Of the training examples; without one it is the trainer's own."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Cross entropy per labelled token, over ``num_items_in_batch`` tokens or those of this batch."""
        if num_items_in_batch is None and not model.training:
            # The trainer weighs each batch by its examples; with this divisor the weights are those of the tokens.
            # Several processes' loss is multiplied by their number, since gradients are averaged over them.
            num_items_in_batch = self.labels_per_example * examples_in(inputs) * self.team.size
        if self.team.size > 1:  # gradients are exchanged by the outer model's forward only
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        causal = model.get_base_model() if isinstance(model, PeftModel) else model
        config = causal.config.get_text_config()
        scaled = any(getattr(config, name, None) is not None for name in SCALED_LOGITS)
        if return_outputs or scaled or self.aux_loss_enabled or inputs["input_ids"].is_cuda:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["labels"][:, 1:]
        labelled = labels != chat.IGNORED
        with self.accelerator.autocast():  # which accelerate puts around the outer model's forward only
            given = {name: value for name, value in inputs.items() if name != "labels"}
            hidden = causal.base_model(**given, use_cache=False).last_hidden_state
            logits = causal.get_output_embeddings()(hidden[:, :-1][labelled])
        loss = torch.nn.functional.cross_entropy(logits.float(), labels[labelled], reduction="sum")
        return loss / (labelled.sum() if num_items_in_batch is None else num_items_in_batch)

    def weights(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """All weights of the model, rounded to ``dtype``; the model is changed."""
        return dict(self.model.to(dtype).state_dict())

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self.order or super()._get_train_sampler(train_dataset)

    def _save_rng_state(self, output_dir: str) -> None:
        """Every pod's copy of a checkpoint holds the random states of all processes: the store's is the first pod's."""
        super()._save_rng_state(output_dir)
        if self.team.size == 1:
            return
        own = Path(output_dir, f"rng_state_{self.team.rank}.pth")
        for rank, content in enumerate(self.team.collect(own.read_bytes())):
            if self.team.first_of_pod:
                own.with_name(f"rng_state_{rank}.pth").write_bytes(content)
