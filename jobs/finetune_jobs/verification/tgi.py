"""Text Generation Inference 3.3, read from huggingface/text-generation-inference v3.3.7 (router/src/server.rs).

Probabilities of a prompt's tokens are ``details.prefill`` of ``/generate``. The launcher's ENABLE_PREFILL_LOGPROBS must
be set; without it the list is empty. Such a request does not use the prefix cache, so every token is computed.
"""

import json
import re
from typing import Final

from finetune_api.compatibility import TGI
from finetune_jobs.artifacts.artifact import Answer, ReferenceText
from finetune_jobs.verification.connection import Connection
from finetune_jobs.verification.engine import (
    ANSWERED,
    FAILED,
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

_REJECTED: Final = 422
_LENGTH: Final = re.compile(r"`(inputs|max_new_tokens)`.* tokens", re.DOTALL)
"""TGI's answer to a conversation that is longer than it accepts (router/src/validation.rs)."""
_WAITING: Final = "tgi_queue_size"
"""The gauge of requests that are not being worked on yet."""
_BY_CLIENTS: Final = frozenset({"validation", "template", "dropped"})
"""Causes of failures that are none of the server's: a request or a conversation that cannot be, and a client that gave
up (router/src/infer/mod.rs, backends/v3/src/queue.rs and backend.rs)."""


class TgiServer:
    """A server that speaks TGI's API at a URL."""

    engine = TGI
    metrics = "tgi_"

    def __init__(self, endpoint: str, *, key: str = "", adapter: str = "") -> None:
        """The operator gives TGI no adapters."""
        self._connection = Connection(endpoint, _REJECTED, _LENGTH, key=key)

    def served(self) -> Served:
        """From ``/info``."""
        info = self._connection.get("/info")
        try:
            limits = Limits(int(info.get("max_input_tokens") or 0), int(info.get("max_total_tokens") or 0))
            served = Served(str(info["model_id"]), limits)
        except (AttributeError, KeyError, ValueError, TypeError) as error:
            raise self._connection.wordless("/info", error) from None
        self._connection.limits = served.limits
        return served

    def answer(self, asked: Answer) -> Reply:
        """From ``/v1/chat/completions``."""
        return self._connection.chat(asked)

    def call_tools(self, asked: Answer) -> RefusedForm:
        """TGI adds words of its own to a prompt with tools and makes the model write calls in a form of TGI's
        (router/src/infer/tool_grammar.rs): nothing that was recorded says what they are to be."""
        return RefusedForm("TGI makes calls in a form of its own; vLLM reads those that were learnt")

    def stream_calls(self, asked: Answer) -> RefusedForm:
        """As above."""
        return self.call_tools(asked)

    def hold_to(self, asked: Answer, schema: str) -> Reply | RefusedForm:
        """From the same, in a form that only TGI has (``GrammarType`` in router/src/lib.rs)."""
        form = {"response_format": {"type": "json", "value": json.loads(schema)}}
        return self._connection.chat_in_form(asked, form, None, "a chat that is held to a schema")

    def stream(self, asked: Answer) -> Streamed:
        """From the same."""
        return self._connection.stream(asked)

    def silent_seconds(self) -> float:
        """By what the streams have brought."""
        return self._connection.pace.silent_seconds()

    def log_probs(self, reference: ReferenceText) -> Forced:
        """From ``/generate``."""
        parameters = {"max_new_tokens": 1, "details": True, "decoder_input_details": True}
        body = {"inputs": reference.text, "parameters": parameters}
        seconds = request_seconds(len(reference.ids), 1)
        answer = self._connection.post("/generate", body, "a reference text", seconds)
        try:
            tokens = answer["details"]["prefill"]
            ids, log_probs = [int(token["id"]) for token in tokens], [token["logprob"] for token in tokens[1:]]
            return Forced(ids, [float(value) for value in log_probs] if None not in log_probs else [])
        except (KeyError, ValueError, TypeError) as error:
            raise self._connection.unreadable("/generate", error) from None

    def waiting(self) -> int | None:
        """From ``/metrics``."""
        found = self._connection.gauge(_WAITING)
        return None if found is None else int(found)

    def refuses_other_names(self) -> None:
        """TGI takes an unknown name for its only model."""

    def counts(self) -> ServerCounts:
        """``tgi_request_failure`` has the cause. A series exists only once it has a value. There is no time to the
        first token."""
        found = ServerCounts()
        for sample, labels, value, *_ in self._connection.samples():
            name = sample.removesuffix("_total")  # the parser adds it to counters, which TGI does not
            if name == "tgi_request_success":
                found[ANSWERED, ""] += int(value)
            elif name == "tgi_request_failure" and labels.get("err") not in _BY_CLIENTS:
                found[FAILED, ""] += int(value)
            elif name == "tgi_request_duration_bucket":
                found[REQUEST_SECONDS, labels["le"]] += int(value)
        return found
