"""What clients in common use ask a model server: OpenAI's library, huggingface_hub's InferenceClient, and curl.

Each check asks one thing and raises if the answer is not as the client's users expect it. The same suite is for every
engine; what one of them does not offer must be refused with an error that the client understands.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import openai
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from finetune_operator.settings import Engine

TIMEOUT_S: Final = 120
TOKENS: Final = 16
MESSAGES: Final[list[Any]] = [{"role": "user", "content": "What is the capital of France?"}]
TOO_LONG: Final[list[Any]] = [{"role": "user", "content": "account " * 4000}]
SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}, "sure": {"type": "boolean"}},
    "required": ["city", "sure"],
    "additionalProperties": False,
}
FORMAT: Final[Any] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
TOOL: Final[Any] = {"type": "function", "function": {"name": "note", "description": "Note it.", "parameters": SCHEMA}}
CHOICE: Final[Any] = {"type": "function", "function": {"name": "note"}}


class ClientError(AssertionError):
    """A client got something else than its users expect."""


@dataclass(frozen=True)
class Served:
    """A running server, and each client for it."""

    url: str
    model: str
    """The model's name in OpenAI's API."""
    engine: Engine

    @cached_property
    def openai(self) -> openai.OpenAI:
        """OpenAI's library. Without retries: what fails once is to be seen."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="-", timeout=TIMEOUT_S, max_retries=0)

    @cached_property
    def hub(self) -> InferenceClient:
        """huggingface_hub's client."""
        return InferenceClient(base_url=f"{self.url}/v1", api_key="-", timeout=TIMEOUT_S)

    @cached_property
    def text(self) -> str:
        """The greedy answer, which every client must get."""
        return self.chat().choices[0].message.content or ""

    def chat(self, **more: Any) -> Any:
        """OpenAI's chat, greedy."""
        return self.openai.chat.completions.create(**self.body(**more))

    def hub_chat(self, **more: Any) -> Any:
        """The same with huggingface_hub's client."""
        return self.hub.chat_completion(**self.body(**more))

    def curl(self, path: str, body: Any, *options: str) -> str:
        """What curl prints for a POST."""
        given = body if isinstance(body, str) else json.dumps(body)
        header = ("--header", "Content-Type: application/json")
        argv = ["curl", "--silent", "--show-error", "--max-time", str(TIMEOUT_S), *options, *header, "--data", given]
        return subprocess.run([*argv, f"{self.url}{path}"], capture_output=True, text=True, check=True).stdout

    def body(self, **more: Any) -> dict[str, Any]:
        """The same chat as JSON."""
        return {"model": self.model, "messages": MESSAGES, "max_tokens": TOKENS, "temperature": 0} | more


@dataclass(frozen=True)
class Check:
    """One thing that is asked with one client."""

    client: str
    name: str
    ask: Callable[[Served], None]
    engines: frozenset[Engine] = frozenset(Engine)

    def __str__(self) -> str:
        """As in the report."""
        return f"{self.client}: {self.name}"


def run_suite(served: Served) -> dict[str, str]:
    """Ask everything that is asked of this engine: "passed", or what was wrong, by check."""
    return {str(check): outcome(check, served) for check in CHECKS if served.engine in check.engines}


def outcome(check: Check, served: Served) -> str:
    """Whatever a client raises is what its user would see."""
    try:
        check.ask(served)
    except Exception as error:  # noqa: BLE001 - of any library
        return f"{type(error).__name__}: {error}"[:500]
    return "passed"


def expect(found: object, wanted: object, what: str) -> None:
    """Raises ClientError if something is not as it should be."""
    if found != wanted:
        raise ClientError(f"{what}: {found!r}, expected {wanted!r}")


def expect_one_of_both(text: str | None) -> None:
    """Raises ClientError if a text is no JSON of the schema."""
    try:
        found = json.loads(text or "")
    except ValueError as error:
        raise ClientError(f"no JSON: {text!r}") from error
    fits = set(found) == {"city", "sure"} and found["city"] in ("Paris", "Rome") and isinstance(found["sure"], bool)
    expect(fits, True, f"{text!r} fits the schema")


def expect_refused(ask: Callable[[], Any], *errors: type[Exception]) -> None:
    """Raises ClientError if something is answered; what is raised but these errors stays as it is."""
    try:
        ask()
    except errors as error:
        expect(bool(str(error)), True, "it says why")
        return
    raise ClientError("it was answered as if nothing was wrong with it")


def streamed(parts: Iterable[Any]) -> str:
    """The text of a streamed answer."""
    return "".join(part.choices[0].delta.content or "" for part in parts if part.choices)


