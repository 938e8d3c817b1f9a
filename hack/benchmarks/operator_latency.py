"""Time from creating a custom resource to its first Job, for a burst of resources, on a real API server.

Our operator creates a ConfigMap, a Job and a status for every FineTuneJob; the JobSet controller creates a Job and a
status for every JobSet, with the same pod template, on the same API server, in the same run. They run one after the
other.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml
from kubernetes import client, config, watch

from finetune_api import meta
from hack.benchmarks import jobset
from hack.benchmarks.result import Result, percentile
from hack.cluster.controlplane import ControlPlane
from hack.cluster.layout import REPOSITORY
from hack.platform.kubectl import wait_for

NAMESPACE = "default"
COUNTS = (100, 500)
REST_SECONDS = 120
CREATORS = 16
SETTINGS = {
    "images": {
        "data": "example/data",
        "prepare": "example/prepare",
        "jobs": "example/jobs",
        "quantize": "example/quantize",
    },
    "profiles": {"bench": {"cpu": {"requests": {"cpu": "100m"}}, "serviceAccountName": "runner"}},
}


@dataclass
class Burst:
    """Measurements of one burst of N resources."""

    seconds: list[float] = field(default_factory=list)
    """From the create call to the Job's ADDED event, per resource."""
    writes_per_resource: float = 0.0
    cpu_ms_per_resource: float = 0.0
    rss_mib: float = 0.0

    def summary(self) -> dict[str, float]:
        """The figures for the report."""
        return {
            "p50": round(percentile(self.seconds, 0.5), 3),
            "p99": round(percentile(self.seconds, 0.99), 3),
            "max": round(max(self.seconds), 3),
            "writesPerResource": round(self.writes_per_resource, 2),
            "cpuMsPerResource": round(self.cpu_ms_per_resource, 1),
            "rssMiB": round(self.rss_mib, 1),
        }


def run() -> Result:
    """Measure our operator, then JobSet; the value is our p99 for 100 resources at once, the baseline JobSet's."""
    with ControlPlane.temporary() as plane:
        config.load_kube_config(str(plane.kubeconfig))
        plane.kubectl("apply", "-f", str(REPOSITORY / "crds"))
        jobset.wait_for_crd(plane, f"{meta.FINETUNEJOBS}.{meta.GROUP}")
        jobset.wait_for_crd(plane, f"{meta.ADAPTERDEPLOYMENTS}.{meta.GROUP}")
        plane.kubectl("create", "serviceaccount", "runner")
        with our_operator(plane) as process:
            warm_up(finetunejob, meta.GROUP, meta.VERSION, meta.FINETUNEJOBS)
            template = first_template()
            delete_all(meta.GROUP, meta.VERSION, meta.FINETUNEJOBS)
            ours = {
                count: burst(
                    count, finetunejob, meta.GROUP, meta.VERSION, meta.FINETUNEJOBS, process, keep=count == 100
                )
                for count in COUNTS
            }
            at_rest = writes_during(REST_SECONDS)
        delete_all(meta.GROUP, meta.VERSION, meta.FINETUNEJOBS)

        def peer(name: str) -> dict[str, Any]:
            return jobset.jobset(name, template)

        group = ("jobset.x-k8s.io", "v1alpha2", "jobsets")
        with jobset.controller(plane) as process:
            warm_up(peer, *group)
            delete_all(*group)
            theirs = {count: burst(count, peer, *group, process, keep=False) for count in COUNTS}
    details: dict[str, Any] = {
        "ours": {count: each.summary() for count, each in ours.items()},
        "jobset": {count: each.summary() for count, each in theirs.items()},
        "writes_at_rest": at_rest,
        "rest_seconds": REST_SECONDS,
    }
    return Result(
        name="operator_latency",
        value=details["ours"][100]["p99"],
        unit="s",
        baseline=details["jobset"][100]["p99"],
        goal="ratio ≤ 0.7; details.writes_at_rest 0",
        details=details,
    )


def finetunejob(name: str) -> dict[str, Any]:
    """A small FineTuneJob."""
    spec = {
        "profile": "bench",
        "model": {"uri": "s3://models/base"},
        "dataset": {"sources": [{"uri": "s3://data/rows.csv"}], "columns": {"input": "text", "label": "label"}},
        "output": {"uri": "s3://artifacts/bench", "name": name},
    }
    return {"apiVersion": meta.API_VERSION, "kind": meta.FINETUNEJOB, "metadata": {"name": name}, "spec": spec}


