"""Requests to a server over HTTP, and their failures in words. What differs between engines is given."""

import json
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import httpx2
from huggingface_hub import InferenceClient, get_session, hf_raise_for_status
from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from finetune_api.reasons import Reason
from finetune_jobs.artifacts.artifact import Answer
from finetune_jobs.artifacts.calls import Call
from finetune_jobs.base.errors import StageError
from finetune_jobs.base.strict_json import json_value
from finetune_jobs.base.wording import shorten
from finetune_jobs.store.hub import CLIENT_ERROR
from finetune_jobs.verification.engine import Limits, RefusedForm, Reply, Streamed
from finetune_jobs.verification.pace import COMPILE_SECONDS, REQUEST_SECONDS, Pace, request_seconds
from finetune_jobs.verification.stream import error_text, read_stream

_POLL_SECONDS: Final = 1.0
_METRICS_SECONDS: Final = 5.0
"""Longest wait for a server's metrics."""
_PASSING: Final = frozenset({408, 425, 429})
"""Client errors that say nothing of what is asked for: too slow, too early, too many."""
_REFUSED: Final = frozenset({400, 422})
"""Statuses with which servers refuse a field of a request, or what it holds."""
_PROMPT: Final = "a golden prompt or a test example"
_AS_STREAM: Final = f"{_PROMPT}, as a stream"


def with_key(key: str) -> dict[str, str]:
    """The headers of a request to a server whose clients need keys; empty: they need none."""
    return {"Authorization": f"Bearer {key}"} if key else {}


def wait_until_healthy(endpoint: str, deadline: float = math.inf, key: str = "") -> None:
    """Until the server answers; one that is still loading its model refuses connections or answers 503. ``deadline``:
    by the monotonic clock; ``key``: that of a client. Raises StageError (CandidateFailed) then."""
    started, last = time.monotonic(), "nothing was tried"
    while time.monotonic() < deadline:
        try:
            status = get_session().get(f"{endpoint}/health", timeout=5, headers=with_key(key)).status_code
            if status == 200:
                return
            last = f"it answered {status}"
        except CLIENT_ERROR as error:
            last = type(error).__name__
        time.sleep(_POLL_SECONDS)
    waited = f"{deadline - started:.0f} s (last: {last})"
    raise StageError(Reason.CANDIDATE_FAILED, f"{endpoint}/health was not ready within {waited}.")


