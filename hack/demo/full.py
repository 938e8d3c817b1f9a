"""``make demo-full``: more features of a FineTuneJob, shown by the other examples on the cluster of ``make demo``.

*extraction* turns invoices into records and measures a learning curve; *support* has a teacher write the answers first.
Both examples are applied unchanged, except for sizes that two CPU cores can handle in minutes. Like the demo, it can be
run again.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from finetune_api.finetunejob import FineTuneJob
from finetune_api.hashing import short
from hack.cluster.console import ClusterError, say, step
from hack.cluster.layout import REPOSITORY, cache_directory
from hack.demo import teacher
from hack.demo.follow import apply, follow_job
from hack.demo.report import stage_seconds
from hack.demo.timing import Clock
from hack.models import ensure_smollm2
from hack.platform import local, object_store
from hack.platform.kubectl import Kubectl, Object

BUILD: Final = REPOSITORY / "build" / "demo-full"
NAMESPACE: Final = "demo"
TEACHER: Final = "teacher"
TEACHER_PORT: Final = 8000
NOTE: Final = (
    "A 135M-parameter model trained for ten steps: this shows that everything works, not what scores to expect."
)
_SMALL: Final[Object] = {
    "training": {"maxSteps": 10, "batchSize": 2, "checkpointSteps": 10},
    "evaluation": {"maxSamples": 10, "goldenPrompts": 2},
}


@dataclass(frozen=True)
class Example:
    """A folder of examples/, and the changes to its FineTuneJob."""

    folder: str
    rows: int
    data: str
    """File name of the data set."""
    shows: str
    """What it shows, in a few words."""
    changes: Object
    """Changed fields of the spec."""

    def job(self) -> Object:
        """The FineTuneJob to apply."""
        job: Object = yaml.safe_load((self.path / "finetunejob.yaml").read_text())
        return merged(job, {"spec": merged(_SMALL, self.changes)})

    def generate(self, folder: Path) -> Path:
        """Generate its data in ``folder``."""
        file = folder / self.data
        seed = ["--rows", str(self.rows), "--seed", "7", "--out", str(file)]
        subprocess.run([sys.executable, str(self.path / "generate.py"), *seed], check=True, stdout=subprocess.DEVNULL)
        return file

    @property
    def path(self) -> Path:
        """Its folder."""
        return REPOSITORY / "examples" / self.folder


EXAMPLES: Final = (
    Example(
        folder="extraction",
        rows=160,
        data="invoices.jsonl",
        shows="turn invoices into records, and forecast the benefit of more examples with a learning curve",
        changes={"training": {"learningCurve": {"percents": [25, 50]}}},
    ),
    Example(
        folder="support",
        rows=160,
        data="support.jsonl",
        shows="let a teacher write the answers that the model learns",
        changes={
            "dataset": {
                "distillation": {
                    "teacher": {"url": f"http://{TEACHER}:{TEACHER_PORT}/v1", "model": teacher.MODEL},
                    "requestsPerMinute": 100000,
                    "duplicates": "WithinPrompt",  # the teacher quotes: many questions have the same answer
                }
            }
        },
    ),
)


def main() -> int:
    """Run all examples; returns the exit code."""
    clock, jobs = Clock(), {}
    try:
        kubectl = local.kubectl()
        with clock.measure("platform"):
            local.install_platform(kubectl)
        with clock.measure("upload"):
            upload_inputs(kubectl)
        kubectl = kubectl.within(NAMESPACE)
        with clock.measure("teacher"):
            install_teacher(kubectl)
        for example in EXAMPLES:
            say(f"\n{example.folder}: {example.shows}")
            with clock.measure(example.folder):
                job, _ = follow_job(kubectl, apply(kubectl, example.job(), FineTuneJob))
            jobs[example.folder] = figures(job)
    except ClusterError as error:
        say(f"error: {error}")
        say("Run `make demo-full` again to continue after the finished steps, or `make demo FRESH=1` to start over.")
        return 1
    report = {
        "note": NOTE,
        "examples": jobs,
        "seconds": {name: round(value, 1) for name, value in clock.seconds.items()}
        | {"total": round(clock.total(), 1)},
    }
    (BUILD / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    show(jobs, Console())
    say(f"\nreport: {(BUILD / 'report.json').relative_to(REPOSITORY)}")
    return 0


def merged(base: Object, changes: Object) -> Object:
    """``base`` with ``changes`` merged into it, at every level."""
    both = {key: (base.get(key), value) for key, value in changes.items()}
    inner = {k: merged(a, b) for k, (a, b) in both.items() if isinstance(a, dict) and isinstance(b, dict)}
    return base | changes | inner


def upload_inputs(kubectl: Kubectl) -> None:
    """Upload the test model and generated data; create the namespace, its runner ServiceAccount and its Secret."""
    with step(f"upload the test model and the generated data of {len(EXAMPLES)} examples to the object store"):
        BUILD.mkdir(parents=True, exist_ok=True)
        object_store.upload(kubectl, ensure_smollm2(cache_directory()), "base-models", "smollm2-135m-instruct")
        for example in EXAMPLES:
            object_store.upload(kubectl, example.generate(BUILD), "datasets", example.data)
        local.prepare_namespace(kubectl, NAMESPACE)


def install_teacher(kubectl: Kubectl) -> None:
    """Create the teacher's pod, its Service, and the Secret that the example names."""
    with step(
        f"start the teacher at http://{TEACHER}.{NAMESPACE}.svc:{TEACHER_PORT}/v1 (no model: it quotes a manual)"
    ):
        kubectl.apply(*teacher_objects(local.images()["base"]))
        kubectl("rollout", "status", f"deployment/{TEACHER}", "--timeout=120s", timeout=140)