@contextmanager
def our_operator(plane: ControlPlane) -> Iterator[subprocess.Popen[bytes]]:
    """Run the operator as its image does, outside the cluster."""
    with tempfile.TemporaryDirectory(prefix="finetune-bench-") as folder:
        settings, log = Path(folder) / "config.yaml", Path(folder) / "operator.log"
        settings.write_text(yaml.safe_dump(SETTINGS))
        argv = [sys.executable, "-m", "finetune_operator", "--config", str(settings), "--health", "127.0.0.1:18080"]
        environment = {**os.environ, "KUBECONFIG": str(plane.kubeconfig)}
        with log.open("wb") as output, subprocess.Popen(argv, stdout=output, stderr=output, env=environment) as process:
            try:
                yield process
            finally:
                process.terminate()


def warm_up(make: Callable[[str], dict[str, Any]], group: str, version: str, plural: str) -> None:
    """Create one resource and wait for its Job, so that the controller's watches and connections are open."""
    client.CustomObjectsApi().create_namespaced_custom_object(group, version, NAMESPACE, plural, make("warm-up"))
    wait_for("the first Job", lambda: client.BatchV1Api().list_namespaced_job(NAMESPACE).items, 60, interval=0.2)


def first_template() -> dict[str, Any]:
    """The pod template of the operator's Job, as JSON."""
    job = client.BatchV1Api().list_namespaced_job(NAMESPACE).items[0]
    template: dict[str, Any] = client.ApiClient().sanitize_for_serialization(job.spec.template)
    template["metadata"] = {}
    return template


def burst(
    count: int,
    make: Callable[[str], dict[str, Any]],
    group: str,
    version: str,
    plural: str,
    process: subprocess.Popen[bytes],
    *,
    keep: bool,
) -> Burst:
    """Create ``count`` resources at once and wait for all their Jobs."""
    result, sent, seen, complete = Burst(), {}, {}, threading.Event()

    def follow(version_seen: str) -> None:
        batch = client.BatchV1Api()
        stream = watch.Watch().stream(
            batch.list_namespaced_job, NAMESPACE, resource_version=version_seen, timeout_seconds=180
        )
        for event in stream:
            owner = event["object"].metadata.owner_references[0].name
            if event["type"] == "ADDED" and owner not in seen:
                seen[owner] = time.monotonic()
            if len(seen) == count:
                complete.set()
                return

    def create(name: str) -> None:
        sent[name] = time.monotonic()
        client.CustomObjectsApi().create_namespaced_custom_object(group, version, NAMESPACE, plural, make(name))

    start = client.BatchV1Api().list_namespaced_job(NAMESPACE, limit=1).metadata.resource_version
    threading.Thread(target=follow, args=(start,), daemon=True).start()
    time.sleep(1)
    observed, writes, cpu = psutil.Process(process.pid), api_writes(), cpu_seconds(process.pid)
    with ThreadPoolExecutor(CREATORS) as pool:
        list(pool.map(create, [f"burst-{count}-{index}" for index in range(count)]))
    wait_for(f"{count} Jobs", complete.is_set, 180, interval=0.1)
    settle()
    result.seconds = [seen[name] - sent[name] for name in sent]
    result.writes_per_resource = (api_writes() - writes - count) / count
    result.cpu_ms_per_resource = (cpu_seconds(process.pid) - cpu) * 1000 / count
    result.rss_mib = observed.memory_info().rss / 2**20
    if not keep:
        delete_all(group, version, plural)
    return result


def settle() -> None:
    """Wait until there have been no writes for two seconds."""
    before = -1.0
    while before != (before := api_writes()):
        time.sleep(2)


def delete_all(group: str, version: str, plural: str) -> None:
    """Delete the resources and their children (no garbage collector runs here)."""
    client.CustomObjectsApi().delete_collection_namespaced_custom_object(group, version, NAMESPACE, plural)
    client.BatchV1Api().delete_collection_namespaced_job(NAMESPACE, propagation_policy="Background")
    client.CoreV1Api().delete_collection_namespaced_config_map(NAMESPACE)
    settle()


def writes_during(seconds: int) -> float:
    """Number of API writes while nothing changes."""
    settle()
    before = api_writes()
    time.sleep(seconds)
    return api_writes() - before


def api_writes() -> float:
    """Write requests that the API server has answered, except its own (leases, endpoints)."""
    return api_requests(("POST", "PUT", "PATCH", "APPLY", "DELETE"))


def api_requests(verbs: tuple[str, ...]) -> float:
    """Requests that the API server has answered, except its own writes (leases, endpoints)."""
    api = client.ApiClient()
    text = api.rest_client.pool_manager.request("GET", f"{api.configuration.host}/metrics").data.decode()
    total = 0.0
    for line in text.splitlines():
        if line.startswith("apiserver_request_total{") and any(f'verb="{verb}"' in line for verb in verbs):
            own = any(f'resource="{name}"' in line for name in ("leases", "endpoints", "endpointslices", "apiservices"))
            total += 0.0 if own else float(line.rsplit(" ", 1)[1])
    return total


def cpu_seconds(pid: int) -> float:
    """User and system time of a process."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)