@dataclass
class Connection:
    """A server at a URL. Its methods raise StageError: CandidateFailed (retriable unless the server says that it never
    will), PromptsTooLong."""

    endpoint: str
    rejected: int
    """Status of a request that is never accepted."""
    too_long: re.Pattern[str]
    """What the server says of a conversation that is longer than it accepts."""
    limits: Limits = field(default_factory=Limits)
    """As far as they are known, for messages."""
    pace: Pace = field(default_factory=Pace)
    """That of its streams."""
    key: str = field(default="", repr=False)
    """That of a client; empty: they need none."""

    def get(self, path: str) -> Any:
        """A JSON document that a healthy server always has. What is no JSON is final, and so is an answer that the
        server has none (401, 404); no answer, or one that it cannot answer now, is not. Nor is it that the server
        does not know the key: it was replaced meanwhile, and the next attempt reads the newest one."""
        try:
            response = get_session().get(f"{self.endpoint}{path}", timeout=10, headers=with_key(self.key))
            hf_raise_for_status(response)
            return response.json()
        except CLIENT_ERROR as error:
            failed = self._failed(error, f"GET {path}")
            failed.retriable = failed.retriable and not _is_refusal(error, self.key)
            raise failed from None
        except ValueError as error:
            raise self.wordless(path, error) from None

    def samples(self) -> list[Sample]:
        """What the server tells Prometheus, in any order, as far as it is numbers."""
        url = f"{self.endpoint}/metrics"
        try:
            response = get_session().get(url, timeout=_METRICS_SECONDS)
            hf_raise_for_status(response)
            families = text_string_to_metric_families(response.text)
            return [each for family in families for each in family.samples if math.isfinite(each.value)]
        except CLIENT_ERROR as error:
            raise self._failed(error, "GET /metrics") from None
        except ValueError as error:
            said = f"{url} is not in Prometheus' text format ({type(error).__name__})."
            raise StageError(Reason.CANDIDATE_FAILED, said) from None

    def gauge(self, name: str) -> float | None:
        """A gauge of the server's metrics, summed over its labels; None: it has none, or does not answer now."""
        try:
            found = [float(each.value) for each in self.samples() if each.name == name]
        except StageError:
            return None
        return sum(found) if found else None

    def wordless(self, path: str, error: Exception) -> StageError:
        """The document at a path does not say what serves."""
        return StageError(
            Reason.CANDIDATE_FAILED, f"{self.endpoint}{path} does not name its model ({type(error).__name__})."
        )

    def post(self, path: str, body: dict[str, Any], asked: str, seconds: float) -> Any:
        """The answer, of any shape, to a request; ``asked`` says what was asked, for messages."""
        try:
            response = self._post(path, body, seconds)
            hf_raise_for_status(response)
            return response.json()
        except CLIENT_ERROR as error:
            raise self._failed(error, asked, seconds) from None
        except ValueError as error:
            raise self.unreadable(path, error) from None

    def unreadable(self, path: str, error: Exception) -> StageError:
        """An answer lacks what was asked for."""
        said = f"{self.endpoint}{path} gives no details of a prompt ({type(error).__name__})."
        return StageError(Reason.CANDIDATE_FAILED, said)

    def is_not_found(self, path: str, body: dict[str, Any], asked: str) -> bool:
        """Whether the answer to a request is 404, and not one."""
        try:
            response = self._post(path, body)
            if response.status_code == 404:
                return True
            hf_raise_for_status(response)
            return False
        except CLIENT_ERROR as error:
            raise self._failed(error, asked) from None

    def command(self, path: str, body: dict[str, Any], gone: int = 0) -> None:
        """Tell the server to do something. What it refuses, in whatever words, it would refuse again; ``gone``: the
        status that says that it is done already."""
        try:
            response = self._post(path, body)
        except CLIENT_ERROR as error:
            raise self._failed(error, f"POST {path}") from None
        if response.is_error and response.status_code != gone:
            said = f"{self.endpoint} answered {response.status_code} ({_said(response.text)}) to POST {path}."
            raise StageError(Reason.CANDIDATE_FAILED, said)

    def chat(self, asked: Answer, model: str | None = None) -> Reply:
        """The most likely answer, by OpenAI's ``/v1/chat/completions``, or by ``/v1/completions`` where the prompt is
        given as text; ``model``: the name to ask for."""
        if asked.prompt:
            return self._completion(asked, model)
        seconds = _seconds(asked)
        client = InferenceClient(base_url=self.endpoint, timeout=seconds, token=self.key or None)
        try:
            # Temperature 0 is greedy for TGI and vLLM alike; without it both sample.
            found: Any = client.chat_completion(
                asked.messages, model=model, max_tokens=asked.max_tokens, temperature=0.0
            )
            choice, usage = found.choices[0], getattr(found, "usage", None)
            reason = getattr(choice, "finish_reason", None)
            return Reply(
                text=answer_in(choice.message, asked),
                stopped=reason != "length" if reason else None,
                prompt_tokens=int(getattr(usage, "prompt_tokens", 0) or 0),
            )
        except (CLIENT_ERROR, InferenceTimeoutError) as error:
            raise self._failed(error, _PROMPT, seconds) from None
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            raise self.unreadable("/v1/chat/completions", error) from None

    def chat_in_form(self, asked: Answer, form: dict[str, Any], model: str | None, said: str) -> Reply | RefusedForm:
        """The most likely answer to a chat with further fields; ``said``: what was asked, for messages. The first such
        request may have a grammar compiled."""
        path, body = _request(_as_chat(asked), model)
        seconds = _seconds(asked) + COMPILE_SECONDS
        try:
            response = self._post(path, body | form, seconds)
            if refused := self._refusal(response):
                return refused
            hf_raise_for_status(response)
            found = response.json()
            choice = found["choices"][0]
            message, reason = choice["message"], choice.get("finish_reason")
            return Reply(
                text=str(message.get("content") or ""),
                stopped=reason != "length" if reason else None,
                prompt_tokens=int((found.get("usage") or {}).get("prompt_tokens") or 0),
                calls=_calls_of(each["function"] for each in message.get("tool_calls") or []),
            )
        except CLIENT_ERROR as error:
            raise self._failed(error, said, seconds) from None
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise self.unreadable(path, error) from None

    def _completion(self, asked: Answer, model: str | None) -> Reply:
        path, body = _request(asked, model)
        found = self.post(path, body, _PROMPT, _seconds(asked))
        try:
            choice, usage = found["choices"][0], found.get("usage") or {}
            text, reason = str(choice["text"] or ""), choice.get("finish_reason")
            tokens = int(usage.get("prompt_tokens") or 0)
        except (AttributeError, IndexError, KeyError, ValueError, TypeError) as error:
            raise self.unreadable(path, error) from None
        return Reply(
            text=asked.thoughts.answer_in(text) if asked.thoughts else text,
            stopped=reason != "length" if reason else None,
            prompt_tokens=tokens,
        )

    def stream(self, asked: Answer, model: str | None = None) -> Streamed:
        """The same as a stream. What goes wrong in it after the status 200 is no error but part of the result."""
        path, body = _request(asked, model)
        seconds = _seconds(asked)
        try:
            with self.pace.stream() as part:
                return self._streamed(path, body, asked, seconds, part)
        except CLIENT_ERROR as error:
            raise self._failed(error, _AS_STREAM, seconds) from None

    def stream_in_form(
        self, asked: Answer, form: dict[str, Any], model: str | None, said: str
    ) -> Streamed | RefusedForm:
        """``chat_in_form`` as a stream. A server may hold it back until it knows what it is, so silence is no sign."""
        path, body = _request(_as_chat(asked), model)
        seconds = _seconds(asked) + COMPILE_SECONDS
        try:
            return self._streamed(path, body | form, asked, seconds, time.perf_counter)
        except CLIENT_ERROR as error:
            if isinstance(error, HfHubHTTPError) and (refused := self._refusal(error.response)):
                return refused
            raise self._failed(error, said, seconds) from None

    def _streamed(
        self, path: str, body: dict[str, Any], asked: Answer, seconds: float, part: Callable[[], float]
    ) -> Streamed:
        """The answer to a request as a stream; ``part``: called for each of its events. Raises CLIENT_ERROR too."""
        url, started = f"{self.endpoint}{path}", time.perf_counter()
        body = body | {"stream": True, "stream_options": {"include_usage": True}}
        post = partial(get_session().stream, "POST", url, json=body, timeout=seconds, headers=with_key(self.key))
        with post() as response:
            if response.is_error:
                response.read()
            hf_raise_for_status(response)
            found = read_stream(self._in_time(response.iter_bytes(), started, seconds), part)
        if self.too_long.search(found.fault):
            raise self._has_no_room(_PROMPT, found.fault)
        first_token = None if found.first_at is None else found.first_at - started
        text, calls = answer_in(found, asked), _calls_of(found.functions.values())
        return Streamed(text, found.fault, found.failed, first_token, found.output_token, calls)

    def _refusal(self, response: Any) -> RefusedForm | None:
        """Why a server does not answer in a form, if that is what its answer says."""
        if response.status_code not in _REFUSED or self.too_long.search(refused := _said(response.text)):
            return None
        return RefusedForm(refused or f"it answered {response.status_code}")

    def _post(self, path: str, body: dict[str, Any], seconds: float = REQUEST_SECONDS) -> Any:
        url = f"{self.endpoint}{path}"
        return get_session().post(url, json=body, timeout=seconds, headers=with_key(self.key))

    def _in_time(self, body: Iterable[bytes], started: float, seconds: float) -> Iterator[bytes]:
        """The pieces of a stream. The client's timeout is for each of them, and a server that hangs sends comments to
        keep the connection, so this one is for all. No more than one timeout passes before the next piece, or none."""
        for piece in body:
            if time.perf_counter() - started > seconds:
                said = f"{self.endpoint} did not end its answer within {seconds:g} s to {_AS_STREAM}."
                raise StageError(Reason.CANDIDATE_FAILED, said, retriable=True)
            yield piece

    def _failed(self, error: Exception, asked: str, seconds: float = 0.0) -> StageError:
        """Why a request failed, in the server's own words where it has some; ``seconds``: how long it was waited for,
        if it may have been too short."""
        response = error.response if isinstance(error, HfHubHTTPError) else None
        status = response.status_code if response is not None else 0
        said = _said(response.text) if response is not None and status == self.rejected else ""
        if self.too_long.search(said):
            return self._has_no_room(asked, f"{status} ({said})")
        what = f"answered {status}{said and f' ({said})'}" if status else f"did not answer ({_kind(error)})"
        if seconds and isinstance(error, httpx2.TimeoutException | InferenceTimeoutError):
            what = f"did not answer within {seconds:g} s"
        return StageError(
            Reason.CANDIDATE_FAILED, f"{self.endpoint} {what} to {asked}.", retriable=status != self.rejected
        )

    def _has_no_room(self, asked: str, answered: str) -> StageError:
        return StageError(
            Reason.PROMPTS_TOO_LONG,
            f"{asked.capitalize()} is too long for {self.endpoint}, which answered {answered}; {self.limits}.",
        )


