"""Stage verify: prove that a candidate's server really serves the artifact, before any traffic reaches it.

Model servers fall back silently (an unknown adapter is answered by the base model), so a server that is healthy proves
nothing. Three proofs: it names the artifact's digest; it answers the golden prompts as the artifact did and not as the
base model does; on a sample of the test split it is not worse than the evaluation promised. A server that does not
accept prompts of this length cannot be verified; that is reported before it is asked.
"""

import json
import logging
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from huggingface_hub import InferenceClient, get_session
from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError

from finetune_api.adapterdeployment import WithdrawnPolicy
from finetune_api.dataset import TaskType
from finetune_api.layout import output_folder
from finetune_api.reasons import Reason
from finetune_api.stages import Stage, VerifyParams
from finetune_jobs.artifacts import artifact
from finetune_jobs.artifacts.artifact import Answer, ModelRef
from finetune_jobs.artifacts.folders import fetch_folder
from finetune_jobs.artifacts.withdrawal import require_standing
from finetune_jobs.base.documents import read_json
from finetune_jobs.base.errors import StageError, require
from finetune_jobs.base.wording import shorten
from finetune_jobs.evaluation.metrics import mcnemar, wilson
from finetune_jobs.evaluation.tasks import Right, right_for
from finetune_jobs.runtime.runner import Context, StageOutput, run_stage
from finetune_jobs.store.hub import CLIENT_ERROR

log = logging.getLogger(__name__)

_REQUEST_SECONDS: Final = 60.0
"""Longest wait for an answer."""
_POLL_SECONDS: Final = 1.0
_SIGNIFICANCE: Final = 0.05

_LENGTH: Final = re.compile(r"`(inputs|max_new_tokens)`.* tokens", re.DOTALL)
"""TGI's answer, with status 422, to a conversation that is longer than it accepts (router/src/validation.rs)."""

Ask = Callable[[Answer], str]


@dataclass(frozen=True)
class Limits:
    """Token limits of a server, as it reports them; 0 if it does not."""

    prompt: int = 0
    total: int = 0
    """Prompt and answer together."""

    def take(self, answer: Answer) -> bool:
        """Whether a prompt of this length is accepted; true if a length is unknown."""
        prompt, both = answer.prompt_tokens, answer.prompt_tokens + answer.max_tokens
        return not prompt or (prompt <= (self.prompt or math.inf) and both <= (self.total or math.inf))

    def __str__(self) -> str:
        prompt, total = self.prompt or "an unknown number", self.total or "an unknown number"
        return (
            f"it accepts {prompt} for a prompt (the runtime's maxInputTokens), {total} with its answer (maxTotalTokens)"
        )


@dataclass(frozen=True)
class Verdict:
    """What a server's answers show (pure)."""

    agreement_percent: int
    """Share of the golden prompts that the server answered like the artifact."""
    like_base: int
    """Golden prompts, of the telling ones, that were answered as by the base model."""
    telling: int
    """Golden prompts that artifact and base model answer differently."""
    samples: int
    correct: int
    expected: int
    """Sample answers of the artifact that were right."""
    losses: int
    """Sample answers that were right from the artifact and wrong from the server."""
    wins: int

    @property
    def active(self) -> bool:
        """Whether the fine-tune is active: the server answers most telling prompts unlike the base model."""
        return self.telling > 0 and self.like_base * 2 < self.telling


def verify(context: Context) -> StageOutput:
    """The stage. Raises StageError: ArtifactWithdrawn, CandidateFailed, PromptsTooLong, AdapterInactive,
    VerificationFailed, as fetch_folder."""
    params = require(context.input.params.verify, "params.verify")
    if params.withdrawn is WithdrawnPolicy.REFUSE:
        require_standing(context.store, context.input.artifact_digest)
    deadline = time.monotonic() + params.timeout_seconds
    golden, sample, task = _read_artifact(context, params)
    context.progress.report(0, "waiting for the server")
    _wait_until_healthy(params, deadline)
    limits = _require_digest(params.endpoint, context.input.artifact_digest)
    require_room([*golden, *sample], limits)
    ask = _client(params, deadline, limits)
    total = len(golden) + len(sample)
    served: list[str] = []
    for number, answer in enumerate([*golden, *sample]):
        context.progress.report(number / total, f"asked {number} of {total} prompts")
        served.append(ask(answer))
    verdict = judge(golden, served[: len(golden)], sample, served[len(golden) :], right_for(task))
    require_proof(verdict, params.min_agreement_percent)
    return StageOutput(
        output_digest=context.input.artifact_digest,
        scalars=_scalars(verdict),
        message=f"{verdict.agreement_percent} % of {len(golden)} golden prompts agree with the artifact; "
        f"{verdict.correct} of {verdict.samples} test examples are right (evaluation: {verdict.expected}).",
    )


