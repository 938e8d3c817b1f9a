"""A repository of an OCI registry: the few calls of the distribution spec that a push needs.

https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md; tokens as
https://distribution.github.io/distribution/spec/auth/token/ describes them. oras-py was not taken: it reads each blob
into memory (decision 54).
"""

import hashlib
import json
import logging
import os
import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeVar
from urllib.parse import quote

import httpx2

from finetune_api.push import OciTarget
from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.store.authorities import authorities_file

log = logging.getLogger(__name__)

T = TypeVar("T")
Content = Callable[[], Iterator[bytes]]
"""Gives the bytes of a blob, from the beginning each time."""

OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
_READ: Final = (
    OCI_MANIFEST,
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "*/*",
)
"""What may stand under a tag: registries do not show what a client does not accept, and a push would replace it."""
_PAUSES: Final = (1.0, 4.0, 16.0)
"""Seconds between attempts."""
_LONGEST_WAIT: Final = 60.0
"""A registry that asks for a longer wait ends the attempts: the stage is tried again later."""
_PASSING: Final = frozenset({408, 425, 429})
_CHALLENGE: Final = re.compile(r'([a-z]+)="([^"]*)"')
_CODE: Final = re.compile(r"[A-Z][A-Z_]{1,39}")
"""What is quoted of a registry's errors: its texts may hold anything."""
_MISSING: Final = "NAME_UNKNOWN"


class Registry:
    """A repository. Every method raises StageError: RegistryAccessDenied, RepositoryNotFound, PushRefused, and
    RegistryUnreachable, which is retriable."""

    def __init__(self, target: OciTarget, client: httpx2.Client, login: tuple[str, str] | None) -> None:
        self._target, self._client, self._login = target, client, login
        self._base = f"{target.registry}/v2/{target.repository}"
        self._authorization = ""
        self.name = self._base.partition("://")[2].replace("/v2/", "/", 1)
        """For people: host and repository."""

    @classmethod
    def connect(cls, target: OciTarget, environment: Mapping[str, str] = os.environ) -> "Registry":
        """The repository of a target, with the login of its Secret, which is in the environment.

        Raises StageError: SecretMissing, SpecInvalid if its certificate authorities are missing.
        """
        file = authorities_file(target.ca_bundle, "pushTo.oci.caBundle")
        client = httpx2.Client(
            verify=ssl.create_default_context(cafile=file) if file else True,
            timeout=httpx2.Timeout(60, connect=10),
            headers={"User-Agent": "finetune-operator"},
        )
        return cls(target, client, _login(target, environment))

    def close(self) -> None:
        """End the connections."""
        self._client.close()

    def manifest(self, reference: str) -> bytes | None:
        """What stands under a tag or digest, whatever it is; None: nothing."""
        asked = {"Accept": ", ".join(_READ)}
        answer = self._ask("GET", f"{self._base}/manifests/{reference}", f"reading {reference}", headers=asked)
        if answer.status_code == 404:
            return None
        if "html" in answer.headers.get("Content-Type", ""):
            raise self._refused(f"reading {reference}", "a web page answers, no registry")
        return answer.content

    def has_blob(self, digest: str, size: int) -> bool:
        """Whether a blob is there, whole."""
        answer = self._ask("HEAD", f"{self._base}/blobs/{digest}", f"looking for {digest[:19]}")
        return answer.status_code != 404 and answer.headers.get("Content-Length", str(size)) == str(size)

    def put_blob(self, digest: str, size: int, content: Content) -> None:
        """Send a blob as one stream, of which memory holds a chunk. The registry checks the digest."""
        self._patiently(lambda: self._send_blob(digest, size, content))

    def put_manifest(self, tag: str, manifest: bytes) -> None:
        """Let a tag stand for a manifest, whose blobs are all there."""
        kind = {"Content-Type": OCI_MANIFEST}
        self._ask("PUT", f"{self._base}/manifests/{tag}", f"writing tag {tag}", headers=kind, content=manifest)

    def _send_blob(self, digest: str, size: int, content: Content) -> None:
        action = f"sending {digest[:19]}"
        begun = self._once("POST", f"{self._base}/blobs/uploads/", action, headers={"Content-Length": "0"})
        place = self._place(begun.headers.get("Location", ""), action)
        place = f"{place}{'&' if '?' in place else '?'}digest={quote(digest, safe=':')}"
        described = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        self._once("PUT", place, action, headers=described, content=content)

    def _place(self, location: str, action: str) -> str:
        """Where a blob goes to, as the registry says."""
        place = str(httpx2.URL(f"{self._base}/blobs/uploads/").join(location)) if location else ""
        if not place or (self._is_secure and not place.startswith("https://")):
            found = "an address without TLS" if place else "no address"
            raise self._refused(action, f"it gives {found} to send it to")
        return place

    @property
    def _is_secure(self) -> bool:
        return self._target.registry.startswith("https://")

    def _ask(self, method: str, url: str, action: str, **sent: Any) -> httpx2.Response:
        return self._patiently(lambda: self._once(method, url, action, **sent))

    def _patiently(self, work: Callable[[], T]) -> T:
        """The result of a request that may be made again, with pauses."""
        for pause in (*_PAUSES, None):
            try:
                return work()
            except StageError as error:
                wait = max(pause or 0.0, error.wait if isinstance(error, _PassingError) else 0.0)
                if not error.retriable or pause is None or wait > _LONGEST_WAIT:
                    raise
                log.info("%s Next attempt in %.0f s.", error.message, wait)
                time.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def _once(
        self,
        method: str,
        url: str,
        action: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes | Content | None = None,
    ) -> httpx2.Response:
        """One request, made again with a new token where the registry asks for one."""
        for fresh in (False, True):
            body = content() if callable(content) else content
            own = httpx2.URL(url).netloc == httpx2.URL(self._base).netloc
            known = {"Authorization": self._authorization} if self._authorization and own else {}
            try:
                answer = self._client.request(
                    method,
                    url,
                    headers={**(headers or {}), **known},
                    content=body,
                    follow_redirects=method in ("GET", "HEAD"),  # to where a registry keeps its blobs
                )
            except httpx2.HTTPError as error:
                raise self._unreachable(action, error) from None
            if answer.status_code != 401 or fresh or not own:
                break
            self._authorize(answer.headers.get("WWW-Authenticate", ""), action)
        self._require_good(answer, action, reading=method in ("GET", "HEAD"))
        return answer

    def _authorize(self, challenge: str, action: str) -> None:
        """Answer what a registry asks for: user name and password themselves, or a token for them."""
        scheme, _, rest = challenge.partition(" ")
        asked = dict(_CHALLENGE.findall(rest))
        if scheme.lower() == "basic" and self._login:
            self._authorization = _basic(*self._login)
        elif scheme.lower() == "bearer" and asked.get("realm"):
            self._authorization = f"Bearer {self._token(asked, action)}"
        elif self._login is None:
            raise self._denied(action, "it asks for a login, and secretRef names none")
        else:
            raise self._refused(action, "it asks for a login in a way that is none of OCI's")

    def _token(self, asked: Mapping[str, str], action: str) -> str:
        realm = asked["realm"]
        if self._is_secure and not realm.startswith("https://"):
            raise self._refused(action, "it sends logins to an address without TLS")
        wanted = {"service": asked.get("service", ""), "scope": f"repository:{self._target.repository}:pull,push"}
        headers = {"Authorization": _basic(*self._login)} if self._login else {}
        try:
            answer = self._client.get(realm, params=wanted, headers=headers)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise self._unreachable(action, error) from None
        self._require_good(answer, action, reading=False)
        try:
            found = answer.json()
            token = found.get("token") or found.get("access_token")
        except (ValueError, AttributeError):
            token = None
        if not isinstance(token, str) or not (token.isascii() and token.isprintable()):
            raise self._refused(action, "its token server answers without a token")
        return token

    def _require_good(self, answer: httpx2.Response, action: str, *, reading: bool) -> None:
        """Raises StageError for what is neither done nor, where it is only read, missing."""
        status, code = answer.status_code, _code(answer)
        said = f"{status} {code}".strip()
        if status < 300:
            return
        if status in (401, 403):
            whose = f"the login in Secret {self._target.secret_ref.name!r}" if self._target.secret_ref else "no login"
            raise self._denied(action, f"the registry answered {said} to {whose}")
        if status == 404 and reading:
            return
        if status == 404 and code in ("", _MISSING):
            raise StageError(
                Reason.REPOSITORY_NOT_FOUND, f"{self.name}: {action} failed: the registry has no such repository."
            )
        if status in _PASSING or status >= 500:
            raise _PassingError(f"{self.name}: {action} failed: the registry answered {said}.", _wait(answer))
        raise self._refused(action, f"the registry answered {said}")

    def _refused(self, action: str, cause: str) -> StageError:
        return StageError(Reason.PUSH_REFUSED, f"{self.name}: {action} failed: {cause}.")

    def _denied(self, action: str, cause: str) -> StageError:
        return StageError(Reason.REGISTRY_ACCESS_DENIED, f"{self.name}: {action} failed: {cause}.")

    def _unreachable(self, action: str, error: Exception) -> StageError:
        """The class of the cause says enough; texts of the client may hold headers."""
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            cause = "its TLS certificate is not trusted; for a private authority, set pushTo.oci.caBundle"
        elif isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
            cause = "the registry cannot be reached (name, connection or network policy)"
        else:
            cause = f"the connection broke ({type(error).__name__})"
        return _PassingError(f"{self.name}: {action} failed: {cause}.")


