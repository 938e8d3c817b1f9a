"""How examples become a batch: padded, or side by side in a row; and which of its positions have a label.

Where labels are is known here, on the CPU, so that a GPU need not be waited for to ask it.
"""

from typing import Any

import torch
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from finetune_jobs.modelling.chat import IGNORED


class Collator(DataCollatorForLanguageModeling):  # type: ignore[misc] # trl has no types
    """TRL's, which gives ``input_ids``, ``labels``, and either ``attention_mask`` or, with ``padding_free``,
    ``position_ids`` and where each example ends (``cu_seq_lens_q``).

    In addition ``positions``, which predict a token that has a label, counted over all rows, and ``targets``, these
    tokens.
    """

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Called with a batch's examples."""
        batch: dict[str, Any] = super().torch_call(examples)
        return batch | labelled(batch["labels"])


def labelled(labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """``positions`` and ``targets`` of ``labels``, (rows, tokens): what stands at a place is predicted one before."""
    following = labels[:, 1:]
    rows, columns = (following != IGNORED).nonzero(as_tuple=True)
    return {"positions": rows * labels.shape[1] + columns, "targets": following[rows, columns]}
