"""An API server that holds nothing but the CRDs, and requests to it that may be refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager

from kubernetes import client, config
from pydantic import ValidationError

from finetune_api import crdgen, meta
from finetune_api.base import REFUSE_RETIRED
from hack.cluster.controlplane import ControlPlane
from tests.support.crd_patterns import KINDS, Object

NAMESPACE = "default"


class CrdServer:
    """Requests to the API server under test; each returns the stored object or the server's complaint."""

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[CrdServer]:
        """A server of its own, which knows the CRDs as the models are now, generated or not."""
        with ControlPlane.temporary() as plane:
            for kind in crdgen.KINDS:
                plane.kubectl("apply", "-f", "-", stdin=crdgen.text(kind))
            for kind in crdgen.KINDS:
                name = f"{kind.plural}.{meta.GROUP}"
                plane.kubectl("wait", "--for=condition=Established", f"crd/{name}", "--timeout=30s")
            yield cls(plane)

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane
        self._objects = client.CustomObjectsApi(config.new_client_from_config(str(plane.kubeconfig)))

    def create(self, body: Object, dry_run: bool = True) -> Object | str:
        return self._call("create_namespaced_custom_object", body, dry_run)

    def replace(self, body: Object, dry_run: bool = False) -> Object | str:
        return self._call("replace_namespaced_custom_object", body, dry_run, body["metadata"]["name"])

    def replace_status(self, body: Object, dry_run: bool = False) -> Object | str:
        return self._call("replace_namespaced_custom_object_status", body, dry_run, body["metadata"]["name"])

    def fresh(self, body: Object) -> Object:
        """Create the object under a name that no other test uses, with the status that it holds."""
        body = copy.deepcopy(body)
        del body["metadata"]["name"]
        body["metadata"]["generateName"] = "fresh-"
        stored = self.create(body, dry_run=False)
        assert isinstance(stored, dict), stored
        if "status" in body:
            stored = self.replace_status(stored | {"status": body["status"]})
            assert isinstance(stored, dict), stored
        return stored

    def _call(self, method: str, body: Object, dry_run: bool, *name: str) -> Object | str:
        plural = KINDS[body["kind"]].plural
        options = {"field_validation": "Strict"} | ({"dry_run": "All"} if dry_run else {})
        try:
            stored: Object = getattr(self._objects, method)(
                meta.GROUP, meta.VERSION, NAMESPACE, plural, *name, body=body, **options
            )
        except client.ApiException as error:
            if error.status not in {400, 422}:
                raise
            return str(json.loads(error.body)["message"])
        return stored


def judge(answer: Object | str, complaint: str | None) -> None:
    """The answer is a stored object, or else holds the complaint."""
    if complaint is None:
        assert isinstance(answer, dict), answer
    else:
        assert isinstance(answer, str), "accepted"
        assert complaint in answer


def complaint_of_the_model(body: Object) -> str | None:
    """What the model says to a spec; None: it accepts."""
    try:
        KINDS[body["kind"]].spec.model_validate(body["spec"], context=REFUSE_RETIRED)
    except ValidationError as error:
        return str(error)
    return None
