"""FineTuneJob as the reconciler takes it."""

from dataclasses import replace
from datetime import timedelta

from finetune_api.finetunejob import FineTuneJobStatus
from finetune_operator.finetunejob.observe import JobObserver, ObservedJob
from finetune_operator.finetunejob.plan import blocked, plan, refused
from finetune_operator.finetunejob.progress import ProgressReader
from finetune_operator.framework.cache import Cache
from finetune_operator.framework.client import KubeClient
from finetune_operator.framework.objects import Object
from finetune_operator.framework.reconcile import Kind
from finetune_operator.kinds import FINETUNEJOBS
from finetune_operator.settings import Settings


def fine_tune_job_kind(client: KubeClient, cache: Cache, settings: Settings) -> Kind[ObservedJob, FineTuneJobStatus]:
    """How FineTuneJobs are observed and planned."""
    progress = ProgressReader(timedelta(seconds=settings.progress_seconds))
    observer = JobObserver(client, cache, settings, progress)

    def failing(resource: Object, said: str) -> ObservedJob:
        return replace(observer.observe_alone(resource), failure=said)

    return Kind(
        resource=FINETUNEJOBS, observe=observer.observe, plan=plan, blocked=blocked, refused=refused, failing=failing
    )
