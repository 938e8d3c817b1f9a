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
from dataclasses import dataclass
from itertools import count
from typing import Any, Final, TypeVar
from urllib.parse import quote

import httpx2

from finetune_api.push import OciTarget
from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.store.addresses import can_be_reached, is_inward
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
_TIMEOUT: Final = httpx2.Timeout(60, connect=10)
_COMMIT: Final = httpx2.Timeout(60, connect=10, read=1800)
"""Of a blob: a registry answers once it has hashed or moved it, which takes minutes for some gigabytes."""
_MAX_ANSWER: Final = 4 << 20
"""Bytes: a registry may limit manifests to 4 MiB, and everything else that is read is shorter."""
_MAX_REDIRECTS: Final = 5
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_CHALLENGE: Final = re.compile(
    r"(?P<name>[\w!#$%&'*+.^`|~-]+)(?:[ \t]*=[ \t]*(?:\"(?P<quoted>(?:[^\"\\]|\\.)*)\"|(?P<plain>[^\s,\"]+)))?"
)
"""A scheme, or a parameter of the scheme before it (RFC 9110, section 11.6.1)."""
_LONGEST_CHALLENGE: Final = 4096
_CODE: Final = re.compile(r"[A-Z][A-Z_]{1,39}")
"""What is quoted of a registry's errors: its texts may hold anything."""
_MISSING: Final = "NAME_UNKNOWN"


@dataclass(frozen=True)
class _Answer:
    """What came, and from where."""

    url: httpx2.URL
    status: int
    headers: httpx2.Headers
    content: bytes


