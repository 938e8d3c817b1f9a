"""AdapterDeployment as the reconciler sees it."""

from dataclasses import replace

from finetune_api.adapterdeployment import AdapterDeploymentStatus
from finetune_api.base import ObjectMeta
from finetune_api.reasons import Reason
from finetune_operator.adapterdeployment.observe import DeploymentObserver, ObservedDeployment, Unplanned
from finetune_operator.adapterdeployment.plan import plan
from finetune_operator.framework.apply import NameTaken
from finetune_operator.framework.cache import Cache
from finetune_operator.framework.client import KubeClient
from finetune_operator.framework.objects import Object
from finetune_operator.framework.reading import parse_status
from finetune_operator.framework.reconcile import Kind
from finetune_operator.kinds import ADAPTERDEPLOYMENTS
from finetune_operator.settings import Settings


def adapter_deployment_kind(
    client: KubeClient, cache: Cache, settings: Settings
) -> Kind[ObservedDeployment | Unplanned, AdapterDeploymentStatus]:
    """How AdapterDeployments are reconciled."""
    return Kind(
        ADAPTERDEPLOYMENTS, DeploymentObserver(client, cache, settings).observe, plan, _blocked, _refused, _failing
    )


def _blocked(observed: ObservedDeployment | Unplanned, taken: NameTaken) -> ObservedDeployment | Unplanned:
    if isinstance(observed, Unplanned):
        return observed
    if taken.outlived:
        return replace(observed, pending_deletion=(*observed.pending_deletion, str(taken)))
    return replace(observed, conflicts=(*observed.conflicts, str(taken)))


def _refused(observed: ObservedDeployment | Unplanned, said: str) -> ObservedDeployment | Unplanned:
    return observed if isinstance(observed, Unplanned) else replace(observed, refusal=said)


def _failing(resource: Object, said: str) -> Unplanned:
    status = parse_status(AdapterDeploymentStatus, resource.get("status") or {})
    return Unplanned(ObjectMeta.model_validate(resource["metadata"]), status, Reason.API_CALLS_FAIL, said)
