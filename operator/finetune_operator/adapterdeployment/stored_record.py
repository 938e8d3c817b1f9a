"""What each revision's pods are made of, kept in a ControllerRevision. Pure.

The record is written before a revision's first pod. From then on its pods are made from it, whatever a later release
would make of the same choice, and whatever the platform's values say by then. So an upgrade of the operator moves no
endpoint, and an earlier revision can be started again exactly as it was proved.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from pydantic import ValidationError

from finetune_api import meta
from finetune_api.storage import Storage
from finetune_operator.framework.objects import CONTROLLER_REVISIONS, Object
from finetune_operator.framework.ownership import Owner
from finetune_operator.resources.deployment import Adapter, Serving, deployment_name
from finetune_operator.settings import Runtime


@dataclass(frozen=True)
class Record:
    """A revision, and everything that makes its pods."""

    revision: str
    number: int
    """Counts the revisions of an AdapterDeployment."""
    choice: str
    """Identity of what users and the admin chose (``choice_of``)."""
    serving: Serving
    template: Object
    """The pod template of its Deployment."""
    input_name: str
    """Name of the ConfigMap that ``fetch`` reads."""
    input_labels: Mapping[str, str]
    input_data: Mapping[str, str]

    def input_config_map(self, owner: Owner) -> Object:
        """The input of ``fetch``; immutable."""
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": owner.metadata(self.input_name, dict(self.input_labels)),
            "immutable": True,
            "data": dict(self.input_data),
        }

    def controller_revision(self, owner: Owner) -> Object:
        """The record as the API server keeps it; ``data`` is immutable there."""
        serving = self.serving
        return {
            "apiVersion": CONTROLLER_REVISIONS.api_version,
            "kind": CONTROLLER_REVISIONS.kind,
            "metadata": owner.metadata(deployment_name(owner, self.revision), {meta.LABEL_REVISION: self.revision}),
            "revision": self.number,
            "data": {
                "choice": self.choice,
                "artifact": {"uri": serving.artifact_uri, "digest": serving.artifact_digest},
                **({"fetchedBytes": serving.fetched_bytes} if serving.fetched_bytes else {}),
                **({"adapters": [asdict(each) for each in serving.adapters]} if serving.adapters else {}),
                "storage": serving.storage.model_dump(mode="json", by_alias=True, exclude_defaults=True),
                "publicKeys": list(serving.public_keys),
                **({"apiKeysSecret": serving.api_keys_secret} if serving.api_keys_secret else {}),
                **({"tlsSecret": serving.tls_secret} if serving.tls_secret else {}),
                "runtimeName": serving.runtime_name,
                "runtime": serving.runtime.model_dump(mode="json", by_alias=True, exclude_defaults=True),
                "template": self.template,
                "input": {
                    "name": self.input_name,
                    "labels": dict(self.input_labels),
                    "data": dict(self.input_data),
                },
            },
        }


def read_record(found: Object) -> Record | None:
    """A stored record; None for one of another version that lacks what this one needs."""
    data = found.get("data") or {}
    try:
        return Record(
            revision=found["metadata"]["labels"][meta.LABEL_REVISION],
            number=int(found["revision"]),
            choice=data["choice"],
            serving=Serving(
                data["artifact"]["uri"],
                data["artifact"]["digest"],
                Storage.model_validate(data["storage"], extra="ignore"),
                data["runtimeName"],
                Runtime.model_validate(data["runtime"], extra="ignore"),
                tuple(data["publicKeys"]),
                data.get("apiKeysSecret", ""),
                tuple(Adapter(**each) for each in data.get("adapters", [])),
                int(data.get("fetchedBytes", 0)),
                data.get("tlsSecret", ""),
            ),
            template=data["template"],
            input_name=data["input"]["name"],
            input_labels=data["input"]["labels"],
            input_data=data["input"]["data"],
        )
    except (KeyError, TypeError, ValidationError):
        return None
