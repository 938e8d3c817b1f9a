"""What transformers 4 finds in checkpoints: ``python read.py < asked.json``.

A checkpoint is a list of folders: that of a model, and that of an adapter on it, if there is one.

Texts are lists of token ids, of each of which it computes the log-probability of every token but the first, in float32
and with activations as they are, whose rounding is a matter of a server's kernels.
Conversations it renders for an answer. It writes a list to stdout, what it found in each checkpoint.
"""

import json
import sys
from typing import Any

import torch
import transformers
from compressed_tensors.quantization import disable_quantization
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    asked = json.load(sys.stdin)
    json.dump([read(*folders, asked=asked) for folders in asked["checkpoints"]], sys.stdout)


def read(folder: str, *adapters: str, asked: dict[str, Any]) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32)
    for adapter in adapters:
        model = PeftModel.from_pretrained(model, adapter)
    model.eval()
    model.apply(disable_quantization)  # of activations: the weights are rounded in the files
    return {
        "version": transformers.__version__,
        "prompts": [tokenizer.apply_chat_template(each, add_generation_prompt=True) for each in asked["conversations"]],
        "logProbabilities": [log_probabilities(model, ids) for ids in asked["texts"]],
    }


def log_probabilities(model: Any, ids: list[int]) -> Any:
    tokens = torch.tensor([ids])
    with torch.no_grad():
        logits = model(input_ids=tokens).logits[0, :-1].float()
    return torch.log_softmax(logits, -1).gather(-1, tokens[0, 1:, None])[:, 0].tolist()


if __name__ == "__main__":
    main()
