"""An AdapterDeployment that follows channels, against a real API server: looks are Jobs, and one comes when asked."""

from __future__ import annotations

import pytest

from finetune_api import meta
from finetune_api.endpoint_stages import PUBLISHED_AT
from finetune_api.reasons import Reason
from finetune_api.serving_status import ServingPhase
from finetune_api.stages import Outcome, Stage, StageInput, StageResult
from finetune_operator.framework.objects import DEPLOYMENTS, JOBS
from finetune_operator.kinds import ADAPTERDEPLOYMENTS
from finetune_operator.settings import Engine, Runtime
from tests.controlplane.conftest import wait
from tests.controlplane.serving import DRAIN_SECONDS, NAME, Serving
from tests.support.fake_node import Ending, failed
from tests.support.played_pods import BETTER, GOOD
from tests.support.sentences import assert_says

pytestmark = pytest.mark.controlplane

OUTPUT = {"uri": "s3://models/team", "name": "intents", "interval": "0m"}
MISSING = failed(Stage.FOLLOW, Reason.CHANNEL_NOT_FOUND, "s3://models/team/channels/intents/stable.json does not exist")


def pointing(digest: str, **scalars: str) -> Ending:
    return Ending(
        StageResult(
            stage=Stage.FOLLOW,
            outcome=Outcome.SUCCEEDED,
            reason=Reason.STAGE_SUCCEEDED,
            output_digest=digest,
            scalars={PUBLISHED_AT: "2026-01-02T03:04:05Z", **scalars},
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


def test_each_adapter_has_a_channel_of_its_own(serving: Serving) -> None:
    """Where one channel points to nothing, or to what cannot share the server, the status says which; the other is
    followed."""
    facts = {"format": "Adapter", "architecture": "llama", "baseDigest": "1" * 64, "rank": "16"}
    points = {"fr": pointing(GOOD, **facts), "de": pointing(BETTER, **(facts | {"baseDigest": "2" * 64}))}

    def look(given: StageInput) -> Ending:
        assert given.params.follow is not None
        return points[given.params.follow.name]

    def ask(value: str) -> None:
        body = {"metadata": {"annotations": {meta.ANNOTATION_LOOK: value}}}
        serving.team.api.patch(ADAPTERDEPLOYMENTS, serving.team.namespace, NAME, body)

    def digests() -> dict[str, str]:
        stable = serving.status().stable
        return {each.name: each.artifact_digest for each in stable.adapters} if stable else {}

    serving.team.node.scripts[Stage.FOLLOW] = look
    serving.start(runtimes={"vllm": Runtime(engine=Engine.VLLM, image="images/vllm:0", drain_seconds=DRAIN_SECONDS)})
    adapters = [{"name": name, "output": OUTPUT | {"name": name}} for name in points]
    serving.create({"source": {"adapters": adapters}, "runtime": "vllm", "keepLastGood": "0s"})
    status = serving.until(ServingPhase.FAILED)
    stalled = next(each for each in status.conditions if each.type == "Stalled")
    assert stalled.reason == Reason.ADAPTERS_UNSUITABLE
    assert_says(stalled.message, "'de' and 'fr'", "different base models")
    assert serving.children(DEPLOYMENTS) == {}
    points["de"] = pointing(BETTER, **facts)
    ask("1")
    serving.until(ServingPhase.READY)
    assert digests() == {"de": BETTER, "fr": GOOD}
    points["de"], points["fr"] = MISSING, pointing(BETTER, **facts)
    ask("2")
    wait(lambda: digests() == {"de": BETTER, "fr": BETTER}, "the channel that moved to be followed")
    status = serving.until(ServingPhase.DEGRADED)
    told = {each.adapter: (each.artifact_digest, each.reason) for each in status.adapter_channels}
    assert told == {"fr": (BETTER, ""), "de": (BETTER, Reason.CHANNEL_NOT_FOUND)}
    jobs = [name for name in serving.children(JOBS) if "-follow-" in name]
    assert len(jobs) == 2, "the newest look of each"
