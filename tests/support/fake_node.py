"""The test plays kubelet: it "runs" the pods of stage Jobs against a store that it keeps in memory.

Everything else is real: the API server, the Job controller and the garbage collector. A stage's pod reads its input
from the ConfigMap that its volume names and answers through its termination message, as a container would.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from finetune_api import meta
from finetune_api.layout import output_folder
from finetune_api.reasons import Reason
from finetune_api.stages import PIPELINE, Found, Outcome, Stage, StageInput, StageResult, Upstream, input_key
from finetune_operator.framework.client import ApiError, StreamClient
from finetune_operator.framework.conditions import parse_timestamp, timestamp
from finetune_operator.framework.objects import CONFIG_MAPS, Object
from finetune_operator.resources.stage_job import STAGE_CONTAINER
from tests.support.played_kubelet import PlayedKubelet

SCALARS: dict[Stage, dict[str, str]] = {
    Stage.PREPARE: {
        "rowsRead": "600",
        "rowsInvalid": "3",
        "rowsDuplicates": "7",
        "rowsTrain": "472",
        "rowsValidation": "59",
        "rowsTest": "59",
        "labels": "4",
    },
    Stage.TRAIN: {"steps": "90", "trainLoss": "0.12", "validationLoss": "0.2"},
    Stage.EXPORT: {"format": "INT8", "sizeBytes": "1000"},
    Stage.EVALUATE: {"samples": "59", "accuracyBase": "0.31", "accuracyTuned": "0.95", "accuracyArtifact": "0.94"},
    Stage.PUBLISH: {
        "format": "INT8",
        "sizeBytes": "1000",
        "goldenPrompts": "8",
        "channel": "stable",
        "goals": '[["Pass", "0.94", "0.9", "1", null]]',
    },
}


def sha(text: str) -> str:
    """A digest that looks like those of real outputs."""
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass
class Ending:
    """How a stage's container ends."""

    result: StageResult | None = None
    exit_code: int = 0
    reason: str = "Completed"


@dataclass
class Store:
    """What has been made, by input key; survives everything that happens in the cluster."""

    made: dict[str, StageResult] = field(default_factory=dict)
    executed: list[Stage] = field(default_factory=list)
    """Stages whose work was done, in order."""

    def run(self, given: StageInput) -> Ending:
        """Do a stage's work, or take over what exists for its input."""
        result = self._resolve(given) if given.stage is Stage.RESOLVE else self._make(given)
        return Ending(result)

    def _resolve(self, given: StageInput) -> StageResult:
        upstream = Upstream(source=sha("source"), model=sha(given.base_model_uri))
        identity = {"sourceDigest": upstream.source, "modelDigest": upstream.model}
        found: list[Found] = []
        for stage in PIPELINE if given.reuse else ():
            known = self.made.get(input_key(stage, upstream, given.params))
            if known is None:
                break
            found.append(Found(stage=stage, output_digest=known.output_digest, scalars=known.scalars))
            upstream = upstream.with_output(stage, known.output_digest)
        return _succeeded(given.stage).model_copy(update={"scalars": identity, "found": found})

    def _make(self, given: StageInput) -> StageResult:
        known = self.made.get(given.input_key)
        if known is not None:
            return known.model_copy(update={"reused": True})
        self.executed.append(given.stage)
        output = sha(given.input_key)
        scalars = dict(SCALARS[given.stage])
        if given.stage is Stage.PUBLISH and given.output:
            scalars["artifactUri"] = f"{given.output.uri}/{output_folder(given.stage, output)}"
        result = _succeeded(given.stage).model_copy(update={"output_digest": output, "scalars": scalars})
        self.made[given.input_key] = result
        return result


def failed(stage: Stage, reason: Reason, message: str) -> Ending:
    """The ending of a stage that cannot succeed as it is asked."""
    result = StageResult(stage=stage, outcome=Outcome.FAILED, reason=reason, message=message)
    return Ending(result, exit_code=meta.ExitCode.FATAL, reason="Error")


def _succeeded(stage: Stage) -> StageResult:
    return StageResult(stage=stage, outcome=Outcome.SUCCEEDED, reason=Reason.STAGE_SUCCEEDED, message=f"{stage} done.")


