"""One question, one request to ``/v1/chat/completions``, one answer or one reason why not.

OpenAI's client sends the request; its retries are switched off, since ``pace`` knows the other requests too, and its
reading of the answer is not used, since it takes whatever comes for a completion.
"""

import asyncio
import email.utils
import math
import os
import re
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

import httpx2

from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.chat_api.answers import AttemptError, ModelAnswer, read_answer
from finetune_jobs.chat_api.money import Tokens, estimate_tokens
from finetune_jobs.chat_api.terms import Terms, Turns

if TYPE_CHECKING:
    import openai

MAX_BODY: Final = 8 << 20
"""Most bytes of an answer that are read."""
_NO_KEY: Final = "none"
"""Sent to servers that ask for no key: the client insists on one."""
_MESSAGE_TOKENS: Final = 8
"""Tokens that a chat template may put around a message."""
_REDIRECTS: Final = (301, 302, 303, 307, 308)
"""Not followed: an admin has allowed the host that is named, and no other one."""
_FATAL: Final = {
    401: "rejected the API key (401)",
    402: "requires payment (402)",
    403: "does not allow this API key to use the model (403)",
    404: "does not know the model, or the URL is not the base of an OpenAI-compatible API (404)",
    **{status: f"redirects to another URL ({status}), which gets no prompts: name that one" for status in _REDIRECTS},
}
_EXHAUSTED: Final = "insufficient_quota"
"""OpenAI's code for an account without credit, sent with 429: waiting does not help."""
_LIMIT: Final = "max_tokens"
_NEWER_LIMIT: Final = "max_completion_tokens"
"""The length of an answer: every server knows the first name, OpenAI's newer models only the second."""
_PASSING: Final = frozenset({408, 409, 425})
_CODE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,39}")
"""What may be quoted of an error: its message may hold the prompt or parts of the key."""


