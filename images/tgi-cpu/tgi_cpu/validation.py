"""TGI's rules for request values, in the order and with the messages of ``router/src/validation.rs``."""

import secrets
from typing import Any

from tgi_cpu.args import Args, Limits
from tgi_cpu.contract import GenerateParameters, invalid
from tgi_cpu.metrics import Metrics
from tgi_cpu.sampling import SamplingParameters
from tgi_cpu.sequence import Generation

CHUNK_TOKENS = 1024
"""TGI reserves at most this many new tokens at a time, so no more than this counts against ``max_total_tokens``."""


class Validator:
    """Turns wire parameters into a Generation, or raises InferError (422)."""

    def __init__(self, encoder: Any, limits: Limits, args: Args, metrics: Metrics) -> None:
        """``encoder`` is a ``tokenizers.Tokenizer``."""
        self._encoder = encoder
        self._limits = limits
        self._args = args
        self._metrics = metrics

    def encode(self, text: str, *, add_special_tokens: bool) -> Any:
        """The ``tokenizers.Encoding`` of a text."""
        return self._encoder.encode(text, add_special_tokens=add_special_tokens)

    def best_of(self, wanted: int) -> int:
        """Check the number of answers to choose from; a separate check, as in TGI."""
        if self._args.max_best_of == 1 and wanted != 1:
            raise invalid("`best_of` != 1 is not allowed for this endpoint")
        if wanted > self._args.max_best_of:
            raise invalid(f"`best_of` must be > 0 and <= {self._args.max_best_of}. Given: {wanted}")
        return wanted

    def validate(self, inputs: str, parameters: GenerateParameters, *, add_special_tokens: bool) -> Generation:
        """Apply every rule. Grammars, which the stand-in does not support, are refused as with
        DISABLE_GRAMMAR_SUPPORT."""
        sampling = self._sampling(parameters)
        if parameters.max_new_tokens == 0:
            raise invalid("`max_new_tokens` must be strictly positive")
        if len(parameters.stop) > self._args.max_stop_sequences:
            allowed = self._args.max_stop_sequences
            raise invalid(f"`stop` supports up to {allowed} stop sequences. Given: {len(parameters.stop)}")
        top_n = parameters.top_n_tokens or 0
        if top_n > self._args.max_top_n_tokens:
            raise invalid(f"`top_n_tokens` must be >= 0 and <= {self._args.max_top_n_tokens}. Given: {top_n}")
        if not inputs:
            raise invalid("`inputs` cannot be empty")
        input_ids = self._input_ids(inputs, parameters.truncate, add_special_tokens)
        max_new_tokens = self._max_new_tokens(len(input_ids), parameters.max_new_tokens)
        if parameters.grammar is not None:
            raise invalid("grammar is not supported")
        if parameters.watermark:
            raise invalid("watermark is not supported by the CPU stand-in")
        self._metrics.observe("tgi_request_input_length", len(input_ids))
        self._metrics.observe("tgi_request_max_new_tokens", max_new_tokens)
        return Generation(
            input_ids=input_ids,
            adapter_id=parameters.adapter_id,
            max_new_tokens=max_new_tokens,
            stop=parameters.stop,
            sampling=sampling,
            top_n_tokens=top_n,
            # Otherwise TGI leaves the list empty: it would cost a GPU's memory.
            prefill_details=parameters.decoder_input_details and self._args.enable_prefill_logprobs,
        )

    def _sampling(self, parameters: GenerateParameters) -> SamplingParameters:
        warpers = (parameters.temperature, parameters.top_k, parameters.top_p, parameters.typical_p)
        do_sample = parameters.do_sample or any(value is not None for value in warpers)
        several = (parameters.best_of or 1) > 1
        rules: list[tuple[bool, str]] = [
            (several and not do_sample, "you must use sampling when `best_of` is > 1"),
            (_given(parameters.temperature, 1.0) <= 0, "`temperature` must be strictly positive"),
            (_given(parameters.repetition_penalty, 1.0) <= 0, "`repetition_penalty` must be strictly positive"),
            (abs(_given(parameters.frequency_penalty, 0.0)) > 2, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
            (not 0 < _given(parameters.top_p, 0.5) < 1, "`top_p` must be > 0.0 and < 1.0"),
            (not 0 < _given(parameters.typical_p, 0.5) < 1, "`typical_p` must be > 0.0 and < 1.0"),
            (_given(parameters.top_k, 1) <= 0, "`top_k` must be strictly positive"),
            (several and parameters.seed is not None, "`seed` must not be set when `best_of` > 1"),
        ]
        for broken, message in rules:
            if broken:
                raise invalid(message)
        return SamplingParameters(
            do_sample=do_sample,
            seed=secrets.randbits(63) if parameters.seed is None else parameters.seed % 2**63,
            temperature=_given(parameters.temperature, 1.0),
            top_k=int(_given(parameters.top_k, 0)),
            top_p=_given(parameters.top_p, 1.0),
            typical_p=_given(parameters.typical_p, 1.0),
            repetition_penalty=_given(parameters.repetition_penalty, 1.0),
            frequency_penalty=_given(parameters.frequency_penalty, 0.0),
        )

    def _input_ids(self, inputs: str, truncate: int | None, add_special_tokens: bool) -> list[int]:
        longest = self._limits.max_input_tokens
        if truncate is not None and not 0 < truncate <= longest:
            raise invalid(f"`truncate` must be strictly positive and less than {longest}. Given: {truncate}")
        ids: list[int] = self.encode(inputs, add_special_tokens=add_special_tokens).ids
        return ids[-truncate:] if truncate else ids

    def _max_new_tokens(self, input_length: int, wanted: int | None) -> int:
        total = self._limits.max_total_tokens
        room = max(0, total - input_length)
        reserved = min(room if wanted is None else wanted, CHUNK_TOKENS)
        if input_length + reserved > total:
            raise invalid(
                f"`inputs` tokens + `max_new_tokens` must be <= {total}. "
                f"Given: {input_length} `inputs` tokens and {reserved} `max_new_tokens`"
            )
        if input_length > self._limits.max_input_tokens:
            raise invalid(f"`inputs` must have less than {self._limits.max_input_tokens} tokens. Given: {input_length}")
        return room if wanted is None else min(wanted, room)


def _given(value: float | None, default: float) -> float:
    return default if value is None else value
