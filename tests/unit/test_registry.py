"""The client of OCI registries: logins, what it makes of every refusal, and what it never sends or says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from finetune_api.push import COPY_DIGEST, OciTarget
from finetune_api.reasons import Reason
from finetune_api.references import SecretRef
from finetune_jobs.base.errors import StageError
from finetune_jobs.store import registry as module
from finetune_jobs.store.registry import Registry, sha256_digest
from tests.support.registry import PASSWORD, USER, Fault, MemoryRegistry, says
from tests.support.sentences import assert_says
from tests.support.tls_store import private_authority

pytestmark = pytest.mark.unit

BLOB = b"weights" * 1000
DIGEST = sha256_digest(BLOB)
OPEN = OciTarget(registry="http://registry.test:5000", repository="acme/support")
CLOSED = OPEN.model_copy(update={"registry": "https://registry.test", "secret_ref": SecretRef(name="login")})


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSES", (0.0, 0.0, 0.0))


def chunks() -> Iterator[bytes]:
    yield from (BLOB[begin : begin + 999] for begin in range(0, len(BLOB), 999))


def send(server: MemoryRegistry, target: OciTarget = OPEN) -> None:
    """A blob and a manifest."""
    client = server.connect(target)
    assert not client.has_blob(DIGEST, len(BLOB))
    client.put_blob(DIGEST, len(BLOB), chunks)
    assert client.has_blob(DIGEST, len(BLOB))
    described = {"digest": DIGEST, "size": len(BLOB)}
    manifest = json.dumps({"config": described, "layers": [described]}).encode()
    assert client.manifest("v1") is None
    client.put_manifest("v1", manifest)
    assert client.manifest("v1") == manifest


@pytest.mark.parametrize("auth", ["", "basic", "bearer"])
def test_a_push_with_each_kind_of_login(auth: str) -> None:
    server = MemoryRegistry(auth)
    send(server, CLOSED if auth else OPEN)
    assert server.blobs == {DIGEST: BLOB}
    assert server.tokens == (auth == "bearer"), "one token for all of it"


def test_a_token_that_expires_is_replaced() -> None:
    server = MemoryRegistry("bearer")
    client = server.connect(CLOSED)
    assert client.manifest("v1") is None
    server.tokens += 1  # the one before is good no more
    client.put_blob(DIGEST, len(BLOB), chunks)
    assert (server.tokens, server.blobs) == (3, {DIGEST: BLOB})


def fails(times: int, answer: httpx2.Response | Exception, method: str = "PUT") -> Fault:
    """So often, whatever is asked by this method; then no more."""
    left = [times]

    def fault(request: httpx2.Request) -> httpx2.Response | None:
        if request.method != method or not left[0]:
            return None
        left[0] -= 1
        if isinstance(answer, Exception):
            raise answer
        return answer

    return fault


@pytest.mark.parametrize(
    "answer",
    [says(503), says(429, "TOOMANYREQUESTS", {"Retry-After": "0"}), httpx2.ReadError("lost"), httpx2.ConnectError("x")],
    ids=["503", "429", "lost", "not there"],
)
def test_what_passes_is_tried_again(answer: httpx2.Response | Exception) -> None:
    """A blob from its beginning."""
    server = MemoryRegistry(fault=fails(3, answer))
    send(server)
    assert server.blobs == {DIGEST: BLOB}
    with pytest.raises(StageError) as error:
        send(MemoryRegistry(fault=fails(99, answer)))
    assert (error.value.reason, error.value.retriable) == (Reason.REGISTRY_UNREACHABLE, True)


def test_a_registry_that_asks_for_a_long_wait_is_left_alone() -> None:
    server = MemoryRegistry(fault=fails(99, says(429, "TOOMANYREQUESTS", {"Retry-After": "3600"}), "HEAD"))
    with pytest.raises(StageError, match="429 TOOMANYREQUESTS"):
        send(server)
    assert len(server.asked) == 1


def sends_on(place: str, status: int = 307) -> httpx2.Response:
    """To another address."""
    return httpx2.Response(status, headers={"Location": place})


def asks(realm: str) -> httpx2.Response:
    """For a token from there."""
    return says(401, headers={"WWW-Authenticate": f'Bearer realm="{realm}",service="s"'})


REFUSALS: list[tuple[str, httpx2.Response, OciTarget, Reason, list[str]]] = [
    ("POST", says(403, "DENIED"), CLOSED, Reason.REGISTRY_ACCESS_DENIED, ["403 DENIED", "the login in Secret 'login'"]),
    ("POST", says(403), OPEN, Reason.REGISTRY_ACCESS_DENIED, ["answered 403 to no login"]),
    ("HEAD", says(401, headers={"WWW-Authenticate": "Basic"}), OPEN, Reason.REGISTRY_ACCESS_DENIED, ["names none"]),
    ("HEAD", says(401, headers={"WWW-Authenticate": "Negotiate"}), CLOSED, Reason.PUSH_REFUSED, ["not one of OCI's"]),
    ("HEAD", asks("http://x/"), CLOSED, Reason.PUSH_REFUSED, ["it names an address without TLS for logins"]),
    ("POST", says(404, "NAME_UNKNOWN"), OPEN, Reason.REPOSITORY_NOT_FOUND, ["registry has no such repository"]),
    ("POST", says(404), OPEN, Reason.REPOSITORY_NOT_FOUND, ["registry has no such repository"]),
    ("POST", says(405, "UNSUPPORTED"), OPEN, Reason.PUSH_REFUSED, ["sending sha256:", "405 UNSUPPORTED"]),
    ("PUT", says(413), OPEN, Reason.PUSH_REFUSED, ["the registry answered 413."]),
    ("POST", httpx2.Response(202), OPEN, Reason.PUSH_REFUSED, ["it gives no address to send it to"]),
    ("POST", sends_on("http://registry.test/upload", 202), CLOSED, Reason.PUSH_REFUSED, ["without TLS"]),
    (
        "GET",
        httpx2.Response(200, html="<p>Sign in"),
        OPEN,
        Reason.PUSH_REFUSED,
        ["a web page answered instead of a registry"],
    ),
    ("HEAD", sends_on("ftp://x/"), OPEN, Reason.PUSH_REFUSED, ["it gives a malformed address to look at"]),
    ("HEAD", sends_on("http://x/"), CLOSED, Reason.PUSH_REFUSED, ["it gives an address without TLS to look at"]),
    ("HEAD", sends_on(""), CLOSED, Reason.PUSH_REFUSED, ["it gives no address to look at"]),
    ("GET", sends_on("/v2/acme/support/manifests/v1"), OPEN, Reason.PUSH_REFUSED, ["it redirects without end"]),
    ("POST", sends_on("https://x:y/", 202), OPEN, Reason.PUSH_REFUSED, ["it gives a malformed address to send it to"]),
    ("POST", sends_on("https://x:70000/", 202), OPEN, Reason.PUSH_REFUSED, ["a malformed address"]),
    ("POST", sends_on(f"https://{'x' * 64}/", 202), OPEN, Reason.PUSH_REFUSED, ["a malformed address"]),
    ("HEAD", asks("https://x:y/token"), CLOSED, Reason.PUSH_REFUSED, ["it names a malformed address for logins"]),
    ("GET", httpx2.Response(200, content=b"a" * 5_000_000), OPEN, Reason.PUSH_REFUSED, ["is longer than 4 MiB"]),
    ("PUT", httpx2.Response(500, content=b"a" * 5_000_000), OPEN, Reason.PUSH_REFUSED, ["is longer than 4 MiB"]),
]


@pytest.mark.parametrize(
    ("method", "answer", "target", "reason", "texts"),
    REFUSALS,
    ids=[f"{number} {case[0]} {case[1].status_code}" for number, case in enumerate(REFUSALS)],
)
def test_what_a_registry_may_refuse(
    method: str, answer: httpx2.Response, target: OciTarget, reason: Reason, texts: list[str]
) -> None:
    with pytest.raises(StageError) as error:
        send(MemoryRegistry(fault=fails(99, answer, method)), target)
    assert error.value.reason is reason
    assert_says(error.value.message, f"{target.registry.partition('//')[2]}/acme/support: ", *texts)
    assert PASSWORD not in error.value.message


def test_a_wrong_password_and_a_strange_token_server(monkeypatch: pytest.MonkeyPatch) -> None:
    server = MemoryRegistry("bearer")
    wrong = Registry(CLOSED, server.client(), (USER, "wrong"))
    with pytest.raises(StageError, match="answered 401 UNAUTHORIZED to the login in Secret 'login'") as error:
        wrong.has_blob(DIGEST, 1)
    assert error.value.reason is Reason.REGISTRY_ACCESS_DENIED
    monkeypatch.setattr(server, "_token", lambda _: httpx2.Response(200, html="hello"))
    with pytest.raises(StageError, match="its token server answers without a token"):
        server.connect(CLOSED).has_blob(DIGEST, 1)


def test_the_login_goes_to_the_registry_only() -> None:
    """Where a registry keeps its blobs elsewhere, that place gets the blob and no login."""
    seen: list[tuple[str, bool]] = []

    def fault(request: httpx2.Request) -> httpx2.Response | None:
        seen.append((request.url.host, "Authorization" in request.headers))
        if request.method == "POST" and seen[-1][1]:
            return httpx2.Response(202, headers={"Location": "https://blobs.test/up?state=a%3D"})
        return httpx2.Response(201) if request.url.host == "blobs.test" else None

    MemoryRegistry("basic", fault).connect(CLOSED).put_blob(DIGEST, len(BLOB), chunks)
    assert seen[-1] == ("blobs.test", False)
    assert ("registry.test", True) in seen


@pytest.mark.parametrize("elsewhere", ["https://blobs.test/b", "https://registry.test:444/b", "https://evil.test/b"])
@pytest.mark.parametrize("status", [401, 403])
def test_who_is_redirected_to_gets_no_login(elsewhere: str, status: int) -> None:
    """Nor does it choose where the login goes to."""
    seen: list[httpx2.Request] = []

    def fault(request: httpx2.Request) -> httpx2.Response | None:
        seen.append(request)
        if str(request.url) == elsewhere:
            challenge = {"WWW-Authenticate": 'Bearer realm="https://evil.test/token"'}
            return says(status, headers=challenge)
        if request.method == "HEAD" and "Authorization" in request.headers:
            return sends_on(elsewhere)
        return None

    with pytest.raises(StageError, match=f"to which the registry redirects, answered {status}") as error:
        MemoryRegistry("basic", fault).connect(CLOSED).has_blob(DIGEST, 1)
    assert error.value.reason is Reason.PUSH_REFUSED
    assert [str(each.url) for each in seen if each.url.host == "evil.test"] == [elsewhere] * ("evil" in elsewhere)
    assert all(
        ("Authorization" in each.headers) <= (each.url.origin == httpx2.URL(CLOSED.registry).origin) for each in seen
    )


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.1", "2130706433", "0x7f.0.0.1", "169.254.169.254", "0.0.0.0"),
        *("[::1]", "[fe80::1]", "[::ffff:169.254.169.254]", "localhost", "a.localhost."),
    ],
)
def test_a_registry_leads_no_request_into_the_pod_or_its_node(host: str) -> None:
    """Uploads, redirects and logins: tenancy limits what a registry may be, and nothing else would limit these."""
    cases = [
        ("POST", sends_on(f"https://{host}/x", 202)),
        ("HEAD", sends_on(f"https://{host}/x")),
        ("HEAD", asks(f"https://{host}/token")),
    ]
    for method, answer in cases:
        server = MemoryRegistry(fault=fails(99, answer, method))
        with pytest.raises(StageError, match="an address inside of the pod or its node") as error:
            send(server, CLOSED)
        assert error.value.reason is Reason.PUSH_REFUSED
    local = CLOSED.model_copy(update={"registry": "https://127.0.0.1:5000"})
    with pytest.raises(StageError, match="answered 403"):  # it is asked
        send(MemoryRegistry(fault=lambda asked: cases[1][1] if asked.url.path != "/x" else says(403)), local)


@pytest.mark.parametrize(
    ("challenge", "used"),
    [
        ('Basic realm="r", Bearer realm="https://registry.test/token",service="s"', "Bearer t1"),
        ('Bearer realm="https://registry.test/token",service="s", Basic realm="https://evil.test/"', "Bearer t1"),
        ('Negotiate, bearer service=s , REALM = "https://registry.test/token"', "Bearer t1"),
        ('Negotiate YWJj==, Basic realm="a, Bearer realm=\\"x\\""', "Basic "),
        ('Bearer error="x", Basic', "Basic "),
    ],
)
def test_several_ways_to_log_in_are_told_apart(challenge: str, used: str) -> None:
    seen: list[str] = []

    def fault(request: httpx2.Request) -> httpx2.Response | None:
        seen.append(request.headers.get("Authorization", ""))
        return None if seen[-1] else says(401, headers={"WWW-Authenticate": challenge})

    MemoryRegistry(fault=fault).connect(CLOSED).has_blob(DIGEST, 1)
    assert len(seen) == 2
    assert seen[1].startswith(used)


def test_a_blob_whose_commit_was_not_seen_is_not_sent_again() -> None:
    server = MemoryRegistry()
    waits: list[float] = []

    def fault(request: httpx2.Request) -> httpx2.Response | None:
        if request.method != "PUT":
            return None
        waits.append(request.extensions["timeout"]["read"])
        server.blobs[DIGEST] = request.read()
        raise httpx2.ReadTimeout("late")

    server.fault = fault
    server.connect(OPEN).put_blob(DIGEST, len(BLOB), chunks)
    assert server.blobs == {DIGEST: BLOB}
    assert len(waits) == 1
    assert waits[0] >= 900, "registries hash a blob before they answer"


def test_an_error_of_trust_names_the_host_that_is_not_trusted() -> None:
    def fault(request: httpx2.Request) -> httpx2.Response | None:
        if request.url.host == "blobs.test":
            raise httpx2.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")
        return sends_on("https://blobs.test/x")

    with pytest.raises(StageError, match=r"the TLS certificate of blobs\.test is not trusted"):
        MemoryRegistry(fault=fault).connect(CLOSED).has_blob(DIGEST, 1)


@pytest.mark.parametrize("missing", ["username", "password"])
def test_a_secret_without_a_login(missing: str) -> None:
    variables = {each.variable: f"{each.key}\n" for each in CLOSED.login if each.key != missing}
    with pytest.raises(StageError, match=f"the login of the registry https://registry.test under '{missing}'") as error:
        Registry.connect(CLOSED, variables)
    assert error.value.reason is Reason.SECRET_MISSING


def test_authorities_that_are_not_mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_CA_DIR", str(tmp_path))
    bundle: dict[str, Any] = {"caBundle": {"configMapKeyRef": {"name": "ca", "key": "ca.crt"}}}
    target = OciTarget.model_validate({"registry": "https://r", "repository": "a"} | bundle)
    with pytest.raises(StageError, match=r"pushTo\.oci\.caBundle: ConfigMap 'ca' does not exist"):
        Registry.connect(target, {})


@pytest.mark.slow
def test_authorities_are_added_to_the_public_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A private registry may keep its blobs in a public cloud. What is no certificate is the user's mistake."""
    monkeypatch.setenv("FINETUNE_CA_DIR", str(tmp_path))
    public = httpx2.create_ssl_context().cert_store_stats()["x509_ca"]
    assert public
    bundle: dict[str, Any] = {"caBundle": {"configMapKeyRef": {"name": "ca", "key": "ca.crt"}}}
    target = OciTarget.model_validate({"registry": "https://r", "repository": "a"} | bundle)
    (tmp_path / "ca").mkdir()
    file = tmp_path / "ca" / "ca.crt"
    file.write_bytes(private_authority(tmp_path).authority.read_bytes())
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(httpx2, "Client", lambda **given: made.append(given))
    Registry.connect(target, {})
    assert made[0]["verify"].cert_store_stats()["x509_ca"] == public + 1
    for content in ("", "no certificate"):
        file.write_text(content)
        with pytest.raises(
            StageError, match=r"pushTo\.oci\.caBundle: key 'ca\.crt' of ConfigMap 'ca' holds no"
        ) as error:
            Registry.connect(target, {})
        assert (error.value.reason, error.value.retriable) == (Reason.SPEC_INVALID, False)


@pytest.mark.parametrize("registry", ["https://r:70000", f"https://{'x' * 64}", "https://a..b"])
def test_an_address_that_is_none(registry: str) -> None:
    with pytest.raises(StageError, match=r"pushTo\.oci\.registry: 'https://.*' is not a valid address") as error:
        Registry.connect(OPEN.model_copy(update={"registry": registry}), {})
    assert error.value.reason is Reason.SPEC_INVALID


@pytest.mark.slow
def test_a_registry_that_is_not_there() -> None:
    """A closed port, as a network policy makes one."""
    target = OPEN.model_copy(update={"registry": "http://127.0.0.1:1"})
    with pytest.raises(StageError, match=r"cannot be reached \(name, connection or network policy\)") as error:
        Registry.connect(target, {}).has_blob(DIGEST, 1)
    assert error.value.retriable


def test_an_artifact_has_a_tag_of_its_own() -> None:
    assert OPEN.reference("0123456789abcdef" * 4) == "registry.test:5000/acme/support:0123456789ab"
    assert OPEN.model_copy(update={"tag": "v1"}).reference("0" * 64).endswith("/support:v1")
    assert re.fullmatch(COPY_DIGEST, DIGEST)
