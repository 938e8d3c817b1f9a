"""What a stage's pod needs to reach the outside: certificate authorities for its stores, and the platform's proxy."""

from collections.abc import Sequence
from typing import Final

from finetune_api import meta
from finetune_api.references import ConfigMapKeyRef
from finetune_operator.framework.objects import Object
from finetune_operator.settings import Proxy

_VOLUME: Final = "store-ca"
PROXY_VARIABLES: Final = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
"""The variables that Python's HTTP clients read."""


def ca_volumes(authorities: Sequence[ConfigMapKeyRef]) -> list[Object]:
    """Optional, so that a missing ConfigMap does not keep the pod waiting: the stage then reports which one."""
    if not authorities:
        return []
    return [{"name": _VOLUME, "projected": {"sources": [_certificates(each) for each in authorities]}}]


def _certificates(reference: ConfigMapKeyRef) -> Object:
    items = [{"key": reference.key, "path": f"{reference.name}/{reference.key}"}]
    return {"configMap": {"name": reference.name, "items": items, "optional": True}}


def ca_mounts(authorities: Sequence[ConfigMapKeyRef]) -> list[Object]:
    """Where the container finds the certificates."""
    return [{"name": _VOLUME, "mountPath": meta.CA_DIR, "readOnly": True}] if authorities else []


def proxy_env(proxy: Proxy) -> list[Object]:
    """The proxy's variables; none without a proxy."""
    if not (proxy.http_proxy or proxy.https_proxy):
        return []
    values = zip(PROXY_VARIABLES, (proxy.http_proxy, proxy.https_proxy, proxy.no_proxy), strict=True)
    return [{"name": name, "value": value} for name, value in values if value]