Script = Callable[[StageInput], Ending | None]
"""What a stage's pod does; None keeps it running until the script is asked again."""


class FakeNode(PlayedKubelet):
    """Runs the stage pods of one namespace in a thread of its own. Use as a context manager."""

    def __init__(self, client: StreamClient, namespace: str, store: Store | None = None, address: str = "") -> None:
        super().__init__(client, namespace, meta.LABEL_STAGE)
        self.store = store or Store()
        self.scripts: dict[Stage, Script] = {}
        self.admit: Callable[[Object], Object | None] = lambda pod: None
        """The status that keeps a pending pod from starting, or None to start it."""
        self.started: list[tuple[Stage, str]] = []
        """Stage and pod of every container that was started."""
        self._inputs: dict[str, StageInput] = {}
        """What pods have mounted, by their uid."""
        self._held: dict[str, Object] = {}
        """The last status that kept a pod from starting, by its uid."""
        self.address = address
        """Of all pods."""

    def _step(self, pod: Object) -> None:
        phase = pod["status"].get("phase")
        if pod["metadata"].get("deletionTimestamp") or phase in ("Succeeded", "Failed"):
            return
        given = self._input(pod)
        if given is None:
            return
        if phase == "Pending":
            if blocker := self.admit(pod):
                self._hold(pod, blocker)
                return
            self.started.append((given.stage, pod["metadata"]["name"]))
            running = {"phase": "Running", "podIP": self.address, "startTime": _now()}
            self._wrote(pod, running | _container({"running": {}}))
        if _is_late(pod):
            self._end(pod, Ending(exit_code=137, reason="Error"), {"reason": "DeadlineExceeded"})
            return
        ending = self.scripts.get(given.stage, self.store.run)(given)
        if ending is not None:
            self._end(pod, ending if _answers(pod) or ending.exit_code else Ending())

    def _end(self, pod: Object, ending: Ending, why: Object | None = None) -> None:
        message = ending.result.model_dump_json(by_alias=True) if ending.result else ""
        terminated = {"exitCode": int(ending.exit_code), "reason": ending.reason, "message": message}
        terminated["finishedAt"] = _now()
        phase = "Succeeded" if ending.exit_code == 0 else "Failed"
        self._wrote(pod, {"phase": phase} | (why or {}) | _container({"terminated": terminated}))

    def _hold(self, pod: Object, blocker: Object) -> None:
        """Say once why a pod does not start."""
        uid = pod["metadata"]["uid"]
        if self._held.get(uid) != blocker and self._wrote(pod, blocker):
            self._held[uid] = blocker

    def _input(self, pod: Object) -> StageInput | None:
        """The mounted input; without its ConfigMap, a pod cannot start."""
        uid = pod["metadata"]["uid"]
        if uid in self._inputs:
            return self._inputs[uid]
        name = next(volume["configMap"]["name"] for volume in pod["spec"]["volumes"] if volume["name"] == "input")
        found = self._api.get(CONFIG_MAPS, self._namespace, name)
        if found is None:
            return None
        self._inputs[uid] = StageInput.model_validate_json(found["data"]["input.json"], extra="ignore")
        return self._inputs[uid]

    def _wrote(self, pod: Object, status: Object) -> bool:
        """Whether the pod was still there to be written to."""
        try:
            self._write(pod, status)
        except ApiError as error:
            if error.status not in (404, 409):
                raise
            return False
        return True


def _now() -> str:
    return timestamp(datetime.now(UTC))


def _is_late(pod: Object) -> bool:
    """Whether a pod has had its node for as long as it may."""
    limit, start = pod["spec"].get("activeDeadlineSeconds"), pod["status"].get("startTime")
    return bool(limit and start) and datetime.now(UTC) >= parse_timestamp(start) + timedelta(seconds=limit)


def _answers(pod: Object) -> bool:
    """Whether a pod speaks for its stage: of several that work together, the one with the number 0."""
    return bool(pod["metadata"]["labels"].get(meta.LABEL_INDEX, "0") == "0")


def _container(state: dict[str, Any]) -> Object:
    image = {"image": "example/data", "imageID": "", "ready": False, "restartCount": 0}
    return {"containerStatuses": [{"name": STAGE_CONTAINER, "state": state, **image}]}
