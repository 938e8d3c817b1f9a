"""The two kinds of custom resource, as the API server names them, and which of their children are watched."""

from collections.abc import Mapping
from typing import Final

from finetune_api import meta
from finetune_operator.framework.objects import (
    CONFIG_MAPS,
    CONTROLLER_REVISIONS,
    DEPLOYMENTS,
    DISRUPTION_BUDGETS,
    HTTP_ROUTES,
    INGRESSES,
    NETWORK_POLICIES,
    RESOURCE_QUOTAS,
    SERVICE_ACCOUNTS,
    SERVICES,
    Resource,
)

FINETUNEJOBS: Final = Resource(meta.API_VERSION, meta.FINETUNEJOB, meta.FINETUNEJOBS)
ADAPTERDEPLOYMENTS: Final = Resource(meta.API_VERSION, meta.ADAPTERDEPLOYMENT, meta.ADAPTERDEPLOYMENTS)
CUSTOM_RESOURCES: Final = (FINETUNEJOBS, ADAPTERDEPLOYMENTS)

_ALL: Final = tuple(each.kind for each in CUSTOM_RESOURCES)
_SERVING: Final = (ADAPTERDEPLOYMENTS.kind,)
_OF_SERVING: Final = (
    *(DEPLOYMENTS, SERVICES, NETWORK_POLICIES, CONFIG_MAPS, CONTROLLER_REVISIONS),
    *(DISRUPTION_BUDGETS, HTTP_ROUTES, INGRESSES),
)
"""FineTuneJobs have Services and ConfigMaps too, thousands of them. They are read in the rare cases that need them."""
WATCHED_OWNERS: Final[Mapping[Resource, tuple[str, ...]]] = dict.fromkeys(_OF_SERVING, _SERVING)
"""By kind of child: the kinds of custom resources whose children are watched. Children of other kinds: of both."""


WAKERS: Final = (SERVICE_ACCOUNTS, RESOURCE_QUOTAS)
"""Kinds whose events tell that the way may be clear for what waits in their namespace. Secrets are not among them: the
operator has no right to know of any."""


def selector(resource: Resource, instance: str) -> str:
    """The label selector of what an operator of this instance watches of a kind.

    It asks for labels of our own. Of ``app.kubernetes.io/managed-by`` others may think that it is theirs to change.
    """
    if resource in CUSTOM_RESOURCES:
        return of_instance(instance)
    if resource in WAKERS:
        return ""
    return f"{meta.LABEL_OWNER_KIND} in ({','.join(WATCHED_OWNERS.get(resource, _ALL))})"


def of_instance(instance: str) -> str:
    """Label selector of the custom resources that an operator of this instance handles; "" handles those without one.

    Children carry no such label: they are handled with their owner (docs/decisions/0021-instances-by-label.md).
    """
    return f"{meta.LABEL_INSTANCE}={instance}" if instance else f"!{meta.LABEL_INSTANCE}"
