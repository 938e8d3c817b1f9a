"""The platform's overhead: hand-overs between stages, and the total compared with the same stages run by hand.

A hand-over is the time from one stage's last log line to the next stage's first one: Kubernetes reports the end, the
operator creates the next Job, the scheduler and the kubelet start a pod, and Python imports modules. Python's start is
measured inside the process and shown separately. Hand-overs come from five runs of a tiny model. If the demo's
FineTuneJob is on the cluster, its stages also run by hand, one by one with the same inputs, for the total ratio.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from finetune_api.finetunejob import FineTuneJob
from finetune_api.job_status import Phase
from finetune_api.meta import LABEL_OWNER_NAME, LABEL_STAGE
from finetune_api.stages import PIPELINE, Stage, StageInput, StageResult, input_key
from finetune_operator.framework.conditions import parse_timestamp
from hack import environments
from hack.benchmarks.result import Result
from hack.cluster.console import ClusterError, say, step
from hack.demo import outcome
from hack.demo.timing import seconds_between
from hack.platform import local, object_store
from hack.platform.kubectl import Kubectl, Object, wait_for
from hack.platform.tiny import tiny_job, upload_tiny_inputs

NAMESPACE = "bench-overhead"
RUNS = 5
AGE = re.compile(r"stage starts, ([0-9.]+) s after its process")


@dataclass(frozen=True)
class StageTimes:
    """Timestamps of one stage's pod."""

    stage: str
    job_created: datetime
    scheduled: datetime
    container_started: datetime
    first_line: datetime
    last_line: datetime
    startup: float
    """Seconds of Python itself and its imports."""


def run() -> Result:
    """Measure; the value is the median hand-over without Python's start, in seconds."""
    environments.quantize()  # for the export by hand, before any measurement
    kubectl = local.kubectl()
    local.install_platform(kubectl)
    local.prepare_namespace(kubectl, NAMESPACE)
    upload_tiny_inputs(kubectl)
    kubectl = kubectl.within(NAMESPACE)
    runs = [one_run(kubectl, f"overhead-{number}") for number in range(RUNS)]
    parts = [part for times in runs for part in hand_overs(times)]
    demo = against_by_hand(kubectl.within("demo"))
    kubectl("delete", "namespace", NAMESPACE, "--wait=false")
    median = {key: round(statistics.median(part[key] for part in parts), 2) for key in parts[0]}
    return Result(
        name="overhead",
        value=median["withoutPython"],
        unit="s",
        baseline=None,
        goal="≤ 3 s a hand-over without Python's start; details.demo.ratio ≤ 1.20",
        details={"medianHandOver": median, "runs": RUNS, "demo": demo},
    )


def one_run(kubectl: Kubectl, name: str) -> list[StageTimes]:
    """Run a FineTuneJob with the tiny model; returns the times of its stages in order."""
    with step(f"run FineTuneJob {name}"):
        kubectl.apply(tiny_job(name))
        wait_for(name, lambda: finished(kubectl, name), 600, interval=1)
    pods = {pod["metadata"]["labels"][LABEL_STAGE]: pod for pod in kubectl.items("pods", f"{LABEL_OWNER_NAME}={name}")}
    jobs = {job["metadata"]["labels"][LABEL_STAGE]: job for job in kubectl.items("jobs", f"{LABEL_OWNER_NAME}={name}")}
    return [stage_times(kubectl, stage, jobs[stage], pods[stage]) for stage in (Stage.RESOLVE, *PIPELINE)]


def finished(kubectl: Kubectl, name: str) -> FineTuneJob | None:
    """The FineTuneJob once it has succeeded; raises ClusterError if it failed."""
    job = FineTuneJob.model_validate(kubectl.get("ftj", name))
    return job if outcome.artifact_of(job) else None


def stage_times(kubectl: Kubectl, stage: str, job: Object, pod: Object) -> StageTimes:
    """Times of one stage, from its Job, its pod and its log."""
    lines = [json.loads(line) for line in kubectl("logs", pod["metadata"]["name"]).splitlines() if line.startswith("{")]
    age = next(float(found[1]) for line in lines if (found := AGE.search(line["message"])))
    scheduled = next(each for each in pod["status"]["conditions"] if each["type"] == "PodScheduled")
    state = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    return StageTimes(
        stage=stage,
        job_created=parse_timestamp(job["metadata"]["creationTimestamp"]),
        scheduled=parse_timestamp(scheduled["lastTransitionTime"]),
        container_started=parse_timestamp(state["startedAt"]),
        first_line=parse_timestamp(lines[0]["time"]),
        last_line=parse_timestamp(lines[-1]["time"]),
        startup=age,
    )


