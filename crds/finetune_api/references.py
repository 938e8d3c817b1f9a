"""References to Secrets and ConfigMaps of the resource's own namespace: one shape for each, wherever one is named.

``secretKeyRef`` and ``configMapKeyRef`` name one value. ``secretRef`` names a whole Secret, for a fixed set of keys
that its field lists. Pods read what is referred to; the operator never does.
"""

from typing import Annotated, Final

from finetune_api.base import ApiModel
from finetune_api.spelled import spelled

OBJECT_NAME: Final = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
DATA_KEY: Final = r"^\.?[-_a-zA-Z0-9][-._a-zA-Z0-9]*$"

SECRET_PREFIX: Final = "FINETUNE_SECRET."
"""How the environment variables of a stage begin that hold a Secret's value."""

ObjectName = Annotated[
    str,
    spelled(
        OBJECT_NAME,
        "write lower-case letters, digits, - and ., starting and ending with a letter or digit",
        min_length=1,
        max_length=253,
    ),
]
"""Name of an object of Kubernetes."""
_Key = Annotated[
    str,
    spelled(DATA_KEY, "write letters, digits, -, _ and ., not starting with two points", min_length=1, max_length=253),
]


class SecretKeyRef(ApiModel):
    """A key of a Secret of the same namespace. Pods read it; the operator never does."""

    name: ObjectName
    """Name of the Secret, in the namespace of this resource."""
    key: _Key
    """Key of the Secret."""

    @property
    def variable(self) -> str:
        """Environment variable of a stage with the value: another one for each key of each Secret, because no name of a
        Secret contains an underscore."""
        return f"{SECRET_PREFIX}{self.name}_{self.key}"


class SecretRef(ApiModel):
    """A Secret of the same namespace, with fixed keys. Pods read it; the operator never does."""

    name: ObjectName
    """Name of the Secret, in the namespace of this resource."""

    def at(self, key: str) -> SecretKeyRef:
        """The reference to one of its keys."""
        return SecretKeyRef(name=self.name, key=key)


class ConfigMapKeyRef(ApiModel):
    """A key of a ConfigMap of the same namespace."""

    name: ObjectName
    """Name of the ConfigMap, in the namespace of this resource."""
    key: _Key
    """Key of the ConfigMap."""
