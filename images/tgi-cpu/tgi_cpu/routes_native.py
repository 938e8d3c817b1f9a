"""TGI's own routes: ``/``, ``/generate``, ``/generate_stream``, ``/tokenize``, and those without authentication."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from tgi_cpu.contract import CompatGenerateRequest, GenerateRequest, InferError, invalid, read_body
from tgi_cpu.inference import Answer, Event, Inference, Prompt
from tgi_cpu.responses import (
    answer_headers,
    compact,
    event_stream,
    prefill_json,
    stream_headers,
    token_json,
)
from tgi_cpu.validation import Validator


@dataclass(frozen=True, slots=True)
class NativeRoutes:
    """One method per route. ``info`` is the body of ``/info``, ``payload_limit`` is in bytes."""

    inference: Inference
    info: dict[str, Any]
    payload_limit: int

    async def health(self, request: Request) -> Response:
        """200 without a body, or 503."""
        if self.inference.healthy:
            return Response()
        return JSONResponse({"error": "unhealthy", "error_type": "healthcheck"}, 503)

    async def show_info(self, request: Request) -> Response:
        """The served model and the limits."""
        return JSONResponse(self.info)

    async def metrics(self, request: Request) -> Response:
        """Prometheus text."""
        return PlainTextResponse(self.inference.metrics.render())

    async def compat_generate(self, request: Request) -> Response:
        """``POST /``: one answer in a list, or a stream. A local checkpoint has no pipeline tag, so TGI puts the prompt
        before the text unless ``return_full_text`` is false."""
        body = await read_body(request, CompatGenerateRequest, self.payload_limit)
        if body.parameters.return_full_text is None:
            parameters = body.parameters.model_copy(update={"return_full_text": True})
            body = body.model_copy(update={"parameters": parameters})
        if body.stream:
            return self._stream(body)
        answer, content = await self._answer(body, request)
        return JSONResponse([content], headers=answer_headers(answer, body.inputs))

    async def generate(self, request: Request) -> Response:
        """The complete answer."""
        body = await read_body(request, GenerateRequest, self.payload_limit)
        answer, content = await self._answer(body, request)
        return JSONResponse(content, headers=answer_headers(answer, body.inputs))

    async def generate_stream(self, request: Request) -> Response:
        """One event per token. The status is 200 before the request is validated: errors are events too."""
        return self._stream(await read_body(request, GenerateRequest, self.payload_limit))

    async def tokenize(self, request: Request) -> Response:
        """Token ids with their text and position."""
        body = await read_body(request, GenerateRequest, self.payload_limit)
        return JSONResponse(tokenized(self.inference.validator, body.inputs, add_special_tokens=True))

    async def _answer(self, body: GenerateRequest, request: Request) -> tuple[Answer, dict[str, Any]]:
        self.inference.count_request()
        prompt = Prompt(body.inputs, body.parameters)
        best_of = body.parameters.best_of or 1
        if best_of > 1:
            answer, *others = await self.inference.best_answers(prompt, best_of, request.is_disconnected)
        else:
            answer, others = await self.inference.answer(prompt, request.is_disconnected), []
        prefix = body.inputs if body.parameters.return_full_text else ""
        content: dict[str, Any] = {"generated_text": prefix + answer.ending.text}
        if body.parameters.details or body.parameters.decoder_input_details:
            content["details"] = _details(answer, with_top=bool(body.parameters.top_n_tokens))
            if best_of > 1:
                content["details"]["best_of_sequences"] = [
                    {"generated_text": prefix + other.ending.text, **_details(other, with_top=False)}
                    for other in others
                ]
        return answer, content

    def _stream(self, body: GenerateRequest) -> Response:
        self.inference.count_request()
        return event_stream(self._events(body), stream_headers(body.inputs))

    async def _events(self, body: GenerateRequest) -> AsyncGenerator[str, None]:
        try:
            if (body.parameters.best_of or 1) != 1:
                raise self.inference.refuse(invalid("`best_of` != 1 is not supported when streaming tokens"))
            if body.parameters.decoder_input_details:
                message = "`decoder_input_details` == true is not supported when streaming tokens"
                raise self.inference.refuse(invalid(message))
            async with aclosing(self.inference.stream(Prompt(body.inputs, body.parameters))) as events:
                async for event in events:
                    yield compact(_stream_event(event, body))
        except InferError as error:
            yield compact(error.body)


def tokenized(validator: Validator, text: str, *, add_special_tokens: bool) -> list[dict[str, Any]]:
    """Body of ``/tokenize``; ``start`` and ``stop`` count bytes, as TGI's tokenizer does."""
    encoding = validator.encode(text, add_special_tokens=add_special_tokens)

    def byte(position: int) -> int:
        return len(text[:position].encode())

    return [
        {"id": token, "text": text[start:stop], "start": byte(start), "stop": byte(stop)}
        for token, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True)
    ]


def _details(answer: Answer, *, with_top: bool) -> dict[str, Any]:
    details = {
        "finish_reason": answer.ending.finish_reason,
        "generated_tokens": answer.ending.generated_tokens,
        "seed": answer.ending.seed,
        "prefill": [prefill_json(token) for token in answer.prefill],
        "tokens": [token_json(token) for token in answer.tokens],
    }
    if with_top:
        details["top_tokens"] = [[token_json(token) for token in tokens] for tokens in answer.top_tokens]
    return details


def _stream_event(event: Event, body: GenerateRequest) -> dict[str, Any]:
    ending = event.step.ending
    content: dict[str, Any] = {"index": event.index, "token": token_json(event.step.token)}
    if event.step.top_tokens:
        content["top_tokens"] = [token_json(token) for token in event.step.top_tokens]
    content |= {"generated_text": None, "details": None}
    if ending is not None:
        content["generated_text"] = (body.inputs if body.parameters.return_full_text else "") + ending.text
        if body.parameters.details:
            content["details"] = {
                "finish_reason": ending.finish_reason,
                "generated_tokens": ending.generated_tokens,
                "seed": ending.seed,
                "input_length": event.input_length,
            }
    return content
