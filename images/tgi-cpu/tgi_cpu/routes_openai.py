"""The routes that OpenAI's client calls: chat, completions, models; ``model`` names the LoRA adapter."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tgi_cpu.chat_template import ChatTemplate
from tgi_cpu.contract import (
    ChatRequest,
    CompletionRequest,
    GenerateParameters,
    InferError,
    OpenAIRequest,
    invalid,
    read_body,
)
from tgi_cpu.inference import Event, Inference, Prompt
from tgi_cpu.responses import answer_headers, compact, event_stream, stream_headers
from tgi_cpu.routes_native import tokenized
from tgi_cpu.sequence import Token

DONE = "[DONE]"


@dataclass(frozen=True, slots=True)
class OpenAIRoutes:
    """One method per route. ``payload_limit`` is in bytes."""

    inference: Inference
    template: ChatTemplate
    model_id: str
    fingerprint: str
    payload_limit: int
    max_client_batch_size: int

    async def models(self, request: Request) -> Response:
        """Only the base model: adapters are not listed, although they can be requested."""
        model = {"id": self.model_id, "object": "model", "created": 0, "owned_by": self.model_id}
        return JSONResponse({"object": "list", "data": [model]})

    async def chat_tokenize(self, request: Request) -> Response:
        """The rendered template and its tokens."""
        body = await read_body(request, ChatRequest, self.payload_limit)
        self.inference.count_request()
        text = self._chat_prompt(body).inputs
        tokens = tokenized(self.inference.validator, text, add_special_tokens=False)
        return JSONResponse({"tokenize_response": tokens, "templated_text": text})

    async def chat(self, request: Request) -> Response:
        """``/v1/chat/completions``."""
        body = await read_body(request, ChatRequest, self.payload_limit)
        self.inference.count_request()
        prompt = self._chat_prompt(body)
        self.inference.count_request()  # TGI counts an OpenAI request when it comes and again for each prompt
        if body.stream:
            return event_stream(self._chat_events(body, prompt), stream_headers(prompt.inputs))
        answer = await self.inference.answer(prompt, request.is_disconnected)
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": answer.ending.text},
            "logprobs": _logprobs(answer.tokens, answer.top_tokens) if body.logprobs else None,
            "finish_reason": _stop_reason(answer.ending.finish_reason),
        }
        usage = _usage(answer.input_length, answer.ending.generated_tokens)
        content = {**self._head("chat.completion", body), "choices": [choice], "usage": usage}
        return JSONResponse(content, headers=answer_headers(answer, prompt.inputs))

    async def completions(self, request: Request) -> Response:
        """``/v1/completions``, for one prompt or several."""
        body = await read_body(request, CompletionRequest, self.payload_limit)
        self.inference.count_request()
        prompts = self._completion_prompts(body)
        inputs = "".join(prompt.inputs for prompt in prompts)
        for _ in prompts:
            self.inference.count_request()
        if body.stream:
            return event_stream(self._completion_events(body, prompts), stream_headers(inputs))
        answers = await asyncio.gather(*(self.inference.answer(p, request.is_disconnected) for p in prompts))
        choices = [
            _completion_choice(index, answer.ending.text, _stop_reason(answer.ending.finish_reason))
            for index, answer in enumerate(answers)
        ]
        usage = _usage(
            sum(answer.input_length for answer in answers),
            sum(answer.ending.generated_tokens for answer in answers),
        )
        content = {**self._head("text_completion"), "choices": choices, "usage": usage}
        return JSONResponse(content, headers=answer_headers(answers[0], inputs))

    def _chat_prompt(self, body: ChatRequest) -> Prompt:
        if body.response_format is not None and body.tools:
            raise InferError(422, "Tool error: Grammar and tools are mutually exclusive", "tool_error")
        if body.response_format is not None or (body.tools and body.tool_choice != "none"):
            raise self.inference.refuse(invalid("grammar is not supported"))
        try:
            inputs = self.template.render(body.messages)
        except InferError as error:
            raise self.inference.refuse(error) from error
        penalty = body.presence_penalty
        parameters = GenerateParameters(
            **_sampling(body),
            max_new_tokens=body.max_tokens,
            repetition_penalty=None if penalty is None else penalty + 2.0,  # TGI's mapping of OpenAI's -2..2
            top_n_tokens=body.top_logprobs,
        )
        return Prompt(inputs, parameters, add_special_tokens=False)

    def _completion_prompts(self, body: CompletionRequest) -> list[Prompt]:
        if body.suffix is not None:
            message = "Suffix is not supported and can be achieved by preprocessing the prompt."
            raise self.inference.refuse(InferError(422, message, "suffix not supported"))
        prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
        if len(prompts) > self.max_client_batch_size:
            message = f"Number of prompts exceeds the maximum allowed batch size of {self.max_client_batch_size}"
            raise self.inference.refuse(InferError(422, message, "batch size exceeded"))
        parameters = GenerateParameters(
            **_sampling(body), max_new_tokens=body.max_tokens, repetition_penalty=body.repetition_penalty
        )
        return [Prompt(text, parameters) for text in prompts]

    async def _chat_events(self, body: ChatRequest, prompt: Prompt) -> AsyncGenerator[str, None]:
        try:
            async with aclosing(self.inference.stream(prompt)) as events:
                async for event in events:
                    for chunk in self._chat_chunks(body, event):
                        yield chunk
        except InferError as error:
            yield _error_event(error)
        yield DONE

    def _chat_chunks(self, body: ChatRequest, event: Event) -> list[str]:
        token, ending = event.step.token, event.step.ending
        choice = {
            "index": 0,
            "delta": {"role": "assistant", "content": "" if token.special else token.text},
            "logprobs": _logprobs([token], [event.step.top_tokens]) if body.logprobs else None,
            "finish_reason": None if ending is None else _stop_reason(ending.finish_reason),
        }
        head = self._head("chat.completion.chunk", body)
        chunks = [compact({**head, "choices": [choice], "usage": None})]
        if ending is not None and body.stream_options.include_usage:
            usage = _usage(event.input_length, ending.generated_tokens)
            chunks.append(compact({**head, "choices": [], "usage": usage}))
        return chunks

    async def _completion_events(self, body: CompletionRequest, prompts: list[Prompt]) -> AsyncGenerator[str, None]:
        """The streams of all prompts, interleaved as tokens arrive."""
        chunks: asyncio.Queue[str | None] = asyncio.Queue()
        tasks = [
            asyncio.create_task(self._completion_chunks(index, prompt, chunks)) for index, prompt in enumerate(prompts)
        ]
        running = len(tasks)
        try:
            while running:
                chunk = await chunks.get()
                if chunk is None:
                    running -= 1
                else:
                    yield chunk
        finally:
            for task in tasks:
                task.cancel()
        yield DONE

    async def _completion_chunks(self, index: int, prompt: Prompt, chunks: asyncio.Queue[str | None]) -> None:
        try:
            async with aclosing(self.inference.stream(prompt)) as events:
                async for event in events:
                    ending = event.step.ending
                    reason = "" if ending is None else ending.finish_reason
                    content = {
                        **self._head("text_completion"),
                        "choices": [_completion_choice(index, event.step.token.text, reason)],
                    }
                    if ending is not None:
                        content["usage"] = _usage(event.input_length, ending.generated_tokens)
                    chunks.put_nowait(compact(content))
        except InferError as error:
            chunks.put_nowait(_error_event(error))
        finally:
            chunks.put_nowait(None)

    def _head(self, kind: str, body: ChatRequest | None = None) -> dict[str, Any]:
        """In chat, ``model`` echoes the requested adapter, loaded or not; in completions it is always the base
        model."""
        model = self.model_id if body is None or body.adapter_id is None else body.adapter_id
        created = int(time.time())
        return {"object": kind, "id": "", "created": created, "model": model, "system_fingerprint": self.fingerprint}


def _sampling(body: OpenAIRequest) -> dict[str, Any]:
    """Only temperature 0 is greedy; without a temperature TGI samples at 1.0, as OpenAI does."""
    greedy = body.temperature == 0.0
    return {
        "adapter_id": body.adapter_id,
        "do_sample": not greedy,
        "temperature": None if greedy else body.temperature,
        "top_p": body.top_p,
        "frequency_penalty": body.frequency_penalty,
        "seed": body.seed,
        "stop": body.stop or [],
        "details": True,
    }


def _completion_choice(index: int, text: str, reason: str) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}


def _logprobs(tokens: list[Token], top_tokens: list[list[Token]]) -> dict[str, Any]:
    return {
        "content": [
            {
                "token": token.text,
                "logprob": token.logprob,
                "top_logprobs": [{"token": other.text, "logprob": other.logprob} for other in top],
            }
            for token, top in zip(tokens, top_tokens, strict=True)
        ]
    }


def _usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}


def _stop_reason(finish_reason: str) -> str:
    return "stop" if finish_reason == "eos_token" else finish_reason


def _error_event(error: InferError) -> str:
    return compact({"error": {"message": str(error), "http_status_code": 422}})
