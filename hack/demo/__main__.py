"""``make demo``: the main job on a real cluster, from a CSV file to a verified, answering endpoint.

Steps can be repeated: what is there already is used, a finished job answers at once, and a failed one is tried again
from the stage that failed. ``--fresh`` begins anew.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TypeVar

import yaml
from huggingface_hub import InferenceClient
from rich.console import Console
from rich.text import Text

from finetune_api.adapterdeployment import AdapterDeployment, ServingPhase
from finetune_api.finetunejob import ArtifactStatus, FineTuneJob, Phase
from hack.cluster.console import ClusterError, say, step
from hack.cluster.layout import REPOSITORY, cache_directory
from hack.demo import display, outcome, report
from hack.models import ensure_smollm2
from hack.platform import local, object_store
from hack.platform.kubectl import Kubectl, Object

R = TypeVar("R", FineTuneJob, AdapterDeployment)
T = TypeVar("T")

EXAMPLE = REPOSITORY / "examples" / "transactions"
BUILD = REPOSITORY / "build" / "demo"
NAMESPACE = "demo"
JOB_TIMEOUT = 3600
ROLLOUT_TIMEOUT = 1200


def main() -> int:
    """Run the demo; returns the process's exit code."""
    parser = argparse.ArgumentParser(prog="hack.demo", description=__doc__)
    parser.add_argument("--fresh", action="store_true", help="delete the namespace and the store's results first")
    arguments = parser.parse_args()
    clock = Clock()
    try:
        kubectl = local.kubectl()
        if arguments.fresh:
            clear(kubectl)
        with clock.measure("platform"):
            local.install_platform(kubectl)
        with clock.measure("upload"):
            upload_inputs(kubectl)
        kubectl = kubectl.within(NAMESPACE)
        with clock.measure("job"):
            job_name = apply_example(kubectl, "finetunejob", FineTuneJob)
            deployment_name = apply_example(kubectl, "adapterdeployment", AdapterDeployment)
            job, artifact = follow_job(kubectl, job_name)
        with clock.measure("rollout"):
            deployment = follow_deployment(kubectl, deployment_name, artifact.digest)
        with clock.measure("ask"):
            question, answer = ask(kubectl, deployment_name)
    except ClusterError as error:
        say(f"error: {error}")
        say("`make demo` goes on from what is finished; `make demo FRESH=1` begins from nothing.")
        return 1
    figures = report.make(job, deployment, clock.seconds | {"total": clock.total()})
    report.write(figures, BUILD / "report.json")
    report.show(figures, question, answer, next_commands(kubectl, deployment_name), Console())
    say(f"\nreport: {(BUILD / 'report.json').relative_to(REPOSITORY)}")
    return 0


