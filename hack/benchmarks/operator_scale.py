"""The operator among 5,000 finished FineTuneJobs with their Jobs and pods, and 500 AdapterDeployments that serve.

On a real API server. Measured: memory, the cold start, what is read and written at rest, and whether a new FineTuneJob
still gets its first Job as fast as on an empty cluster. Rest is measured over whole resyncs, in which everything has a
turn and every kind is listed; they are shorter than by default here, and the figures are given for the default.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml
from kubernetes import client, config

from finetune_api import meta
from finetune_operator.controller import FIRST_TURNS
from finetune_operator.framework.client import Selection, StreamClient
from finetune_operator.framework.objects import CONFIG_MAPS, JOBS
from finetune_operator.kinds import FINETUNEJOBS
from finetune_operator.settings import Settings
from hack.benchmarks import clones, jobset
from hack.benchmarks.operator_latency import api_requests, cpu_seconds, finetunejob
from hack.benchmarks.result import Result, percentile
from hack.cluster.console import say
from hack.cluster.controlplane import ControlPlane
from hack.cluster.layout import REPOSITORY, free_port
from hack.platform.kubectl import wait_for

JOBS_COUNT, ENDPOINTS_COUNT = 5000, 500
NEW_JOBS = 20
RESYNC_SECONDS = 180
RESYNCS = 2
SETTINGS: dict[str, Any] = {
    "images": {name: f"example/{name}" for name in ("data", "prepare", "jobs", "quantize")},
    "profiles": {"bench": {"cpu": {"requests": {"cpu": "100m"}}, "serviceAccountName": "runner"}},
    "runtimes": {"tgi-cpu": {"engine": "tgi", "image": "example/tgi", "serviceAccountName": "runner"}},
}
READS, WRITES = ("GET", "LIST"), ("POST", "PUT", "PATCH", "APPLY", "DELETE")


def run() -> Result:
    """Measure; the value is the memory at rest in MiB, which has no baseline."""
    template = template_job()
    with ControlPlane.temporary() as plane:
        api = prepare(plane)
        with operator(plane) as process:
            wait_cold(process)
            alone = first_job_seconds(api, "alone")
        say("store the copies")
        copies = clones.store(plane, clones.job_copies(template, JOBS_COUNT))
        served = Settings.model_validate(SETTINGS)
        copies += clones.store(plane, clones.serving_copies(api, served, ENDPOINTS_COUNT))
        wait_for("the API server to know the copies", lambda: known_jobs(api) >= JOBS_COUNT, 300)
        say(f"{copies} objects are stored")
        quiet = requests_during(RESYNC_SECONDS, 1)
        written = api_requests(WRITES)
        with operator(plane) as process:
            cold = wait_cold(process)
            written = api_requests(WRITES) - written
            say(f"cold start: {cold:.0f} s")
            among = first_job_seconds(api, "among")
            observed = psutil.Process(process.process.pid)
            time.sleep(RESYNC_SECONDS)
            cpu = cpu_seconds(process.process.pid)
            reads, writes = requests_during(RESYNC_SECONDS, RESYNCS)
            cpu = cpu_seconds(process.process.pid) - cpu
            rss, peak = observed.memory_info().rss / 2**20, peak_mib(process.process.pid)
    per_hour = 3600 / Settings.model_validate(SETTINGS).resync_seconds / RESYNCS
    details = {
        "objects": copies,
        "rss_mib": round(rss),
        "peak_rss_mib": round(peak),
        "cold_start_seconds": round(cold, 1),
        "writes_at_cold_start": written,
        "reads_per_hour_at_rest": round((reads - quiet[0] * RESYNCS) * per_hour),
        "writes_at_rest": writes - quiet[1] * RESYNCS,
        "rest_seconds": RESYNC_SECONDS * RESYNCS,
        "cpu_percent_at_rest": round(100 * cpu * per_hour / 3600, 1),
        "first_job_seconds": {"alone": round(alone, 3), "among": round(among, 3), "ratio": round(among / alone, 2)},
    }
    goal = "details.rss_mib ≤ 300; cold_start_seconds ≤ 90; writes_at_rest 0; first_job_seconds.ratio ≤ 1.5"
    return Result("operator_scale", round(rss), "MiB", None, goal, details)


def template_job() -> list[clones.Found]:
    """One FineTuneJob that has run through, with its Jobs and pods."""
    say("run the template")
    with ControlPlane.temporary(controllers=("job-controller",)) as plane:
        api = prepare(plane)
        with operator(plane) as process:
            wait_cold(process)
            return clones.finished_job(api, a_job(clones.TEMPLATE))


def prepare(plane: ControlPlane) -> StreamClient:
    """CRDs and the ServiceAccount of the pods."""
    config.load_kube_config(str(plane.kubeconfig))
    plane.kubectl("apply", "-f", str(REPOSITORY / "crds"))
    for plural in (meta.FINETUNEJOBS, meta.ADAPTERDEPLOYMENTS):
        jobset.wait_for_crd(plane, f"{plural}.{meta.GROUP}")
    api = clones.api_of(plane)
    plane.kubectl("create", "serviceaccount", "runner")
    return api


class Operator:
    """The operator's process and its log."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log


