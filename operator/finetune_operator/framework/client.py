"""The Kubernetes API in seven verbs and two streams, on plain JSON objects.

The official client brings configuration, authentication, TLS and pooled connections; its generated models are left
out, because they take most of a call's time and blur unset and null fields. Every call has its own content type and
timeout: the client has no default timeout, and its default patch is a strategic merge.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import quote, urlencode

import urllib3
from kubernetes import client, config

from finetune_operator.framework.metrics import api_call
from finetune_operator.framework.objects import Object, Resource

TIMEOUT: Final = (5.0, 30.0)
"""Seconds to connect and to wait for the answer."""
PAGE: Final = 500
"""Objects per page of a list."""
SILENCE: Final = 150.0
"""Seconds without a word after which a watch counts as broken: the API server sends a bookmark every minute."""

MERGE_PATCH: Final = "application/merge-patch+json"
APPLY_PATCH: Final = "application/apply-patch+yaml"
_FORGETS: Final = "custom resource definition is terminating"


class ApiError(Exception):
    """The API server refused, failed or did not answer (status 0). The message is the server's own."""

    def __init__(self, status: int, reason: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"{status} {reason}: {message}" if status else message)
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after
        """Seconds that the server asks the client to wait."""

    @property
    def already_exists(self) -> bool:
        """A create met an object of the same name."""
        return self.status == 409 and self.reason == "AlreadyExists"

    @property
    def conflict(self) -> bool:
        """A write was based on an outdated object, or on one that was replaced."""
        return self.status == 409 and self.reason == "Conflict"

    @property
    def passes(self) -> bool:
        """The API server was busy, was not there, had yet to prepare for a kind that it has just learned of, or was
        about to forget one."""
        return self.status in (0, 429) or self.status >= 500 or _FORGETS in self.message

    @property
    def expired(self) -> bool:
        """The API server no longer knows the version from which a list or a watch was to go on."""
        return self.status == 410


@dataclass(frozen=True)
class Selection:
    """The objects that a stream shows."""

    resource: Resource
    namespace: str | None
    """None: all namespaces."""
    labels: str = ""
    """A label selector."""


class Page(NamedTuple):
    """A part of a LIST."""

    items: list[Object]
    version: int
    """The resource version of the whole LIST, from which a watch goes on."""


class Change(NamedTuple):
    """What a watch shows."""

    type: str
    """ADDED, MODIFIED, DELETED or BOOKMARK, which has no object but its version."""
    object: Object


class KubeClient(Protocol):
    """What the operator asks of the API. All verbs block and raise ApiError; ``namespace`` None means all."""

    def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        """One object, or None if there is none."""

    def select(self, resource: Resource, namespace: str | None, labels: str = "", fields: str = "") -> list[Object]:
        """All objects that match both selectors."""

    def create(self, resource: Resource, body: Object) -> Object:
        """Create the object in the namespace of its metadata; returns it as stored."""

    def apply(self, resource: Resource, body: Object, field_manager: str) -> Object:
        """Server-side apply (forced) in the namespace of its metadata; returns the object as stored."""

    def patch(self, resource: Resource, namespace: str, name: str, body: Object) -> Object:
        """Merge patch; a ``metadata.resourceVersion`` in the body makes it conditional."""

    def patch_status(self, resource: Resource, namespace: str, name: str, body: Object) -> Object:
        """Merge patch of the status subresource."""

    def delete(self, resource: Resource, namespace: str, name: str, uid: str) -> None:
        """Delete with background propagation if the uid is still this one; gone already is success."""


class StreamClient(KubeClient, Protocol):
    """The same with streams, which informers read. Both iterators raise ApiError."""

    def pages(self, selection: Selection, limit: int = PAGE) -> Iterator[Page]:
        """All objects as they are now, page by page."""

    def watch(self, selection: Selection, version: int, seconds: int) -> Iterator[Change]:
        """What changes after a version, for some seconds. Raises ApiError too when the API server reports an error."""


