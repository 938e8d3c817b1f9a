"""Requests that are lost or answered wrongly while an endpoint is rolled out and rolled back under constant load.

Two tiny artifacts, two replicas, on the stand-in for TGI on the local cluster. Clients in a pod ask all the time: on a
new connection each time, on connections that are kept open, and for streams on such. Each rollout starts another
revision, verifies it and moves the traffic; each rollback is by ``spec.rollbackTo``, in turn at once, to pods that have
stayed, and later, when those are gone and start anew. Between them the benchmark waits until clients have heard the
right revision, and where the pods of the other one end, until every client has come over. It fails if a kind of client
has not heard both revisions. About half an hour on two cores; nothing else may stop pods of the cluster meanwhile.

``--runtime vllm-cpu``: small artifacts on vLLM, with one replica, since two cores have no room for four servers. What
vLLM computes depends on what else is in the batch, in the last bits, so an answer has to begin like its revision's.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from typing import Any

from finetune_api.compatibility import VLLM
from finetune_api.meta import LABEL_REVISION
from finetune_api.serving_status import AdapterDeploymentStatus, ServingPhase
from hack.benchmarks.load import ClientAnswers, Load
from hack.benchmarks.load_client import FRESH, KEPT, STREAM, Plan
from hack.benchmarks.result import Result
from hack.benchmarks.tiny_artifacts import RUNTIMES, TinyArtifact, install, publish_tiny
from hack.cluster.console import ClusterError, say
from hack.platform import local
from hack.platform.kubectl import Kubectl, wait_for

MOVES = 20
KEEP = "20s"
"""How long pods stay after another revision took over: the drain comes while the load goes on."""
ROLLOUT_S, MOVED_S = 600, 180
TOKENS = {FRESH: 6, KEPT: 6, STREAM: 32}
"""Few enough for a model of random weights to write the same text on every CPU: after some forty tokens, two were
within rounding of each other."""
BEGINNING = {VLLM: 4}
"""So many tokens of an answer have to be its revision's, by engine; without a number all. The two models differ in the
third one; the sixth of the first model's is within 0.13 nats of another, which vLLM wrote as often under load."""
CLIENTS = {FRESH: 2, KEPT: 2, STREAM: 2}
FIRST, SECOND = "first", "second"


@dataclass(frozen=True)
class Move:
    """The traffic goes from one revision to the other."""

    number: int
    to: str
    back: bool
    """By ``spec.rollbackTo``; otherwise by what ``spec.source`` asks for."""
    ends_alone: bool
    """Whether the next move waits until the pods of the other revision are gone."""

    def __str__(self) -> str:
        """For people who watch."""
        return f"{self.number + 1}. {'rollback' if self.back else 'rollout'} to {self.to}"


def moves(count: int) -> list[Move]:
    """Rollouts to the second artifact and rollbacks to the first, in turn. After the first rollout of each two the
    rollback comes at once, while the pods are kept; after the other, when they are gone."""
    return [
        Move(number, FIRST if number % 2 else SECOND, back=bool(number % 2), ends_alone=number % 4 != 0)
        for number in range(count)
    ]


def run(runtime: str = "tgi-cpu", replicas: int = 2, count: int = MOVES) -> Result:
    """Measure; the value is the number of requests lost or wrong."""
    from tests.support.artifacts import PROMPTS
    from tests.support.endpoints import NAME
    from tests.support.teams import team_namespace

    kubectl = local.kubectl()
    install(kubectl, runtime)
    engine = RUNTIMES[runtime]
    known = {kind: BEGINNING.get(engine, limit) for kind, limit in TOKENS.items()}
    artifacts = publish_tiny(kubectl, (FIRST, SECOND), sorted(set(known.values())), engine=engine)
    answers = {name: {kind: each.answers[limit] for kind, limit in known.items()} for name, each in artifacts.items()}
    plan = Plan(NAME, 80, CLIENTS, PROMPTS[0], TOKENS, answers, beginnings=[*TOKENS] if engine in BEGINNING else ())
    with team_namespace(kubectl) as team:
        return _measured(team, runtime, artifacts, plan, replicas, count)


def _measured(
    team: Kubectl, runtime: str, artifacts: dict[str, TinyArtifact], plan: Plan, replicas: int, count: int
) -> Result:
    from tests.support.endpoints import Endpoint

    load = Load(team, plan)
    endpoint = Endpoint(team, runtime)
    asked: dict[str, Any] = {"replicas": replicas, "keepLastGood": KEEP}
    endpoint.serve(artifacts[FIRST].uri, **asked)
    stable = endpoint.until(ServingPhase.READY, ROLLOUT_S).stable
    assert stable is not None
    revisions = {FIRST: stable.revision}
    [server] = team.items("deployments", f"{LABEL_REVISION}={stable.revision}")
    load.start(server["spec"]["template"]["spec"]["initContainers"][0]["image"])
    begin, told = time.time(), []
    for move in moves(count):
        since = time.time()
        back = {"rollbackTo": revisions[FIRST]} if move.back else {}
        endpoint.serve(artifacts[SECOND].uri, **asked, **back)
        at = load.wait_until_fresh_clients_hear(move.to, since, ROLLOUT_S)
        revisions[move.to] = wait_for("the status of the move", lambda: _serving(endpoint.status()), MOVED_S)
        if move.ends_alone:
            wait_for("the other revision to end", lambda: _is_alone(team), ROLLOUT_S)
            load.wait_until_all_hear(move.to, MOVED_S)
        heard = load.heard()
        told.append({"move": str(move), "seconds": round(at - since, 1), "faults": len(heard.faults)})
        say(f"    {move}: {at - since:.1f} s; so far {heard.count} answers, {len(heard.faults)} lost or wrong")
    heard = load.heard()
    if missing := heard.missing(load.plan):
        raise ClusterError(f"the benchmark shows nothing: {'; '.join(missing)}")
    return _result(heard, told, time.time() - begin, count)


def _serving(status: AdapterDeploymentStatus | None) -> str:
    """The revision that serves; empty while the status is not of the present spec."""
    return status.stable.revision if status is not None and status.stable is not None else ""


def _is_alone(team: Kubectl) -> bool:
    """Whether pods of one revision are left."""
    pods = team.items("pods", f"{LABEL_REVISION}")
    serving = [pod for pod in pods if pod["status"]["phase"] == "Running"]
    return len({pod["metadata"]["labels"][LABEL_REVISION] for pod in serving}) == 1


def _result(heard: ClientAnswers, told: list[dict[str, Any]], seconds: float, count: int) -> Result:
    return Result(
        name="rollout_under_load",
        value=len(heard.faults),
        unit=f"lost or wrong of {heard.count + len(heard.faults)} requests",
        baseline=None,
        goal=f"0 in {count} rollouts and rollbacks",
        details={
            "moves": told,
            "minutes": round(seconds / 60, 1),
            "answers": heard.answers,
            "connections": heard.connections,
            "slowest": heard.slowest,
            "kinds": heard.kinds_of_faults,
            "faults": [dict(fault) for fault in heard.faults],
        },
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runtime", choices=RUNTIMES, default="tgi-cpu")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--moves", dest="count", type=int, default=MOVES)
    result = run(**vars(parser.parse_args()))
    result.write()
    say(json.dumps(result.details, indent=1))