class Registry:
    """A repository. Every method raises StageError: RegistryAccessDenied, RepositoryNotFound, PushRefused, and
    RegistryUnreachable, which is retriable."""

    def __init__(self, target: OciTarget, client: httpx2.Client, login: tuple[str, str] | None) -> None:
        self._target, self._client, self._login = target, client, login
        self._base = f"{target.registry}/v2/{target.repository}"
        self._origin = httpx2.URL(self._base).origin
        """Scheme, host and port: logins are for these alone."""
        self._authorization = ""
        self.name = self._base.partition("://")[2].replace("/v2/", "/", 1)
        """For people: host and repository."""

    @classmethod
    def connect(cls, target: OciTarget, environment: Mapping[str, str] = os.environ) -> "Registry":
        """The repository of a target, with the login of its Secret, which is in the environment.

        Raises StageError: SecretMissing, SpecInvalid if its address is none, or its certificate authorities are missing
        or no certificates.
        """
        if not can_be_reached(httpx2.URL(target.registry)):
            raise StageError(Reason.SPEC_INVALID, f"pushTo.oci.registry: {target.registry!r} is not a valid address.")
        client = httpx2.Client(
            verify=_trusted(target),
            timeout=_TIMEOUT,
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
        if answer.status == 404:
            return None
        if "html" in answer.headers.get("Content-Type", ""):
            raise self._refused(f"reading {reference}", "a web page answered instead of a registry")
        return answer.content

    def has_blob(self, digest: str, size: int) -> bool:
        """Whether a blob is there, whole."""
        return self._patiently(lambda: self._has_blob(digest, size))

    def put_blob(self, digest: str, size: int, content: Content) -> None:
        """Send a blob as one stream, of which memory holds a chunk. The registry checks the digest."""
        attempts = count()

        def send() -> None:
            # An answer that was lost, or came late, may be that of a blob which is there.
            if not (next(attempts) and self._has_blob(digest, size)):
                self._send_blob(digest, size, content)

        self._patiently(send)

    def put_manifest(self, tag: str, manifest: bytes) -> None:
        """Let a tag stand for a manifest, whose blobs are all there."""
        kind = {"Content-Type": OCI_MANIFEST}
        self._ask("PUT", f"{self._base}/manifests/{tag}", f"writing tag {tag}", headers=kind, content=manifest)

    def _has_blob(self, digest: str, size: int) -> bool:
        answer = self._once("HEAD", f"{self._base}/blobs/{digest}", f"looking for {digest[:19]}")
        return answer.status != 404 and answer.headers.get("Content-Length", str(size)) == str(size)

    def _send_blob(self, digest: str, size: int, content: Content) -> None:
        action = f"sending {digest[:19]}"
        begun = self._once("POST", f"{self._base}/blobs/uploads/", action, headers={"Content-Length": "0"})
        place = str(self._place(begun.headers.get("Location", ""), begun.url, action, "it gives", "to send it to"))
        place = f"{place}{'&' if '?' in place else '?'}digest={quote(digest, safe=':')}"
        described = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        self._once("PUT", place, action, headers=described, content=content, timeout=_COMMIT)

    def _place(self, named: str, base: httpx2.URL, action: str, it: str, what: str) -> httpx2.URL:
        """An address that the registry names. Raises StageError (PushRefused) if it is none, gives TLS up, or leads
        into the pod or its node, where other things listen than what tenancy lets a registry be."""
        if not named:
            raise self._refused(action, f"{it} no address {what}")
        try:
            place = base.join(named)
        except (httpx2.InvalidURL, ValueError):
            raise self._refused(action, f"{it} a malformed address {what}") from None
        if not can_be_reached(place):
            raise self._refused(action, f"{it} a malformed address {what}")
        if self._is_secure and place.scheme != "https":
            raise self._refused(action, f"{it} an address without TLS {what}")
        if is_inward(place.host) and not is_inward(self._origin.host):
            raise self._refused(action, f"{it} an address inside of the pod or its node ({place.host}) {what}")
        return place

    @property
    def _is_secure(self) -> bool:
        return self._target.registry.startswith("https://")

    def _ask(self, method: str, url: str, action: str, **sent: Any) -> _Answer:
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

    def _once(self, method: str, url: str, action: str, **sent: Any) -> _Answer:
        """One request, made again with a new token where the registry asks for one."""
        answer = self._followed(method, url, action, **sent)
        if answer.status == 401 and self._is_own(answer.url):
            self._authorize(answer.headers.get("WWW-Authenticate", ""), action)
            answer = self._followed(method, url, action, **sent)
        self._require_good(answer, action, reading=method in ("GET", "HEAD"))
        return answer

    def _followed(
        self, method: str, url: str, action: str, *, headers: Mapping[str, str] | None = None, **sent: Any
    ) -> _Answer:
        """The answer to a request, from where the registry keeps what is read. The login stays with the registry."""
        place = httpx2.URL(url)
        for _ in range(1 + _MAX_REDIRECTS):
            known = {"Authorization": self._authorization} if self._authorization and self._is_own(place) else {}
            answer = self._exchange(method, place, action, headers={**(headers or {}), **known}, **sent)
            if method not in ("GET", "HEAD") or answer.status not in _REDIRECTS:
                return answer
            place = self._place(answer.headers.get("Location", ""), place, action, "it gives", "to look at")
        raise self._refused(action, "it redirects without end")

    def _exchange(
        self,
        method: str,
        url: httpx2.URL,
        action: str,
        *,
        headers: Mapping[str, str],
        content: bytes | Content | None = None,
        timeout: httpx2.Timeout = _TIMEOUT,
    ) -> _Answer:
        """One request, and what answers it, up to a length."""
        body = content() if callable(content) else content
        try:
            with self._client.stream(method, url, headers=headers, content=body, timeout=timeout) as answer:
                read = bytearray()
                for chunk in answer.iter_bytes():
                    read += chunk
                    if len(read) > _MAX_ANSWER:
                        raise self._refused(action, f"its answer is longer than {_MAX_ANSWER >> 20} MiB")
                return _Answer(url, answer.status_code, answer.headers, bytes(read))
        except httpx2.HTTPError as error:
            raise self._unreachable(action, url.host, error) from None

    def _is_own(self, url: httpx2.URL) -> bool:
        return url.origin == self._origin

    def _authorize(self, challenge: str, action: str) -> None:
        """Answer what a registry asks for: user name and password themselves, or a token for them."""
        asked = _challenges(challenge)
        token = next((each for scheme, each in asked if scheme == "bearer" and each.get("realm")), None)
        if token:
            self._authorization = f"Bearer {self._token(token, action)}"
        elif self._login and any(scheme == "basic" for scheme, _ in asked):
            self._authorization = _basic(*self._login)
        elif self._login is None:
            raise self._denied(action, "it asks for a login, and secretRef names none")
        else:
            raise self._refused(action, "its login challenge is not one of OCI's")

    def _token(self, asked: Mapping[str, str], action: str) -> str:
        realm = self._place(asked["realm"], httpx2.URL(self._base), action, "it names", "for logins")
        wanted = {"service": asked.get("service", ""), "scope": f"repository:{self._target.repository}:pull,push"}
        headers = {"Authorization": _basic(*self._login)} if self._login else {}
        answer = self._exchange("GET", realm.copy_merge_params(wanted), action, headers=headers)
        if answer.status in (401, 403):
            raise self._not_let_in(answer, action)
        self._require_good(answer, action, reading=False)
        try:
            found = json.loads(answer.content)
            token = found.get("token") or found.get("access_token")
        except (ValueError, AttributeError):
            token = None
        if not isinstance(token, str) or not (token.isascii() and token.isprintable()):
            raise self._refused(action, "its token server answers without a token")
        return token

    def _require_good(self, answer: _Answer, action: str, *, reading: bool) -> None:
        """Raises StageError for what is neither done nor, where it is only read, missing."""
        status, code = answer.status, _code(answer)
        said = _said(answer)
        if status < 300:
            return
        if status in (401, 403) and self._is_own(answer.url):
            raise self._not_let_in(answer, action)
        if status in (401, 403):
            raise self._refused(action, f"{answer.url.host}, to which the registry redirects, answered {said}")
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

    def _not_let_in(self, answer: _Answer, action: str) -> StageError:
        whose = f"the login in Secret {self._target.secret_ref.name!r}" if self._target.secret_ref else "no login"
        return self._denied(action, f"the registry answered {_said(answer)} to {whose}")

    def _unreachable(self, action: str, host: str, error: Exception) -> StageError:
        """The class of the cause says enough; texts of the client may hold headers."""
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            cause = f"the TLS certificate of {host} is not trusted; for a private authority, set pushTo.oci.caBundle"
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


def _challenges(text: str) -> list[tuple[str, dict[str, str]]]:
    """The ways to log in that a ``WWW-Authenticate`` names, maybe several in one header: scheme and parameters."""
    found: list[tuple[str, dict[str, str]]] = []
    for part in _CHALLENGE.finditer(text[:_LONGEST_CHALLENGE]):
        quoted, plain = part["quoted"], part["plain"]
        if quoted is None and plain is None:
            found.append((part["name"].lower(), {}))
        elif found:
            found[-1][1][part["name"].lower()] = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
    return found


def _trusted(target: OciTarget) -> ssl.SSLContext:
    """The public authorities, and those of a bundle: a private registry may keep its blobs in a public cloud.

    Raises StageError (SpecInvalid).
    """
    context, file = httpx2.create_ssl_context(), authorities_file(target.ca_bundle, "pushTo.oci.caBundle")
    if file and target.ca_bundle:
        named = target.ca_bundle.config_map_key_ref
        try:
            context.load_verify_locations(cafile=file)
        except OSError as error:  # ssl.SSLError is one
            raise StageError(
                Reason.SPEC_INVALID,
                f"pushTo.oci.caBundle: key {named.key!r} of ConfigMap {named.name!r} holds no certificates in PEM.",
            ) from error
    return context


def _said(answer: _Answer) -> str:
    return f"{answer.status} {_code(answer)}".strip()


def _code(answer: _Answer) -> str:
    """The first error code of an answer; empty where there is none that may be quoted."""
    try:
        code = json.loads(answer.content)["errors"][0]["code"]
    except (ValueError, LookupError, TypeError):
        return ""
    return code if isinstance(code, str) and _CODE.fullmatch(code) else ""


def _wait(answer: _Answer) -> float:
    text = answer.headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else 0.0