def _openai_chat(served: Served) -> None:
    reply = served.chat()
    expect(bool(reply.choices[0].message.content), True, "there is a text")
    expect(reply.choices[0].finish_reason in ("stop", "length"), True, f"why it ends: {reply.choices[0].finish_reason}")
    usage = reply.usage
    expect(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens, "all tokens")
    expect(0 < usage.completion_tokens <= TOKENS, True, "tokens of the answer")


def _openai_stream(served: Served) -> None:
    parts = [part for part in served.chat(stream=True) if part.choices]
    expect(streamed(parts), served.text, "the streamed text")
    expect(parts[-1].choices[0].finish_reason is not None, True, "the last part says why it ends")


def _openai_stream_usage(served: Served) -> None:
    parts = list(served.chat(stream=True, stream_options={"include_usage": True}))
    counted = [part.usage for part in parts if part.usage]
    expect(bool(counted), True, "a part counts the tokens")
    expect(counted[-1].completion_tokens, served.chat().usage.completion_tokens, "tokens of the answer")


def _openai_completion(served: Served) -> None:
    reply = served.openai.completions.create(model=served.model, prompt="Once", max_tokens=TOKENS, temperature=0)
    expect(bool(reply.choices[0].text), True, "there is a text")


def _openai_models(served: Served) -> None:
    expect(len(list(served.openai.models.list())), 1, "models")


def _openai_at_once(served: Served) -> None:
    with ThreadPoolExecutor(4) as threads:
        texts = list(threads.map(lambda _: served.chat().choices[0].message.content, range(8)))
    expect(all(texts), True, "each of eight requests by four threads has a text")


def _openai_too_long(served: Served) -> None:
    expect_refused(lambda: served.chat(messages=TOO_LONG), openai.BadRequestError, openai.UnprocessableEntityError)


def _openai_other_model(served: Served) -> None:
    expect_refused(lambda: served.chat(model="another"), openai.NotFoundError)


def _openai_schema(served: Served) -> None:
    expect_one_of_both(served.chat(response_format=FORMAT, max_tokens=64).choices[0].message.content)


def _openai_schema_stream(served: Served) -> None:
    expect_one_of_both(streamed(served.chat(response_format=FORMAT, max_tokens=64, stream=True)))


def _openai_tool(served: Served) -> None:
    [call] = served.chat(tools=[TOOL], tool_choice=CHOICE, max_tokens=96).choices[0].message.tool_calls
    expect(call.function.name, "note", "the tool")
    expect_one_of_both(call.function.arguments)


def _openai_tool_required(served: Served) -> None:
    calls = served.chat(tools=[TOOL], tool_choice="required", max_tokens=96).choices[0].message.tool_calls
    expect({call.function.name for call in calls}, {"note"}, "the tools")
    expect_one_of_both(calls[0].function.arguments)


def _openai_tool_stream(served: Served) -> None:
    parts = served.chat(tools=[TOOL], tool_choice=CHOICE, max_tokens=96, stream=True)
    calls = [call for part in parts if part.choices for call in part.choices[0].delta.tool_calls or []]
    expect_one_of_both("".join(call.function.arguments or "" for call in calls if call.function))


def _openai_tool_result(served: Served) -> None:
    """The turn after a tool was called: its result goes back."""
    call = {"id": "call-1", "type": "function", "function": {"name": "note", "arguments": '{"city": "Paris"}'}}
    result = {"role": "tool", "tool_call_id": "call-1", "content": "noted"}
    turns = [*MESSAGES, {"role": "assistant", "content": "", "tool_calls": [call]}, result]
    expect(bool(served.chat(messages=turns).choices[0].message.content), True, "there is a text")


def _openai_schema_refused(served: Served) -> None:
    expect_refused(lambda: served.chat(response_format=FORMAT), openai.UnprocessableEntityError)


def _openai_tool_refused(served: Served) -> None:
    expect_refused(lambda: served.chat(tools=[TOOL], tool_choice=CHOICE), openai.UnprocessableEntityError)


def _hub_chat(served: Served) -> None:
    expect(served.hub_chat().choices[0].message.content, served.text, "the text")


def _hub_stream(served: Served) -> None:
    expect(streamed(served.hub_chat(stream=True)), served.text, "the text")


def _hub_schema(served: Served) -> None:
    """By vLLM's own field: of ``response_format`` the client makes what only TGI reads."""
    more = {"structured_outputs": {"json": SCHEMA}}
    expect_one_of_both(served.hub_chat(max_tokens=64, extra_body=more).choices[0].message.content)


