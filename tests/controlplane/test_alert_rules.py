"""Each alert of the chart fires when it should, and for nobody else: ``promtool test rules`` plays the time."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from hack.cluster import toolchain
from hack.cluster.layout import REPOSITORY

pytestmark = pytest.mark.controlplane

CHART_FILES = REPOSITORY / "charts" / "finetune-operator" / "files"
RELEASE = {"namespace": "finetune-system"}
NAME = "finetune-operator"
A, B = (f"{NAME}-7c9d8b6f5-{end}" for end in ("x2x7k", "q8s4w"))
"""The replicas of the release."""
OTHER = f"{NAME}-canary-5d4f6c7b8-t6v9z"
"""One of another release in the same namespace."""
ENDPOINT = {"namespace": "team-a", "adapterdeployment": "transactions"}
TGI = {**ENDPOINT, "revision": "r1", "pod": "p1"}
VLLM = {**TGI, "model_name": "transactions", "engine": "0"}
CLIENTS = {**TGI, "proxy": "clients"}


def series(name: str, labels: Mapping[str, str], values: str) -> tuple[str, str]:
    """A series in promtool's words: ``0+1x30`` counts up once a minute, ``_`` is no sample."""
    return f"{name}{{{', '.join(f'{key}={value!r}' for key, value in labels.items())}}}", values


def operator(name: str, values: str, **labels: str) -> tuple[str, str]:
    return series(f"finetune_operator_{name}", {**RELEASE, **labels}, values)