@contextmanager
def operator(plane: ControlPlane) -> Iterator[Operator]:
    """Run the operator as its image does, outside the cluster."""
    with tempfile.TemporaryDirectory(prefix="finetune-bench-") as folder:
        settings, log = Path(folder) / "config.yaml", Path(folder) / "operator.log"
        settings.write_text(yaml.safe_dump(SETTINGS | {"resyncSeconds": RESYNC_SECONDS}))
        health = f"127.0.0.1:{free_port()}"
        argv = [sys.executable, "-m", "finetune_operator", "--config", str(settings), "--health", health]
        environment = {**os.environ, "KUBECONFIG": str(plane.kubeconfig)}
        with log.open("wb") as output, subprocess.Popen(argv, stdout=output, stderr=output, env=environment) as process:
            try:
                yield Operator(process, log)
            finally:
                process.terminate()


def wait_cold(running: Operator) -> float:
    """Seconds from now, the process's start, until every resource had its first turn."""
    began = time.monotonic()

    def told() -> bool:
        assert running.process.poll() is None, running.log.read_text()[-2000:]
        return re.search(rf"{re.escape(FIRST_TURNS)}|read 0 resources", running.log.read_text()) is not None

    wait_for("every resource to have a turn", told, 900, interval=0.2)
    return time.monotonic() - began


def a_job(name: str) -> dict[str, Any]:
    """A small FineTuneJob."""
    job = finetunejob(name)
    return job | {"metadata": job["metadata"] | {"namespace": clones.NAMESPACE}}


def first_job_seconds(api: StreamClient, prefix: str) -> float:
    """Median of the times from creating a FineTuneJob to its first Job, one after the other. A watch shows the Job: to
    list it, the API server would look at all Jobs of the namespace."""
    seconds = []
    for number in range(NEW_JOBS):
        name = f"{prefix}-{number}"
        began = time.monotonic()
        created = api.create(FINETUNEJOBS, a_job(name))
        selection = Selection(JOBS, clones.NAMESPACE, f"{meta.LABEL_OWNER_NAME}={name}")
        next(iter(api.watch(selection, int(created["metadata"]["resourceVersion"]), 60)))
        seconds.append(time.monotonic() - began)
        time.sleep(0.5)
    for resource in (FINETUNEJOBS, CONFIG_MAPS, JOBS):  # no garbage collector runs here
        for found in api.select(resource, clones.NAMESPACE):
            metadata = found["metadata"]
            if metadata["name"].startswith(f"{prefix}-"):
                api.delete(resource, clones.NAMESPACE, metadata["name"], metadata["uid"])
    return percentile(seconds, 0.5)


def known_jobs(api: StreamClient) -> int:
    """FineTuneJobs that the API server lists."""
    listed = client.CustomObjectsApi().list_namespaced_custom_object(
        meta.GROUP, meta.VERSION, clones.NAMESPACE, meta.FINETUNEJOBS, limit=1
    )
    return 1 + int(listed["metadata"].get("remainingItemCount") or 0)


def requests_during(seconds: int, times: int) -> tuple[float, float]:
    """Reads and writes that the API server answers in so many periods."""
    before = api_requests(READS), api_requests(WRITES)
    time.sleep(seconds * times)
    return api_requests(READS) - before[0], api_requests(WRITES) - before[1]


def peak_mib(pid: int) -> float:
    """The most memory that a process has had."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