def _hub_tool(served: Served) -> None:
    reply = served.hub_chat(max_tokens=96, tools=[TOOL], tool_choice=CHOICE)
    [call] = reply.choices[0].message.tool_calls or []
    expect_one_of_both(call.function.arguments)


def _hub_generation(served: Served) -> None:
    client = InferenceClient(served.url, timeout=TIMEOUT_S)
    # Of TGI's two routes, the one without a stream repeats the prompt unless it is told not to.
    whole = client.text_generation("Once", max_new_tokens=TOKENS, return_full_text=False)
    expect("".join(client.text_generation("Once", max_new_tokens=TOKENS, stream=True)), whole, "the streamed text")
    details = client.text_generation("Once", max_new_tokens=TOKENS, details=True).details
    expect(details is not None and details.generated_tokens, TOKENS, "tokens")


def _hub_too_long(served: Served) -> None:
    try:
        served.hub_chat(messages=TOO_LONG)
    except HfHubHTTPError as error:
        expect(error.response.status_code in (400, 422), True, f"status {error.response.status_code}")
        return
    raise ClientError("a prompt that is too long was answered")


def _curl_chat(served: Served) -> None:
    reply = json.loads(served.curl("/v1/chat/completions", served.body(), "--fail-with-body"))
    expect(reply["choices"][0]["message"]["content"], served.text, "the text")


def _curl_stream(served: Served) -> None:
    events = list(_events(served.curl("/v1/chat/completions", served.body(stream=True), "--no-buffer").splitlines()))
    expect(events[-1], "[DONE]", "the end")
    parts = [json.loads(event)["choices"] for event in events[:-1]]
    expect("".join(part[0]["delta"].get("content") or "" for part in parts if part), served.text, "the streamed text")


def _curl_kept(served: Served) -> None:
    """Two requests in a row open one connection."""
    ask = ("--write-out", "%{num_connects}\n", "--output", "/dev/null", f"{served.url}/v1/chat/completions")
    opened = served.curl("/v1/chat/completions", served.body(), *ask, "--output", "/dev/null").split()
    expect(opened, ["1", "0"], "connections opened by each")


def _curl_bad(served: Served) -> None:
    said = served.curl("/v1/chat/completions", "{no json", "--write-out", "\n%{http_code}").splitlines()
    expect(said[-1] in ("400", "422"), True, f"status {said[-1]}")


def _curl_health(served: Served) -> None:
    done = subprocess.run(["curl", "--silent", "--fail", f"{served.url}/health"], check=False, timeout=TIMEOUT_S)
    expect(done.returncode, 0, "curl's exit code")


def _events(lines: Iterable[str]) -> Iterator[str]:
    return (line.removeprefix("data:").strip() for line in lines if line.startswith("data:"))


_TGI, _VLLM = frozenset({Engine.TGI}), frozenset({Engine.VLLM})
CHECKS: Final = (
    Check("openai", "chat", _openai_chat),
    Check("openai", "chat as a stream", _openai_stream),
    Check("openai", "a stream that counts its tokens", _openai_stream_usage),
    Check("openai", "completion", _openai_completion),
    Check("openai", "list of models", _openai_models),
    Check("openai", "eight requests by four threads", _openai_at_once),
    Check("openai", "a prompt that is too long is refused", _openai_too_long),
    Check("openai", "another model is refused", _openai_other_model, _VLLM),
    Check("openai", "JSON schema", _openai_schema, _VLLM),
    Check("openai", "JSON schema as a stream", _openai_schema_stream, _VLLM),
    Check("openai", "a named tool", _openai_tool, _VLLM),
    Check("openai", "any tool", _openai_tool_required, _VLLM),
    Check("openai", "a named tool as a stream", _openai_tool_stream, _VLLM),
    Check("openai", "a tool's result", _openai_tool_result, _VLLM),
    Check("openai", "JSON schema is refused", _openai_schema_refused, _TGI),
    Check("openai", "a tool is refused", _openai_tool_refused, _TGI),
    Check("huggingface_hub", "chat", _hub_chat),
    Check("huggingface_hub", "chat as a stream", _hub_stream),
    Check("huggingface_hub", "JSON schema", _hub_schema, _VLLM),
    Check("huggingface_hub", "a named tool", _hub_tool, _VLLM),
    Check("huggingface_hub", "text generation, whole, as a stream, with details", _hub_generation, _TGI),
    Check("huggingface_hub", "a prompt that is too long is refused", _hub_too_long),
    Check("curl", "chat", _curl_chat),
    Check("curl", "chat as a stream", _curl_stream),
    Check("curl", "two requests on one connection", _curl_kept),
    Check("curl", "no JSON is refused", _curl_bad),
    Check("curl", "health", _curl_health),
)
