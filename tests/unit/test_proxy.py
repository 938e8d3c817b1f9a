"""The proxy in front of a model server: which keys there are, HAProxy's configuration, and HAProxy itself with it."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from finetune_api.api_keys import ApiKeys, fault_of, read_api_keys
from finetune_api.meta import ExitCode
from finetune_api.reasons import Reason
from finetune_api.stages import Outcome
from finetune_jobs.artifacts.artifact import Answer
from finetune_jobs.base.errors import StageError
from finetune_jobs.self_check import Gate
from finetune_jobs.verification.connection import Connection, wait_until_healthy
from finetune_operator.outcome.pod import parse_result
from finetune_proxy import config
from finetune_proxy.__main__ import Options, failure, nobody, parse, run
from finetune_proxy.config import Files, Proxied, haproxy_config, keep_alive_seconds, key_hash
from finetune_proxy.printed import read_line
from hack.cluster.layout import free_port, free_ports
from hack.cluster.packages import SYSTEM_PATH
from tests.support.closed_port import closed_port
from tests.support.proxy_door import (
    FIRST,
    PATIENCE,
    READ,
    SECOND,
    WRITE,
    StandIn,
    exchange,
    mount,
    stand_in,
    started,
    until,
)
from tests.support.sentences import assert_says

pytestmark = pytest.mark.unit


class TestKeys:
    @pytest.mark.parametrize(
        ("value", "fault"),
        [
            (b"a" * 20, ""),
            (b"~!" * 256, ""),
            (b"a" * 20 + b",", "has a space, a comma, a line break or a character outside of ASCII"),
            (b"", "is empty"),
            (b"a" * 19, "has fewer than 20 characters"),
            (b"a" * 513, "has more than 512 characters"),
            (b"a" * 20 + b"\n", "ends with a line break (write it with printf or --from-literal, not with echo)"),
            (b"a" * 20 + b"\r\n", "ends with a line break (write it with printf or --from-literal, not with echo)"),
            (b"a" * 10 + b"\n" + b"b" * 10, "has a space, a comma, a line break or a character outside of ASCII"),
            (b"a" * 10 + b" " + b"b" * 10, "has a space, a comma, a line break or a character outside of ASCII"),
            ("schlüssel-0123456789ab".encode(), "has a space, a comma, a line break or a character outside of ASCII"),
            (b"\x00" * 20, "has a space, a comma, a line break or a character outside of ASCII"),
        ],
    )
    def test_what_can_be_one(self, value: bytes, fault: str) -> None:
        assert fault_of(value) == fault

    def test_they_are_read_as_the_kubelet_mounts_them(self, tmp_path: Path) -> None:
        """A link for each entry, to a folder that is exchanged as a whole."""
        mount(tmp_path, {"b": FIRST, "a": SECOND, "short": "secret"})
        found = read_api_keys(tmp_path)
        assert found.accepted == (SECOND, FIRST)
        assert found.refused == ("entry 'short' has fewer than 20 characters",)
        assert FIRST not in repr(found)

    def test_no_key_is_missing_while_the_kubelet_exchanges_them(self, tmp_path: Path) -> None:
        """First the folder with all of them, then the links to entries of other names."""
        mount(tmp_path, {"a": FIRST})
        (tmp_path / "..later").mkdir()
        (tmp_path / "..later" / "b").write_text(SECOND)
        (tmp_path / "..new").symlink_to("..later")
        (tmp_path / "..new").rename(tmp_path / "..data")
        assert read_api_keys(tmp_path).accepted == (SECOND,)

    def test_without_the_secret_there_are_none(self, tmp_path: Path) -> None:
        assert read_api_keys(tmp_path) == read_api_keys(tmp_path / "missing") == ApiKeys()


class TestConfiguration:
    TOLD: Final = Proxied(8081, 9402, 8080, READ, WRITE, drain_seconds=15)

    @pytest.mark.parametrize(("drain", "idle"), [(15, 12), (5, 2), (3, 1), (0, 1), (300, 60)])
    def test_idle_connections_end_before_the_server_does(self, drain: int, idle: int) -> None:
        assert keep_alive_seconds(drain) == idle
        told = Proxied(8081, 9402, 8080, READ, WRITE, drain)
        assert f"timeout http-keep-alive {idle}s" in haproxy_config(told, Files(Path("/run")))

    def test_who_has_no_key_is_not_told_which_paths_there_are(self) -> None:
        lines = [line.strip() for line in haproxy_config(self.TOLD, Files(Path("/run/proxy"))).splitlines()]
        (no_key,) = [n for n, line in enumerate(lines) if "status 401" in line]
        (no_path,) = [n for n, line in enumerate(lines) if "status 404" in line and "json" in line]
        assert no_key < no_path < lines.index("default_backend engine")
        assert lines[no_key].endswith("unless known")
        assert "acl known http_auth_bearer,sha2(256),hex -m str -f /run/proxy/keys" in lines
        assert "acl may_read path -m str /health /v1/models" in lines
        assert "acl may_write path -m str /v1/chat/completions /v1/completions" in lines
        assert "server engine 127.0.0.1:8080" in lines

    def test_the_arguments_of_the_container(self, tmp_path: Path) -> None:
        given = ["--keys=/keys", "--secret=clients", "--folder=/run/proxy", "--drain-seconds=15"]
        options = parse([*given, "--read=/health", "--read=/v1/models", *(f"--write={path}" for path in WRITE)])
        assert (options.keys, options.secret, options.folder) == (Path("/keys"), "clients", Path("/run/proxy"))
        assert options.told == replace(self.TOLD, on_ipv6=socket.has_dualstack_ipv6())

    @pytest.mark.parametrize(
        ("keys", "words"),
        [
            (ApiKeys(), ["Secret 'clients'", "does not exist, or is empty"]),
            (ApiKeys((), ("entry 'a' is empty",)), ["Secret 'clients'", "entry 'a' is empty"]),
            (ApiKeys((), ("entry 'a' is empty",) * 999), ["Secret 'clients'", "entry 'a' is empty"]),
        ],
    )
    def test_the_operator_reads_why_it_does_not_start(self, keys: ApiKeys, words: list[str]) -> None:
        result = parse_result(failure(nobody("clients", keys)))
        assert result is not None
        assert (result.outcome, result.reason) == (Outcome.FAILED, Reason.API_KEYS_MISSING)
        assert_says(result.message, *words)


class TestLog:
    @pytest.mark.parametrize(
        ("printed", "level", "message"),
        [
            ("<5>Proxy clients started.\n", logging.INFO, "Proxy clients started."),
            ("<4>Server engine/engine is stopping.", logging.WARNING, "Server engine/engine is stopping."),
            ("<1>No server is left.", logging.ERROR, "No server is left."),
            ("<7>", logging.DEBUG, ""),
            (
                "[ALERT]    (17) : Fatal errors found in configuration.",
                logging.ERROR,
                "Fatal errors found in configuration.",
            ),
            ("[WARNING]  (17) : a limit (1900) : too low", logging.WARNING, "a limit (1900) : too low"),
            ("[NOTICE]   (17) : haproxy version is 2.6.12", logging.INFO, "haproxy version is 2.6.12"),
            ("Available polling systems :\n", logging.INFO, "Available polling systems :"),
            ("<9>no severity", logging.INFO, "<9>no severity"),
        ],
    )
    def test_what_haproxy_prints_has_a_level(self, printed: str, level: int, message: str) -> None:
        assert read_line(printed) == (level, message)

    @pytest.mark.slow
    def test_haproxys_lines_are_json_too(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            code, lines = logged(tmp_path, taken.getsockname()[1], shutil.which("haproxy", path=SYSTEM_PATH) or "")
        assert code == ExitCode.RETRIABLE
        [refused] = [line for line in lines if "Address already in use" in line["message"]]
        assert (refused["logger"], refused["level"]) == ("haproxy", "error")
        assert "HAProxy ended" in lines[-1]["message"], "its last words come before"

    @pytest.mark.slow
    def test_what_ends_the_program_is_a_line_of_json(self, tmp_path: Path) -> None:
        code, lines = logged(tmp_path, free_port(), "no-such-program")
        assert code == 1
        [line] = lines
        assert (line["level"], "no-such-program" in line["message"]) == ("critical", True)
        assert "FileNotFoundError" in line["traceback"]


def logged(folder: Path, port: int, program: str) -> tuple[int, list[dict[str, str]]]:
    """Exit code and log of a proxy in a process of its own, which ends by itself."""
    inner, server = free_ports(2)
    told = Proxied(port, inner, server, READ, WRITE, 15, asks_for_keys=False)
    options = f"Options(None, '', Path({str(folder)!r}), {told!r}, program={program!r})"
    ended = subprocess.run(
        [sys.executable, "-c", f"{_START}; sys.exit(run({options}, Event(), Event()))"],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert ended.stderr == ""
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    assert {line["container"] for line in lines} == {"proxy"}
    return ended.returncode, lines


_START: Final = (
    "import sys; from pathlib import Path; from threading import Event; from finetune_proxy.config import Proxied; "
    "from finetune_proxy.__main__ import Options, log_as_json, run; log_as_json()"
)


@pytest.fixture
def engine() -> Iterator[StandIn]:
    with stand_in() as running:
        yield running


@pytest.mark.slow
class TestHaproxy:
    def test_without_a_key_it_does_not_start(self, tmp_path: Path, engine: StandIn) -> None:
        port, inner = free_ports(2)
        told = Proxied(port, inner, engine.port, READ, WRITE, drain_seconds=15)
        options = Options(tmp_path / "none", "clients", tmp_path, told, tmp_path / "message", "no-such-program")
        assert run(options, threading.Event(), threading.Event()) is ExitCode.RETRIABLE
        result = parse_result((tmp_path / "message").read_text())
        assert result is not None
        assert result.reason is Reason.API_KEYS_MISSING

    def test_it_lets_in_who_has_a_key_to_the_paths_that_answer(self, tmp_path: Path, engine: StandIn) -> None:
        with started(tmp_path, engine) as door:
            for key in ("", SECOND, f"{FIRST}x", FIRST[:-1], FIRST.upper(), key_hash(FIRST)):
                status, headers, body = door.answer(key=key)
                assert (status, headers["WWW-Authenticate"]) == (401, "Bearer"), key
                error = json.loads(body)["error"]
                assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
                assert "Authorization" in error["message"]
            assert engine.heard == []
            assert door.ask() == door.ask("/health") == door.ask("/v1/models?limit=1") == 200
            assert FIRST not in "".join(engine.heard), "the server does not get the key"
            refused = [
                *("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/metrics", "/ready", "/", "//v1/models"),
                *("/v1/../metrics", "/v1/models/", "/V1/MODELS", "/v1/%6dodels", "/v1/chat/completions"),
            ]
            heard = len(engine.heard)
            assert {path: door.ask(path) for path in refused} == dict.fromkeys(refused, 404)
            posted = [path for path in refused if path != WRITE[0]] + ["/v1/models", "/health"]
            assert {path: door.ask(path, method="POST") for path in posted} == dict.fromkeys(posted, 404)
            assert json.loads(door.answer("/metrics")[2])["error"]["code"] == "not_found"
            assert len(engine.heard) == heard
            assert door.ask("/metrics", key="", inner=True) == door.ask("/health", key="", inner=True) == 200
            assert door.ask("/v1/models", inner=True) == door.ask(WRITE[0], method="POST", inner=True) == 404
            assert door.ask("/metrics", method="POST", inner=True) == 404
            assert b"haproxy_frontend_http_responses_total" in door.answer("/proxy/metrics", inner=True)[2]
            files = [each.read_bytes() for each in door.folder.iterdir() if each.is_file()]
            assert not any(FIRST.encode() in each for each in files), "only hashes are written"

    def test_the_engine_reads_what_was_looked_at(self, tmp_path: Path, engine: StandIn) -> None:
        """No server's name before the path, no tunnel, no second request inside of one, no HTTP/2."""
        key, end = f"Authorization: Bearer {FIRST}\r\n", "Host: x\r\nConnection: close\r\n\r\n"
        tunnel = f"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: {'a' * 22}==\r\nHost: x\r\n\r\n"
        hidden = f"POST {WRITE[0]} HTTP/1.1\r\n{key}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n{end}"
        engine.go_on.set()
        with started(tmp_path, engine) as door:
            for asked in (
                f"GET http://x/v1/models?a=b HTTP/1.1\r\n{key}{end}",
                f"GET x:///v1/models HTTP/1.0\r\n{key}{end}",
            ):
                assert b" 200 " in exchange(door.port, asked)
            assert [each.split("{")[0] for each in engine.heard[-2:]] == ["GET /v1/models?a=b ", "GET /v1/models "]
            assert b" 200 " in exchange(door.port, f"GET /v1/models HTTP/1.1\r\n{key}{tunnel}")
            assert "'websocket'" not in engine.heard[-1]
            heard = len(engine.heard)
            said = exchange(door.port, f"{hidden}0\r\n\r\nGET /metrics HTTP/1.1\r\n{end}")
            assert (said.count(b"HTTP/1.1 "), len(engine.heard)) == (1, heard + 1)
            for port in (door.port, door.inner):
                assert b" 400 " in exchange(port, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            for odd in ("http://x?/v1/models", "/v1/models#", "http://x#/v1/models"):
                assert b" 400 " in exchange(door.port, f"GET {odd} HTTP/1.1\r\n{key}{end}")
            assert len(engine.heard) == heard + 1

    def test_whoever_holds_all_connections_does_not_make_the_pod_look_ill(
        self, tmp_path: Path, engine: StandIn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(config, "_MOST_CONNECTIONS", 3)
        with started(tmp_path, engine) as door, contextlib.ExitStack() as held:
            for _ in range(6):
                held.enter_context(socket.create_connection(("127.0.0.1", door.port)))
            assert door.ask("/ready", key="", inner=True) == door.ask("/health", key="", inner=True) == 200

    def test_nobody_holds_all_connections_for_probes(self, tmp_path: Path, engine: StandIn) -> None:
        """Whoever may reach an endpoint without keys may read its metrics."""
        with started(tmp_path, engine) as door, contextlib.ExitStack() as held:
            refused = 0
            for _ in range(150):
                try:
                    greedy = socket.create_connection(("127.0.0.2", door.inner), source_address=("127.0.0.2", 0))
                    held.enter_context(greedy)
                except ConnectionResetError:  # often while it is still being made, otherwise afterwards
                    refused += 1
            assert 150 - refused >= config._ONES_INNER_CONNECTIONS
            begin = time.monotonic()
            assert door.ask("/ready", key="", inner=True) == door.ask("/health", key="", inner=True) == 200
            assert time.monotonic() - begin < 4, "the kubelet waits for five seconds"

    @pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
    def test_it_listens_on_ipv6_where_the_node_has_it(self, tmp_path: Path, engine: StandIn) -> None:
        with started(tmp_path, engine) as door:
            for port in (door.port, door.inner):
                socket.create_connection(("::1", port), PATIENCE).close()

    def test_keys_come_and_go_while_it_runs(self, tmp_path: Path, engine: StandIn) -> None:
        with started(tmp_path, engine) as door:
            stream = door.begin()
            mount(door.secret, {"a": FIRST, "b": SECOND, "c": "short"})
            until(lambda: door.ask(key=SECOND) == 200)
            assert door.ask(key=FIRST) == 200, "clients have time to move"
            assert door.ask(key="short") == 401
            mount(door.secret, {"b": SECOND})
            until(lambda: door.ask(key=FIRST) == 401)
            assert door.ask(key=SECOND) == 200
            assert door.end(stream) == b"data: last\n\n", "what has begun goes on"
            mount(door.secret, {})
            until(lambda: door.ask("/ready", inner=True) == 503)
            assert door.ask(key=SECOND) == door.ask(key="") == 401, "an empty Secret opens nothing"
            assert door.ask("/proxy/metrics", inner=True) == 200, "and is no reason to restart the proxy"
            mount(door.secret, {"a": FIRST})
            until(lambda: door.ask("/ready", inner=True) == 200)
            assert door.ask() == 200

    def test_before_the_end_clients_are_told_to_move(self, tmp_path: Path, engine: StandIn) -> None:
        with started(tmp_path, engine) as door:
            stream = door.begin()
            kept = http.client.HTTPConnection("127.0.0.1", door.port, timeout=PATIENCE)
            kept.request("GET", "/v1/models", headers={"Authorization": f"Bearer {FIRST}"})
            first = kept.getresponse()
            assert (first.read(), first.headers["Connection"], kept.sock is not None) == (b"ok", None, True)
            door.drain.set()
            until(lambda: door.answer()[1]["Connection"] == "close")
            kept.request("GET", "/v1/models", headers={"Authorization": f"Bearer {FIRST}"})
            last = kept.getresponse()
            assert (last.status, last.read(), last.headers["Connection"]) == (200, b"ok", "close")
            assert door.ask("/ready", inner=True) == 200, "its endpoints are taken out already"
            assert door.end(stream) == b"data: last\n\n"
            assert stream.headers["Connection"] == "close", "it began before anybody could know"

    def test_clients_leave_a_server_that_is_not_what_was_proved(self, tmp_path: Path, engine: StandIn) -> None:
        """No new one is sent to it, and those that keep their connection are told to close it."""
        gate = Gate(0)
        with started(tmp_path, engine, self_check=gate.port) as door:

            def is_kept() -> bool:
                return door.answer()[1]["Connection"] is None

            assert not is_kept()
            gate.open()
            until(is_kept)
            kept = http.client.HTTPConnection("127.0.0.1", door.port, timeout=PATIENCE)

            def connection() -> str | None:
                kept.request("GET", "/v1/models", headers={"Authorization": f"Bearer {FIRST}"})
                answer = kept.getresponse()
                assert (answer.status, answer.read()) == (200, b"ok")
                return answer.headers["Connection"]

            assert connection() is None
            gate.close()  # whoever fails a check exits
            until(lambda: not is_kept())
            assert connection() == "close"

    def test_what_it_says_without_a_server(self, tmp_path: Path) -> None:
        with closed_port() as port, started(tmp_path, StandIn(port)) as door:
            status, headers, body = door.answer()
            assert (status, headers["Content-Type"]) == (503, "application/json")
            assert json.loads(body)["error"]["type"] == "server_error"
            assert door.ask("/health", inner=True) == 503

    def test_every_request_of_the_verification_has_the_key(self, tmp_path: Path, engine: StandIn) -> None:
        engine.go_on.set()
        said = dict.fromkeys(("label", "base", "tuned", "artifact"), "x")
        asked = Answer(messages=[{"role": "user", "content": "x"}], **said)
        with started(tmp_path, engine) as door:
            url = f"http://127.0.0.1:{door.port}"
            wait_until_healthy(url, time.monotonic() + PATIENCE, FIRST)
            for key, arrives in (("", False), (FIRST, True)):
                server = Connection(url, 400, re.compile("too long"), key=key)
                calls: list[Callable[[], object]] = [
                    lambda server=server: server.get("/v1/models"),  # type: ignore[misc]
                    lambda server=server: server.post("/v1/completions", {}, "a text", PATIENCE),  # type: ignore[misc]
                    lambda server=server: server.chat(asked),  # type: ignore[misc]
                    lambda server=server: server.stream(asked),  # type: ignore[misc]
                ]
                for call in calls:
                    engine.heard.clear()
                    # What the stand-in answers is none of this test's business.
                    with contextlib.suppress(StageError, json.JSONDecodeError):
                        call()
                    assert bool(engine.heard) is arrives

    def test_it_ends_with_haproxy(self, tmp_path: Path) -> None:
        mount(tmp_path / "secret", {"a": FIRST})
        port, inner, server = free_ports(3)
        told = Proxied(port, inner, server, READ, WRITE, drain_seconds=15)
        options = Options(tmp_path / "secret", "clients", tmp_path, told, tmp_path / "message", "false")
        assert run(options, threading.Event(), threading.Event()) is ExitCode.RETRIABLE

    def test_haproxy_finds_no_fault(self, tmp_path: Path) -> None:
        files = Files(tmp_path)
        files.config.write_text(haproxy_config(TestConfiguration.TOLD, files))
        files.keys.touch()
        files.state.touch()
        program = shutil.which("haproxy", path=SYSTEM_PATH) or "haproxy"
        checked = subprocess.run([program, "-c", "-f", files.config], capture_output=True, text=True, check=False)
        assert (checked.returncode, "WARNING" in checked.stderr) == (0, False), checked.stderr
