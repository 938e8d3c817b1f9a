"""What a pod does about adapters when its server, or the operator, says something at a bad moment.

Server, store and proofs are played: what the real ones say is in test_jobs_adapters.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from finetune_api.endpoint_stages import AdapterReports, SelfCheckLimits, WantedAdapter, WantedAdapters
from finetune_api.reasons import Reason
from finetune_api.serving_status import AdapterState, VerificationCheck
from finetune_jobs.artifacts.artifact import BaseRef
from finetune_jobs.base.errors import StageError
from finetune_jobs.runtime.adapters import Adapter
from finetune_jobs.verification import checks
from finetune_jobs.verification.loading import AGAIN_SECONDS, LINGER_SECONDS, Loader

pytestmark = pytest.mark.unit

LIMITS = SelfCheckLimits()
BASE = BaseRef(digest="b" * 64, rank=8)


class Sound:
    """A proof that passes."""

    def __init__(self, _server: object, _artifact: Path, _digest: str) -> None:
        pass

    def whole(self, _limits: SelfCheckLimits) -> Sequence[VerificationCheck]:
        return []

    def under(self, _server: object) -> Sound:
        return self


class Pod:
    """A loader, and the server that it tells what to load."""

    def __init__(self, models: Path) -> None:
        self.names: dict[str, str] = {}
        self.unheard: list[str] = []
        """Names whose next load is done, and its answer comes too late."""
        self.lasting: set[str] = set()
        """Names that it does not let go of."""
        self.missing: set[str] = set()
        """Adapters that the store does not have."""
        self.full_for: set[str] = set()
        """Adapters that do not fit the volume."""
        self.restarts_during: set[str] = set()
        """Adapters while which are fetched the server starts again, without any."""
        self.now = 0.0
        self.told: dict[str, AdapterState] = {}
        self.told_before: dict[str, dict[str, AdapterState]] = {}
        """What was told when an adapter was about to be fetched."""
        self.loader = Loader(
            self, self.fetch, lambda _: cast(Any, None), checks.require_all, models, "demo", self.tell, lambda: self.now
        )

    def tell(self, reports: AdapterReports) -> None:
        self.told = {each.name: each.state for each in reports.adapters}

    def fetch(self, each: WantedAdapter) -> Adapter:
        self.told_before[each.name] = self.told
        if each.name in self.restarts_during:
            self.names.clear()
        if each.name in self.full_for:
            raise StageError(Reason.SCRATCH_FULL, f"{each.name} does not fit")
        if each.name in self.missing:
            raise StageError(Reason.ARTIFACT_NOT_FOUND, f"{each.name} is not there")
        return Adapter(each, BASE, cast(Any, None))

    def loaded(self) -> dict[str, str]:
        return dict(self.names)

    def load(self, name: str, path: str) -> None:
        if name in self.names:
            raise StageError(Reason.CANDIDATE_FAILED, f"{name} has already been loaded")
        self.names[name] = path
        if name in self.unheard:
            self.unheard.remove(name)
            raise StageError(Reason.CANDIDATE_FAILED, "no answer (ReadTimeout)", retriable=True)

    def unload(self, name: str) -> None:
        if name in self.lasting:
            raise StageError(Reason.CANDIDATE_FAILED, "no answer (ReadTimeout)", retriable=True)
        self.names.pop(name, None)

    def settle(self, wanted: WantedAdapters) -> dict[str, AdapterState]:
        self.loader.settle(wanted, LIMITS)
        return {each.name: each.state for each in self.loader.reports().adapters}


def wanted(attempt: str = "first", **required: bool) -> WantedAdapters:
    """Adapters by name, and whether no pod is ready without them."""
    adapters = [
        WantedAdapter(
            name=name,
            uri=f"s3://bucket/{name}",
            digest=name[0] * 64,
            required=needed,
            attempt="" if needed else attempt,
        )
        for name, needed in required.items()
    ]
    # Whether one was withdrawn, the store says, and there is none here.
    return WantedAdapters.model_validate({"adapters": [each.model_dump() for each in adapters], "withdrawn": "Warn"})


@pytest.fixture
def pod(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Pod:
    """A pod that serves one adapter."""
    monkeypatch.setattr("finetune_jobs.verification.loading.Proof", Sound)
    pod = Pod(tmp_path)
    pod.loader.begin(wanted(de=True), LIMITS)
    assert pod.names.keys() == {"demo:de"}
    return pod


def test_a_name_whose_load_was_not_answered_is_taken_away_and_loaded_anew(pod: Pod) -> None:
    """The server may have done it: then the name would answer on this pod for ever, and a second load be refused."""
    pod.unheard = ["demo:fr"]
    assert pod.settle(wanted(de=True, fr=False))["fr"] is AdapterState.LOADING
    pod.settle(wanted(de=True, fr=False))
    assert pod.names.keys() == {"demo:de"}
    pod.now += AGAIN_SECONDS
    assert pod.settle(wanted(de=True, fr=False))["fr"] is AdapterState.LOADED
    assert pod.names.keys() == {"demo:de", "demo:fr"}


def test_a_name_whose_load_was_not_answered_goes_with_its_adapter(pod: Pod) -> None:
    pod.unheard = ["demo:fr"]
    pod.settle(wanted(de=True, fr=False))
    pod.settle(wanted(de=True))
    assert pod.names.keys() == {"demo:de"}


@pytest.mark.parametrize("answered", [True, False], ids=["loaded", "its load was not answered"])
def test_one_that_cannot_be_removed_is_told_of_until_it_is(pod: Pod, answered: bool) -> None:
    """Whoever asks has to know that its name answers."""
    pod.unheard = [] if answered else ["demo:fr"]
    pod.settle(wanted(de=True, fr=False))
    pod.lasting = {"demo:fr"}
    assert pod.settle(wanted(de=True)).keys() == {"de", "fr"}
    assert "demo:fr" in pod.names
    pod.lasting = set()
    assert pod.settle(wanted(de=True)).keys() == {"de"}
    assert ({*pod.told}, {*pod.names}) == ({"de"}, {"demo:de"})


def test_a_pod_tells_of_all_that_it_will_load_before_it_fetches_the_first(pod: Pod) -> None:
    """Whoever asks meanwhile whether one that was removed is gone would be told nothing of it."""
    pod.settle(wanted(de=True, es=False, fr=False))
    assert pod.told_before["es"].keys() == {"de", "es", "fr"}
    assert pod.told_before["es"]["fr"] is AdapterState.LOADING


def test_a_name_is_loaded_with_another_artifact_once_the_former_one_has_gone(pod: Pod) -> None:
    """Else the other one would be proved on the former one's weights, and refused for good."""
    pod.settle(wanted(de=True, fr=False))
    pod.lasting = {"demo:fr"}
    [de, fr] = wanted(de=True, fr=False).adapters
    other = WantedAdapters(adapters=[de, fr.model_copy(update={"digest": "9" * 64})], withdrawn=wanted().withdrawn)
    assert pod.settle(other)["fr"] is AdapterState.LOADING
    pod.now += AGAIN_SECONDS
    assert pod.settle(other)["fr"] is AdapterState.LOADING
    assert "f" * 64 in pod.names["demo:fr"]
    pod.lasting = set()
    assert pod.settle(other)["fr"] is AdapterState.LOADED
    assert "9" * 64 in pod.names["demo:fr"]


