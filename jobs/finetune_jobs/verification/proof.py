"""What a server proves without a verification: golden prompts and reference texts, by the same checks."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from finetune_api.adapterdeployment import CheckOutcome, VerificationCheck
from finetune_api.stages import SelfCheckLimits
from finetune_jobs.verification import checks
from finetune_jobs.verification.engine import ModelServer
from finetune_jobs.verification.observation import Promise, observe, require_room
from finetune_jobs.verification.promise import read_promise


class Proof:
    """A server, and what an artifact promises of it.

    The sample of the test split is left to the verification: it says how good the artifact is, at a cost that no pod
    should pay when it starts. So are streams and times, which depend on what else the server has to do.
    """

    def __init__(self, server: ModelServer, artifact: Path, digest: str) -> None:
        """``artifact``: the artifact's folder. Raises StageError (ArtifactCorrupt)."""
        self._server, self._digest = server, digest
        self._promise = replace(read_promise(artifact, str(artifact)), sample=[], streamed=False)

    def whole(self, limits: SelfCheckLimits) -> Sequence[VerificationCheck]:
        """All that was recorded. Raises StageError: PromptsTooLong, and as ModelServer."""
        return self._ask(self._promise, limits)

    def _ask(self, promise: Promise, limits: SelfCheckLimits) -> Sequence[VerificationCheck]:
        served = self._server.served()
        digest = checks.digest_check(served.model, self._digest)
        if digest.outcome is CheckOutcome.FAILED:
            return [digest]
        require_room(promise.golden, served.limits)
        asked = replace(promise, max_distance=limits.max_distance)
        observed = observe(self._server, asked, served.limits, lambda _number, _total: None)
        return [digest, *checks.prompt_checks(observed, limits.min_agreement_percent)]
