"""Adapters that each follow a channel: every one is looked at, and what one look comes to holds up no other."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from finetune_api import meta
from finetune_api.reasons import Reason
from finetune_api.serving_status import ServingPhase
from finetune_api.stages import Stage
from finetune_operator.adapterdeployment.delivery_job import delivery_seconds, is_of_delivery
from finetune_operator.adapterdeployment.revision import spec_hash
from finetune_operator.framework.actions import Create
from finetune_operator.framework.objects import CONFIG_MAPS, DEPLOYMENTS, JOBS
from tests.support.played_pods import BETTER, GOOD
from tests.support.sentences import assert_says
from tests.support.serving import ServingCluster, condition
from tests.unit.test_adapterdeployment_adapters import BASE, BOTH, OTHER, STORE, VLLM, digests, published

pytestmark = pytest.mark.unit

SOON = 30.0
"""Seconds: sooner than the next look."""
SCALARS = {"format": "Adapter", "architecture": "llama", "baseDigest": BASE, "rank": "16"}
STORED = STORE.model_dump(by_alias=True, exclude_defaults=True)


def output(name: str, **asked: Any) -> dict[str, Any]:
    return {"output": {"uri": "s3://models/team", "name": name, "storage": STORED} | asked}


def following(sources: dict[str, dict[str, Any]]) -> dict[str, Any]:
    adapters = [{"name": name} | source for name, source in sources.items()]
    return {"source": {"adapters": adapters}, "runtime": "vllm", "keepLastGood": "0s"}


def served(**channels: str | Reason) -> ServingCluster:
    """An endpoint with an adapter for each channel, after the first looks."""
    spec = following({name: output(name) for name in channels})
    cluster = ServingCluster(spec=spec, settings=VLLM, channels=channels, channel_scalars=SCALARS)
    cluster.settle(within=SOON)
    return cluster


def later(cluster: ServingCluster) -> None:
    """After the next looks."""
    cluster.now += timedelta(minutes=6)
    cluster.settle(within=SOON)


def looks(cluster: ServingCluster) -> dict[str, str]:
    """Names of the Jobs by adapter."""
    labels = {name: job["metadata"]["labels"] for name, job in cluster.objects[JOBS].items()}
    return {
        found[meta.LABEL_ADAPTER]: name for name, found in labels.items() if found[meta.LABEL_STAGE] == Stage.FOLLOW
    }


def known(cluster: ServingCluster) -> dict[str, tuple[str, str]]:
    """Artifact and reason that the status has of each channel."""
    return {each.adapter: (each.artifact_digest, each.reason) for each in cluster.status.adapter_channels}


def test_each_channel_is_looked_at_and_what_it_points_to_is_served() -> None:
    cluster = served(fr=GOOD, de=BETTER)
    assert cluster.status.phase is ServingPhase.READY
    assert digests(cluster) == BOTH
    assert known(cluster) == {"fr": (GOOD, ""), "de": (BETTER, "")}
    assert cluster.status.channel is None
    assert sorted(each.name for each in cluster.looks) == ["de", "fr"]
    assert set(looks(cluster)) == {"de", "fr"}
    stable = cluster.status.stable
    assert stable is not None
    assert {(each.base_digest, each.rank) for each in stable.adapters} == {(BASE, 16)}


def test_a_channel_that_moves_is_followed_and_the_other_adapter_stays() -> None:
    cluster = served(fr=GOOD, de=GOOD)
    before, jobs = cluster.traffic(), looks(cluster)
    cluster.channels["de"] = BETTER
    later(cluster)
    assert cluster.traffic() != before
    assert digests(cluster) == BOTH
    assert looks(cluster).keys() == jobs.keys()
    assert not set(looks(cluster).values()) & set(jobs.values()), "the Jobs of the looks before are gone"


def test_a_channel_beside_a_finetunejob() -> None:
    """The first look has to end before anything starts."""
    spec = following({"fr": {"fineTuneJob": {"name": "fr"}}, "de": output("de")})
    sources = {"fr": published(GOOD)}
    cluster = ServingCluster(spec=spec, settings=VLLM, sources=sources, channels={"de": ""}, channel_scalars=SCALARS)
    cluster.settle(within=SOON)
    assert condition(cluster.status, "Reconciling") == ("True", Reason.SOURCE_NOT_READY)
    said = next(each.message for each in cluster.status.conditions if each.type == "Reconciling")
    assert_says(said, "Adapter 'de': A Job is looking up where channel stable of output 'de' points")
    assert cluster.objects.get(DEPLOYMENTS) is None
    cluster.channels["de"] = BETTER
    cluster.settle(within=SOON)
    assert digests(cluster) == BOTH


@pytest.mark.parametrize("reason", [Reason.CHANNEL_NOT_FOUND, Reason.ARTIFACT_WITHDRAWN, Reason.S3_UNREACHABLE])
def test_a_channel_without_an_artifact_holds_up_no_other(reason: Reason) -> None:
    cluster = served(fr=GOOD, de=GOOD)
    cluster.channels |= {"de": reason, "fr": BETTER}
    later(cluster)
    assert digests(cluster) == {"de": GOOD, "fr": BETTER}
    assert known(cluster) == {"fr": (BETTER, ""), "de": (GOOD, reason)}
    assert condition(cluster.status, "Ready") == ("True", Reason.SERVING)
    assert condition(cluster.status, "Stalled") == ("True", reason)
    said = next(each.message for each in cluster.status.conditions if each.type == "Stalled")
    assert_says(said, "Adapter 'de'", "nothing there", "is still the one to serve")


def test_new_keys_of_one_that_cannot_be_looked_at_hold_up_no_other() -> None:
    """With them it is another channel, of which nothing is known yet; what serves of it is read with them."""
    cluster = served(fr=GOOD, de=GOOD)
    rotated = {"storage": STORED | {"secretRef": {"name": "rotated"}}}
    cluster.spec = following({name: output(name, **rotated) for name in ("fr", "de")})
    cluster.channels |= {"de": Reason.S3_UNREACHABLE, "fr": BETTER}
    later(cluster)
    assert digests(cluster) == {"de": GOOD, "fr": BETTER}
    assert condition(cluster.status, "Stalled") == ("True", Reason.S3_UNREACHABLE)
    assert cluster.status.stable is not None
    assert cluster.status.stable.storage is not None
    assert cluster.status.stable.storage.secret_ref is not None


def test_a_new_one_without_an_artifact_holds_up_the_list() -> None:
    """As a new FineTuneJob does: what is asked for is one revision."""
    cluster = served(fr=GOOD)
    cluster.spec = following({"fr": output("fr"), "de": output("de")})
    cluster.channels |= {"de": Reason.CHANNEL_NOT_FOUND, "fr": BETTER}
    later(cluster)
    assert digests(cluster) == {"fr": GOOD}
    assert condition(cluster.status, "Stalled") == ("True", Reason.CHANNEL_NOT_FOUND)
    cluster.channels["de"] = GOOD
    later(cluster)
    assert digests(cluster) == {"de": GOOD, "fr": BETTER}


@pytest.mark.parametrize(
    ("scalars", "says"),
    [
        (SCALARS | {"baseDigest": OTHER}, "Adapters 'fr' and 'de' were trained on different base models"),
        (SCALARS | {"format": "Merged"}, "The artifact of adapter 'de' is a whole model (Merged)"),
        (SCALARS | {"rank": "999"}, "Adapter 'de' has rank 999"),
    ],
)
def test_what_cannot_share_a_server_is_known_before_a_pod_starts(scalars: dict[str, str], says: str) -> None:
    spec = following({"de": output("de"), "fr": {"fineTuneJob": {"name": "fr"}}})
    sources, channels = {"fr": published(GOOD)}, {"de": BETTER}
    cluster = ServingCluster(
        spec=spec, settings=VLLM, sources=sources, channels=dict(channels), channel_scalars=scalars
    )
    cluster.settle(within=SOON)
    assert cluster.objects.get(DEPLOYMENTS) is None
    stalled = next(each for each in cluster.status.conditions if each.type == "Stalled")
    assert stalled.reason == Reason.ADAPTERS_UNSUITABLE
    if "different base" in says:
        assert_says(stalled.message, "different base models")
    else:
        assert_says(stalled.message, says)


@pytest.mark.parametrize("size", [20 << 20, 50 << 30])
def test_running_pods_have_time_by_the_size_that_a_look_has_read(size: int) -> None:
    cluster = served(fr=GOOD)
    cluster.channels["de"], cluster.channel_scalars = BETTER, SCALARS | {"sizeBytes": str(size)}
    cluster.spec = following({"fr": output("fr"), "de": output("de")})
    for _ in range(20):
        cluster.reconcile()
        if found := [job for job in cluster.objects[JOBS].values() if is_of_delivery(job)]:
            break
        cluster.run_controllers()
    [job] = found
    deadline = job["spec"]["template"]["spec"]["activeDeadlineSeconds"]
    assert 2 * delivery_seconds([size]) <= deadline < 2 * delivery_seconds([size + (1 << 30)])


def test_running_pods_take_an_adapter_that_comes_by_a_channel() -> None:
    """Nothing restarts; and its look goes with it."""
    cluster = served(fr=GOOD)
    before = cluster.traffic()
    cluster.channels["de"] = BETTER
    cluster.spec = following({"fr": output("fr"), "de": output("de")})
    cluster.settle(within=SOON)
    assert digests(cluster) == BOTH
    assert cluster.traffic() == before
    cluster.spec = following({"fr": output("fr")})
    cluster.settle(within=SOON)
    assert (digests(cluster), known(cluster)) == ({"fr": GOOD}, {"fr": (GOOD, "")})
    assert set(looks(cluster)) == {"fr"}
    assert len([name for name in cluster.objects[CONFIG_MAPS] if f"-{Stage.FOLLOW}-" in name]) == 1


def test_a_look_that_is_refused_holds_up_no_other() -> None:
    cluster = served(fr=GOOD, de=GOOD)

    def refuse(_: Any, action: Any) -> str:
        is_job = isinstance(action, Create) and action.resource == JOBS
        of_de = is_job and action.object["metadata"]["labels"].get(meta.LABEL_ADAPTER) == "de"
        return 'jobs.batch "x" is forbidden: exceeded quota: few' if of_de else ""

    cluster.refuse = refuse
    cluster.channels |= {"fr": BETTER}
    later(cluster)
    assert known(cluster) == {"fr": (BETTER, ""), "de": (GOOD, Reason.QUOTA_EXCEEDED)}
    assert digests(cluster) == {"de": GOOD, "fr": BETTER}


def test_another_interval_of_one_is_no_other_spec() -> None:
    hashes = [
        spec_hash(ServingCluster(spec=following({"fr": output("fr", **asked)})).observe().resource.spec)
        for asked in ({"interval": "1h"}, {}, {"channel": "candidate"})
    ]
    assert hashes[0] == hashes[1] != hashes[2]
