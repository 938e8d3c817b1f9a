"""Response formats: JSON of tokens, timing headers, server-sent events."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

from starlette.responses import StreamingResponse

from tgi_cpu.inference import Answer, Timings
from tgi_cpu.sequence import Token

COMPUTE_TYPE = "cpu"


def token_json(token: Token) -> dict[str, Any]:
    """A generated token."""
    return {"id": token.id, "text": token.text, "logprob": token.logprob, "special": token.special}


def prefill_json(token: Token) -> dict[str, Any]:
    """A token of the prompt."""
    return {"id": token.id, "text": token.text, "logprob": token.logprob}


def answer_headers(answer: Answer, inputs: str) -> dict[str, str]:
    """TGI's headers of a complete answer: milliseconds, but seconds in ``x-compute-time``."""
    timings = Timings.of(answer.ending, answer.arrived)
    return {
        **stream_headers(inputs),
        "x-compute-time": str(timings.total),
        "x-total-time": _milliseconds(timings.total),
        "x-validation-time": _milliseconds(timings.validation),
        "x-queue-time": _milliseconds(timings.queue),
        "x-inference-time": _milliseconds(timings.inference),
        "x-time-per-token": _milliseconds(timings.per_token),
        "x-prompt-tokens": str(answer.input_length),
        "x-generated-tokens": str(answer.ending.generated_tokens),
    }


def stream_headers(inputs: str) -> dict[str, str]:
    """The headers that are known before the first token."""
    return {"x-compute-type": COMPUTE_TYPE, "x-compute-characters": str(len(inputs))}


def event_stream(events: AsyncIterator[str], headers: Mapping[str, str]) -> StreamingResponse:
    """A 200 with server-sent events, even if they contain an error."""
    return StreamingResponse(
        _framed(events), media_type="text/event-stream", headers={**headers, "x-accel-buffering": "no"}
    )


def compact(body: Mapping[str, Any]) -> str:
    """JSON on one line, as an event's data."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"))


async def _framed(events: AsyncIterator[str]) -> AsyncGenerator[str, None]:
    async for data in events:
        yield f"data: {data}\n\n"


def _milliseconds(seconds: float) -> str:
    return str(int(seconds * 1000))
