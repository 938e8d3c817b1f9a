"""As much of the package ``vllm`` as the evaluation's worker uses, over transformers: for tests that run without vLLM.

It keeps what vLLM 0.32 promises about tokens, log-probabilities and refusals; that the real one keeps it, too, is
tested in ``tests/vllm``. It computes in float32 with weights of the type that it is told.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from vllm.lora.request import LoRARequest

__version__ = "0.32.0+stand-in"


@dataclass(frozen=True)
class SamplingParams:
    temperature: float
    detokenize: bool
    max_tokens: int
    stop_token_ids: Sequence[int] = ()
    allowed_token_ids: Sequence[int] | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None


@dataclass(frozen=True)
class Logprob:
    logprob: float


@dataclass
class CompletionOutput:
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str = "length"


@dataclass(frozen=True)
class RequestOutput:
    prompt_token_ids: list[int]
    prompt_logprobs: list[dict[int, Logprob] | None] | None
    outputs: list[CompletionOutput]


class LLM:
    def __init__(
        self, model: str, dtype: str, max_model_len: int, enable_lora: bool = False, max_lora_rank: int = 16, **_: Any
    ) -> None:
        self._folder, self._longest = model, max_model_len
        self._rank = max_lora_rank if enable_lora else 0
        self._dtype = getattr(torch, dtype)
        self._model = self._load()
        self._adapted: Any = None
        if max_model_len > self._model.config.max_position_embeddings:
            raise ValueError(f"max_model_len ({max_model_len}) is greater than the derived one")

    def _load(self) -> Any:
        return AutoModelForCausalLM.from_pretrained(self._folder, dtype=self._dtype).float().eval()

    def _of(self, adapter: LoRARequest | None) -> Any:
        if adapter is None:
            return self._model
        rank = json.loads((Path(adapter.lora_path) / "adapter_config.json").read_text())["r"]
        if rank > self._rank:
            raise ValueError(f"LoRA rank {rank} is greater than max_lora_rank {self._rank}.")
        if self._adapted is None:
            from peft import PeftModel

            self._adapted = PeftModel.from_pretrained(self._load(), adapter.lora_path).eval()
        return self._adapted

    def generate(
        self,
        prompts: Sequence[dict[str, list[int]]],
        params: SamplingParams | Sequence[SamplingParams],
        *,
        use_tqdm: bool,
        lora_request: LoRARequest | None,
    ) -> list[RequestOutput]:
        each = params if isinstance(params, Sequence) else [params] * len(prompts)
        model = self._of(lora_request)
        with torch.inference_mode():
            return [
                self._one(model, list(prompt["prompt_token_ids"]), wanted)
                for prompt, wanted in zip(prompts, each, strict=True)
            ]

    def _one(self, model: Any, ids: list[int], wanted: SamplingParams) -> RequestOutput:
        if len(ids) + 1 > self._longest:
            raise ValueError(f"The decoder prompt (length {len(ids)}) is longer than the maximum model length")
        done = CompletionOutput(logprobs=None if wanted.logprobs is None else [])
        output = model(input_ids=torch.tensor([ids]), use_cache=True)
        said = torch.log_softmax(output.logits[0].float(), dim=-1)
        given: list[dict[int, Logprob] | None] | None = None
        if wanted.prompt_logprobs is not None:
            given = [None, *_said(said, ids[1:])]
        allowed = torch.tensor(wanted.allowed_token_ids or range(said.shape[1]))
        while True:
            last = said[-1]
            token = int(allowed[last[allowed].argmax()])
            done.token_ids.append(token)
            if done.logprobs is not None:
                done.logprobs.append({token: Logprob(float(last[token]))})
            if token in wanted.stop_token_ids:
                done.finish_reason = "stop"
            if done.finish_reason == "stop" or len(done.token_ids) == min(wanted.max_tokens, self._longest - len(ids)):
                break
            output = model(input_ids=torch.tensor([[token]]), cache=output.cache, use_cache=True)
            said = torch.log_softmax(output.logits[0].float(), dim=-1)
        return RequestOutput(ids, given, [done])


def _said(said: torch.Tensor, ids: Sequence[int]) -> list[dict[int, Logprob]]:
    """How likely each of these tokens was, in a row of its own."""
    found = said[torch.arange(len(ids)), torch.tensor(ids, dtype=torch.long)].tolist()
    return [{token: Logprob(likely)} for token, likely in zip(ids, found, strict=True)]
