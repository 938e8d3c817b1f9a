"""The labels and the owner reference that tie every child to its custom resource."""

from dataclasses import dataclass
from typing import NamedTuple

from finetune_api import meta
from finetune_api.base import ObjectMeta
from finetune_operator.framework.objects import Object, Resource


class Key(NamedTuple):
    """Names one custom resource in the work queue and the cache."""

    kind: str
    namespace: str
    name: str


@dataclass(frozen=True)
class Owner:
    """The custom resource that children belong to."""

    resource: Resource
    namespace: str
    name: str
    uid: str

    @classmethod
    def of(cls, resource: Resource, metadata: ObjectMeta) -> "Owner":
        """The owner that a custom resource's metadata describes."""
        return cls(resource, metadata.namespace, metadata.name, metadata.uid)

    @property
    def key(self) -> Key:
        """The owner in the work queue."""
        return Key(self.resource.kind, self.namespace, self.name)

    @property
    def labels(self) -> dict[str, str]:
        """Labels by which all children are found."""
        return {
            meta.LABEL_MANAGED_BY: meta.MANAGED_BY,
            meta.LABEL_OWNER_KIND: self.resource.kind,
            meta.LABEL_OWNER_NAME: self.name,
        }

    @property
    def selector(self) -> str:
        """The same as a label selector."""
        return ",".join(f"{name}={value}" for name, value in self.labels.items())

    def metadata(self, name: str, labels: dict[str, str] | None = None) -> Object:
        """Metadata of a child. ``labels`` come on top of the owner's."""
        return {
            "name": name,
            "namespace": self.namespace,
            "labels": self.labels | (labels or {}),
            "ownerReferences": [
                {
                    "apiVersion": self.resource.api_version,
                    "kind": self.resource.kind,
                    "name": self.name,
                    "uid": self.uid,
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        }

    def owns(self, child: Object) -> bool:
        """Whether this resource is the child's controller, not an earlier one of the same name."""
        return any(reference["uid"] == self.uid for reference in _controllers(child))

    def outlived(self, child: Object) -> bool:
        """Whether the child belongs to a deleted resource of this name: the garbage collector will delete it."""
        kind = (meta.GROUP, self.resource.kind, self.name)
        found = [(each["apiVersion"].partition("/")[0], each["kind"], each["name"]) for each in _controllers(child)]
        return kind in found and not self.owns(child)


def _controllers(child: Object) -> list[Object]:
    return [each for each in child["metadata"].get("ownerReferences") or [] if each.get("controller")]


def owner_key(child: Object) -> Key | None:
    """The custom resource that a child's labels name, or None for an object of somebody else."""
    metadata = child["metadata"]
    labels = metadata.get("labels") or {}
    kind, name = labels.get(meta.LABEL_OWNER_KIND), labels.get(meta.LABEL_OWNER_NAME)
    if labels.get(meta.LABEL_MANAGED_BY) != meta.MANAGED_BY or not kind or not name:
        return None
    return Key(kind, metadata["namespace"], name)
