"""A FineTuneJob whose publish runs in tests, as its pods would, as often as a test wants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune_api.layout import StageRecord
from finetune_api.push import PushTarget
from finetune_api.reasons import Reason
from finetune_api.stages import Outcome, Stage, StageResult, Upstream, input_key
from finetune_jobs.artifacts.folders import publish_record
from finetune_jobs.publish import publish, sign_move_and_push
from finetune_jobs.resolve import find_results
from finetune_jobs.runtime.runner import execute
from finetune_jobs.store.s3 import Store
from tests.support.published import BASE, publish_input
from tests.support.seaweedfs import SeaweedFS
from tests.support.stages import RUN, context


class PublishJob:
    """A FineTuneJob whose publish runs, as often as a test wants."""

    def __init__(self, s3: SeaweedFS, store: Store, chain: Upstream, folder: Path) -> None:
        self._s3, self._store, self._chain, self._folder = s3, store, chain, folder
        self.run, self.name, self.base, self.signed = RUN, "transactions", BASE, False

    def context(self, *targets: PushTarget) -> Any:
        """Of its publish, with these places to push to."""
        given = publish_input(self._s3, self._store, self._chain, signed=self.signed, base_model_uri=self.base)
        assert given.output
        output = given.output.model_copy(update={"push_to": list(targets), "name": self.name})
        return context(given.model_copy(update={"output": output, "run": self.run}), self._folder)

    def rerun(self) -> None:
        """``spec.rerun`` has another value."""
        self.run = self.run.model_copy(update={"id": f"{self.run.id}x"})

    def publish(self, *targets: PushTarget) -> StageResult:
        """What its pod does."""
        return execute(self.context(*targets), publish, after=sign_move_and_push)

    def resolved(self, *targets: PushTarget) -> dict[str, str] | None:
        """The scalars of the publish that resolve finds; None: publish is to run again."""
        asked, chain = self.context(*targets), Upstream(source=self._chain.source, model=self._chain.model)
        for stage, output in (
            (Stage.PREPARE, self._chain.dataset),
            (Stage.TRAIN, self._chain.adapter),
            (Stage.EXPORT, self._chain.export),
            (Stage.EVALUATE, self._chain.evaluation),
        ):
            result = StageResult(
                stage=stage, outcome=Outcome.SUCCEEDED, reason=Reason.STAGE_SUCCEEDED, output_digest=output
            )
            publish_record(self._store, stage, input_key(stage, chain, asked.input.params), StageRecord(result=result))
            chain = chain.with_output(stage, output)
        found = find_results(asked, Upstream(source=chain.source, model=chain.model))
        assert len(found) >= 4
        return next((each.scalars for each in found if each.stage is Stage.PUBLISH), None)
