"""HAProxy's configuration, as a pure function of what the proxy is told.

Written for HAProxy 2.6, Debian 12's (https://docs.haproxy.org/2.6/configuration.html). What changes while it runs is
changed through its socket, so that it never reloads: the certificate, and two lists, of the hashes of the keys and of
two words for its state (``HAS_KEYS``, ``DRAINING``).
"""

import json
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

HAS_KEYS: Final = "keys"
"""Word for: there is a key with which clients get in."""
DRAINING: Final = "draining"
"""Word for: clients are to leave, so each answer is the last one of its connection. The pod is about to stop, or its
server has not proved itself: no new connection comes, and this ends those that clients have kept."""
VALID: Final = ("not_before", "not_after")
"""Since and until when the certificate is valid that clients are shown: keys of a map, to seconds since 1970."""
_METRICS: Final = "text/plain; version=0.0.4"
"""The form in which Prometheus reads them."""
_READ: Final = "GET HEAD"
_MOST_CONNECTIONS: Final = 1900
"""Of clients. Beyond, they wait to be accepted. Each takes two buffers of 16 KiB, so these fit in the container's
memory. HAProxy does not start without two open files for each, and a few: some nodes allow 4,096."""
_INNER_CONNECTIONS: Final = 100
"""On top of those, for probes and metrics: whoever holds all connections of clients, even without a key, must not make
the kubelet believe that the server hangs."""
_ONES_INNER_CONNECTIONS: Final = 20
"""Of those, how many one address may have: where clients need no keys, they may read metrics."""
_INNER_SILENT: Final = "30s"
_SILENT: Final = "60s"
"""For how long a client that speaks TLS may be silent when it is its turn: in the handshake, which has no other limit,
while it sends a request, and while it does not take what is sent to it. Waiting for an answer is not among these."""
_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2: forward secret, and each with its own check of integrity. Those of TLS 1.3 all are."""
_STREAM: Final = "1h"
"""For how long neither side need say anything: a request may wait for its turn at a busy engine, and an answer that is
no stream comes when it is complete."""


_TLS: Final = f"""
    ssl-default-bind-options ssl-min-ver TLSv1.2
    ssl-default-bind-ciphers {_CIPHERS}"""


@dataclass(frozen=True)
class Proxied:
    """What the proxy is told."""

    port: int
    """Where clients connect."""
    inner_port: int
    """Where the kubelet and Prometheus do."""
    engine_port: int
    """Where the engine listens, on loopback."""
    read: tuple[str, ...]
    """Paths that clients may GET."""
    write: tuple[str, ...]
    """Paths to which they may POST."""
    drain_seconds: int
    """How long a stopping pod waits before its engine stops."""
    on_ipv6: bool = False
    """Whether it listens on IPv6 beside IPv4."""
    asks_for_keys: bool = True
    """Whether clients need a key."""
    speaks_tls: bool = False
    """Whether clients connect by TLS."""


@dataclass(frozen=True)
class Files:
    """Files that HAProxy reads and makes."""

    folder: Path

    @property
    def config(self) -> Path:
        """Its configuration."""
        return self.folder / "haproxy.cfg"

    @property
    def keys(self) -> Path:
        """Hashes of the keys."""
        return self.folder / "keys"

    @property
    def certificate(self) -> Path:
        """Certificate and private key."""
        return self.folder / "server.pem"

    @property
    def validity(self) -> Path:
        """Since and until when the certificate is valid."""
        return self.folder / "validity"

    @property
    def state(self) -> Path:
        """Words for its state."""
        return self.folder / "state"

    @property
    def socket(self) -> Path:
        """Where it takes commands."""
        return self.folder / "admin.sock"


def key_hash(key: str) -> str:
    """What stands in the list for a key, as HAProxy's ``sha2(256),hex`` writes it."""
    return sha256(key.encode("ascii")).hexdigest().upper()


def keep_alive_seconds(drain_seconds: int) -> int:
    """How long a connection may be idle. Less than a drain: so each ends, or has been told to, before the engine."""
    return max(1, min(60, drain_seconds - 3))


