"""A server that keeps vLLM's contract as far as the verification sees it, with answers that the test gives it.

Paths, fields and error bodies are those that vLLM 0.32 sent when it was asked the same.
"""

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from finetune_jobs.artifacts.artifact import Answer, ReferenceText
from finetune_jobs.artifacts.calls import CallFormat

Json = dict[str, Any]
_PATIENCE: Final = 10.0
"""Seconds that the first stream waits for the second."""
_METRICS: Final = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="demo"}} 2.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{{engine="0",model_name="demo"}} {}
"""


@dataclass(frozen=True)
class Lora:
    """An adapter on the server."""

    root: str
    """Its path."""
    answers: Sequence[Answer]
    references: Sequence[ReferenceText]


@dataclass
class VllmContract:
    """What the server serves and answers."""

    root: str
    """Path of its model; empty: it lists none."""
    name: str = "demo"
    answers: Sequence[Answer] = ()
    """It answers as the artifact did."""
    references: Sequence[ReferenceText] = ()
    """It finds their tokens as likely as the artifact did."""
    max_model_len: int = 2048
    adapters: Sequence[str] = ()
    loras: Mapping[str, "Lora"] = field(default_factory=dict)
    """Adapters by name, with answers of their own."""
    files: Mapping[str, "Lora"] = field(default_factory=dict)
    """Adapters that it can load while it runs, by their paths."""
    any_name: bool = False
    """It answers to every name, as a broken proxy before it would."""
    failure: tuple[int, str] | None = None
    """Status and message of its answer to every request for text."""
    without: str = ""
    """A field that its completions lack."""
    parser: CallFormat | None = None
    """The form of calls that it was told to read; None: it was told none, and refuses tools."""
    loses_end: bool = False
    """Its parser loses the last characters of a call in a stream."""
    holds: bool = True
    """It holds answers to the schema of a request; if not, it ignores that, as a server that does not know the field
    does."""
    refuses_schema: str = ""
    """What it says of every schema but the simplest, if it refuses them."""
    waiting: float | None = 0
    """Requests that wait for their turn; None: its metrics do not say."""
    looked_at: int = 0
    """How often its metrics were read."""
    at_once: int = 0
    """The most streams that were open at the same time."""
    url: str = ""
    seen: list[Json] = field(default_factory=list)
    """Requests for text, with their paths."""
    _begun: int = 0
    _open: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _meeting: threading.Barrier = field(default_factory=lambda: threading.Barrier(2))

    def get(self, path: str) -> tuple[int, Any]:
        """The answer to a GET."""
        if path == "/metrics":
            self.looked_at += 1
            return 200, "" if self.waiting is None else _METRICS.format(float(self.waiting))
        if path != "/v1/models":
            return 200, {}
        card = {"object": "model", "owned_by": "vllm", "parent": None}
        base = {**card, "id": self.name, "root": self.root, "max_model_len": self.max_model_len}
        adapters = [{**card, "id": name, "root": f"/adapters/{name}", "parent": self.name} for name in self.adapters]
        adapters += [{**card, "id": name, "root": it.root, "parent": self.name} for name, it in self.loras.items()]
        return 200, {"object": "list", "data": [*adapters, base] if self.root else []}

    def post(self, path: str, body: Json) -> tuple[int, Any]:
        """The answer to a request for text, or to one that loads or unloads an adapter."""
        self.seen.append({"path": path} | body)
        if path.endswith("_lora_adapter"):
            return self._adapters(path, body)
        if not self.any_name and body.get("model") not in (None, self.name, *self.adapters, *self.loras):
            message = f"The model `{body['model']}` does not exist. Valid aliases: {self.name}."
            return _error(404, "NotFoundError", message)
        if self.failure is not None:
            return _error(self.failure[0], "BadRequestError", self.failure[1])
        if body.get("tools") and self.parser is None:
            message = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
            return _error(400, "BadRequestError", message)
        if self.refuses_schema and len(_schema_in(body).get("properties", {})) > 1:
            return _error(400, "BadRequestError", self.refuses_schema)
        return 200, self._chat(body) if path == "/v1/chat/completions" else self._completion(body)

    def _adapters(self, path: str, body: Json) -> tuple[int, Any]:
        name = body["lora_name"]
        if path == "/v1/unload_lora_adapter":
            if name not in self.loras:
                return _error(404, "NotFoundError", f"The lora adapter '{name}' cannot be found.")
            self.loras = {known: lora for known, lora in self.loras.items() if known != name}
            return 200, f"Success: LoRA adapter '{name}' removed successfully."
        if name in self.loras:
            return _error(400, "InvalidUserInput", f"The lora adapter '{name}' has already been loaded.")
        if (found := self.files.get(body["lora_path"])) is None:
            return _error(404, "NotFoundError", f"Loading lora {name} failed: No adapter found for {body['lora_path']}")
        self.loras = {**self.loras, name: found}
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def events(self, answer: Json) -> Iterator[Json]:
        """A complete answer to a chat as the events of a stream, without the last."""
        [choice] = answer.pop("choices")
        head = {name: answer[name] for name in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
        with self._counted():
            if "text" in choice:
                yield head | {"choices": [choice | {"finish_reason": None}]}
                yield head | {"choices": [choice | {"text": ""}]}
                yield head | {"choices": [], "usage": answer["usage"]}
                return
            calls = choice["message"]["tool_calls"]
            told = self._parts(calls) if calls else [{"content": choice["message"]["content"]}]
            for part in ({"role": "assistant", "content": ""}, *told):
                yield head | {"choices": [{"index": 0, "delta": part, "finish_reason": None}]}
            yield head | {"choices": [{"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}]}
            yield head | {"choices": [], "usage": answer["usage"]}

    def _parts(self, calls: Sequence[Json]) -> Iterator[Json]:
        """The parts of calls in a stream: of each the name first, and then the arguments in pieces."""
        for number, call in enumerate(calls):
            name, arguments = call["function"]["name"], call["function"]["arguments"]
            yield {"tool_calls": [{**call, "index": number, "function": {"name": name, "arguments": ""}}]}
            for begin in range(0, len(arguments), 5):
                piece = arguments[begin : begin + 5] if begin + 5 < len(arguments) or not self.loses_end else ""
                yield {"tool_calls": [{"index": number, "function": {"arguments": piece}}]}

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """A stream is open. The first two go on once both are; a client that opens one at a time waits in vain."""
        with self._lock:
            self._begun += 1
            self._open += 1
            self.at_once = max(self.at_once, self._open)
            meets = self._begun <= self._meeting.parties
        try:
            if meets:
                with suppress(threading.BrokenBarrierError):
                    self._meeting.wait(_PATIENCE)
            yield
        finally:
            with self._lock:
                self._open -= 1

    def _chat(self, body: Json) -> Json:
        lora = self.loras.get(body.get("model", ""))
        known = next(each for each in (lora or self).answers if each.messages == body["messages"])
        message: Json = {"role": "assistant", "content": known.artifact, "reasoning": None, "tool_calls": []}
        if self.holds and (only := _only_answer(_schema_in(body))):
            message["content"] = only
        if body.get("tools") and self.parser and (calls := self.parser.read(known.artifact)):
            message |= {"content": None, "tool_calls": [_call(*each) for each in calls]}
        ended = "tool_calls" if message["tool_calls"] else "stop"
        choice = {"index": 0, "message": message, "finish_reason": ended if known.stopped else "length"}
        usage = {"prompt_tokens": known.prompt_tokens, "completion_tokens": 1, "total_tokens": known.prompt_tokens + 1}
        return {"id": "", "created": 0, "model": body["model"], "choices": [choice], "usage": usage}

    def _completion(self, body: Json) -> Json:
        choice: Json = {"index": 0, "text": "x", "finish_reason": "length"}
        lora = self.loras.get(body["model"])
        for known in (lora or self).answers:
            if known.prompt and known.prompt == body["prompt"]:
                choice |= {"text": known.artifact, "finish_reason": "stop" if known.stopped else "length"}
                usage = {"prompt_tokens": known.prompt_tokens, "completion_tokens": 1}
                return {"id": "", "created": 0, "model": body["model"], "choices": [choice], "usage": usage}
        for text in (lora or self).references:
            if text.text == body["prompt"]:
                pairs = zip(text.ids[1:], text.artifact, strict=True)
                found = [{str(i): {"logprob": p, "rank": 1, "decoded_token": "x"}} for i, p in pairs]
                choice |= {"prompt_token_ids": text.ids, "prompt_logprobs": [None, *found]}
        choice.pop(self.without, None)
        return {"id": "", "created": 0, "model": body["model"], "choices": [choice]}


def _call(name: str, arguments: Json) -> Json:
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {"id": "chatcmpl-tool-1", "type": "function", "function": function}


def _schema_in(body: Json) -> Json:
    """What a request asks the server to hold its answer to."""
    found: Json = body.get("response_format", {}).get("json_schema", {}).get("schema", {})
    return found


def _only_answer(schema: Json) -> str:
    """The answer to a schema that allows one only: whatever the model would write, a grammar lets it write nothing
    else; empty for any other schema, which answers are taken to match."""
    fields = schema.get("properties", {})
    if not fields or any(len(each.get("enum", [])) != 1 for each in fields.values()):
        return ""
    return json.dumps({name: each["enum"][0] for name, each in fields.items()})


def _error(status: int, kind: str, message: str) -> tuple[int, Json]:
    return status, {"error": {"message": message, "type": kind, "param": None, "code": status}}


@contextmanager
def running(contract: VllmContract, port: int = 0) -> Iterator[VllmContract]:
    """The server on loopback, on a free port unless one is named; its address is in ``url``."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(*contract.get(self.path))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, answer = contract.post(self.path, body)
            if status != 200 or not body.get("stream"):
                self._send(status, answer)
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            for event in (*map(json.dumps, contract.events(answer)), "[DONE]"):
                self.wfile.write(f"data: {event}\n\n".encode())

        def _send(self, status: int, value: Any) -> None:
            body = value.encode() if isinstance(value, str) else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain" if isinstance(value, str) else "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as the base class names it
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    contract.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield contract
    finally:
        server.shutdown()
        server.server_close()


def seen_paths(contract: VllmContract) -> Mapping[str, int]:
    """How often each path was asked."""
    return {path: sum(each["path"] == path for each in contract.seen) for path in {e["path"] for e in contract.seen}}