class ChatModel:
    """A model behind an OpenAI-compatible URL. To be used as an asynchronous context manager."""

    def __init__(self, terms: Terms, key: str = "") -> None:
        self.url = terms.server.url
        self._terms = terms
        self._key = key or _NO_KEY
        self._open = AsyncExitStack()
        self._client: openai.AsyncOpenAI | None = None
        self._limit = _LIMIT

    @classmethod
    def from_environment(cls, terms: Terms, environment: Mapping[str, str] = os.environ) -> "ChatModel":
        """The model with its key from the environment. Raises StageError (SecretMissing)."""
        variable, secret = terms.key_variable, terms.server.secret_key_ref
        key = environment.get(variable, "").strip()  # Secrets made from files end in a line break
        if secret and not key:
            raise StageError(
                Reason.SECRET_MISSING,
                f"{variable} is empty: Secret {secret.name!r} must contain the API key of the "
                f"{terms.role} under {secret.key!r}.",
            )
        if not (key.isascii() and key.isprintable()):
            raise StageError(
                Reason.TEACHER_REFUSED,
                f"{variable} contains characters not allowed in an HTTP header: it is not an API key.",
            )
        return cls(terms, key if secret else "")

    def most(self, turns: Turns) -> Tokens:
        """What a request with this conversation may use at most; its own tokens are an estimate."""
        contents = [str(each["content"]) for each in self._messages(turns)]
        return Tokens(
            sum(estimate_tokens(content) + _MESSAGE_TOKENS for content in contents), self._terms.max_answer_tokens
        )

    async def ask(self, turns: Turns) -> ModelAnswer:
        """One request. Raises AttemptError, and StageError (TeacherRefused) for what no other request could change."""
        import openai

        seconds, limit = self._terms.server.request_timeout_seconds, self._limit
        try:
            async with asyncio.timeout(seconds):  # the client's own limit is for each read, and a slow drip never ends
                content = await self._post(turns)
        except (TimeoutError, openai.APITimeoutError, httpx2.TimeoutException):
            problem = f"did not answer within {seconds} s"
            raise AttemptError("teacherTimeout", problem, charged=True) from None
        except openai.APIStatusError as error:
            if limit == error.param == _LIMIT:
                self._limit = _NEWER_LIMIT
                raise AttemptError("teacherRefused", f"does not accept {_LIMIT}", wait=0) from None
            raise self._status_problem(error) from None
        except (openai.APIConnectionError, httpx2.HTTPError) as error:
            raise _connection_problem(error) from None
        return read_answer(content, self.most(turns))

    async def __aenter__(self) -> "ChatModel":
        import openai  # takes most of a second, and most runs ask no other model

        client = openai.AsyncOpenAI(
            base_url=self.url,
            api_key=self._key,
            max_retries=0,
            timeout=self._terms.server.request_timeout_seconds,
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False),
        )
        self._client = await self._open.enter_async_context(client)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._open.aclose()

    async def _post(self, turns: Turns) -> bytes:
        if self._client is None:
            raise RuntimeError("a model is asked outside of its context")
        request = self._client.chat.completions.with_streaming_response.create(**self._request(turns))
        async with request as response:
            content = bytearray()
            async for chunk in response.iter_bytes():
                content += chunk
                if len(content) > MAX_BODY:
                    raise AttemptError("teacherRubbish", f"sent more than {MAX_BODY} bytes", charged=True)
        return bytes(content)

    def _request(self, turns: Turns) -> dict[str, Any]:
        terms = self._terms
        warmth = {} if terms.temperature is None else {"temperature": float(terms.temperature)}
        return warmth | {
            "model": terms.server.model,
            "messages": self._messages(turns),
            self._limit: terms.max_answer_tokens,
        }

    def _messages(self, turns: Turns) -> list[dict[str, Any]]:
        instruction = self._terms.instruction
        system = [{"role": "system", "content": instruction}] if instruction else []
        return [*system, *turns]

    def _status_problem(self, error: "openai.APIStatusError") -> AttemptError | StageError:
        status = error.status_code
        wait = retry_after(error.response.headers) or None  # 0 tells nothing: a limit is over within the second
        code = next((part for part in (error.code, error.type) if isinstance(part, str) and _CODE.fullmatch(part)), "")
        if status in _FATAL or code == _EXHAUSTED:
            problem = _FATAL.get(status, f"has no credit left ({status} {code})")
            return StageError(
                Reason.TEACHER_REFUSED,
                f"{self.url}: the {self._terms.role} {problem}; model {self._terms.server.model!r}.",
            )
        said = f"{status} ({code})" if code else str(status)
        if status == 429:
            return AttemptError("teacherBusy", f"answered {said}: too many requests", wait=wait, busy=True)
        if status >= 500 or status in _PASSING:
            return AttemptError("teacherError", f"answered {said}", wait=wait)
        where = f", parameter {error.param}" if isinstance(error.param, str) and _CODE.fullmatch(error.param) else ""
        return AttemptError("teacherRefused", f"rejected the request with {said}{where}", refused=True)


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds to wait: ``retry-after-ms`` as Azure and OpenAI send it, or Retry-After (RFC 9110, section 10.2.3).

    ``now`` is the time in seconds since 1970, for a date where the server does not say what time it is by its clock.
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * unit
        except (KeyError, ValueError):
            continue
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    until, sent = (_timestamp(headers.get(name, "")) for name in ("retry-after", "date"))
    if until is None:
        return None
    return max(0.0, until - (sent if sent is not None else time.time() if now is None else now))


def _timestamp(text: str) -> float | None:
    """An HTTP date in seconds since 1970; None for any other text."""
    try:
        return email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return None


def _connection_problem(error: Exception) -> AttemptError:
    """The class of the cause says enough; texts of the client may hold headers."""
    cause = error.__cause__ or error
    if isinstance(cause, httpx2.ConnectError):
        return AttemptError("teacherUnreachable", "could not be reached (name, connection or TLS)")
    return AttemptError("teacherUnreachable", f"broke the connection ({type(cause).__name__})", charged=True)