def test_one_that_could_not_be_removed_comes_back_as_it_is(pod: Pod) -> None:
    pod.settle(wanted(de=True, fr=False))
    pod.lasting = {"demo:fr"}
    pod.settle(wanted(de=True))
    assert pod.settle(wanted("second", de=True, fr=False)) == dict.fromkeys(("de", "fr"), AdapterState.LOADED)
    [fr] = [each for each in pod.loader.reports().adapters if each.name == "fr"]
    assert fr.attempt == "second", "the Job that asks has to know that the pod has read of it"


def test_a_pod_that_could_not_load_what_all_others_have_is_ready_no_longer(pod: Pod) -> None:
    """It became ready just after the others had been asked. By then its clients would get 404."""
    pod.missing = {"fr"}
    assert pod.settle(wanted(de=True, fr=False))["fr"] is AdapterState.FAILED
    with pytest.raises(StageError, match="fr is not there") as error:
        pod.settle(wanted(de=True, fr=True))
    assert error.value.reason is Reason.ARTIFACT_NOT_FOUND


def test_one_that_does_not_fit_waits_for_the_files_of_removed_ones_and_for_nothing_else(pod: Pod) -> None:
    pod.settle(wanted(de=True, fr=False))
    pod.full_for = {"es", "it"}
    assert pod.settle(wanted(de=True, es=False))["es"] is AdapterState.LOADING, "those of fr are there still"
    pod.now += LINGER_SECONDS
    assert pod.settle(wanted(de=True, es=False))["es"] is AdapterState.LOADING
    pod.full_for.remove("es")
    pod.now += AGAIN_SECONDS
    assert pod.settle(wanted(de=True, es=False))["es"] is AdapterState.LOADED
    assert pod.settle(wanted(de=True, es=True, it=False))["it"] is AdapterState.FAILED


def test_what_became_of_one_is_told_before_the_next_is_fetched(pod: Pod) -> None:
    """Whoever waits for all of them gives up some time: a slow one must not take the others with it."""
    pod.missing = {"es"}
    pod.settle(wanted(de=True, es=False, fr=False, it=False))
    of_others = {name: pod.told_before["fr"][name] for name in ("de", "es")}
    assert of_others == {"de": AdapterState.LOADED, "es": AdapterState.FAILED}
    assert pod.told_before["it"] == pod.told_before["fr"] | {"fr": AdapterState.LOADED}
    pod.settle(wanted(de=True, it=True))
    assert pod.told == {"de": AdapterState.LOADED, "it": AdapterState.LOADED}


