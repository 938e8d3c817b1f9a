"""The API of external metrics, which autoscalers ask through the API server, beside a temporary control plane.

A stand-in for prometheus-adapter serves it: by the same rules, for metrics that have one series name, with a real
Prometheus behind it.
"""

from __future__ import annotations

import base64
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from finetune_operator.framework.conditions import timestamp
from hack.cluster.controlplane import LOOPBACK, ControlPlane
from tests.support.prometheus import Prometheus

SERVICE = "prometheus-adapter"
GROUP, VERSION = "external.metrics.k8s.io", "v1beta1"
_ROOT = f"/apis/{GROUP}/{VERSION}"
Rules = list[dict[str, Any]]
"""As the chart of prometheus-adapter has them in ``rules.external``."""


@contextmanager
def registered(plane: ControlPlane, namespace: str, port: int) -> Iterator[None]:
    """The API server forwards what it is asked about external metrics to a port of this machine."""
    # A name outside the cluster: without kube-proxy, no address of a Service leads anywhere.
    service = {"type": "ExternalName", "externalName": "localhost"}
    api = {
        "group": GROUP,
        "version": VERSION,
        "groupPriorityMinimum": 100,
        "versionPriority": 100,
        "service": {"name": SERVICE, "namespace": namespace, "port": port},
        "caBundle": base64.b64encode(plane.authority.certificate.read_bytes()).decode(),
    }
    name = f"{VERSION}.{GROUP}"
    in_namespace = {"name": SERVICE, "namespace": namespace}
    objects = [
        {"apiVersion": "v1", "kind": "Service", "metadata": in_namespace, "spec": service},
        {"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": name}, "spec": api},
    ]
    try:
        plane.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
        plane.kubectl("wait", "--for=condition=Available", "--timeout=180s", f"apiservice/{name}", timeout=200)
        yield
    finally:
        # Before its server stops: no namespace can be deleted while an API does not answer.
        plane.kubectl("delete", "--ignore-not-found", "apiservice", name)


def certificate(plane: ControlPlane, namespace: str) -> tuple[Path, Path]:
    """Certificate and key of the server, whose name the API server checks."""
    host = f"{SERVICE}.{namespace}.svc"
    return plane.authority.issue(host, f"/CN={SERVICE}", (f"DNS:{host}",))


@contextmanager
def stand_in(plane: ControlPlane, server: Prometheus, rules: Rules, namespace: str) -> Iterator[None]:
    """Serves the API to the API server, and to nobody else."""
    metrics = {rule["name"]["as"]: rule for rule in rules}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            match asked.path.removeprefix(_ROOT).split("/"):
                case [""]:
                    self._answer(_resources(list(metrics)))
                case ["", "namespaces", str(where), str(metric)] if metric in metrics:
                    [selector] = parse_qs(asked.query).get("labelSelector", [""])
                    self._answer(_values(metric, server, query(metrics[metric], where, selector)))
                case _:
                    self.send_error(404)

        def _answer(self, body: dict[str, Any]) -> None:
            content = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as the base class names it
            """Silent."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate(plane, namespace))
    context.load_verify_locations(plane.front_proxy.certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    with ThreadingHTTPServer((LOOPBACK, 0), Handler) as listener:
        listener.socket = context.wrap_socket(listener.socket, server_side=True)
        thread = threading.Thread(target=listener.serve_forever)
        thread.start()
        try:
            with registered(plane, namespace, listener.server_port):
                yield
        finally:
            listener.shutdown()
            thread.join()


def query(rule: dict[str, Any], namespace: str, selector: str) -> str:
    """What a rule asks Prometheus for one namespace and a selector of labels such as ``a=b,c=d``."""
    labels = {"namespace": namespace} | dict(each.split("=", 1) for each in selector.split(",") if each)
    filled = {
        "<<.Series>>": rule["seriesQuery"].partition("{")[0],
        "<<.LabelMatchers>>": ",".join(f'{label}="{value}"' for label, value in labels.items()),
        "<<.GroupBy>>": "",
    }
    text = str(rule["metricsQuery"])
    for placeholder, value in filled.items():
        text = text.replace(placeholder, value)
    return text


def _resources(metrics: list[str]) -> dict[str, Any]:
    listed = [
        {"name": name, "singularName": "", "namespaced": True, "kind": "ExternalMetricValueList", "verbs": ["get"]}
        for name in metrics
    ]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": f"{GROUP}/{VERSION}", "resources": listed}


def _values(metric: str, server: Prometheus, asked: str) -> dict[str, Any]:
    now = timestamp(datetime.now(UTC))
    items = [
        {"metricName": metric, "metricLabels": each["metric"], "timestamp": now, "value": each["value"][1]}
        for each in server.ask("query", query=asked)["result"]
    ]
    return {"kind": "ExternalMetricValueList", "apiVersion": f"{GROUP}/{VERSION}", "metadata": {}, "items": items}