def require_room(asked: Sequence[Answer], limits: Limits) -> None:
    """Raises StageError (PromptsTooLong) if the server would reject one of the prompts because of its length."""
    long = [answer for answer in asked if not limits.take(answer)]
    if long:
        longest = max(long, key=lambda answer: answer.prompt_tokens)
        raise StageError(
            Reason.PROMPTS_TOO_LONG,
            f"{len(long)} of {len(asked)} golden prompts and test examples are too long for the server. The longest "
            f"has {longest.prompt_tokens} tokens, and its answer may have {longest.max_tokens}; {limits}.",
        )


def judge(
    golden: Sequence[Answer],
    golden_served: Sequence[str],
    sample: Sequence[Answer],
    served: Sequence[str],
    right: Right,
) -> Verdict:
    """Compare a server's answers with the recorded ones; ``right`` decides which answers are right."""
    pairs = list(zip(golden, golden_served, strict=True))
    rights = [(right(a.label, a.artifact), right(a.label, text)) for a, text in zip(sample, served, strict=True)]
    return Verdict(
        agreement_percent=100 * sum(_same(a.artifact, text) for a, text in pairs) // max(1, len(pairs)),
        like_base=sum(a.distinguishes_base and _same(a.base, text) for a, text in pairs),
        telling=sum(a.distinguishes_base for a, _ in pairs),
        samples=len(rights),
        correct=sum(now for _, now in rights),
        expected=sum(before for before, _ in rights),
        losses=sum(before and not now for before, now in rights),
        wins=sum(now and not before for before, now in rights),
    )


def require_proof(verdict: Verdict, min_agreement_percent: int) -> None:
    """Raises StageError (AdapterInactive, VerificationFailed) unless every proof holds."""
    if verdict.telling == 0:
        raise StageError(
            Reason.ADAPTER_INACTIVE,
            "The artifact answers every golden prompt like its base model: nothing can prove that the fine-tune is "
            "active.",
        )
    if not verdict.active:
        raise StageError(
            Reason.ADAPTER_INACTIVE,
            f"{verdict.like_base} of the {verdict.telling} golden prompts on which artifact and base model differ were "
            "answered like the base model.",
        )
    if verdict.agreement_percent < min_agreement_percent:
        raise StageError(
            Reason.VERIFICATION_FAILED,
            f"{verdict.agreement_percent} % of the golden prompts were answered as by the evaluated artifact, "
            f"{min_agreement_percent} % are required.",
        )
    chance = mcnemar(verdict.wins, verdict.losses)
    if verdict.losses > verdict.wins and chance < _SIGNIFICANCE:
        low, high = wilson(verdict.correct, verdict.samples)
        raise StageError(
            Reason.VERIFICATION_FAILED,
            f"The server answers {verdict.correct} of {verdict.samples} test examples correctly (95 % interval "
            f"{low:.2f} to {high:.2f}), the evaluated artifact {verdict.expected}: {verdict.losses} became wrong and "
            f"{verdict.wins} right (McNemar's test: p = {chance:.4f}).",
        )


def _read_artifact(context: Context, params: VerifyParams) -> tuple[list[Answer], list[Answer], TaskType]:
    folder = context.scratch / "artifact"
    place = output_folder(Stage.PUBLISH, context.input.artifact_digest)
    fetch_folder(context.store, place, folder)
    both = []
    for name in (artifact.GOLDEN, artifact.SAMPLE):
        with (folder / name).open(encoding="utf-8") as lines:
            both.append(artifact.read_answers(lines, context.store.uri(f"{place}/{name}")))
    golden, sample = both
    return golden, sample[: params.samples], read_json(folder / artifact.MODEL_REF, ModelRef).task


