"""Stage verify: prove that a candidate's server really serves the artifact, before any traffic reaches it.

Model servers fall back silently (an unknown adapter is answered by the base model), so a server that is healthy proves
nothing. Three proofs: it names the artifact's digest; it answers the golden prompts as the artifact did and not as the
base model does; on a sample of the test it is not worse than the evaluation promised.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from huggingface_hub import InferenceClient, get_session
from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError

from finetune_api.dataset import TaskType
from finetune_api.layout import output_folder
from finetune_api.reasons import Reason
from finetune_api.stages import Stage, VerifyParams
from finetune_jobs import artifact
from finetune_jobs.artifact import Answer, ModelRef, artifact_digest
from finetune_jobs.dataset.validation import shorten
from finetune_jobs.documents import read_json
from finetune_jobs.errors import StageError, need
from finetune_jobs.evaluation.metrics import mcnemar, wilson
from finetune_jobs.evaluation.tasks import Right, right_for
from finetune_jobs.folders import fetch_folder
from finetune_jobs.hub import CLIENT_ERROR
from finetune_jobs.runner import Context, Made, run_stage

log = logging.getLogger(__name__)

_REQUEST_SECONDS: Final = 60.0
"""Longest wait for one answer."""
_POLL_SECONDS: Final = 1.0
_SIGNIFICANCE: Final = 0.05

Ask = Callable[[Answer], str]


@dataclass(frozen=True)
class Verdict:
    """What the answers of a server say (pure)."""

    agreement_percent: int
    """Share of the golden prompts that were answered as by the artifact."""
    like_base: int
    """Golden prompts, of those that tell, that were answered as by the base model."""
    telling: int
    """Golden prompts that the artifact and its base model answer differently."""
    samples: int
    correct: int
    expected: int
    """Sample answers of the artifact that were right."""
    losses: int
    """Sample answers that were right from the artifact and wrong from the server."""
    wins: int

    @property
    def active(self) -> bool:
        """Whether the tuning is on: on most prompts that tell, the server does not answer like the base model."""
        return self.telling > 0 and self.like_base * 2 < self.telling


def verify(context: Context) -> Made:
    """The stage. Raises StageError: CandidateFailed, AdapterInactive, VerificationFailed, as fetch_folder."""
    params = need(context.input.params.verify, "params.verify")
    deadline = time.monotonic() + params.timeout_seconds
    golden, sample, task = _read_artifact(context, params)
    context.progress.report(0, "waiting for the server")
    _wait_until_healthy(params, deadline)
    _require_digest(params.endpoint, artifact_digest(context.input.artifact_uri))
    ask = _client(params, deadline)
    total = len(golden) + len(sample)
    served: list[str] = []
    for number, answer in enumerate([*golden, *sample]):
        context.progress.report(number / total, f"asked {number} of {total} prompts")
        served.append(ask(answer))
    verdict = judge(golden, served[: len(golden)], sample, served[len(golden) :], right_for(task))
    require_proof(verdict, params.min_agreement_percent)
    return Made(
        output_digest=artifact_digest(context.input.artifact_uri),
        scalars=_scalars(verdict),
        message=f"{verdict.agreement_percent} % of {len(golden)} golden prompts agree with the artifact; "
        f"{verdict.correct} of {verdict.samples} test examples are right, the evaluation had {verdict.expected}.",
    )


def judge(
    golden: Sequence[Answer],
    golden_served: Sequence[str],
    sample: Sequence[Answer],
    served: Sequence[str],
    right: Right,
) -> Verdict:
    """Compare a server's answers with those that were recorded; ``right`` says what counts as a right answer."""
    pairs = list(zip(golden, golden_served, strict=True))
    rights = [(right(a.label, a.artifact), right(a.label, text)) for a, text in zip(sample, served, strict=True)]
    return Verdict(
        agreement_percent=100 * sum(_same(a.artifact, text) for a, text in pairs) // max(1, len(pairs)),
        like_base=sum(a.tells and _same(a.base, text) for a, text in pairs),
        telling=sum(a.tells for a, _ in pairs),
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
            "The artifact answers every golden prompt like its base model: nothing can prove that the tuning is on.",
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
            f"{min_agreement_percent} % are needed.",
        )
    chance = mcnemar(verdict.wins, verdict.losses)
    if verdict.losses > verdict.wins and chance < _SIGNIFICANCE:
        low, high = wilson(verdict.correct, verdict.samples)
        raise StageError(
            Reason.VERIFICATION_FAILED,
            f"The server answers {verdict.correct} of {verdict.samples} test examples right (95 % interval {low:.2f} "
            f"to {high:.2f}), the evaluated artifact {verdict.expected}: {verdict.losses} became wrong and "
            f"{verdict.wins} right (McNemar's test: p = {chance:.4f}).",
        )


def _read_artifact(context: Context, params: VerifyParams) -> tuple[list[Answer], list[Answer], TaskType]:
    folder = context.scratch / "artifact"
    place = output_folder(Stage.PUBLISH, artifact_digest(context.input.artifact_uri))
    fetch_folder(context.store, place, folder)
    both = []
    for name in (artifact.GOLDEN, artifact.SAMPLE):
        with (folder / name).open(encoding="utf-8") as lines:
            both.append(artifact.read_answers(lines, context.store.uri(f"{place}/{name}")))
    golden, sample = both
    return golden, sample[: params.samples], read_json(folder / artifact.MODEL_REF, ModelRef).task


def _wait_until_healthy(params: VerifyParams, deadline: float) -> None:
    """A server that still loads its model refuses connections or answers 503."""
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


def _require_digest(endpoint: str, digest: str) -> None:
    """The mount path of the model holds the digest, so ``/info`` says which artifact the server has loaded."""
    try:
        model = str(get_session().get(f"{endpoint}/info", timeout=10).raise_for_status().json()["model_id"])
    except (CLIENT_ERROR, KeyError, ValueError, TypeError) as error:
        raise StageError(
            Reason.CANDIDATE_FAILED, f"{endpoint}/info does not say its model ({type(error).__name__})."
        ) from None
    if digest not in model:
        raise StageError(
            Reason.VERIFICATION_FAILED, f"{endpoint} serves {shorten(model, 120)!r}, not artifact {digest[:12]}."
        )


def _client(params: VerifyParams, deadline: float) -> Ask:
    client = InferenceClient(base_url=params.endpoint, timeout=_REQUEST_SECONDS)

    def ask(answer: Answer) -> str:
        if time.monotonic() > deadline:
            raise StageError(
                Reason.VERIFICATION_FAILED, f"The server is too slow: no verdict in {params.timeout_seconds} s."
            )
        try:
            # Temperature 0 is greedy for TGI and vLLM alike; without it both sample.
            found: Any = client.chat_completion(answer.messages, max_tokens=answer.max_tokens, temperature=0.0)
            return str(found.choices[0].message.content or "")
        except (CLIENT_ERROR, InferenceTimeoutError) as error:
            raise _request_error(params.endpoint, error) from None

    return ask


def _request_error(endpoint: str, error: Exception) -> StageError:
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else 0
    what = f"answered {status}" if status else f"did not answer ({type(error).__name__})"
    return StageError(
        Reason.CANDIDATE_FAILED, f"{endpoint} {what} to a golden prompt or a test example.", retriable=status != 422
    )


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
