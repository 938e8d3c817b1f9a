"""``make demo``: the main workflow on a real cluster, from a CSV file to a verified endpoint that answers.

It can be run again: finished work is reused, and a failed job is retried from the stage that failed. ``--fresh`` starts
over.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

from huggingface_hub import InferenceClient
from rich.console import Console

from finetune_api.adapterdeployment import AdapterDeployment
from finetune_api.finetunejob import FineTuneJob
from hack.cluster.console import ClusterError, say, step
from hack.cluster.layout import REPOSITORY, cache_directory
from hack.demo import report
from hack.demo.examples import DEMO, example
from hack.demo.follow import apply, follow_deployment, follow_job
from hack.demo.timing import Clock
from hack.models import ensure_smollm2
from hack.platform import local, object_store
from hack.platform.kubectl import Kubectl

EXAMPLE = REPOSITORY / "examples" / DEMO
BUILD = REPOSITORY / "build" / "demo"
NAMESPACE = "demo"


def main() -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(prog="hack.demo", description=__doc__)
    parser.add_argument("--fresh", action="store_true", help="delete the namespace and all results first")
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
            job_name = apply(kubectl, example("finetunejob"), FineTuneJob)
            deployment_name = apply(kubectl, example("adapterdeployment"), AdapterDeployment)
            job, artifact = follow_job(kubectl, job_name)
        with clock.measure("rollout"):
            deployment = follow_deployment(kubectl, deployment_name, artifact.digest)
        with clock.measure("ask"):
            question, answer = ask(kubectl, deployment_name)
    except ClusterError as error:
        say(f"error: {error}")
        say("Run `make demo` again to continue after the finished steps, or `make demo FRESH=1` to start over.")
        return 1
    figures = report.make(job, deployment, clock.seconds | {"total": clock.total()})
    report.write(figures, BUILD / "report.json")
    report.show(figures, question, answer, next_commands(kubectl, deployment_name), Console())
    say(f"\nreport: {(BUILD / 'report.json').relative_to(REPOSITORY)}")
    return 0


def clear(kubectl: Kubectl) -> None:
    """Delete the demo's namespace and all results of earlier runs from the store."""
    with step("delete the results of earlier runs"):
        kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=true", timeout=300)
        if kubectl.within(object_store.NAMESPACE).exists("deployment", object_store.NAME):
            object_store.empty_bucket(kubectl, "artifacts")


def upload_inputs(kubectl: Kubectl) -> None:
    """Upload the test model and the data; create the namespace, its runner ServiceAccount and its Secret."""
    with step("upload SmolLM2-135M-Instruct and 1,500 generated bank transactions to the object store"):
        data = BUILD / "transactions.csv"
        data.parent.mkdir(parents=True, exist_ok=True)
        generate = [sys.executable, str(EXAMPLE / "generate.py"), "--rows", "1500", "--seed", "7", "--out", str(data)]
        subprocess.run(generate, check=True, stdout=subprocess.DEVNULL)
        object_store.upload(kubectl, ensure_smollm2(cache_directory()), "base-models", "smollm2-135m-instruct")
        object_store.upload(kubectl, data, "datasets", "transactions.csv")
        local.prepare_namespace(kubectl, NAMESPACE)


def ask(kubectl: Kubectl, name: str) -> tuple[str, str]:
    """Ask the public Service one question, with the client library of TGI users."""
    question = "STRIPE TRANSFER PAYOUT ACCT 4471 +1,250.00 EUR"
    with kubectl.port_forward(f"service/{name}", 80) as port:
        client = InferenceClient(base_url=f"http://127.0.0.1:{port}", timeout=60)
        answer = client.chat_completion(conversation(question), model="tgi", max_tokens=16, temperature=0)
    return question, (answer.choices[0].message.content or "").strip()


def conversation(question: str) -> list[dict[str, Any]]:
    """A question in the form that the model was trained on: after the job's instruction."""
    spec = example("finetunejob")["spec"]
    return [
        {"role": "system", "content": spec["dataset"]["instruction"]},
        {"role": "user", "content": question},
    ]


def next_commands(kubectl: Kubectl, name: str) -> list[str]:
    """Commands to copy and try: first the environment, then three that show more."""
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


if __name__ == "__main__":
    sys.exit(main())
