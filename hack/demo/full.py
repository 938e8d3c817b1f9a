"""``make demo-full``: what else a FineTuneJob and an AdapterDeployment do, on the cluster of ``make demo``.

*extraction* turns invoices into records; *support* has a teacher write the answers first; a run that is too short is
blocked by its goals. Then the demo's endpoint goes through a rollout, a refused one and a rollback, and two adapters
share one vLLM. The examples are applied unchanged, except for their goals and for sizes that two CPU cores can handle
in minutes. Like the demo, it can be run again.
"""

from __future__ import annotations

import json
import sys
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from finetune_api.adapterdeployment import AdapterDeployment
from finetune_api.finetunejob import FineTuneJob
from finetune_api.judging import JudgeStatus
from hack.cluster.console import ClusterError, say
from hack.cluster.layout import REPOSITORY
from hack.demo import serving
from hack.demo.examples import EXAMPLES, example, merged, upload_inputs
from hack.demo.follow import apply, follow_block, follow_job
from hack.demo.report import stage_seconds
from hack.demo.serving import Served
from hack.demo.teacher_pod import install_teacher
from hack.demo.timing import Clock
from hack.platform import local
from hack.platform.kubectl import Object

BUILD: Final = REPOSITORY / "build" / "demo-full"
NAMESPACE: Final = "demo"


def main() -> int:
    """Run all of it; returns the exit code."""
    clock, jobs = Clock(), {}
    try:
        kubectl = local.kubectl()
        with clock.measure("platform"):
            local.install_platform(kubectl)
        with clock.measure("upload"):
            upload_inputs(kubectl, BUILD, NAMESPACE)
        kubectl = kubectl.within(NAMESPACE)
        with clock.measure("teacher"):
            install_teacher(kubectl)
        # None of these needs another one, and a training alone leaves one of two cores idle for most of its time.
        wanted = [*(each.job() for each in EXAMPLES), too_short(), serving.in_16_bits()]
        *examples, short, in_16_bits = [apply(kubectl, each, FineTuneJob) for each in wanted]
        say(f"\nFineTuneJobs that run at the same time: {', '.join((*examples, short, in_16_bits))}")
        for each, name in zip(EXAMPLES, examples, strict=True):
            say(f"\n{each.folder}: {each.shows}")
            with clock.measure(each.folder):
                job, _ = follow_job(kubectl, name)
            jobs[each.folder] = figures(job)
        say("\nblocked: a run of two steps misses the goals, and is not published")
        with clock.measure("blocked"):
            blocked = follow_block(kubectl, short)
        adapters = [apply(kubectl, each, FineTuneJob) for each in serving.adapter_jobs()]
        say("\nserving: a second revision, one with wrong weights, and a rollback")
        with clock.measure("rollouts"):
            served = serving.roll_out_and_back(kubectl, in_16_bits)
        say("\nadapters: two fine-tunes on one vLLM")
        with clock.measure("adapters"):
            shared = serving.share_a_server(kubectl, adapters)
    except ClusterError as error:
        say(f"error: {error}")
        say("Run `make demo-full` again to continue after the finished steps, or `make demo FRESH=1` to start over.")
        return 1
    told = story(blocked, served, shared)
    seconds = {name: round(value, 1) for name, value in clock.seconds.items()} | {"total": round(clock.total(), 1)}
    report = {"examples": jobs, "story": told, "seconds": seconds}
    (BUILD / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    show(jobs, told, Console())
    say(f"\nreport: {(BUILD / 'report.json').relative_to(REPOSITORY)}")
    return 0


def too_short() -> Object:
    """The demo's FineTuneJob, but for two steps of training: its goals are those of the demo."""
    job = example("finetunejob")
    name = f"{job['metadata']['name']}-too-short"
    changes = {"training": {"maxSteps": 2}, "evaluation": {"maxSamples": 40}, "output": {"name": name}}
    return merged(job, {"metadata": {"name": name}, "spec": changes})


def figures(job: FineTuneJob) -> dict[str, Any]:
    """Figures of a finished FineTuneJob. Raises ValueError if it has not finished."""
    status = job.status
    if not (status.dataset and status.evaluation and status.artifact):
        raise ValueError(f"FineTuneJob {job.metadata.name} has not finished")
    return {
        "job": job.metadata.name,
        "rows": status.dataset.rows.model_dump(by_alias=True),
        "readiness": status.dataset.readiness,
        "accuracy": status.evaluation.accuracy.model_dump(),
        "f1": status.evaluation.f1.model_dump(),
        "chrf": status.evaluation.chrf.model_dump() if status.evaluation.chrf else {},
        "goals": [goal.sentence for goal in status.evaluation.goals],
        "times": _times(float(status.evaluation.f1.artifact or 0), float(status.evaluation.f1.base or 0)),
        "judge": _judged(status.evaluation.judge),
        "prompting": status.evaluation.prompting,
        "told": {stage.name: stage.message for stage in status.stages if stage.message},
        "artifact": status.artifact.uri,
        "seconds": stage_seconds(job),
    }


def _times(artifact: float, base: float) -> float | None:
    """How many times the base model's token F1 the artifact's is; None where it has none at all."""
    return round(artifact / base, 1) if base else None


def _judged(status: JudgeStatus | None) -> str:
    """What the judge said, where one was asked."""
    if status is None:
        return ""
    if not status.win_rate:
        return f"no verdict: {status.message}"
    return (
        f"{status.model} prefers the artifact in {status.wins} pairs, the base model in {status.losses}, neither in "
        f"{status.ties}: win rate {status.win_rate} (95 % interval {status.low} to {status.high})"
    )


def story(blocked: str, served: Served, shared: AdapterDeployment) -> dict[str, str]:
    """What became of the runs and rollouts, in sentences, by name."""
    stable = shared.status.stable
    adapters = [f"{shared.metadata.name}:{adapter.name}" for adapter in stable.adapters] if stable else []
    return {
        "blocked": blocked,
        "second revision": f"{served.second} (16 bits) took over from {served.first} (8 bits)",
        "wrong weights": served.refusal,
        "rollback": f"{served.first} serves again",
        "one vLLM serves": ", ".join(adapters),
    }


def show(jobs: dict[str, dict[str, Any]], told: dict[str, str], console: Console) -> None:
    """The summary for people."""
    console.rule("[bold]Done")
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, job in jobs.items():
        table.add_row(Text(name, style="bold"))
        for what, line in _lines(job).items():
            table.add_row(f"  {what}", Text(line))
    for what, line in told.items():
        table.add_row(Text(what, style="bold"), Text(line))
    console.print(table)


def _lines(job: dict[str, Any]) -> dict[str, str]:
    rows, f1, chrf = job["rows"], job["f1"], job["chrf"]
    lines = {
        "rows": f"{rows['read']:,} read, {rows['train']:,} for training",
        "readiness": job["readiness"],
        "training": job["told"].get("train", ""),
        "F1": f"base model {f1['base']}, tuned {f1['tuned']}, artifact {f1['artifact']}",
        "goals": " ".join(job["goals"]),
        "prompting": job["prompting"],
        "seconds": ", ".join(f"{stage} {value:.0f}" for stage, value in job["seconds"].items()),
    }
    if job["times"]:
        lines["F1"] += f": {job['times']} times the base model's"
    if job["judge"]:
        lines["judge"] = job["judge"]
    if chrf:
        lines["chrF"] = f"base model {chrf['base']}, tuned {chrf['tuned']}, artifact {chrf['artifact']}"
    return lines


if __name__ == "__main__":
    sys.exit(main())
