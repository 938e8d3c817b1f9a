"""TLS at the proxy: which Secret can be used, HAProxy with real certificates, and who asks a server by them."""

from __future__ import annotations

import socket
import ssl
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from finetune_api.dataset import TaskType
from finetune_api.meta import ExitCode
from finetune_api.reasons import Reason
from finetune_api.server_tls import LONGEST, Checked, check, client_context, read_server_tls
from finetune_api.serving_status import CheckOutcome
from finetune_jobs.artifacts.artifact import Answer
from finetune_jobs.base.errors import StageError
from finetune_jobs.verification.checks import make_checks
from finetune_jobs.verification.connection import wait_until_healthy
from finetune_jobs.verification.observation import Promise, observe
from finetune_jobs.verification.reach import reach_server
from finetune_jobs.verification.servers import client_of
from finetune_operator.outcome.pod import parse_result
from finetune_operator.runtimes import serving_plan
from finetune_operator.runtimes.plan import ServedModel
from finetune_operator.settings import Engine, Runtime
from finetune_proxy import config
from finetune_proxy.__main__ import Certificate, Options, run
from finetune_proxy.config import Files, Proxied, haproxy_config
from hack.cluster.layout import free_port, free_ports
from tests.support.certificates import Issuer
from tests.support.proxy_door import FIRST, HOST, PATIENCE, READ, WRITE, Door, StandIn, mount, stand_in, started, until
from tests.support.sentences import assert_says
from tests.support.vllm_server import VllmContract, running
from tests.unit.test_verification_vllm import ANSWERS, CALLING, ROOT, TEXT

pytestmark = pytest.mark.unit

CERTIFICATE = "/proxy/metrics?scope=frontend&about=certificate"
"""As the chart's PodMonitor asks."""
ISSUER = Issuer()
OTHER = Issuer("another")


def look(tmp_path: Path, entries: dict[str, str], host: str = HOST) -> Checked:
    """What a Secret with these entries is good for."""
    mount(tmp_path / "secret", entries)
    return check(read_server_tls(tmp_path / "secret"), host, tmp_path / "scratch.pem")


def without(entries: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in entries.items() if name not in names}


class TestASecret:
    @pytest.mark.parametrize("names", [(), ("ca.crt",)], ids=["with its authority", "alone"])
    def test_that_can_be_used(self, tmp_path: Path, names: tuple[str, ...]) -> None:
        found = look(tmp_path, without(ISSUER.secret(HOST), *names))
        assert found.fault == ""
        assert found.until.endswith("GMT")
        assert (tmp_path / "scratch.pem").stat().st_mode & 0o077 == 0

    def test_an_empty_entry_for_the_authority_is_none(self, tmp_path: Path) -> None:
        """As cert-manager leaves it where an issuer does not say."""
        assert look(tmp_path, ISSUER.secret(HOST) | {"ca.crt": ""}).fault == ""

    def test_a_certificate_for_all_names_of_the_namespace_will_do(self, tmp_path: Path) -> None:
        assert look(tmp_path, ISSUER.secret("*.team.svc")).fault == ""

    @pytest.mark.parametrize(
        ("entries", "said"),
        [
            ({}, ["does not exist", "neither tls.crt nor tls.key"]),
            (without(ISSUER.secret(HOST), "tls.key"), ["has no tls.key"]),
            (without(ISSUER.secret(HOST), "tls.crt"), ["has no tls.crt"]),
            (ISSUER.secret(HOST) | {"tls.key": ISSUER.secret(HOST)["tls.key"]}, ["tls.key is not the key of tls.crt"]),
            (ISSUER.secret(HOST) | {"tls.crt": "rubbish"}, ["no certificate and key in PEM"]),
            (ISSUER.secret(HOST) | {"tls.crt": "Zürich\x00"}, ["no certificate and key in PEM"]),
            (ISSUER.secret(HOST, password="secret"), ["without a password"]),
            (ISSUER.secret(HOST, days=0.01), ["certificate has expired"]),
            (ISSUER.secret("other.team.svc"), ["trust ca.crt refuse tls.crt", HOST]),
            (without(ISSUER.secret("other.team.svc"), "ca.crt"), ["trust tls.crt refuse tls.crt", HOST]),
            (ISSUER.secret(HOST) | {"ca.crt": OTHER.certificate}, ["trust ca.crt refuse tls.crt", "issuer"]),
            (ISSUER.secret(HOST) | {"ca.crt": "rubbish"}, ["ca.crt is no certificate in PEM"]),
            (ISSUER.secret(HOST) | {"tls.crt": ISSUER.certificate * 40}, [f"more than {LONGEST:,} bytes"]),
        ],
    )
    def test_that_clients_could_not_connect_by(self, tmp_path: Path, entries: dict[str, str], said: list[str]) -> None:
        assert_says(look(tmp_path, entries).fault, *said)

    def test_its_key_is_not_shown(self, tmp_path: Path) -> None:
        entries = ISSUER.secret(HOST)
        mount(tmp_path, entries)
        assert entries["tls.key"].splitlines()[1] not in repr(read_server_tls(tmp_path))


