"""From a request to its tokens: the limit on concurrent requests, validation, the engine, and the request metrics."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field

from tgi_cpu.contract import GenerateParameters, InferError
from tgi_cpu.engine import Engine, GenerationError
from tgi_cpu.metrics import Metrics
from tgi_cpu.sequence import Ending, Step, Token
from tgi_cpu.validation import Validator

Abandoned = Callable[[], Awaitable[bool]]
"""Whether the client that waits for a complete answer has disconnected (a stream is closed instead)."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text to continue. Chat templates contain special tokens, so none are added to their output."""

    inputs: str
    parameters: GenerateParameters
    add_special_tokens: bool = True


@dataclass(frozen=True, slots=True)
class Event:
    """A step of a stream; ``index`` starts at 1."""

    index: int
    input_length: int
    step: Step


@dataclass(slots=True)
class Answer:
    """A complete answer and its timings (seconds)."""

    ending: Ending
    input_length: int
    arrived: float
    prefill: list[Token] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    top_tokens: list[list[Token]] = field(default_factory=list)

    @property
    def mean_logprob(self) -> float:
        """The score that selects the best of several answers."""
        return sum(token.logprob or 0.0 for token in self.tokens) / len(self.tokens)


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds that a request spent in each phase."""

    total: float
    validation: float
    queue: float
    inference: float
    per_token: float

    @classmethod
    def of(cls, ending: Ending, arrived: float) -> "Timings":
        """Measured now, at the end of the request."""
        now = time.monotonic()
        inference = now - ending.started
        return cls(
            total=now - arrived,
            validation=ending.queued - arrived,
            queue=ending.started - ending.queued,
            inference=inference,
            per_token=inference / ending.generated_tokens,
        )


class Inference:
    """The interface for the routes. Only used from the event loop."""

    def __init__(self, engine: Engine, validator: Validator, metrics: Metrics, *, max_concurrent_requests: int) -> None:
        self.validator = validator
        self.metrics = metrics
        self._engine = engine
        self._free = max_concurrent_requests

    @property
    def healthy(self) -> bool:
        """What ``/health`` reports."""
        return self._engine.healthy

    async def stream(self, prompt: Prompt) -> AsyncGenerator[Event]:
        """Tokens as they are generated. Raises InferError: 429 overloaded, 422 validation, 424 generation.

        Closing the iterator early (the client disconnected) removes the request from its batch.
        """
        arrived = time.monotonic()
        if self._free == 0:
            raise self._failed("overloaded", InferError(429, "Model is overloaded", "overloaded"))
        self._free -= 1
        try:
            async with aclosing(self._tokens(prompt)) as events:
                async for event in events:
                    if event.step.ending is not None:
                        self._record_success(event.step.ending, arrived)
                    yield event
        finally:
            self._free += 1

    async def answer(self, prompt: Prompt, abandoned: Abandoned) -> Answer:
        """The complete answer. Raises what ``stream`` raises, and InferError (499) once the client has disconnected."""
        arrived = time.monotonic()
        prefill: list[Token] = []
        tokens: list[Token] = []
        top_tokens: list[list[Token]] = []
        async with aclosing(self.stream(prompt)) as events:
            async for event in events:
                prefill += event.step.prefill
                tokens.append(event.step.token)
                top_tokens.append(event.step.top_tokens)
                if await abandoned():
                    raise InferError(499, "The client is gone", "abandoned")
                if event.step.ending is not None:
                    return Answer(event.step.ending, event.input_length, arrived, prefill, tokens, top_tokens)
        raise self._failed("incomplete", InferError(500, "Incomplete generation", "incomplete_generation"))

    async def best_answers(self, prompt: Prompt, best_of: int, abandoned: Abandoned) -> list[Answer]:
        """``best_of`` sampled answers, the likeliest (mean log probability per token) first."""
        wanted = self.validator.best_of(best_of)
        answers = await asyncio.gather(*(self.answer(prompt, abandoned) for _ in range(wanted)))
        return sorted(answers, key=lambda answer: -answer.mean_logprob)

    def count_request(self) -> None:
        """Count a request; each ends as a success or a failure."""
        self.metrics.increment("tgi_request_count")

    def refuse(self, error: InferError) -> InferError:
        """Count a refusal by a route."""
        return self._failed("template" if error.body["error_type"] == "template_error" else "validation", error)

    async def _tokens(self, prompt: Prompt) -> AsyncGenerator[Event]:
        try:
            request = self.validator.validate(
                prompt.inputs, prompt.parameters, add_special_tokens=prompt.add_special_tokens
            )
        except InferError as error:
            raise self._failed("validation", error) from error
        ticket = self._engine.submit(request)
        index = 0
        try:
            while True:
                event = await ticket.events.get()
                if isinstance(event, GenerationError):
                    text = f"Request failed during generation: {event}"
                    raise self._failed("generation", InferError(424, text, "generation"))
                index += 1
                yield Event(index, len(request.input_ids), event)
                if event.ending is not None:
                    return
        finally:
            ticket.cancelled = True

    def _failed(self, cause: str, error: InferError) -> InferError:
        self.metrics.increment("tgi_request_failure", err=cause)
        return error

    def _record_success(self, ending: Ending, arrived: float) -> None:
        timings = Timings.of(ending, arrived)
        self.metrics.increment("tgi_request_success")
        self.metrics.observe("tgi_request_duration", timings.total)
        self.metrics.observe("tgi_request_validation_duration", timings.validation)
        self.metrics.observe("tgi_request_queue_duration", timings.queue)
        self.metrics.observe("tgi_request_inference_duration", timings.inference)
        self.metrics.observe("tgi_request_mean_time_per_token_duration", timings.per_token)
        self.metrics.observe("tgi_request_generated_tokens", ending.generated_tokens)
