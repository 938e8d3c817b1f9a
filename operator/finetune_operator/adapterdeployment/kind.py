"""AdapterDeployment as the reconciler sees it."""

from dataclasses import replace

from finetune_api.adapterdeployment import AdapterDeploymentStatus
from finetune_operator.actions import ADAPTERDEPLOYMENTS
from finetune_operator.adapterdeployment.observe import Invalid, Observed, Observer
from finetune_operator.adapterdeployment.plan import plan
from finetune_operator.apply import NameTaken
from finetune_operator.cache import Cache
from finetune_operator.kube import KubeClient
from finetune_operator.reconcile import Kind
from finetune_operator.settings import Settings


def adapter_deployment_kind(
    client: KubeClient, cache: Cache, settings: Settings
) -> Kind[Observed | Invalid, AdapterDeploymentStatus]:
    """How AdapterDeployments are reconciled."""
    return Kind(ADAPTERDEPLOYMENTS, Observer(client, cache, settings).observe, plan, _blocked, _refused)


def _blocked(observed: Observed | Invalid, taken: NameTaken) -> Observed | Invalid:
    if isinstance(observed, Invalid):
        return observed
    if taken.outlived:
        return replace(observed, remains=(*observed.remains, str(taken)))
    return replace(observed, strangers=(*observed.strangers, str(taken)))


def _refused(observed: Observed | Invalid, said: str) -> Observed | Invalid:
    return observed if isinstance(observed, Invalid) else replace(observed, refusal=said)