def haproxy_config(told: Proxied, files: Files) -> str:
    """The configuration. Keys come first, so that a path says nothing to those without one."""
    tls = f" ssl crt {files.certificate} alpn http/1.1" if told.speaks_tls else ""
    silent = f"\n    timeout client {_SILENT}" if told.speaks_tls else ""
    bind, family = ("[::]:", " v4v6") if told.on_ipv6 else (":", "")
    no_path = _said(404, "This endpoint has no such path for this method.", "not_found")
    return f"""\
global
    log stdout format short daemon notice
    maxconn {_MOST_CONNECTIONS + _INNER_CONNECTIONS}
    nbthread 2
    stats socket {files.socket} mode 600 level admin{_TLS if told.speaks_tls else ""}

defaults
    mode http
    # Engines speak HTTP/1.1, and HTTP/2 has no word for: this answer is the last one of its connection.
    option disable-h2-upgrade
    # Each request has a connection of its own to the engine: an idle one may be closed just when it is used.
    option http-server-close
    # Tokens pass one by one, and the engine is told of clients that leave.
    option http-no-delay
    option abortonclose
    retries 1
    timeout connect 5s
    timeout http-request 30s
    timeout http-keep-alive {keep_alive_seconds(told.drain_seconds)}s
    timeout client {_STREAM}
    timeout server {_STREAM}
    http-error {_said(400, "This is no HTTP request.", "bad_request")}
    http-error {_said(408, "The request did not arrive in time.", "request_timeout")}
    http-error {_said(500, "The proxy failed.", "internal_error")}
    http-error {_said(502, "The model server gave no complete answer.", "bad_gateway")}
    http-error {_said(503, "The model server does not answer.", "unavailable")}
    http-error {_said(504, "The model server did not answer in time.", "timeout")}

frontend clients
    bind {bind}{told.port}{family}{tls}{silent}
    maxconn {_MOST_CONNECTIONS}
{_known(told, files)}\
    acl read method {_READ}
    acl write method POST
    acl may_read path -m str {" ".join(told.read)}
    acl may_write path -m str {" ".join(told.write)}
    http-after-response set-header Connection close if {_has(DRAINING, files)}
    # The headers of a stream leave when it begins, long before anybody may know that clients are to leave.
    http-after-response set-header Connection close if {{ res.hdr(content-type) -m beg text/event-stream }}
{_only_known(told)}\
    http-request return {no_path} unless read may_read or write may_write
    http-request del-header Authorization
    # Nobody looks at what passes through a tunnel.
    http-request del-header Upgrade
    # The engine reads the path that was looked at, without the server's name that may stand before it.
    http-request set-uri %[pathq]
    default_backend engine

frontend inner
    bind {bind}{told.inner_port}{family}
    maxconn {_INNER_CONNECTIONS}
    stick-table type ipv6 size 1k expire 1m store conn_cur
    tcp-request connection track-sc0 src
    tcp-request connection reject if {{ sc0_conn_cur gt {_ONES_INNER_CONNECTIONS} }}
    timeout http-request 5s
    timeout client {_INNER_SILENT}
    http-request return status 200 if {{ path /ready }} {_has(HAS_KEYS, files)}
    http-request return status 503 if {{ path /ready }}
{_certificate(told, files)}\
    http-request use-service prometheus-exporter if {{ path /proxy/metrics }}
    http-request return status 404 unless {{ method {_READ} }} {{ path /health /metrics }}
    http-request del-header Upgrade
    http-request set-uri %[path]
    default_backend engine

backend engine
    server engine 127.0.0.1:{told.engine_port}
"""


def _known(told: Proxied, files: Files) -> str:
    """What tells clients with a key, where they need one."""
    line = f"    acl known http_auth_bearer,sha2(256),hex -m str -f {files.keys}\n"
    return line if told.asks_for_keys else ""


def _only_known(told: Proxied) -> str:
    """The answer to those without one."""
    said = _said(401, "Send an API key of this endpoint: Authorization: Bearer KEY.", "invalid_api_key")
    line = f"    http-request return {said} hdr WWW-Authenticate Bearer unless known\n"
    return line if told.asks_for_keys else ""


def _certificate(told: Proxied, files: Files) -> str:
    """What is told of the certificate that clients are shown. HAProxy's own metrics say nothing of it. A proxy without
    TLS, or of an earlier release, does not know the parameter and answers with these."""
    if not told.speaks_tls:
        return ""
    metrics = "".join(
        f"finetune_proxy_certificate_{name}_timestamp_seconds %[str({name}),map_str({files.validity})]\\n"
        for name in VALID
    )
    asked = "{ path /proxy/metrics } { url_param(about) -m str certificate }"
    return f'    http-request return status 200 content-type "{_METRICS}" lf-string "{metrics}" if {asked}\n'


def _has(word: str, files: Files) -> str:
    """The condition that a word is in the list of states."""
    return f"{{ str({word}) -m str -f {files.state} }}"


def _said(status: int, message: str, code: str) -> str:
    """An answer in the shape of OpenAI's errors."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    body = json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})
    return f"status {status} content-type application/json string '{body}'"