def hand_overs(stages: list[StageTimes]) -> list[dict[str, float]]:
    """The parts of each hand-over in seconds. Kubernetes timestamps are whole seconds, those of logs are not."""
    parts = []
    for before, after in pairwise(stages):
        whole = (after.first_line - before.last_line).total_seconds()
        parts.append(
            {
                "whole": whole,
                "python": after.startup,
                "withoutPython": whole - after.startup,
                "endToJob": (after.job_created - before.last_line).total_seconds(),
                "jobToScheduled": (after.scheduled - after.job_created).total_seconds(),
                "scheduledToContainer": (after.container_started - after.scheduled).total_seconds(),
            }
        )
    return parts


def against_by_hand(kubectl: Kubectl) -> dict[str, Any]:
    """The demo's wall time on the platform, compared with its stages run by hand."""
    found = [job for job in kubectl.items("ftj") if job.get("status", {}).get("phase") == Phase.SUCCEEDED.value]
    if not found:
        return {"note": "there is no finished demo on the cluster: run `make demo` first"}
    job = FineTuneJob.model_validate(found[0])
    current = job.status.run
    if not current or any(stage.state.value == "Reused" for stage in job.status.stages):
        return {"note": "the demo's last run reused results: run `make demo FRESH=1` first"}
    platform = seconds_between(current.started_at, current.finished_at) or 0.0
    inputs = stage_inputs(kubectl, job.metadata.name, current.id)
    say("  run the demo's stages by hand:")
    seconds = by_hand(kubectl, inputs)
    total = sum(seconds.values())
    return {"platformSeconds": platform, "byHandSeconds": round(total, 1), "byHand": seconds, "ratio": platform / total}


def stage_inputs(kubectl: Kubectl, name: str, run_id: str) -> dict[Stage, StageInput]:
    """The operator's input for each stage of a run."""
    inputs = [
        StageInput.model_validate_json(each["data"]["input.json"])
        for each in kubectl.items("configmaps", f"{LABEL_OWNER_NAME}={name}")
    ]
    return {given.stage: given for given in inputs if given.run.id == run_id}


def by_hand(kubectl: Kubectl, inputs: dict[Stage, StageInput]) -> dict[str, float]:
    """Run the stages as processes on this machine; returns seconds by stage."""
    seconds: dict[str, float] = {}
    upstream = inputs[Stage.PREPARE].upstream
    store = kubectl.within(object_store.NAMESPACE)
    with (
        store.port_forward(f"service/{object_store.NAME}", object_store.PORT) as port,
        tempfile.TemporaryDirectory(prefix="finetune-by-hand-") as folder,
    ):
        for stage in PIPELINE:
            given = inputs[stage]
            output = given.output.model_copy(update={"uri": "s3://artifacts/by-hand"}) if given.output else None
            here = {"endpoint": f"http://127.0.0.1:{port}", "secret_ref": None}  # the keys of this process
            given = given.model_copy(
                update={
                    "upstream": upstream,
                    "input_key": input_key(stage, upstream, given.params),
                    "reuse": False,
                    "output": output,
                    "storage": given.storage.model_copy(update=here),
                }
            )
            begin = time.monotonic()
            result = run_stage(stage, given, Path(folder))
            seconds[stage.value] = round(time.monotonic() - begin, 1)
            say(f"    {stage}: {seconds[stage.value]} s")
            upstream = upstream.with_output(stage, result.output_digest)
    return seconds


def run_stage(stage: Stage, given: StageInput, folder: Path) -> StageResult:
    """Run a stage as a process; raises ClusterError if it fails."""
    python = str(environments.quantize()) if stage is Stage.EXPORT else sys.executable
    source, answer = folder / f"{stage}.json", folder / f"{stage}-result.json"
    source.write_text(given.model_dump_json(by_alias=True))
    environment = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": object_store.OWNER.access_key_id,
        "AWS_SECRET_ACCESS_KEY": object_store.OWNER.secret_access_key,
        "OMP_NUM_THREADS": "2",
        "OMP_WAIT_POLICY": "passive",
        "HF_HUB_OFFLINE": "1",
        "TMPDIR": str(folder),
    }
    argv = [
        python,
        "-m",
        f"finetune_jobs.{stage}",
        "--input",
        str(source),
        "--result",
        str(answer),
        "--metrics-port",
        "0",
    ]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"stage {stage} failed when run by hand: {done.stderr[-1500:]}")
    return StageResult.model_validate_json(answer.read_bytes())
