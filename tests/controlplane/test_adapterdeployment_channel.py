"""An AdapterDeployment that follows a channel, against a real API server: looks are Jobs, and one comes when asked."""

from __future__ import annotations

import pytest

from finetune_api import meta
from finetune_api.endpoint_stages import PUBLISHED_AT
from finetune_api.reasons import Reason
from finetune_api.serving_status import ServingPhase
from finetune_api.stages import Outcome, Stage, StageInput, StageResult
from finetune_operator.framework.objects import JOBS
from finetune_operator.kinds import ADAPTERDEPLOYMENTS
from tests.controlplane.conftest import wait
from tests.controlplane.serving import NAME, Serving
from tests.support.fake_node import Ending, failed
from tests.support.played_pods import BETTER, GOOD

pytestmark = pytest.mark.controlplane

OUTPUT = {"uri": "s3://models/team", "name": "intents", "interval": "0m"}
MISSING = failed(Stage.FOLLOW, Reason.CHANNEL_NOT_FOUND, "s3://models/team/channels/intents/stable.json does not exist")


def pointing(digest: str) -> Ending:
    return Ending(
        StageResult(
            stage=Stage.FOLLOW,
            outcome=Outcome.SUCCEEDED,
            reason=Reason.STAGE_SUCCEEDED,
            output_digest=digest,
            scalars={PUBLISHED_AT: "2026-01-02T03:04:05Z"},
        )
    )


def test_a_channel_is_followed_when_asked_and_what_serves_stays_meanwhile(serving: Serving) -> None:
    answer, asked = [MISSING], list[StageInput]()

    def look(given: StageInput) -> Ending:
        asked.append(given)
        return answer[-1]

    def ask(value: str) -> None:
        body = {"metadata": {"annotations": {meta.ANNOTATION_LOOK: value}}}
        serving.team.api.patch(ADAPTERDEPLOYMENTS, serving.team.namespace, NAME, body)

    serving.team.node.scripts[Stage.FOLLOW] = look
    serving.start()
    serving.create({"source": {"output": OUTPUT}, "runtime": "tgi-cpu", "keepLastGood": "0s"})
    status = serving.until(ServingPhase.FAILED)
    assert {each.type: each.reason for each in status.conditions}["Stalled"] == Reason.CHANNEL_NOT_FOUND
    answer.append(pointing(GOOD))
    ask("1")
    first = serving.until(ServingPhase.READY)
    assert first.channel is not None
    assert (first.channel.artifact_digest, first.channel.reason) == (GOOD, "")
    assert first.channel.published_at == "2026-01-02T03:04:05Z"
    answer.append(MISSING)
    ask("2")
    status = serving.until(ServingPhase.DEGRADED)
    assert status.last_good_revision == first.last_good_revision
    assert status.channel is not None
    assert (status.channel.artifact_digest, status.channel.reason) == (GOOD, Reason.CHANNEL_NOT_FOUND)
    answer.append(pointing(BETTER))
    ask("3")
    wait(lambda: serving.status().last_good_revision != first.last_good_revision, "the other artifact")
    status = serving.until(ServingPhase.READY)
    assert status.stable is not None
    assert status.stable.artifact_digest == BETTER
    follow = asked[0].params.follow
    assert follow is not None
    assert (follow.uri, follow.name, len(asked)) == (OUTPUT["uri"], OUTPUT["name"], 4)
    assert len([name for name in serving.children(JOBS) if "-follow-" in name]) == 1
