"""What the decisions about one run are made from."""

from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.meta import ANNOTATION_REVIEW
from finetune_api.review import HumanReview
from finetune_api.stages import Params
from finetune_operator.finetunejob.ledger import RunLedger
from finetune_operator.finetunejob.observe import ObservedJob
from finetune_operator.finetunejob.params import params_of
from finetune_operator.framework.actions import Action


@dataclass(frozen=True)
class RunContext:
    """One reconciliation of a run."""

    observed: ObservedJob
    ledger: RunLedger
    """What is known of the run; takes in what its Jobs report as the plan goes on."""
    upkeep: tuple[Action, ...]
    """What existing objects need, whatever the run's next step is; part of every plan."""
    now: datetime

    @property
    def spec(self) -> FineTuneJobSpec:
        """The spec that the run works on."""
        return self.observed.spec

    @cached_property
    def params(self) -> Params:
        """Each stage's part of the spec."""
        return params_of(self.spec, self.observed.settings.metric_containers)

    @property
    def reviews(self) -> bool:
        """Whether people must prefer the artifact before it is published."""
        return self.spec.evaluation.human_review is HumanReview.REQUIRED

    @property
    def review_asked(self) -> str:
        """With which value somebody asks to count votes now; empty: nobody does, or no review is required."""
        return self.observed.metadata.annotations.get(ANNOTATION_REVIEW, "")[:256] if self.reviews else ""

    @property
    def has_begun(self) -> bool:
        """Whether the status or a Job knows of the run. Until then the status shows the run before it."""
        run, recorded = self.ledger.run.id, self.observed.status.run
        return (recorded is not None and recorded.id == run) or any(job.run == run for job in self.observed.jobs)