def test_without_tls_and_without_keys_nothing_of_it_is_configured(tmp_path: Path) -> None:
    told = Proxied(8081, 9402, 8080, READ, WRITE, 15)
    assert "ssl" not in haproxy_config(told, Files(tmp_path))
    assert "known" not in haproxy_config(
        Proxied(8081, 9402, 8080, READ, WRITE, 15, asks_for_keys=False), Files(tmp_path)
    )


@pytest.fixture
def engine() -> Iterator[StandIn]:
    with stand_in() as running:
        yield running


def trusting(issuer: Issuer = ISSUER) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=issuer.certificate)
    return context


def told(door: Door) -> dict[str, float]:
    """What the metrics say of the certificate."""
    lines = door.answer(CERTIFICATE, inner=True)[2].decode().splitlines()
    found = (line.removeprefix("finetune_proxy_certificate_").split() for line in lines)
    return {name.removesuffix("_timestamp_seconds"): float(value) for name, value in found}


def not_after(door: Door) -> float:
    """Until when the certificate is valid that a new connection is shown."""
    return ssl.cert_time_to_seconds(str(shown(door)["notAfter"]))


def serial(door: Door) -> str:
    """Of the certificate that a new connection is shown."""
    return str(shown(door)["serialNumber"])


def shown(door: Door) -> dict[str, object]:
    """The certificate that a new connection is shown."""
    assert door.trust is not None
    with socket.create_connection(("127.0.0.1", door.port), PATIENCE) as plain:
        found = door.trust.wrap_socket(plain, server_hostname=HOST).getpeercert()
    assert found is not None
    return dict(found)