def _wait_until_healthy(params: VerifyParams, deadline: float) -> None:
    """A server that is still loading its model refuses connections or answers 503."""
    last = "nothing was tried"
    while time.monotonic() < deadline:
        try:
            status = get_session().get(f"{params.endpoint}/health", timeout=5).status_code
            if status == 200:
                return
            last = f"it answered {status}"
        except CLIENT_ERROR as error:
            last = type(error).__name__
        time.sleep(_POLL_SECONDS)
    raise StageError(
        Reason.CANDIDATE_FAILED,
        f"{params.endpoint}/health was not ready within {params.timeout_seconds} s (last: {last}).",
    )


def _require_digest(endpoint: str, digest: str) -> Limits:
    """The model's mount path contains the digest, so ``/info`` tells which artifact the server has loaded; it also
    reports the server's limits."""
    try:
        info = get_session().get(f"{endpoint}/info", timeout=10).raise_for_status().json()
        model = str(info["model_id"])
        limits = Limits(int(info.get("max_input_tokens") or 0), int(info.get("max_total_tokens") or 0))
    except (CLIENT_ERROR, KeyError, ValueError, TypeError) as error:
        raise StageError(
            Reason.CANDIDATE_FAILED, f"{endpoint}/info does not name its model ({type(error).__name__})."
        ) from None
    if digest not in model:
        raise StageError(
            Reason.VERIFICATION_FAILED, f"{endpoint} serves {shorten(model, 120)!r}, not artifact {digest[:12]}."
        )
    return limits


def _client(params: VerifyParams, deadline: float, limits: Limits) -> Ask:
    client = InferenceClient(base_url=params.endpoint, timeout=_REQUEST_SECONDS)

    def ask(answer: Answer) -> str:
        if time.monotonic() > deadline:
            raise StageError(
                Reason.VERIFICATION_FAILED, f"The server is too slow: no verdict in {params.timeout_seconds} s."
            )
        try:
            # Temperature 0 is greedy for TGI and vLLM alike; without it both sample.
            found: Any = client.chat_completion(answer.messages, max_tokens=answer.max_tokens, temperature=0.0)
            return answer_in(found.choices[0].message, answer)
        except (CLIENT_ERROR, InferenceTimeoutError) as error:
            raise _request_error(params.endpoint, error, limits) from None

    return ask


def answer_in(message: Any, asked: Answer) -> str:
    """What a server answered, without thoughts: those stand beside it where the server has a reasoning parser."""
    text = str(message.content or "")
    apart = getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None)
    return text if apart or asked.thoughts is None else asked.thoughts.answer_in(text)


def _request_error(endpoint: str, error: Exception, limits: Limits) -> StageError:
    response = error.response if isinstance(error, HfHubHTTPError) else None
    status = response.status_code if response is not None else 0
    said = _said(response.text) if response is not None and status == 422 else ""
    if _LENGTH.search(said):
        return StageError(
            Reason.PROMPTS_TOO_LONG,
            f"A golden prompt or a test example is too long for {endpoint}, which answered 422 ({said}); {limits}.",
        )
    what = f"answered {status}{said and f' ({said})'}" if status else f"did not answer ({type(error).__name__})"
    return StageError(
        Reason.CANDIDATE_FAILED, f"{endpoint} {what} to a golden prompt or a test example.", retriable=status != 422
    )


def _said(body: str) -> str:
    """Why a server rejected a request, in its own words."""
    try:
        return shorten(str(json.loads(body)["error"]), 200)
    except (ValueError, KeyError, TypeError):
        return shorten(body, 200)


def _same(left: str, right: str) -> bool:
    return left.strip() == right.strip()


def _scalars(verdict: Verdict) -> dict[str, str]:
    share = max(1, verdict.samples)
    return {
        "samples": str(verdict.samples),
        "accuracy": f"{verdict.correct / share:.4f}",
        "expectedAccuracy": f"{verdict.expected / share:.4f}",
        "agreementPercent": str(verdict.agreement_percent),
        "adapterActive": str(verdict.active).lower(),
    }


def main() -> None:
    """``python -m finetune_jobs.verify``"""
    run_stage(Stage.VERIFY, verify)


if __name__ == "__main__":
    main()
