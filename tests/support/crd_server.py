"""Requests to an API server that knows the CRDs; they may be refused."""

from __future__ import annotations

import copy
import json
from urllib.parse import urlencode

from kubernetes import config
from pydantic import ValidationError

from finetune_api import meta
from finetune_api.base import REFUSE_RETIRED
from hack.cluster.controlplane import ControlPlane
from tests.support.crd_patterns import KINDS, Object

NAMESPACE = "default"


class CrdServer:
    """Requests to the API server under test; each returns the stored object or the server's complaint. No operator
    watches the namespace."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane
        # Below the client's generated methods, which walk through every body: that takes as long as the server does.
        self._rest = config.new_client_from_config(str(plane.kubeconfig)).rest_client

    def create(self, body: Object, dry_run: bool = True) -> Object | str:
        return self._call("POST", body, dry_run)

    def replace(self, body: Object, dry_run: bool = False) -> Object | str:
        return self._call("PUT", body, dry_run, f"/{body['metadata']['name']}")

    def replace_status(self, body: Object, dry_run: bool = False) -> Object | str:
        return self._call("PUT", body, dry_run, f"/{body['metadata']['name']}/status")

    def complaints(self, body: Object) -> list[str]:
        """Everything that the server finds wrong with an object that it is not to keep, each with its place before it:
        ``spec.replicas: Invalid value: …``; of an object that it has stored, with the status. Empty: it accepts."""
        stored = "uid" in body["metadata"]
        below = f"/{body['metadata']['name']}/status" if stored else ""
        status, answer = self.send("PUT" if stored else "POST", body, below=below)
        if status < 300:
            return []
        causes = answer.get("details", {}).get("causes")
        assert status == 422, answer
        assert causes, answer
        return [f"{each.get('field', '')}: {each['message']}" for each in causes]

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

    def _call(self, method: str, body: Object, dry_run: bool, below: str = "") -> Object | str:
        status, stored = self.send(method, body, dry_run, below)
        if status in {400, 422}:
            return str(stored["message"])
        assert status < 300, stored
        return stored

    def send(
        self, method: str, body: Object, dry_run: bool = True, below: str = "", namespace: str = NAMESPACE
    ) -> tuple[int, Object]:
        """The status of the server's answer, and what it holds."""
        place = f"/apis/{meta.API_VERSION}/namespaces/{namespace}/{KINDS[body['kind']].plural}{below}"
        query = urlencode({"fieldValidation": "Strict"} | ({"dryRun": "All"} if dry_run else {}))
        headers = {"Content-Type": "application/json"}
        answer = self._rest.request(method, f"{self.plane.url}{place}?{query}", headers=headers, body=body).response
        return answer.status, json.loads(answer.data)


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