def test_one_that_failed_is_tried_again_if_the_spec_asks_anew(pod: Pod) -> None:
    """Within a minute, so that the pod has read of no set without it in between."""
    pod.missing = {"fr"}
    assert pod.settle(wanted(de=True, fr=False))["fr"] is AdapterState.FAILED
    pod.missing = set()
    pod.now += 10 * AGAIN_SECONDS
    assert pod.settle(wanted(de=True, fr=False))["fr"] is AdapterState.FAILED, "not by itself"
    assert pod.settle(wanted("second", de=True, fr=False))["fr"] is AdapterState.LOADED
    assert pod.names.keys() == {"demo:de", "demo:fr"}


def test_one_that_is_loaded_stays_loaded_if_the_spec_asks_anew(pod: Pod) -> None:
    """It had failed on another pod. What is said of it is said of the new attempt."""
    pod.settle(wanted(de=True, fr=False))
    pod.missing = {"fr"}
    assert pod.settle(wanted("second", de=True, fr=False))["fr"] is AdapterState.LOADED
    assert {each.name: each.attempt for each in pod.loader.reports().adapters} == {"de": "", "fr": "second"}


def test_one_that_waits_is_not_hurried_by_a_new_attempt(pod: Pod) -> None:
    pod.unheard = ["demo:fr"]
    assert pod.settle(wanted(de=True, fr=False))["fr"] is AdapterState.LOADING
    assert pod.settle(wanted("second", de=True, fr=False))["fr"] is AdapterState.LOADING
    pod.now += AGAIN_SECONDS
    assert pod.settle(wanted("second", de=True, fr=False))["fr"] is AdapterState.LOADED


@pytest.mark.parametrize("again", [False, True], ids=["running", "started again"])
def test_one_that_the_pod_must_have_does_not_wait_for_the_files_of_removed_ones(pod: Pod, again: bool) -> None:
    """A self-check that ends for it starts again, and counts their time from then on, for ever."""
    left = pod.loader.models / ("d" * 64) / "artifact"
    left.mkdir(parents=True)
    it = Pod(pod.loader.models) if again else pod
    fetch = it.loader.fetch

    def fetch_if_it_fits(each: WantedAdapter) -> Adapter:
        it.full_for = {each.name} if left.exists() else set()
        return fetch(each)

    it.loader.fetch = fetch_if_it_fits
    if again:
        it.loader.begin(wanted(fr=True), LIMITS)
    else:
        assert it.settle(wanted(fr=False))["fr"] is AdapterState.LOADING
        it.settle(wanted(fr=True))
    assert it.names.keys() == {"demo:fr"}


def test_files_that_another_name_is_served_from_make_no_room(pod: Pod) -> None:
    files = pod.loader.models / ("d" * 64) / "model"
    files.mkdir(parents=True)
    pod.full_for = {"fr"}
    assert pod.settle(wanted(de=True, dk=False, fr=False))["dk"] is AdapterState.LOADED
    with pytest.raises(StageError, match="fr does not fit"):
        pod.settle(wanted(dk=False, fr=True))
    assert files.exists()


@pytest.mark.parametrize("missing", [{"fr"}, set()], ids=["which is not there", "which is"])
def test_a_server_that_starts_again_while_an_adapter_is_fetched_has_to_be_proved_anew(
    pod: Pod, missing: set[str]
) -> None:
    """Its port was closed while nobody looked, and the pod would stay ready without what its clients ask for."""
    pod.missing, pod.restarts_during = missing, {"fr"}
    with pytest.raises(StageError, match="'demo:de'") as error:
        pod.settle(wanted(de=True, fr=False))
    assert (error.value.reason, error.value.retriable) == (Reason.CANDIDATE_FAILED, True)


def test_a_server_that_starts_again_before_its_pod_is_ready_has_to_be_proved_anew(pod: Pod) -> None:
    again = Pod(pod.loader.models)
    again.restarts_during = {"fr"}
    with pytest.raises(StageError, match="'demo:de'"):
        again.loader.begin(wanted(de=True, fr=False), LIMITS)


def test_a_server_that_does_not_say_what_it_has_is_none_that_has_lost_it(
    pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent() -> dict[str, str]:
        raise StageError(Reason.CANDIDATE_FAILED, "no answer (ReadTimeout)", retriable=True)

    monkeypatch.setattr(pod, "loaded", silent)
    assert pod.settle(wanted(de=True, fr=False))["fr"] is AdapterState.LOADED