class _PassingError(StageError):
    """It may go better later."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(Reason.REGISTRY_UNREACHABLE, message, retriable=True)
        self.wait = wait
        """Seconds that the registry asks for."""


def sha256_digest(content: bytes) -> str:
    """How OCI names content."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _login(target: OciTarget, environment: Mapping[str, str]) -> tuple[str, str] | None:
    """User name and password, without the line break in which Secrets made from files end."""
    if target.secret_ref is None:
        return None
    values = [environment.get(reference.variable, "").strip() for reference in target.login]
    for reference, value in zip(target.login, values, strict=True):
        if not value:
            raise StageError(
                Reason.SECRET_MISSING,
                f"{reference.variable} is empty: Secret {reference.name!r} must contain the login of the registry "
                f"{target.registry} under {reference.key!r}.",
            )
    return values[0], values[1]


def _basic(name: str, password: str) -> str:
    request = httpx2.Request("GET", "https://registry.invalid")
    return next(httpx2.BasicAuth(name, password).auth_flow(request)).headers["Authorization"]


def _code(answer: httpx2.Response) -> str:
    """The first error code of an answer; empty where there is none that may be quoted."""
    try:
        code = json.loads(answer.content)["errors"][0]["code"]
    except (ValueError, LookupError, TypeError):
        return ""
    return code if isinstance(code, str) and _CODE.fullmatch(code) else ""


def _wait(answer: httpx2.Response) -> float:
    text = answer.headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else 0.0
