"""vLLM 0.32: OpenAI's API, with the fields that vLLM adds (vllm/entrypoints/openai of vllm-project/vllm v0.32.0).

Probabilities of a prompt's tokens are ``prompt_logprobs`` of ``/v1/completions``: for each token but the first an
object from ids to probabilities, which with 0 asked for has the token itself only. Such a request does not read the
prefix cache, so every token is computed.
"""

import json
import re
from typing import Any, Final

from finetune_api.compatibility import VLLM
from finetune_jobs.artifacts.artifact import Answer, ReferenceText
from finetune_jobs.verification.connection import Connection
from finetune_jobs.verification.engine import (
    ANSWERED,
    FAILED,
    FIRST_TOKEN_SECONDS,
    REQUEST_SECONDS,
    Forced,
    Limits,
    RefusedForm,
    Reply,
    Served,
    ServerCounts,
    Streamed,
)
from finetune_jobs.verification.pace import request_seconds

_REJECTED: Final = 400
_LENGTH: Final = re.compile(r"maximum context length")
"""vLLM's answer to a conversation that is longer than it accepts."""
_MODELS: Final = "/v1/models"
_COMPLETIONS: Final = "/v1/completions"
_TIMES: Final = {
    "vllm:e2e_request_latency_seconds_bucket": REQUEST_SECONDS,
    "vllm:time_to_first_token_seconds_bucket": FIRST_TOKEN_SECONDS,
}
_OTHER: Final = "finetune-operator-no-such-model"
_LOAD: Final = "/v1/load_lora_adapter"
_UNLOAD: Final = "/v1/unload_lora_adapter"
_PARSER: Final = "--tool-call-parser"
_NO_PARSER: Final = f"the runtime's args lack {_PARSER}: it refuses requests with tools"
_WAITING: Final = "vllm:num_requests_waiting"
"""The gauge of requests that are not being worked on yet."""


class VllmServer:
    """A server that speaks vLLM's API at a URL."""

    engine = VLLM
    metrics = "vllm:"

    def __init__(self, endpoint: str, *, key: str = "", adapter: str = "") -> None:
        self._connection = Connection(endpoint, _REJECTED, _LENGTH, key=key)
        self._name = self._adapter = adapter

    def served(self) -> Served:
        """From ``/v1/models``: the model itself is the one without a parent, an adapter has one; its path is
        ``root``. An adapter that is not there has none, and its name is refused."""
        models = self._connection.get(_MODELS)
        try:
            base = next(each for each in models["data"] if not each.get("parent"))
            named = (each for each in models["data"] if each["id"] == self._adapter and each.get("parent"))
            model = next(named, {"root": ""}) if self._adapter else base
            self._name = self._adapter or str(base["id"])
            served = Served(str(model["root"]), Limits(total=int(base.get("max_model_len") or 0)))
        except (AttributeError, KeyError, StopIteration, ValueError, TypeError) as error:
            raise self._connection.wordless(_MODELS, error) from None
        self._connection.limits = served.limits
        return served

    def answer(self, asked: Answer) -> Reply:
        """From ``/v1/chat/completions``."""
        return self._connection.chat(asked, self._name)

    def call_tools(self, asked: Answer) -> Reply | RefusedForm:
        """From the same. vLLM needs to be told how the model writes calls."""
        found = self._connection.chat_in_form(asked, _with_tools(asked), self._name, "a chat with tools")
        return RefusedForm(_NO_PARSER) if isinstance(found, RefusedForm) and _PARSER in found.why else found

    def stream_calls(self, asked: Answer) -> Streamed | RefusedForm:
        """From the same. Its parsers have other code for streams than for whole answers."""
        return self._connection.stream_in_form(asked, _with_tools(asked), self._name, "a chat with tools, as a stream")

    def hold_to(self, asked: Answer, schema: str) -> Reply | RefusedForm:
        """From the same, as OpenAI's API has it."""
        held = {"name": "answer", "schema": json.loads(schema), "strict": True}
        form = {"response_format": {"type": "json_schema", "json_schema": held}}
        return self._connection.chat_in_form(asked, form, self._name, "a chat that is held to a schema")

    def stream(self, asked: Answer) -> Streamed:
        """From the same."""
        return self._connection.stream(asked, self._name)

    def silent_seconds(self) -> float:
        """By what the streams have brought."""
        return self._connection.pace.silent_seconds()

    def log_probs(self, reference: ReferenceText) -> Forced:
        """From ``/v1/completions``."""
        body = self._completion(self._name, reference.text) | {"prompt_logprobs": 0, "return_token_ids": True}
        seconds = request_seconds(len(reference.ids), 1)
        answer = self._connection.post(_COMPLETIONS, body, "a reference text", seconds)
        try:
            choice = answer["choices"][0]
            ids = [int(each) for each in choice["prompt_token_ids"]]
            found = choice.get("prompt_logprobs") or []
            log_probs = [float(each[str(token)]["logprob"]) for token, each in zip(ids[1:], found[1:], strict=False)]
            return Forced(ids, log_probs)
        except (AttributeError, IndexError, KeyError, ValueError, TypeError) as error:
            raise self._connection.unreadable(_COMPLETIONS, error) from None

    def waiting(self) -> int | None:
        """From ``/metrics``."""
        found = self._connection.gauge(_WAITING)
        return None if found is None else int(found)

    def refuses_other_names(self) -> bool:
        """By a completion of one token."""
        return self._connection.is_not_found(_COMPLETIONS, self._completion(_OTHER, "1"), "the name of no model")

    def counts(self) -> ServerCounts:
        """vLLM notes an error inside a stream as a finished request, and one without any answer only as HTTP status.
        What a client aborts is neither an answer nor a failure."""
        found = ServerCounts()
        for name, labels, value, *_ in self._connection.samples():
            reason = labels.get("finished_reason")
            if name == "vllm:request_success_total" and reason != "abort":
                found[(FAILED, "engine") if reason == "error" else (ANSWERED, "")] += int(value)
            elif name == "http_requests_total" and labels.get("status") == "5xx":
                found[FAILED, "http"] += int(value)
            elif time := _TIMES.get(name):
                found[time, labels["le"]] += int(value)
        return found

    def _completion(self, model: str, prompt: str) -> dict[str, Any]:
        return {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0}


def _with_tools(asked: Answer) -> dict[str, Any]:
    return {"tools": asked.tools, "tool_choice": "auto"}


class VllmAdapters:
    """The adapters of a running server, by its runtime API (vllm/entrypoints/serve/lora/api_router.py).

    An adapter answers under its name from the moment in which it is loaded. Unloading takes the name away; requests
    that have begun go on, and read its files again if it has left the server's memory
    (``OpenAIServingModels.unload_lora_adapter``, ``LRUCacheWorkerLoRAManager``).
    """

    def __init__(self, endpoint: str) -> None:
        self._connection = Connection(endpoint, _REJECTED, _LENGTH)

    def loaded(self) -> dict[str, str]:
        """Paths by names. Raises StageError (CandidateFailed)."""
        try:
            models = self._connection.get(_MODELS)["data"]
            return {str(each["id"]): str(each["root"]) for each in models if each.get("parent")}
        except (AttributeError, KeyError, TypeError) as error:
            raise self._connection.wordless(_MODELS, error) from None

    def load(self, name: str, path: str) -> None:
        """Raises StageError (CandidateFailed), retriable if the server did not answer."""
        self._connection.command(_LOAD, {"lora_name": name, "lora_path": path})

    def unload(self, name: str) -> None:
        """The same. A name that is not there is gone already."""
        self._connection.command(_UNLOAD, {"lora_name": name}, gone=404)