class Clock:
    """Seconds per step of the demo."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._begin = time.monotonic()

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add a step's time."""
        begin = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - begin

    def total(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._begin


def example(kind: str) -> Object:
    """The example's object of this kind."""
    content: Object = yaml.safe_load((EXAMPLE / f"{kind}.yaml").read_text())
    return content


def clear(kubectl: Kubectl) -> None:
    """Delete the demo's namespace and everything that earlier runs left in the store."""
    with step("remove the results of earlier runs"):
        kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=true", timeout=300)
        if kubectl.within(object_store.NAMESPACE).exists("deployment", object_store.NAME):
            object_store.empty_bucket(kubectl, "artifacts")


def upload_inputs(kubectl: Kubectl) -> None:
    """Test model and data into the store; the namespace, its runner and its Secret."""
    with step("upload the test model (SmolLM2-135M-Instruct) and 1,500 generated transactions"):
        data = BUILD / "transactions.csv"
        data.parent.mkdir(parents=True, exist_ok=True)
        generate = [sys.executable, str(EXAMPLE / "generate.py"), "--rows", "1500", "--seed", "7", "--out", str(data)]
        subprocess.run(generate, check=True, stdout=subprocess.DEVNULL)
        object_store.upload(kubectl, ensure_smollm2(cache_directory()), "base-models", "smollm2-135m-instruct")
        object_store.upload(kubectl, data, "datasets", "transactions.csv")
        local.prepare_namespace(kubectl, NAMESPACE)


def apply_example(kubectl: Kubectl, kind: str, model: type[FineTuneJob | AdapterDeployment]) -> str:
    """Create or update the example's object of this kind and return its name; one that has failed is tried again."""
    wanted = example(kind)
    name: str = wanted["metadata"]["name"]
    if kubectl.exists(kind, name):
        before = model.model_validate(kubectl.get(kind, name))
        if rerun := outcome.rerun_of(before, datetime.now(UTC)):
            wanted["spec"]["rerun"] = rerun
        if rerun != before.spec.rerun:
            say(f"  … {model.__name__} {name} has failed before: tried again with spec.rerun={rerun}, reusing results")
    kubectl.apply(wanted)
    return name


def follow_job(kubectl: Kubectl, name: str) -> tuple[FineTuneJob, ArtifactStatus]:
    """Show the FineTuneJob until it has published; raises ClusterError with its own words when it fails."""
    say("  … FineTuneJob (kubectl get ftj -w shows the same)")

    def show(screen: display.Screen, job: FineTuneJob) -> tuple[FineTuneJob, ArtifactStatus] | None:
        phase = job.status.phase or Phase.PENDING
        title = f"FineTuneJob {name}: {phase.value} {job.status.stages_done}"
        screen.show(title, lambda: display.job_table(job.status), display.job_lines(job.status))
        artifact = outcome.artifact_of(job)
        return (job, artifact) if artifact else None

    return _follow(lambda: FineTuneJob.model_validate(kubectl.get("ftj", name)), show, JOB_TIMEOUT)


def follow_deployment(kubectl: Kubectl, name: str, digest: str) -> AdapterDeployment:
    """Show the AdapterDeployment until it serves the artifact of this digest; raises ClusterError when it cannot."""
    say("  … AdapterDeployment (kubectl get adep -w shows the same)")

    def show(screen: display.Screen, deployment: AdapterDeployment) -> AdapterDeployment | None:
        status = deployment.status
        phase = status.phase or ServingPhase.PENDING
        lines = display.deployment_lines(status)
        screen.show(f"AdapterDeployment {name}: {phase.value}", lambda: Text("\n".join(lines)), lines)
        return deployment if outcome.serves(deployment, digest) else None

    return _follow(lambda: AdapterDeployment.model_validate(kubectl.get("adep", name)), show, ROLLOUT_TIMEOUT)


def ask(kubectl: Kubectl, name: str) -> tuple[str, str]:
    """Ask the public Service one question, with the client that TGI's users use."""
    question = "STRIPE TRANSFER PAYOUT ACCT 4471 +1,250.00 EUR"
    with kubectl.port_forward(f"service/{name}", 80) as port:
        client = InferenceClient(base_url=f"http://127.0.0.1:{port}", timeout=60)
        answer = client.chat_completion(conversation(question), model="tgi", max_tokens=16, temperature=0)
    return question, (answer.choices[0].message.content or "").strip()


def conversation(question: str) -> list[dict[str, Any]]:
    """A question as the model was trained on it: behind the job's instruction."""
    spec = example("finetunejob")["spec"]
    return [
        {"role": "system", "content": spec["dataset"]["instruction"]},
        {"role": "user", "content": question},
    ]


def next_commands(kubectl: Kubectl, name: str) -> list[str]:
    """Commands that show more, ready to be copied: the surroundings, then three to try."""
    messages = conversation("AWS EMEA CARD -82.10 EUR")
    body = json.dumps({"model": "tgi", "max_tokens": 16, "temperature": 0, "messages": messages})
    namespace = f"kubectl -n {kubectl.namespace}"
    return [
        f"export KUBECONFIG={kubectl.kubeconfig} PATH={kubectl.program.parent}:$PATH",
        f"{namespace} get finetune -o wide",
        f"{namespace} describe ftj {name}",
        f"{namespace} port-forward service/{name} 8080:80 & sleep 2; "
        f"curl -s localhost:8080/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'",
    ]


def _follow(read: Callable[[], R], show: Callable[[display.Screen, R], T | None], timeout: float) -> T:
    """Show a resource, whenever its status speaks of its present spec, until ``show`` has an answer."""
    deadline = time.monotonic() + timeout
    with display.Screen() as screen:
        while True:
            current = read()
            if outcome.is_current(current) and (answer := show(screen, current)):
                return answer
            if time.monotonic() > deadline:
                raise ClusterError(f"not finished within {timeout / 60:.0f} minutes")
            time.sleep(1)


if __name__ == "__main__":
    sys.exit(main())
