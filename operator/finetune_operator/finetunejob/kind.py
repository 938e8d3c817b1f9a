"""FineTuneJob as the reconciler takes it."""

from dataclasses import replace

from finetune_api.job_status import FineTuneJobStatus
from finetune_operator.finetunejob.observe import JobObserver, ObservedJob, UnplannedJob
from finetune_operator.finetunejob.plan import plan, undecidable
from finetune_operator.finetunejob.progress import ProgressReader
from finetune_operator.framework.apply import NameTaken
from finetune_operator.framework.cache import Cache
from finetune_operator.framework.client import KubeClient
from finetune_operator.framework.reading import Unplanned
from finetune_operator.framework.reconcile import Kind
from finetune_operator.kinds import FINETUNEJOBS
from finetune_operator.settings import Settings


def fine_tune_job_kind(
    client: KubeClient, cache: Cache, settings: Settings
) -> Kind[ObservedJob | UnplannedJob, FineTuneJobStatus]:
    """How FineTuneJobs are observed and planned."""
    observer = JobObserver(client, cache, settings, ProgressReader(settings.progress_seconds))
    return Kind(
        resource=FINETUNEJOBS,
        status=FineTuneJobStatus,
        undecidable=undecidable,
        observe=observer.observe,
        plan=plan,
        with_conflict=with_conflict,
        with_refusal=with_refusal,
        with_unmet=lambda observed, _: observed,  # its plans have no optional actions
        without_api=observer.without_api,
    )


def with_conflict(observed: ObservedJob | UnplannedJob, taken: NameTaken) -> ObservedJob | UnplannedJob:
    """What was observed, and an object of somebody else whose name the plan needs."""
    return observed if isinstance(observed, Unplanned) else replace(observed, conflicts=(str(taken),))


def with_refusal(observed: ObservedJob | UnplannedJob, said: str) -> ObservedJob | UnplannedJob:
    """What was observed, and what the API server said when it refused a stage's objects."""
    return observed if isinstance(observed, Unplanned) else replace(observed, refusal=said)
