"""What a stage's pod needs to reach the outside: certificate authorities for its store, and the platform's proxy."""

from pathlib import PurePosixPath
from typing import Final

from finetune_api import meta
from finetune_api.storage import Storage
from finetune_operator.framework.objects import Object
from finetune_operator.settings import Proxy

_FILE: Final = PurePosixPath(meta.CA_FILE)
_VOLUME: Final = "store-ca"


def ca_volumes(storage: Storage) -> list[Object]:
    """Optional, so that a missing ConfigMap does not keep the pod waiting: the stage then reports which one."""
    if storage.ca_bundle is None:
        return []
    named = storage.ca_bundle.config_map_key_ref
    source = {"name": named.name, "items": [{"key": named.key, "path": _FILE.name}], "optional": True}
    return [{"name": _VOLUME, "configMap": source}]


def ca_mounts(storage: Storage) -> list[Object]:
    """Where the container finds the certificates."""
    if storage.ca_bundle is None:
        return []
    return [{"name": _VOLUME, "mountPath": str(_FILE.parent), "readOnly": True}]


def ca_env(storage: Storage) -> list[Object]:
    """The variable by which boto3 finds them."""
    return [{"name": meta.CA_VARIABLE, "value": meta.CA_FILE}] if storage.ca_bundle else []


def proxy_env(proxy: Proxy) -> list[Object]:
    """The variables that Python's HTTP clients read; none without a proxy."""
    if not (proxy.http_proxy or proxy.https_proxy):
        return []
    values = {"HTTP_PROXY": proxy.http_proxy, "HTTPS_PROXY": proxy.https_proxy, "NO_PROXY": proxy.no_proxy}
    return [{"name": name, "value": value} for name, value in values.items() if value]
