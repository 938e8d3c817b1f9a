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
        """Labels of all children. They are found by those of the owner; managed-by is for people and other tools."""
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


def controller_of(child: Object) -> Object:
    """The reference to the object's controller: a pod's ReplicaSet or Job, an EndpointSlice's Service; empty without.

    Anybody may put our labels on a pod. The API server's controllers alone set this reference on what they made.
    """
    return next(iter(_controllers(child)), {})


def controller_uid(child: Object) -> str:
    """Uid of the object's controller; empty without one."""
    return str(controller_of(child).get("uid", ""))


def owner_key(child: Object) -> Key | None:
    """What a child's labels name as its owner, or None for an object of somebody else. The kind may be unknown."""
    metadata = child["metadata"]
    labels = metadata.get("labels") or {}
    kind, name = labels.get(meta.LABEL_OWNER_KIND), labels.get(meta.LABEL_OWNER_NAME)
    return Key(kind, metadata["namespace"], name) if kind and name else None