@pytest.mark.slow
class TestHaproxy:
    def test_clients_connect_by_tls_and_by_nothing_else(self, tmp_path: Path, engine: StandIn) -> None:
        with started(tmp_path, engine, ISSUER.secret(HOST), trusting()) as door:
            assert (door.ask(), door.ask(key="")) == (200, 401), "keys are asked for as without it"
            assert door.ask("/ready", inner=True) == door.ask("/metrics", key="", inner=True) == 200
            with pytest.raises(ssl.SSLCertVerificationError):
                Door(**(vars(door) | {"trust": trusting(OTHER)})).ask()
            heard = len(engine.heard)
            plain = socket.create_connection(("127.0.0.1", door.port), PATIENCE)
            plain.sendall(f"GET /v1/models HTTP/1.1\r\nAuthorization: Bearer {FIRST}\r\nHost: x\r\n\r\n".encode())
            assert b"200" not in plain.recv(100)
            assert len(engine.heard) == heard
            for version, taken in ((ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True)):
                assert speaks(door, version) is taken
            assert (door.folder / "server.pem").stat().st_mode & 0o077 == 0

    def test_without_keys_the_list_of_paths_holds(self, tmp_path: Path, engine: StandIn) -> None:
        with started(tmp_path, engine, ISSUER.secret(HOST), trusting(), keys=False) as door:
            assert (door.ask(key=""), door.ask(key="any")) == (200, 200)
            assert door.ask("/v1/load_lora_adapter", key="", method="POST") == door.ask("/metrics", key="") == 404

    def test_a_renewed_certificate_counts_for_new_connections_and_ends_none(
        self, tmp_path: Path, engine: StandIn
    ) -> None:
        with started(tmp_path, engine, ISSUER.secret(HOST), trusting()) as door:
            first, stream, kept = serial(door), door.begin(), door.connection(door.port)
            mount(door.certificate, ISSUER.secret(HOST))
            until(lambda: serial(door) != first)
            second = serial(door)
            assert door.ask() == 200
            kept.request("GET", "/v1/models", headers={"Authorization": f"Bearer {FIRST}"})
            assert kept.getresponse().read() == b"ok", "a connection that was there goes on"
            assert door.end(stream) == b"data: last\n\n", "and so does a stream"
            mount(door.certificate, ISSUER.secret("other.team.svc"))
            time.sleep(2.5)
            mount(door.certificate, {})
            time.sleep(2.5)
            assert (serial(door), door.ask("/ready", inner=True)) == (second, 200), "a bad one replaces nothing"
            mount(door.certificate, ISSUER.secret(HOST))
            until(lambda: serial(door) not in (first, second))

    def test_metrics_tell_until_when_what_clients_are_shown_is_valid(self, tmp_path: Path, engine: StandIn) -> None:
        """A renewed one too; one that clients cannot use is not shown."""
        with started(tmp_path, engine, ISSUER.secret(HOST), trusting()) as door:
            first = told(door)
            assert first["not_before"] < time.time() < first["not_after"] == not_after(door)
            assert b"haproxy_frontend" in door.answer("/proxy/metrics", inner=True)[2]
            mount(door.certificate, ISSUER.secret(HOST, days=9))
            until(lambda: told(door)["not_after"] > first["not_after"])
            assert told(door)["not_after"] == not_after(door)

    def test_metrics_of_a_proxy_without_a_certificate_do_not(self, tmp_path: Path, engine: StandIn) -> None:
        """It answers all the same: Prometheus would take the pod for one that is down."""
        with started(tmp_path, engine) as door:
            status, _, body = door.answer(CERTIFICATE, inner=True)
            assert (status, b"certificate_not" in body) == (200, False)

    def test_one_that_is_not_valid_yet_is_taken_when_it_is(
        self, tmp_path: Path, engine: StandIn, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A node's clock may be behind that of the authority, and nobody changes the Secret again for weeks."""
        with started(tmp_path, engine, ISSUER.secret(HOST), trusting()) as door:
            first = serial(door)
            mount(door.certificate, ISSUER.secret(HOST, seconds=6))
            until(lambda: serial(door) != first)
        said = [each.message for each in caplog.records if "keeps the previous one" in each.message]
        assert len(said) == 1, "however often it was looked at"
        assert_says(said[0], "not yet valid")

    def test_whoever_says_nothing_holds_no_connection(
        self, tmp_path: Path, engine: StandIn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Neither before the handshake nor after it; a server that thinks, or stops in the middle, may take longer."""
        monkeypatch.setattr(config, "_SILENT", "2s")
        with started(tmp_path, engine, ISSUER.secret(HOST), trusting()) as door:
            stream = door.begin()
            silent = socket.create_connection(("127.0.0.1", door.port), PATIENCE)
            began = time.monotonic()
            assert silent.recv(10) == b""
            assert time.monotonic() - began < 10
            time.sleep(3)
            assert door.end(stream) == b"data: last\n\n"

    @pytest.mark.parametrize("entries", [{}, ISSUER.secret("other.team.svc")], ids=["no Secret", "another name"])
    def test_without_a_certificate_it_does_not_start(self, tmp_path: Path, entries: dict[str, str]) -> None:
        mount(tmp_path / "certificate", entries)
        port, inner, server = free_ports(3)
        told = Proxied(port, inner, server, READ, WRITE, 15, asks_for_keys=False, speaks_tls=True)
        certificate = Certificate(tmp_path / "certificate", "servers", HOST)
        options = Options(None, "", tmp_path, told, tmp_path / "message", "no-such-program", certificate)
        assert run(options, threading.Event(), threading.Event()) is ExitCode.RETRIABLE
        result = parse_result((tmp_path / "message").read_text())
        assert result is not None
        assert result.reason is Reason.CERTIFICATE_UNUSABLE
        assert_says(result.message, "Secret 'servers'", HOST)


def speaks(door: Door, version: ssl.TLSVersion) -> bool:
    """Whether a client of this version of TLS alone gets in, whatever certificate it is shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings(action="ignore"):  # an old version is what is asked for
        context.minimum_version = context.maximum_version = version
    with socket.create_connection(("127.0.0.1", door.port), PATIENCE) as plain:
        try:
            return context.wrap_socket(plain, server_hostname=HOST).version() is not None
        except ssl.SSLError:
            return False


@pytest.mark.slow
@pytest.mark.usefixtures("own_client")
def test_the_verifier_connects_again_to_a_server_that_refuses_for_a_moment() -> None:
    """As an overloaded node does, or its DNS. A pod that had asked half of its questions had to begin anew."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    asked = client_of(Engine.VLLM, url)
    with pytest.raises(StageError) as caught:
        asked.served()
    assert_says(caught.value.message, url, "ConnectError", "refused")
    reach_server(url, "", "")
    with ThreadPoolExecutor() as pool:
        found = pool.submit(asked.served)
        time.sleep(0.3)
        with running(VllmContract(ROOT, answers=ANSWERS), port=port):
            assert found.result(PATIENCE).model == ROOT


@pytest.mark.slow
@pytest.mark.usefixtures("own_client")
class TestTheVerifier:
    """It reaches a candidate by another name than the certificate is for."""

    def mounted(self, tmp_path: Path, entries: dict[str, str]) -> Path:
        """What it has of the Secret: not the key."""
        mount(tmp_path / "trusted", without(entries, "tls.key"))
        return tmp_path / "trusted"

    @pytest.mark.parametrize("names", [(), ("ca.crt",)], ids=["by the authority", "by the certificate itself"])
    def test_knows_the_server(self, tmp_path: Path, engine: StandIn, names: tuple[str, ...]) -> None:
        entries = without(ISSUER.secret(HOST), *names)
        with started(tmp_path, engine, entries, trusting()) as door:
            url = f"https://localhost:{door.port}"
            reach_server(url, "servers", HOST, self.mounted(tmp_path, entries))
            wait_until_healthy(url, time.monotonic() + PATIENCE, FIRST)

    @pytest.mark.parametrize("answers", [ANSWERS, CALLING], ids=["chats", "prompts with tools, as text"])
    def test_asks_all_that_it_asks_through_the_list_of_paths(self, tmp_path: Path, answers: list[Answer]) -> None:
        """With a key, by TLS, and where the operator lets vLLM's clients in."""
        plan = serving_plan(Runtime(engine=Engine.VLLM, image="x"), ServedModel(ROOT, "demo", True))
        entries, promise = ISSUER.secret(HOST), Promise(answers, answers, [TEXT], TaskType.TEXT, "INT8")
        with running(VllmContract(ROOT, answers=answers, references=[TEXT])) as server:
            engine, paths = StandIn(int(server.url.rpartition(":")[2])), (plan.read_paths, plan.write_paths)
            with started(tmp_path, engine, entries, trusting(), paths=paths) as door:
                url = f"https://localhost:{door.port}"
                reach_server(url, "servers", HOST, self.mounted(tmp_path, entries))
                asked = client_of(Engine.VLLM, url, key=FIRST)
                observed = observe(asked, promise, asked.served().limits, lambda *_: None)
        assert [each.text for each in observed.golden_replies] == [each.artifact for each in answers]
        assert CheckOutcome.FAILED not in {check.outcome for check in make_checks(observed, 75)}

    @pytest.mark.parametrize(
        ("entries", "host"),
        [(OTHER.secret(HOST), HOST), (ISSUER.secret(HOST), "other.team.svc")],
        ids=["another certificate", "another name"],
    )
    def test_and_no_other(self, tmp_path: Path, engine: StandIn, entries: dict[str, str], host: str) -> None:
        with started(tmp_path, engine, ISSUER.secret(HOST), trusting()) as door:
            url = f"https://localhost:{door.port}"
            reach_server(url, "servers", host, self.mounted(tmp_path, entries))
            with pytest.raises(StageError):
                wait_until_healthy(url, time.monotonic() + 3, FIRST)
            assert engine.heard == []

    @pytest.mark.parametrize("entries", [{}, {"ca.crt": "rubbish"}, {"tls.crt": ""}])
    def test_waits_for_the_secret(self, tmp_path: Path, entries: dict[str, str]) -> None:
        mount(tmp_path, entries)
        with pytest.raises(StageError) as caught:
            reach_server("https://localhost:1", "servers", HOST, tmp_path)
        assert (caught.value.reason, caught.value.retriable) == (Reason.CERTIFICATE_UNUSABLE, True)
        assert_says(str(caught.value), "Secret 'servers'", "ca.crt")


def test_a_client_speaks_no_old_version(tmp_path: Path) -> None:
    mount(tmp_path, ISSUER.secret(HOST))
    assert client_context(read_server_tls(tmp_path)).minimum_version is ssl.TLSVersion.TLSv1_2