def teacher_objects(image: str) -> list[Object]:
    """ConfigMap with the program, Secret, Deployment and Service; ``image`` needs only Python."""
    program = Path(teacher.__file__).read_text()
    labels = {"app.kubernetes.io/name": TEACHER}
    container: Object = {
        "name": TEACHER,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "/teacher/teacher.py", str(TEACHER_PORT)],
        "ports": [{"name": "http", "containerPort": TEACHER_PORT}],
        "readinessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 1},
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "128Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "program", "mountPath": "/teacher", "readOnly": True}],
    }
    pod: Object = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [{"name": "program", "configMap": {"name": TEACHER}}],
    }
    template = {"metadata": {"labels": labels, "annotations": {"demo/program": short(program)}}, "spec": pod}
    return [
        _object("v1", "ConfigMap", data={"teacher.py": program}),
        _object("v1", "Secret", stringData={"OPENAI_API_KEY": "none-needed"}),
        _object("apps/v1", "Deployment", spec={"selector": {"matchLabels": labels}, "template": template}),
        _object("v1", "Service", spec={"selector": labels, "ports": [{"port": TEACHER_PORT, "targetPort": "http"}]}),
    ]


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
        "told": {stage.name: stage.message for stage in status.stages if stage.message},
        "artifact": status.artifact.uri,
        "seconds": stage_seconds(job),
    }


def show(jobs: dict[str, dict[str, Any]], console: Console) -> None:
    """The summary for people."""
    console.rule("[bold]Done")
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, job in jobs.items():
        rows, f1, chrf = job["rows"], job["f1"], job["chrf"]
        lines = {
            "  rows": f"{rows['read']:,} read, {rows['train']:,} for training",
            "  readiness": job["readiness"],
            "  training": job["told"].get("train", ""),
            "  F1": f"base model {f1['base']}, tuned {f1['tuned']}, quantized artifact {f1['artifact']}",
            **(
                {"  chrF": f"base model {chrf['base']}, tuned {chrf['tuned']}, artifact {chrf['artifact']}"}
                if chrf
                else {}
            ),
            "  seconds": ", ".join(f"{stage} {value:.0f}" for stage, value in job["seconds"].items()),
        }
        table.add_row(Text(name, style="bold"))
        for what, line in lines.items():
            table.add_row(what, Text(line))
    console.print(table)
    console.print(f"\n{NOTE}")


def _object(version: str, kind: str, **fields: Any) -> Object:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": TEACHER}, **fields}


if __name__ == "__main__":
    sys.exit(main())
