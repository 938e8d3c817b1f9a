"""Constant load on an endpoint from a pod of the cluster (``load_client.py``), and what it has heard."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from hack.benchmarks import load_client
from hack.benchmarks.load_client import FRESH, Plan
from hack.cluster.console import ClusterError
from hack.platform.kubectl import Kubectl, wait_for

POD = "load"
_LOOK_S = 3.0
"""Between two looks at the log, which tells the times itself."""
_FAULT: Final = re.compile(
    r"^after [\d.]+ s: |(?<=status \d{3}):.*|(?<=of no revision):.*|, after \d+ events$", re.DOTALL
)
"""What differs between faults of the same kind."""


@dataclass(frozen=True)
class Switch:
    """A client that heard another revision than before."""

    revision: str
    kind: str
    client: int
    at: float
    """Seconds since 1970."""


@dataclass(frozen=True)
class ClientAnswers:
    """What the clients have heard."""

    answers: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Right answers by kind of client and revision."""
    connections: Mapping[str, int] = field(default_factory=dict)
    """Opened so far, by kind of client."""
    slowest: Mapping[str, float] = field(default_factory=dict)
    """Seconds of the slowest answer, by kind of client."""
    switches: tuple[Switch, ...] = ()
    faults: tuple[Mapping[str, Any], ...] = ()
    """Requests that were lost or answered wrongly, after the client's first right answer: see ``Load.start``."""
    refused_first: int = 0
    """Requests of clients that had no answer yet."""

    def on(self, revision: str) -> set[tuple[str, int]]:
        """The clients (kind and number) whose newest answer is this revision's."""
        newest = {(switch.kind, switch.client): switch.revision for switch in self.switches}
        return {client for client, found in newest.items() if found == revision}

    def first(self, revision: str, since: float, kind: str = FRESH) -> float | None:
        """When a client of a kind came to a revision for the first time since then; None if none did."""
        times = [each.at for each in self.switches if (each.revision, each.kind) == (revision, kind)]
        return min((at for at in times if at >= since), default=None)

    def missing(self, plan: Plan) -> list[str]:
        """Which kinds of clients have not heard which revisions."""
        return [
            f"{kind} clients have not heard {revision}"
            for kind in plan.clients
            for revision in plan.answers
            if not self.answers.get(kind, {}).get(revision)
        ]

    def faults_beside(self, *times: tuple[float, float]) -> list[Mapping[str, Any]]:
        """The faults of requests that were not under way in any of these times (begin and end)."""
        return [
            fault
            for fault in self.faults
            if not any(fault["at"] >= begin and fault["sent"] <= end for begin, end in times)
        ]

    @property
    def kinds_of_faults(self) -> dict[str, int]:
        """How often each kind of client met which fault, without times, numbers and texts."""
        return dict(Counter(f"{fault['kind']}: {_FAULT.sub('', fault['fault'])}" for fault in self.faults))

    @property
    def count(self) -> int:
        """Right answers."""
        return sum(sum(by_revision.values()) for by_revision in self.answers.values())


def read(log: str) -> ClientAnswers:
    """What a log says. Raises ClusterError for a line that is none of the client's: the program has crashed."""
    totals: dict[str, Any] = {}
    switches, faults, refused_first = [], [], 0
    let_in: set[tuple[str, int]] = set()
    for line in log.splitlines():
        try:
            said = json.loads(line)
        except ValueError as error:
            raise ClusterError(f"the load ended: {log[-1500:]}") from error
        if "switch" in said:
            switches.append(Switch(said["switch"], said["kind"], said["client"], said["at"]))
            let_in.add((said["kind"], said["client"]))
        elif "fault" in said and (said["kind"], said["client"]) in let_in:
            faults.append(said)
        elif "fault" in said:
            refused_first += 1
        else:
            totals = said
    return ClientAnswers(
        totals.get("heard", {}),
        totals.get("connections", {}),
        totals.get("slowest", {}),
        tuple(switches),
        tuple(faults),
        refused_first,
    )


@dataclass(frozen=True)
class Load:
    """The running load in a team's namespace."""

    team: Kubectl
    plan: Plan

    def start(self, image: str) -> None:
        """Start it in an image with Python, and wait until each client has an answer.

        Faults before that are not counted: a node learns a new pod's address, by which policies name it, up to a second
        late. Raises ClusterError if one has none within five minutes.
        """
        from tests.support.restricted import pod

        program = Path(load_client.__file__).read_text(encoding="utf-8")
        self.team.apply(pod(POD, image, "python", "-c", program, json.dumps(asdict(self.plan))))
        wait_for("the load's pod", lambda: self.team.get("pod", POD)["status"]["phase"] == "Running", 300)
        clients = sum(self.plan.clients.values())
        wait_for("the load's first answers", lambda: _clients(self.heard()) == clients, 300, _LOOK_S)

    def heard(self) -> ClientAnswers:
        """What its clients have heard so far."""
        return read(self.team("logs", POD))

    def wait_until_fresh_clients_hear(self, revision: str, since: float, timeout: float) -> float:
        """When a client on a new connection heard a revision first; raises ClusterError if none does in time."""
        return wait_for(f"an answer of {revision}", lambda: self.heard().first(revision, since), timeout, _LOOK_S)

    def wait_until_all_hear(self, revision: str, timeout: float) -> float:
        """Wait until every client's newest answer is a revision's; returns the time. Raises ClusterError if late."""
        clients = sum(self.plan.clients.values())
        what = f"every client to hear {revision}"
        wait_for(what, lambda: len(self.heard().on(revision)) == clients, timeout, _LOOK_S)
        return time.time()


def _clients(heard: ClientAnswers) -> int:
    return len({(switch.kind, switch.client) for switch in heard.switches})
