"""What a server proves without a verification: golden prompts and reference texts, by the same checks."""

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path

from finetune_api.endpoint_stages import SelfCheckLimits
from finetune_api.serving_status import CheckOutcome, VerificationCheck
from finetune_jobs.verification import checks
from finetune_jobs.verification.checks import Observed
from finetune_jobs.verification.engine import ModelServer
from finetune_jobs.verification.observation import observe, require_room
from finetune_jobs.verification.promise import read_promise
from finetune_jobs.verification.watch import answer_moved, text_moved


class Proof:
    """A server, and what an artifact promises of it.

    The sample of the test split is left to the verification: it says how good the artifact is, at a cost that no pod
    should pay when it starts. So are streams and times, which depend on what else the server has to do, and the forms
    that a server gives its answers, which follow from its arguments.
    """

    def __init__(self, server: ModelServer, artifact: Path, digest: str) -> None:
        """``artifact``: the artifact's folder. Raises StageError (ArtifactCorrupt)."""
        self._server, self._digest = server, digest
        self._promise = replace(read_promise(artifact, str(artifact)), sample=[], as_clients=False)
        self._proved: Observed | None = None

    def whole(self, limits: SelfCheckLimits) -> Sequence[VerificationCheck]:
        """All that was recorded. Raises StageError: PromptsTooLong, and as ModelServer."""
        served = self._server.served()
        digest = checks.digest_check(served.model, self._digest)
        if digest.outcome is CheckOutcome.FAILED:
            return [digest]
        require_room(self._promise.golden, served.limits)
        missing = checks.unproved(self._promise.references, served.limits)
        if limits.require_probabilities and missing:
            return [digest, *missing]
        asked = replace(self._promise, max_distance=limits.max_distance)
        self._proved = observe(self._server, asked, served.limits, lambda _number, _total: None)
        return [digest, *checks.prompt_checks(self._proved, limits.min_agreement_percent)]

    def under(self, server: ModelServer) -> "Proof":
        """The same of a server under another name."""
        moved = copy(self)
        moved._server = server
        return moved

    def waiting(self) -> int | None:
        """Requests that wait for their turn at the server; None: it does not say."""
        return self._server.waiting()

    def moved(self, turn: int) -> str:
        """What the server does otherwise than when all was asked last, as far as one request shows; empty: nothing.

        The request is another one each ``turn``: a text whose probabilities it gave then, or where it gave none, a
        golden prompt. Raises StageError as ModelServer.
        """
        served, proved = self._server.served(), self._proved
        if checks.digest_check(served.model, self._digest).outcome is CheckOutcome.FAILED:
            return f"it serves {served.model}"
        if proved is None:
            return "it has not proved itself"
        texts = [pair for pair in zip(proved.references, proved.forced, strict=True) if pair[1].log_probs]
        if texts:
            number = turn % len(texts)
            reference, text = texts[number]
            moved = text_moved(text, self._server.log_probs(reference), proved.usual_tolerance)
            return moved and f"reference text {number + 1}: {moved}"
        prompts = list(zip(proved.golden, proved.golden_replies, strict=True))
        if not prompts:
            return ""
        number = turn % len(prompts)
        prompt, reply = prompts[number]
        moved = answer_moved(reply, self._server.answer(prompt))
        return moved and f"golden prompt {number + 1}: {moved}"