def _seconds(asked: Answer) -> float:
    """Longest wait for an answer."""
    return request_seconds(asked.prompt_tokens, asked.max_tokens)


def _kind(error: Exception) -> str:
    """The kind of an error without an answer; of a failed connection its cause too, which names no data."""
    name = type(error).__name__
    return f"{name}: {shorten(str(error), 120)}" if isinstance(error, httpx2.ConnectError) else name


def _is_refusal(error: Exception, key: str) -> bool:
    """Whether a server says that it never will have what was asked for, with a key or none."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    return 400 <= status < 500 and status not in _PASSING and not (status == 401 and key)


def _as_chat(asked: Answer) -> Answer:
    """What is asked as clients ask it, where its prompt is also known as text."""
    return asked.model_copy(update={"prompt": "", "messages": _for_api(asked.messages)})


def _for_api(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A conversation as clients send it: the arguments of earlier calls are text there, which templates take as
    objects; and each call has an id."""
    return [
        {**message, "tool_calls": [_call_for_api(*each) for each in enumerate(message["tool_calls"])]}
        if message.get("tool_calls")
        else message
        for message in messages
    ]


def _call_for_api(number: int, call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    return {"id": f"call{number:05}", **call, "function": {**function, "arguments": arguments}}


def _calls_of(functions: Iterable[Mapping[str, Any]]) -> list[Call]:
    """The calls of OpenAI's API; none if the arguments of one are no JSON object. Where there is nothing to tell, some
    servers leave them empty in a stream, which clients take for none."""
    try:
        found = [(str(each["name"]), json_value(each["arguments"] or "{}")) for each in functions]
    except ValueError:
        return []
    return found if all(isinstance(arguments, dict) for _, arguments in found) else []


def _request(asked: Answer, model: str | None) -> tuple[str, dict[str, Any]]:
    """Path and body of a request for the most likely answer: temperature 0 is greedy for TGI and vLLM alike."""
    path, prompt = (
        ("/v1/completions", {"prompt": asked.prompt})
        if asked.prompt
        else ("/v1/chat/completions", {"messages": asked.messages})
    )
    named = {} if model is None else {"model": model}
    return path, prompt | {"max_tokens": asked.max_tokens, "temperature": 0.0} | named


def answer_in(message: Any, asked: Answer) -> str:
    """What a server answered, without thoughts: those stand beside it where the server has a reasoning parser."""
    text = str(message.content or "")
    apart = getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None)
    return text if apart or asked.thoughts is None else asked.thoughts.answer_in(text)


def _said(body: str) -> str:
    """Why a server rejected a request, in its own words."""
    try:
        return error_text(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return shorten(body, 200)
