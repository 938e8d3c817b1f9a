"""Chooses the next token of a sequence, with penalties, warpers and choice in TGI's order."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)


@dataclass(frozen=True, slots=True)
class SamplingParameters:
    """Validated parameters; neutral values (1.0, 0) disable a step."""

    do_sample: bool
    seed: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0


class FrequencyPenalty(LogitsProcessor):  # type: ignore[misc] # transformers is not followed by mypy
    """Lower each token's logit by ``penalty`` times its count in the text so far (OpenAI's definition)."""

    def __init__(self, penalty: float) -> None:
        self._penalty = penalty

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        counts = torch.zeros_like(scores).scatter_add_(1, input_ids, torch.ones_like(input_ids, dtype=scores.dtype))
        return scores - self._penalty * counts


class TokenChooser:
    """Greedy unless sampling is requested or, as in TGI, any warper is set."""

    def __init__(self, parameters: SamplingParameters) -> None:
        warpers = _warpers(parameters)
        self._processors = LogitsProcessorList([*_penalties(parameters), *warpers])
        self.seed = parameters.seed if parameters.do_sample or warpers else None
        self._generator = None if self.seed is None else torch.Generator().manual_seed(self.seed)

    def __call__(self, ids: list[int], logits: Any) -> tuple[int, Any]:
        """The chosen token, and the log probabilities of the whole vocabulary."""
        scores = self._processors(torch.tensor([ids]), logits.float().unsqueeze(0))
        logprobs = torch.log_softmax(scores, dim=-1)[0]
        if self._generator is None:
            return int(logprobs.argmax()), logprobs
        return int(torch.multinomial(logprobs.exp(), 1, generator=self._generator)), logprobs


def _penalties(parameters: SamplingParameters) -> list[LogitsProcessor]:
    penalties: list[LogitsProcessor] = []
    if parameters.repetition_penalty != 1.0:
        penalties.append(RepetitionPenaltyLogitsProcessor(parameters.repetition_penalty))
    if parameters.frequency_penalty != 0.0:
        penalties.append(FrequencyPenalty(parameters.frequency_penalty))
    return penalties


def _warpers(parameters: SamplingParameters) -> list[LogitsProcessor]:
    warpers: list[LogitsProcessor] = []
    if parameters.temperature != 1.0:
        warpers.append(TemperatureLogitsWarper(parameters.temperature))
    if parameters.top_k > 0:
        warpers.append(TopKLogitsWarper(parameters.top_k))
    if parameters.top_p < 1.0:
        warpers.append(TopPLogitsWarper(parameters.top_p))
    if parameters.typical_p < 1.0:
        warpers.append(TypicalLogitsWarper(parameters.typical_p))
    return warpers
