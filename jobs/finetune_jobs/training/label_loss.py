"""TRL's SFTTrainer, changed in seven places.

Why it is subclassed at all (TRL 1.16): its loss is another one on CPUs than on GPUs, sends every position through the
output layer on the former, computes logits twice on the latter and waits for the GPU in every pass to keep statistics;
its validation takes passes of training's size and the mean of their means; with several processes its checkpoints hold
no pod's random states but its own, and the middle of an epoch resumes in the order of another one; it makes a model
card for each; and it takes another step after a checkpoint with which a training has ended. What the loss costs is
described in docs/concepts/training.md.
"""

import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback
from trl import SFTTrainer

from finetune_jobs.fit.kernels import Kernel
from finetune_jobs.training.order import StepOrder
from finetune_jobs.training.team import ALONE
from finetune_jobs.training.validation import Validation


class LabelLossTrainer(SFTTrainer):  # type: ignore[misc] # trl has no types
    """SFTTrainer whose loss takes the labelled positions only, of a model with ``tiled_loss`` and in batches of a
    ``Collator``."""

    validation: Validation
    """What ``evaluate`` takes."""
    control: Any
    """What the callbacks want next, as transformers hands it around."""
    team = ALONE
    selective = False
    """Whether checkpointing of activations is to keep a part of them (``training.selective``)."""
    kernels: tuple[Kernel, ...] | None = None
    """The fused ones with which the model computes; None: none can run here."""
    order: StepOrder | None = None
    """Of the training examples; without one it is the trainer's own."""
    _uncounted: Any = 0
    """Tokens that went through this process's model since the last step's end."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Cross entropy per labelled token, over ``num_items_in_batch`` tokens or those of this batch."""
        if return_outputs or self.aux_loss_enabled:  # what a mixture of experts adds for its balance is TRL's
            others = {name: value for name, value in inputs.items() if name not in ("positions", "targets")}
            return super().compute_loss(model, others, return_outputs, num_items_in_batch)
        loss = self._summed(model, inputs)
        if num_items_in_batch is not None:  # of all processes, over which gradients are averaged
            return loss * self.team.size / torch.as_tensor(num_items_in_batch).clamp(min=1)
        return loss / max(1, len(inputs["targets"]))

    def _summed(self, model: Any, inputs: dict[str, Any]) -> Any:
        """The sum of the cross entropies of a batch's labelled tokens."""
        given = {name: value for name, value in inputs.items() if name != "labels"}
        with self.autocast():  # accelerate puts it around the model only once it trains
            return model(**given, use_cache=False)

    def evaluate(self, *_given: Any, **_named: Any) -> dict[str, float]:
        """The loss per labelled token of the validation split, as ``eval_loss``. All processes call this together."""
        begun = time.monotonic()
        self.model.eval()
        with torch.no_grad():
            total = self.validation.summed(self._validated)
        loss = self.accelerator.gather(total).sum() / self.validation.labelled
        found = {"eval_loss": float(loss), "eval_runtime": round(time.monotonic() - begun, 4)}
        self.log(found)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

    def _validated(self, examples: list[dict[str, Any]]) -> Any:
        """The sum of the losses of a validation's pass."""
        found = self._summed(self.model, self._prepare_inputs(self.data_collator(examples)))
        self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        return found

    def autocast(self) -> AbstractContextManager[None]:
        """Around the loss."""
        found: AbstractContextManager[None] = self.accelerator.autocast()
        return found

    def weights(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """All weights of the model, rounded to ``dtype``; the model is changed."""
        return dict(self.model.to(dtype).state_dict())

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        """transformers asks the GPU for its count in each pass, and so waits for all that it still computes. Here the
        GPU adds up, and is asked where a step's loss is logged."""
        mask = inputs.get("attention_mask")
        self._uncounted = self._uncounted + (inputs["input_ids"].numel() if mask is None else mask.sum())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """All processes call this together, after each step and each validation."""
        tokens = torch.as_tensor(self._uncounted, device=self.args.device)
        self.state.num_input_tokens_seen += int(self.accelerator.gather(tokens).sum())
        self._uncounted = 0
        super().log(logs, start_time)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self.order or super()._get_train_sampler(train_dataset)

    def _run_epoch(self, **given: Any) -> Any:
        """Where several processes resume in the middle of an epoch, accelerate does not tell the order which one it is:
        they would see the first one's again. A training that resumes at its end has nothing left to do."""
        if self._has_ended:
            self.control.should_training_stop = True
            return None
        if self.order:
            self.order.set_epoch(given["epoch"])
        return super()._run_epoch(**given)

    @property
    def _has_ended(self) -> bool:
        """Whether the steps or the patience were used up before an epoch begins, as the checkpoint says; transformers
        forgets so when it resumes (``should_training_stop``)."""
        stops = [each for each in self.callback_handler.callbacks if isinstance(each, EarlyStoppingCallback)]
        impatient = any(each.early_stopping_patience_counter >= each.early_stopping_patience for each in stops)
        return bool(impatient or self.state.global_step >= self.state.max_steps)

    def create_model_card(self, *_given: Any, **_named: Any) -> None:
        """A checkpoint needs none, which takes a tenth of a second to make."""

    def _save_rng_state(self, output_dir: str) -> None:
        """Every pod's copy of a checkpoint holds the random states of all processes: the store's is the first pod's."""
        super()._save_rng_state(output_dir)
        if self.team.size == 1:
            return
        own = Path(output_dir, f"rng_state_{self.team.rank}.pth")
        for rank, content in enumerate(self.team.collect(own.read_bytes())):
            if self.team.first_of_pod:
                own.with_name(f"rng_state_{rank}.pth").write_bytes(content)
