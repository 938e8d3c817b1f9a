"""All permissions of the operator; the chart's Role or ClusterRole is generated from them.

All are namespaced, so a Role per watched namespace is enough, and one in the release's own for the Lease. There is no
verb on Secrets (the kubelet mounts them into pods), no ``pods/exec``, no wildcard, and nothing that grants rights.
"""

from dataclasses import dataclass
from typing import Final

from finetune_operator.framework.objects import (
    CONFIG_MAPS,
    CONTROLLER_REVISIONS,
    DEPLOYMENTS,
    DISRUPTION_BUDGETS,
    ENDPOINT_SLICES,
    EVENTS,
    HTTP_ROUTES,
    INGRESSES,
    JOBS,
    LEASES,
    NETWORK_POLICIES,
    PODS,
    RESOURCE_QUOTAS,
    SERVICE_ACCOUNTS,
    SERVICES,
    Resource,
)
from finetune_operator.kinds import ADAPTERDEPLOYMENTS, FINETUNEJOBS


@dataclass(frozen=True)
class Rule:
    """Verbs on one resource."""

    resource: Resource
    verbs: tuple[str, ...]
    subresource: str = ""
    """E.g. status; empty for the object itself."""

    @property
    def api_group(self) -> str:
        """The API group, empty for the core group."""
        group, slash, _ = self.resource.api_version.rpartition("/")
        return group if slash else ""

    @property
    def name(self) -> str:
        """The resource as a Role names it."""
        return f"{self.resource.plural}/{self.subresource}" if self.subresource else self.resource.plural


RULES: Final = (
    Rule(FINETUNEJOBS, ("get", "list", "watch")),
    Rule(FINETUNEJOBS, ("patch",), "status"),
    # Owner references that block the owner's deletion need it where OwnerReferencesPermissionEnforcement is on.
    Rule(FINETUNEJOBS, ("update",), "finalizers"),
    Rule(ADAPTERDEPLOYMENTS, ("get", "list", "watch")),
    Rule(ADAPTERDEPLOYMENTS, ("patch",), "status"),
    Rule(ADAPTERDEPLOYMENTS, ("update",), "finalizers"),
    # Inputs of stages; watched are those of AdapterDeployments. Patch is for the limits of serving pods.
    Rule(CONFIG_MAPS, ("get", "list", "watch", "create", "patch", "delete")),
    # Stages; patch is for suspend.
    Rule(JOBS, ("get", "list", "watch", "create", "patch", "delete")),
    # Results, progress, and why a pod waits or failed.
    Rule(PODS, ("list", "watch")),
    # Serving; patch is server-side apply.
    Rule(DEPLOYMENTS, ("get", "list", "watch", "create", "patch", "delete")),
    Rule(SERVICES, ("get", "list", "watch", "create", "patch", "delete")),
    # What each revision's pods are made of.
    Rule(CONTROLLER_REVISIONS, ("get", "list", "watch", "create", "patch", "delete")),
    # How many serving pods a drained node may take at once.
    Rule(DISRUPTION_BUDGETS, ("get", "list", "watch", "create", "patch", "delete")),
    # Whether clients reach the revision that serves.
    Rule(ENDPOINT_SLICES, ("list", "watch")),
    Rule(NETWORK_POLICIES, ("get", "list", "watch", "create", "patch", "delete")),
    # Whether the runner's ServiceAccount exists, and when it appears.
    Rule(SERVICE_ACCOUNTS, ("get", "list", "watch")),
    # When there is room again. Without these two, what waits is looked at again after a while.
    Rule(RESOURCE_QUOTAS, ("list", "watch")),
    # Created on the custom resources; listed to find out why a Job could not create its pod.
    Rule(EVENTS, ("list", "create")),
)
"""One entry per resource or subresource."""

ROUTE_RULES: Final = {
    HTTP_ROUTES: Rule(HTTP_ROUTES, ("get", "list", "watch", "create", "patch", "delete")),
    INGRESSES: Rule(INGRESSES, ("get", "list", "watch", "create", "patch", "delete")),
}
"""Only where the chart's values let endpoints have them: ``serving.httpRoutes`` and ``serving.ingresses``."""

FORMER_ROUTE_RULES: Final = {resource: Rule(resource, ("get", "list", "watch", "delete")) for resource in ROUTE_RULES}
"""Where endpoints may not have them any more, so that none of those made before is left: ``serving.formerRoutes``."""

LEASE_RULE: Final = Rule(LEASES, ("get", "create", "patch"))
"""In the release's namespace only. The chart's Role, written by hand, grants get and patch for one name."""
