"""AdapterDeployment as the reconciler takes it."""

from collections.abc import Mapping
from dataclasses import replace

from finetune_api.serving_status import AdapterDeploymentStatus
from finetune_operator.adapterdeployment.observe import DeploymentObserver, ObservedDeployment, UnplannedDeployment
from finetune_operator.adapterdeployment.plan import plan, undecidable
from finetune_operator.adapterdeployment.turns import may_start
from finetune_operator.framework.apply import NameTaken
from finetune_operator.framework.cache import Cache
from finetune_operator.framework.client import KubeClient
from finetune_operator.framework.reading import Unplanned
from finetune_operator.framework.reconcile import Kind
from finetune_operator.kinds import ADAPTERDEPLOYMENTS
from finetune_operator.settings import Settings


def adapter_deployment_kind(
    client: KubeClient, cache: Cache, settings: Settings
) -> Kind[ObservedDeployment | UnplannedDeployment, AdapterDeploymentStatus]:
    """How AdapterDeployments are observed and planned."""
    observer = DeploymentObserver(client, cache, settings)
    return Kind(
        resource=ADAPTERDEPLOYMENTS,
        status=AdapterDeploymentStatus,
        undecidable=undecidable,
        observe=observer.observe,
        plan=plan,
        with_conflict=with_conflict,
        with_refusal=with_refusal,
        with_unmet=with_unmet,
        without_api=observer.without_api,
        contends=lambda resource: settings.max_concurrent_rollouts is not None and may_start(resource),
    )


def with_conflict(
    observed: ObservedDeployment | UnplannedDeployment, taken: NameTaken
) -> ObservedDeployment | UnplannedDeployment:
    """What was observed, and an object whose name the plan needs: somebody else's, or an earlier resource's."""
    if isinstance(observed, Unplanned):
        return observed
    if taken.outlived:
        return replace(observed, pending_deletion=(*observed.pending_deletion, str(taken)))
    return replace(observed, conflicts=(*observed.conflicts, str(taken)))


def with_refusal(
    observed: ObservedDeployment | UnplannedDeployment, said: str
) -> ObservedDeployment | UnplannedDeployment:
    """What was observed, and what the API server said when it refused an object of the plan."""
    return observed if isinstance(observed, Unplanned) else replace(observed, refusal=said)


def with_unmet(
    observed: ObservedDeployment | UnplannedDeployment, said: Mapping[str, str]
) -> ObservedDeployment | UnplannedDeployment:
    """What was observed, and what was said of the disruption budget, the route and the look at a channel, without which
    the endpoint serves as well."""
    return observed if isinstance(observed, Unplanned) else replace(observed, unmet=said)
