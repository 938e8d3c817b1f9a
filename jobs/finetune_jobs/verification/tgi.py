"""Text Generation Inference 3.3, read from huggingface/text-generation-inference v3.3.7 (router/src/server.rs).

Probabilities of a prompt's tokens are ``details.prefill`` of ``/generate``. The launcher's ENABLE_PREFILL_LOGPROBS must
be set; without it the list is empty. Such a request does not use the prefix cache, so every token is computed.
"""

import json
import re
from typing import Any, Final

from huggingface_hub import InferenceClient, get_session, hf_raise_for_status
from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError

from finetune_api.reasons import Reason
from finetune_jobs.artifacts.artifact import Answer, ReferenceText
from finetune_jobs.base.errors import StageError
from finetune_jobs.base.wording import shorten
from finetune_jobs.store.hub import CLIENT_ERROR
from finetune_jobs.verification.engine import Forced, Limits, Reply, Served

_REQUEST_SECONDS: Final = 60.0
"""Longest wait for an answer."""
_LENGTH: Final = re.compile(r"`(inputs|max_new_tokens)`.* tokens", re.DOTALL)
"""TGI's answer, with status 422, to a conversation that is longer than it accepts (router/src/validation.rs)."""


class TgiServer:
    """A server that speaks TGI's API at a URL."""

    engine = "tgi"

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._chat = InferenceClient(base_url=endpoint, timeout=_REQUEST_SECONDS)
        self._limits = Limits()

    def served(self) -> Served:
        """From ``/info``."""
        try:
            info = get_session().get(f"{self._endpoint}/info", timeout=10).raise_for_status().json()
            limits = Limits(int(info.get("max_input_tokens") or 0), int(info.get("max_total_tokens") or 0))
            served = Served(str(info["model_id"]), limits)
        except (CLIENT_ERROR, KeyError, ValueError, TypeError) as error:
            raise StageError(
                Reason.CANDIDATE_FAILED, f"{self._endpoint}/info does not name its model ({type(error).__name__})."
            ) from None
        self._limits = served.limits
        return served

    def answer(self, asked: Answer) -> Reply:
        """From ``/v1/chat/completions``."""
        try:
            # Temperature 0 is greedy for TGI and vLLM alike; without it both sample.
            found: Any = self._chat.chat_completion(asked.messages, max_tokens=asked.max_tokens, temperature=0.0)
        except (CLIENT_ERROR, InferenceTimeoutError) as error:
            raise self._failed(error, "a golden prompt or a test example") from None
        choice, usage = found.choices[0], getattr(found, "usage", None)
        reason = getattr(choice, "finish_reason", None)
        return Reply(
            text=answer_in(choice.message, asked),
            stopped=reason != "length" if reason else None,
            prompt_tokens=int(getattr(usage, "prompt_tokens", 0) or 0),
        )

    def log_probs(self, reference: ReferenceText) -> Forced:
        """From ``/generate``."""
        parameters = {"max_new_tokens": 1, "details": True, "decoder_input_details": True}
        body = {"inputs": reference.text, "parameters": parameters}
        try:
            response = get_session().post(f"{self._endpoint}/generate", json=body, timeout=_REQUEST_SECONDS)
            hf_raise_for_status(response)
            tokens = response.json()["details"]["prefill"]
            ids, log_probs = [int(token["id"]) for token in tokens], [token["logprob"] for token in tokens[1:]]
        except CLIENT_ERROR as error:
            raise self._failed(error, "a reference text") from None
        except (KeyError, ValueError, TypeError) as error:
            said = f"{self._endpoint}/generate gives no details of a prompt ({type(error).__name__})."
            raise StageError(Reason.CANDIDATE_FAILED, said) from None
        return Forced(ids, [float(value) for value in log_probs] if None not in log_probs else [])

    def _failed(self, error: Exception, asked: str) -> StageError:
        """Why a request failed, in the server's own words where it has some."""
        response = error.response if isinstance(error, HfHubHTTPError) else None
        status = response.status_code if response is not None else 0
        said = _said(response.text) if response is not None and status == 422 else ""
        if _LENGTH.search(said):
            return StageError(
                Reason.PROMPTS_TOO_LONG,
                f"{asked.capitalize()} is too long for {self._endpoint}, which answered 422 ({said}); {self._limits}.",
            )
        what = f"answered {status}{said and f' ({said})'}" if status else f"did not answer ({type(error).__name__})"
        return StageError(Reason.CANDIDATE_FAILED, f"{self._endpoint} {what} to {asked}.", retriable=status != 422)


def answer_in(message: Any, asked: Answer) -> str:
    """What a server answered, without thoughts: those stand beside it where the server has a reasoning parser."""
    text = str(message.content or "")
    apart = getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None)
    return text if apart or asked.thoughts is None else asked.thoughts.answer_in(text)


def _said(body: str) -> str:
    """Why a server rejected a request, in its own words."""
    try:
        return shorten(str(json.loads(body)["error"]), 200)
    except (ValueError, KeyError, TypeError):
        return shorten(body, 200)