class HttpKubeClient:
    """``KubeClient`` over HTTP. Safe for use by ``connections`` threads at a time."""

    def __init__(
        self,
        configuration: client.Configuration,
        connections: int,
        may_write: Callable[[], None] | None = None,
        timeout: tuple[float, float] = TIMEOUT,
    ) -> None:
        """``may_write`` is called right before each write and raises ApiError to prevent it."""
        configuration.connection_pool_maxsize = connections
        # The work queue retries with backoff; hidden retries would only occupy its workers.
        configuration.retries = False
        self._api = client.ApiClient(configuration)
        self._host = configuration.host
        self._may_write = may_write
        self._timeout = timeout

    def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        try:
            return self._call("GET", _path(resource, namespace, name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def select(self, resource: Resource, namespace: str | None, labels: str = "", fields: str = "") -> list[Object]:
        selection = Selection(resource, namespace, labels)
        return [found for page in self._pages(selection, {"limit": PAGE}, fields) for found in page.items]

    def pages(self, selection: Selection, limit: int = PAGE) -> Iterator[Page]:
        return self._pages(selection, {"limit": limit})

    def watch(self, selection: Selection, version: int, seconds: int) -> Iterator[Change]:
        query: dict[str, Any] = {"watch": "true", "allowWatchBookmarks": "true"}
        query |= {"resourceVersion": version, "timeoutSeconds": seconds}
        path = _path(selection.resource, selection.namespace)
        with self._opened("GET", _with_query(path, query, selection.labels), read_seconds=SILENCE) as response:
            for line in response:
                change = json.loads(line)
                if change["type"] == "ERROR":
                    raise _refused(change["object"])
                yield Change(change["type"], change["object"])

    def create(self, resource: Resource, body: Object) -> Object:
        return self._call("POST", _path(resource, body["metadata"]["namespace"]), body)

    def apply(self, resource: Resource, body: Object, field_manager: str) -> Object:
        metadata = body["metadata"]
        path = _path(resource, metadata["namespace"], metadata["name"])
        query = {"fieldManager": field_manager, "force": "true"}
        return self._call("PATCH", f"{path}?{urlencode(query)}", body, APPLY_PATCH)

    def patch(self, resource: Resource, namespace: str, name: str, body: Object) -> Object:
        return self._call("PATCH", _path(resource, namespace, name), body, MERGE_PATCH)

    def patch_status(self, resource: Resource, namespace: str, name: str, body: Object) -> Object:
        return self._call("PATCH", f"{_path(resource, namespace, name)}/status", body, MERGE_PATCH)

    def delete(self, resource: Resource, namespace: str, name: str, uid: str) -> None:
        options = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        try:
            self._call("DELETE", _path(resource, namespace, name), options)
        except ApiError as error:
            # A Conflict is the precondition: another object has the name now, so this one is gone.
            if error.status != 404 and not error.conflict:
                raise

    def _pages(self, selection: Selection, query: dict[str, Any], fields: str = "") -> Iterator[Page]:
        path = _path(selection.resource, selection.namespace)
        while True:
            page = self._call("GET", _with_query(path, query, selection.labels, fields))
            yield Page(page["items"], int(page["metadata"].get("resourceVersion") or 0))
            query["continue"] = page["metadata"].get("continue")
            if not query["continue"]:
                return

    def _call(self, method: str, path: str, body: Object | None = None, content: str = "application/json") -> Object:
        with self._opened(method, path, body, content) as response:
            parsed: Object = json.loads(response.data)
        return parsed

    @contextmanager
    def _opened(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        content: str = "application/json",
        read_seconds: float | None = None,
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        """The answer to a request, while it is read. What goes wrong on the way becomes an ApiError."""
        headers = {"Accept": "application/json", "Content-Type": content, "User-Agent": "finetune-operator"}
        self._api.update_params_for_auth(headers, None, ["BearerToken"], path, method, body)
        if self._may_write is not None and method != "GET":
            self._may_write()
        response = None
        try:
            with api_call(method, path) as call:
                response = self._api.rest_client.request(
                    method,
                    self._host + path,
                    headers=headers,
                    body=body,
                    _request_timeout=(self._timeout[0], read_seconds or self._timeout[1]),
                ).response
                call.code = response.status
            if response.status >= 400:
                raise _error(response.status, response.reason, response.data, response.headers.get("Retry-After"))
            yield response
        except (urllib3.exceptions.HTTPError, client.ApiException) as error:
            raise ApiError(0, type(error).__name__, f"no answer to {method} {path}: {type(error).__name__}") from error
        finally:
            if response is not None:
                _give_back(response)


def _give_back(response: urllib3.BaseHTTPResponse) -> None:
    """A connection of which all was read goes back to the pool; one of a watch that was left is closed."""
    if response.closed:
        response.release_conn()
    else:
        response.close()


def load_configuration() -> client.Configuration:
    """The pod's service account, else the kubeconfig; raises ``kubernetes.config.ConfigException`` without both."""
    configuration = client.Configuration()
    try:
        config.load_incluster_config(client_configuration=configuration)
    except config.ConfigException:
        config.load_kube_config(client_configuration=configuration)
    return configuration


def _path(resource: Resource, namespace: str | None, name: str = "") -> str:
    root = "/api/v1" if resource.api_version == "v1" else f"/apis/{resource.api_version}"
    scope = f"/namespaces/{quote(namespace, safe='')}" if namespace else ""
    return f"{root}{scope}/{resource.plural}" + (f"/{quote(name, safe='')}" if name else "")


def _with_query(path: str, query: dict[str, Any], labels: str = "", fields: str = "") -> str:
    given = {name: value for name, value in query.items() if value is not None}
    selectors = {"labelSelector": labels, "fieldSelector": fields}
    return f"{path}?{urlencode(given | {name: value for name, value in selectors.items() if value})}"


def _refused(status: Object) -> ApiError:
    """The error that a watch reports, a Status object."""
    return ApiError(status.get("code") or 500, status.get("reason") or "", status.get("message") or "the watch failed")


def _error(status: int, reason: str, answer: bytes, retry_after: str | None) -> ApiError:
    try:
        said = json.loads(answer)
        details = said.get("details") or {}
        seconds = retry_after or details.get("retryAfterSeconds")
        return ApiError(status, said.get("reason") or reason, said.get("message") or reason, _seconds(seconds))
    except (ValueError, AttributeError):
        return ApiError(status, reason, answer[:200].decode(errors="replace"), _seconds(retry_after))


def _seconds(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