def both(labels: Mapping[str, str], bad: tuple[str, str], good: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    return series(bad[0], labels, bad[1]), series(good[0], labels, good[1])


def queue(metric: str, labels: Mapping[str, str], fast: str, slow: str) -> tuple[tuple[str, str], ...]:
    """Times in a queue: ``fast`` counts those up to a second, ``slow`` those up to ten and all."""
    buckets = (("1", fast), ("10", slow), ("+Inf", slow))
    return tuple(series(f"{metric}_bucket", {**labels, "le": bound}, values) for bound, values in buckets)


def certificate(since: float, until: float, pod: str = "p1") -> tuple[tuple[str, str], ...]:
    """What a pod shows to clients: days from when the first of these metrics was scraped."""
    times = {"not_before": since, "not_after": until}
    labels = {**TGI, "pod": pod, "endpoint": "certificate"}
    name = "finetune_proxy_certificate_%s_timestamp_seconds"
    return tuple(series(name % each, labels, f"{days * 86400:.0f}x30") for each, days in times.items())


@dataclass(frozen=True)
class Case:
    """Series that a Prometheus has scraped each minute, and whom the alert names at a minute."""

    alert: str
    what: str
    minute: int
    series: tuple[tuple[str, str], ...]
    fires: Mapping[str, str] | None = None
    """The alert's labels but for its severity; None: it must not fire."""
    severity: str = "critical"
    rules: str = field(default="alerts.yaml")


def endpoint(what: str, minute: int, found: tuple[tuple[str, str], ...], *, alert: str, fires: bool) -> Case:
    severity = "critical" if alert == "FinetuneEndpointFails" else "warning"
    return Case(alert, what, minute, found, ENDPOINT if fires else None, severity, "endpoints.yaml")


ENDPOINTS = "AdapterDeployment"
ERRORS = "finetune_operator_api_requests_total"
CASES = (
    Case("FinetuneOperatorWithoutLeader", "nobody leads", 5, (operator("leader", "0x9", pod=A),), {}),
    Case("FinetuneOperatorWithoutLeader", "nobody is scraped", 5, (operator("leader", "_x9", pod=A),), {}),
    Case(
        "FinetuneOperatorWithoutLeader",
        "the other replica took over at once",
        5,
        (operator("leader", "1x2 0x9", pod=A), operator("leader", "0x2 1x9", pod=B)),
    ),
    Case(
        "FinetuneOperatorSeveralLeaders",
        "two lead",
        5,
        (operator("leader", "1x9", pod=A), operator("leader", "1x9", pod=B)),
        RELEASE,
    ),
    Case(
        "FinetuneOperatorSeveralLeaders",
        "a scrape sees both while they change",
        5,
        (operator("leader", "1x9", pod=A), operator("leader", "0 1 0x7", pod=B)),
    ),
    Case(
        "FinetuneOperatorWithoutLeader",
        "another release in the namespace has one",
        5,
        (operator("leader", "0x9", pod=A), operator("leader", "1x9", pod=OTHER)),
        {},
    ),
    Case(
        "FinetuneOperatorSeveralLeaders",
        "two releases in one namespace have one each",
        5,
        (operator("leader", "1x9", pod=A), operator("leader", "1x9", pod=OTHER)),
    ),
    Case(
        "FinetuneOperatorLagsBehind",
        "a turn is late by an hour",
        30,
        (operator("unreconciled_seconds", "0+120x30"),),
        RELEASE,
        "warning",
    ),
    Case(
        "FinetuneOperatorLagsBehind",
        "a turn took nine minutes",
        30,
        (operator("unreconciled_seconds", "0+60x9 0x30"),),
    ),
    Case(
        "FinetuneOperatorApiErrors",
        "a fifth of the requests is refused",
        30,
        (series(ERRORS, {**RELEASE, "code": "403"}, "0+1x30"), series(ERRORS, {**RELEASE, "code": "200"}, "0+4x30")),
        RELEASE,
        "warning",
    ),
    Case(
        "FinetuneOperatorApiErrors",
        "conflicts and missing objects are no errors",
        30,
        tuple(series(ERRORS, {**RELEASE, "code": code}, "0+9x30") for code in ("200", "404", "409")),
    ),
    Case(
        "FinetuneOperatorDefect",
        "one turn ended with a traceback",
        10,
        (operator("reconcile_duration_seconds_count", "0x4 1x9", kind="FineTuneJob", result="defect"),),
        {**RELEASE, "kind": "FineTuneJob"},
        "warning",
    ),
    Case(
        "FinetuneOperatorDefect",
        "many went well",
        10,
        (operator("reconcile_duration_seconds_count", "0+50x14", kind="FineTuneJob", result="ok"),),
    ),
    Case("FinetuneEndpointDegraded", "one endpoint", 5, (operator("degraded_endpoints", "0 1x9"),), RELEASE),
    Case("FinetuneEndpointDegraded", "none", 5, (operator("degraded_endpoints", "0x9"),)),
    *(
        Case(
            "FinetuneEndpointDown",
            what,
            9,
            (operator("resources", values, kind=kind, phase=phase, reason=reason),),
            RELEASE | {"reason": reason} if fires else None,
        )
        for what, kind, phase, reason, values, fires in (
            ("its only pod crashes", ENDPOINTS, "Degraded", "CandidateFailed", "0 1x9", True),
            ("a new revision failed, the old one serves", ENDPOINTS, "Degraded", "Serving", "1x9", False),
            ("the spec is invalid, the old revision serves", ENDPOINTS, "Degraded", "SpecInvalid", "1x9", False),
            ("it makes room for its successor, as announced", ENDPOINTS, "Progressing", "GapInService", "1x9", False),
            ("its pod started again on another node", ENDPOINTS, "Degraded", "ServerUnavailable", "1x3 0x9", False),
            ("it never served", ENDPOINTS, "Failed", "VerificationFailed", "1x9", False),
            ("a job failed", "FineTuneJob", "Failed", "StageCrashed", "1x9", False),
        )
    ),
    endpoint(
        "a tenth fails on TGI",
        30,
        both({**TGI, "err": "generation"}, ("tgi_request_failure", "0+1x30"), ("tgi_request_success", "0+9x30")),
        alert="FinetuneEndpointFails",
        fires=True,
    ),
    endpoint(
        "clients send what cannot be answered",
        30,
        both({**TGI, "err": "validation"}, ("tgi_request_failure", "0+9x30"), ("tgi_request_success", "0+9x30")),
        alert="FinetuneEndpointFails",
        fires=False,
    ),
    endpoint(
        "a tenth of vLLM's answers breaks off",
        30,
        (
            series("vllm:request_success_total", {**VLLM, "finished_reason": "error"}, "0+1x30"),
            series("vllm:request_success_total", {**VLLM, "finished_reason": "stop"}, "0+9x30"),
        ),
        alert="FinetuneEndpointFails",
        fires=True,
    ),
    endpoint(
        "a tenth of vLLM's requests gets no answer",
        30,
        (
            series("http_requests_total", {**TGI, "status": "5xx"}, "0+1x30"),
            series("vllm:request_success_total", {**VLLM, "finished_reason": "length"}, "0+9x30"),
        ),
        alert="FinetuneEndpointFails",
        fires=True,
    ),
    endpoint(
        "the proxy finds no server for a tenth of the requests",
        30,
        (
            series("haproxy_frontend_http_responses_total", {**CLIENTS, "code": "5xx"}, "0+1x30"),
            series("tgi_request_success", TGI, "0+9x30"),
        ),
        alert="FinetuneEndpointFails",
        fires=True,
    ),
    endpoint(
        "the proxy passes on what one vLLM request in 25 got, which counts once",
        30,
        (
            series("haproxy_frontend_http_responses_total", {**CLIENTS, "code": "5xx"}, "0+4x30"),
            series("http_requests_total", {**TGI, "status": "5xx"}, "0+4x30"),
            series("vllm:request_success_total", {**VLLM, "finished_reason": "stop"}, "0+96x30"),
        ),
        alert="FinetuneEndpointFails",
        fires=False,
    ),
    endpoint(
        "many come without a key",
        30,
        (
            series("haproxy_frontend_http_responses_total", {**CLIENTS, "code": "4xx"}, "0+9x30"),
            series("tgi_request_success", TGI, "0+9x30"),
        ),
        alert="FinetuneEndpointFails",
        fires=False,
    ),
    endpoint(
        "one pod of two fails all, and the endpoint half",
        30,
        (
            series("tgi_request_failure", {**TGI, "err": "generation"}, "0+9x30"),
            series("tgi_request_success", {**TGI, "pod": "p2"}, "0+9x30"),
        ),
        alert="FinetuneEndpointFails",
        fires=True,
    ),
    *(
        endpoint(
            f"{what} on {metric.split('_')[0]}",
            30,
            queue(metric, labels, fast, "0+100x30"),
            alert="FinetuneEndpointQueues",
            fires=fires,
        )
        for metric, labels in (
            ("tgi_request_queue_duration", TGI),
            ("vllm:request_queue_time_seconds", VLLM),
        )
        for what, fast, fires in (("a tenth waits long", "0+90x30", True), ("one in fifty does", "0+98x30", False))
    ),
    *(
        endpoint(what, 30, certificate(*times), alert="FinetuneEndpointCertificateExpires", fires=fires)
        for what, times, fires in (
            ("of 90 days, 13 are left", (-77, 13), True),
            ("of 90 days, 15 are left", (-75, 15), False),
            ("of seven days, one is left", (-6, 1), True),
            ("of seven days, two are left, and it is about to be renewed", (-5, 2), False),
            ("it has ended", (-90, -1), True),
        )
    ),
    endpoint(
        "one pod has not taken the new one",
        30,
        (*certificate(-77, 13), *certificate(0, 90, pod="p2")),
        alert="FinetuneEndpointCertificateExpires",
        fires=True,
    ),
)


def test_every_alert_is_tried() -> None:
    """Both ways: one that fires, and one in which it stays silent."""
    rules = [
        rule
        for name in ("alerts.yaml", "endpoints.yaml")
        for group in yaml.safe_load((CHART_FILES / name).read_text())["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]
    assert {rule["alert"] for rule in rules} == {case.alert for case in CASES if case.fires is not None}
    assert {rule["alert"] for rule in rules} == {case.alert for case in CASES if case.fires is None}
    assert {(rule["alert"], rule["labels"]["severity"]) for rule in rules} == {
        (case.alert, case.severity) for case in CASES if case.fires is not None
    }


def test_alerts_fire_when_they_should(tmp_path: Path) -> None:
    for name in ("alerts.yaml", "endpoints.yaml"):
        rules = (CHART_FILES / name).read_text().replace("RELEASE_NAMESPACE", RELEASE["namespace"])
        rules = rules.replace("RELEASE_NAME-", f"{NAME}-")
        (tmp_path / name).write_text(rules)
    stated = {
        "rule_files": ["alerts.yaml", "endpoints.yaml"],
        "evaluation_interval": "1m",
        "fuzzy_compare": True,
        "tests": [played(case) for case in CASES],
    }
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(stated))
    command = [str(toolchain.program("promtool")), "test", "rules", "tests.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def played(case: Case) -> dict[str, Any]:
    """A case in promtool's words. It compares the annotations too: here they only have to name whom the labels name."""
    expected = []
    if case.fires is not None:
        expected = [{"exp_labels": {**case.fires, "severity": case.severity}, "exp_annotations": texts(case)}]
    return {
        "name": f"{case.alert}: {case.what}",
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in case.series],
        "alert_rule_test": [{"eval_time": f"{case.minute}m", "alertname": case.alert, "exp_alerts": expected}],
    }


def texts(case: Case) -> dict[str, str]:
    """The rule's annotations with the labels of who is meant."""
    groups = yaml.safe_load((CHART_FILES / case.rules).read_text())["groups"]
    [rule] = [rule for group in groups for rule in group["rules"] if rule.get("alert") == case.alert]
    told = {}
    for name, text in rule["annotations"].items():
        for label, value in (case.fires or {}).items():
            text = text.replace(f"{{{{ $labels.{label} }}}}", value)
        told[name] = text
    return told
