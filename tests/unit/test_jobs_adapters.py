"""Two adapters on one base, from export to a verified server: the real stages and real adapters.

The server is a stand-in for vLLM that answers what they answered.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from finetune_api.artifact_source import set_address
from finetune_api.endpoint_stages import (
    AdapterRef,
    FetchParams,
    SelfCheckLimits,
    VerifyParams,
    WantedAdapter,
    WantedAdapters,
)
from finetune_api.layout import Withdrawal, output_folder
from finetune_api.reasons import Reason
from finetune_api.serving_status import AdapterState, CheckOutcome
from finetune_api.stages import Params, Stage, StageInput, StageResult
from finetune_api.storage import Storage
from finetune_api.verification import WithdrawnPolicy
from finetune_jobs.artifacts.artifact import Answer, ReferenceText
from finetune_jobs.artifacts.bom import BOM
from finetune_jobs.artifacts.withdrawal import withdraw
from finetune_jobs.base.errors import StageError
from finetune_jobs.fetch import fetch
from finetune_jobs.promote import promote
from finetune_jobs.runtime.adapters import Adapter, AdapterSource
from finetune_jobs.runtime.runner import execute
from finetune_jobs.self_check import Gate, Options, self_check
from finetune_jobs.store.places import Places
from finetune_jobs.store.s3 import Store
from finetune_jobs.verification import checks
from finetune_jobs.verification.loading import Loader
from finetune_jobs.verification.observation import Promise
from finetune_jobs.verification.promise import read_promise
from finetune_jobs.verification.vllm import VllmAdapters, VllmServer
from finetune_jobs.verify import verify
from tests.support.artifacts import publish_adapter, publish_artifact
from tests.support.published import new_key, public_pem
from tests.support.seaweedfs import ADMIN, SeaweedFS
from tests.support.sentences import assert_says
from tests.support.stages import DEPLOYMENT, context
from tests.support.tiny_model import build_tiny_llama
from tests.support.vllm_server import Lora, VllmContract, running

pytestmark = [pytest.mark.unit, pytest.mark.slow, pytest.mark.usefixtures("own_client")]

NAMES = ("de", "fr")
LIMITS = SelfCheckLimits()
WITHDRAWAL = Withdrawal(reason="licence", by="legal", withdrawn_at="2026-03-01T12:00:00Z")


class Endpoint:
    """An AdapterDeployment with two adapters, as its stages see it."""

    def __init__(self, s3: SeaweedFS, published: list[StageResult], work: Path) -> None:
        self.refs = [
            AdapterRef(name=name, uri=each.scalars["artifactUri"], digest=each.output_digest)
            for name, each in zip(NAMES, published, strict=True)
        ]
        self._s3, self._work = s3, work

    def run(
        self,
        stage: Stage,
        endpoint: str = "",
        max_rank: int = 8,
        signed_by: Sequence[str] = (),
        *,
        wanted: str = "",
        cache: Path | None = None,
        room: int = 0,
        require_probabilities: bool = False,
    ) -> StageResult:
        """Fetch or verify."""
        params = Params(
            fetch=FetchParams(adapters=self.refs, max_rank=max_rank, public_keys=list(signed_by), wanted=wanted),
            verify=VerifyParams(
                endpoint=endpoint,
                engine="vllm",
                samples=12,
                min_agreement_percent=75,
                timeout_seconds=180,
                model="demo",
                adapters=self.refs,
                require_probabilities=require_probabilities,
            ),
        )
        given = StageInput(
            stage=stage,
            run=DEPLOYMENT,
            storage=self._s3.storage,
            artifact_uri=self.refs[0].uri,
            artifact_digest=self.refs[0].digest,
            params=params,
        )
        made = replace(context(given, self._work), model_cache=cache, models_room=room)
        return execute(made, fetch if stage is Stage.FETCH else verify)

    @property
    def storage(self) -> Storage:
        return self._s3.storage

    @property
    def models(self) -> Path:
        return self._work / "models"

    def contract(self) -> VllmContract:
        """A server that keeps the promise of both."""
        address = set_address({each.name: each.digest for each in self.refs})
        loras: dict[str, Lora] = {}
        first: list[ReferenceText] = []
        for each in self.refs:
            promise = read_promise(self.models / each.digest / "artifact", each.name)
            answers = [*promise.golden, *promise.sample]
            loras[f"demo:{each.name}"] = Lora(f"/models/{each.digest}/model", answers, promise.references)
            first = first or [it.model_copy(update={"artifact": it.base}) for it in promise.references]
        return VllmContract(f"/models/{address}/model", references=first, loras=loras)

    def self_checked(self, server: VllmContract) -> None:
        """The check of a pod that starts; returns once it is ready."""
        limits = self._work / "limits.json"
        limits.write_text(SelfCheckLimits().model_dump_json(by_alias=True))
        adapters = [(f"demo:{e.name}", str(self.models / e.digest / "artifact"), e.digest) for e in self.refs]
        options = Options(None, "", "vllm", server.url, limits, "-", 0, adapters)
        opened = threading.Event()

        class Opened(Gate):
            def open(self) -> None:
                opened.set()
                raise InterruptedError

        with pytest.raises(InterruptedError):
            self_check(options, Opened(0))
        assert opened.is_set()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_llama(tmp_path_factory.mktemp("adapters") / "base", seed=1)


@pytest.fixture(scope="module")
def source(s3: SeaweedFS) -> str:
    """Where both adapters are published; no test changes what is there."""
    return f"s3://data/{uuid.uuid4().hex}"


@pytest.fixture(scope="module")
def published(s3: SeaweedFS, source: str, base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[StageResult]:
    folder = tmp_path_factory.mktemp("published")
    with mock.patch.dict(os.environ, ADMIN.environment()):
        made = [
            publish_adapter(s3.storage, source, folder / name, base=base, seed=seed, rank=rank)
            for name, seed, rank in zip(NAMES, (1, 2), (4, 8), strict=True)
        ]
    assert [each.scalars["format"] for each in made] == ["Adapter"] * 2
    assert len({each.scalars["baseDigest"] for each in made}) == 1
    assert [each.scalars["rank"] for each in made] == ["4", "8"]
    written = [each.stat().st_size for each in (folder / NAMES[0] / "under").rglob("*") if each.is_file()]
    assert {each.scalars["baseSizeBytes"] for each in made} == {str(sum(written))}
    assert {each.scalars["architecture"] for each in made} == {"llama"}
    return made


@pytest.fixture
def endpoint(s3: SeaweedFS, place: str, published: list[StageResult], tmp_path: Path) -> Endpoint:
    """With the store's keys in the environment, as ``place`` puts them there."""
    return Endpoint(s3, published, tmp_path)


def planted(server: VllmContract, name: str, lora: Lora) -> VllmContract:
    return replace(server, loras={**server.loras, name: lora}, seen=[])


def as_base(answers: list[Answer]) -> list[Answer]:
    return [each.model_copy(update={"artifact": each.base}) for each in answers]


def test_each_adapter_proves_itself_under_its_own_name(endpoint: Endpoint) -> None:
    """Their base may lie in a cache that pods share; they are each pod's own."""
    cache = endpoint.models.parent / "cache"
    cache.mkdir()
    first, fetched = (endpoint.run(Stage.FETCH, cache=cache) for _ in range(2))
    assert_says(first.message, "2 adapters, and their base model", "into the cache", "every hash matches")
    assert_says(fetched.message, "2 adapters, and their base model", "taken from the cache", "every hash matches")
    address = set_address({each.name: each.digest for each in endpoint.refs})
    assert fetched.output_digest == address
    assert (endpoint.models / address / "model" / "config.json").exists()
    assert (endpoint.models / address / "model").resolve().parent == cache
    for each in endpoint.refs:
        assert (endpoint.models / each.digest / "model" / "adapter_model.safetensors").exists()
        assert not (endpoint.models / each.digest / "model").is_symlink()
    good = endpoint.contract()
    with running(good) as server:
        result = endpoint.run(Stage.VERIFY, server.url)
        endpoint.self_checked(server)
    with (
        running(replace(good, failure=(400, "no such field"), seen=[])) as server,
        pytest.raises(StageError, match=r"Its adapter 'demo:de': .*no such field"),
    ):
        endpoint.self_checked(server)
    assert [(check.name, check.outcome) for check in result.checks] == [
        ("de.checks", CheckOutcome.PASSED),
        ("fr.checks", CheckOutcome.PASSED),
        ("baseModel", CheckOutcome.PASSED),
    ]
    assert result.scalars["samples"] == "24"
    assert {each["model"] for each in good.seen} >= {"demo", "demo:de", "demo:fr"}

    fr, de = good.loras["demo:fr"], good.loras["demo:de"]
    of_base = [each.model_copy(update={"artifact": each.base}) for each in fr.references]
    silent = Lora(fr.root, as_base(list(fr.answers)), of_base)
    for wrong, reason, says in (
        (silent, Reason.ADAPTER_INACTIVE, "Adapter 'fr' … differsFromBase"),
        (
            replace(fr, root=de.root),
            Reason.VERIFICATION_FAILED,
            f"Adapter 'fr' … digest … {fr.root.split('/')[2][:12]}",
        ),
    ):
        with running(planted(good, "demo:fr", wrong)) as server, pytest.raises(StageError) as error:
            endpoint.run(Stage.VERIFY, server.url)
        assert error.value.reason is reason
        assert_says(error.value.message, *says.split(" … "))
        assert {check.name: check.outcome for check in error.value.checks}["de.checks"] is CheckOutcome.PASSED
        assert {check.name: check.outcome for check in error.value.checks}["fr.checks"] is CheckOutcome.FAILED
    lacking = replace(good, loras={"demo:de": de}, seen=[])
    with running(lacking) as server, pytest.raises(StageError, match=r"Adapter 'fr': .* fails the check digest"):
        endpoint.run(Stage.VERIFY, server.url)
    tuned_base = replace(good, references=de.references, seen=[])
    with running(tuned_base) as server, pytest.raises(StageError, match=r"fails the check baseModel"):
        endpoint.run(Stage.VERIFY, server.url)


def promoted(
    endpoint: Endpoint, s3: SeaweedFS, source: str, place: str, work: Path
) -> tuple[Store, list[Sequence[str]]]:
    """The adapters copied to a place of this test's own, from where the endpoint takes them now; and the copies."""
    origin, target = (Store.connect(s3.storage, each) for each in (source, place))
    copied: list[Sequence[str]] = [promote(origin, target, e.digest, work / e.name / "copies") for e in endpoint.refs]
    endpoint.refs = [
        each.model_copy(update={"uri": target.uri(output_folder(Stage.PUBLISH, each.digest))}) for each in endpoint.refs
    ]
    return target, copied


def test_promoted_adapters_bring_their_base_along(
    endpoint: Endpoint, s3: SeaweedFS, source: str, place: str, tmp_path: Path
) -> None:
    target, copied = promoted(endpoint, s3, source, place, tmp_path)
    assert [len(each) for each in copied] == [4, 3], "the base is copied once, each evaluation with its artifact"
    fetched = endpoint.run(Stage.FETCH)
    assert (endpoint.models / fetched.output_digest / "model" / "config.json").exists()
    bill = json.loads((endpoint.models / endpoint.refs[0].digest / "artifact" / BOM).read_text())
    properties = {each["name"]: each["value"] for each in bill["metadata"]["component"]["properties"]}
    assert copied[0][0] == output_folder(Stage.EXPORT, properties["finetune:baseDigest"])
    with pytest.raises(StageError, match="Adapter 'de': ") as error:
        endpoint.run(Stage.FETCH, signed_by=[public_pem(new_key())])
    assert error.value.reason is Reason.SIGNATURE_MISSING
    withdraw(target, endpoint.refs[1].digest, WITHDRAWAL)
    assert_says(endpoint.run(Stage.FETCH).scalars["withdrawn"], "by legal", "(adapter 'fr')")
    with pytest.raises(StageError, match="Adapter 'fr': ") as error:
        endpoint.run(Stage.VERIFY, "http://127.0.0.1:9")
    assert error.value.reason is Reason.ARTIFACT_WITHDRAWN


def test_an_artifact_may_have_two_names(endpoint: Endpoint) -> None:
    de = endpoint.refs[0]
    endpoint.refs = [de, de.model_copy(update={"name": "fr"})]
    endpoint.run(Stage.FETCH)
    with running(endpoint.contract()) as server:
        assert {each.outcome for each in endpoint.run(Stage.VERIFY, server.url).checks} == {CheckOutcome.PASSED}


def test_what_does_not_fit_one_server_is_found_before_it_starts(
    endpoint: Endpoint, s3: SeaweedFS, place: str, base: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        StageError, match=r"Adapter 'fr': It has rank 8; the runtime makes room for 4\. Set --max-lora-rank"
    ) as error:
        endpoint.run(Stage.FETCH, max_rank=4)
    assert error.value.reason is Reason.ADAPTERS_UNSUITABLE
    de = endpoint.refs[0]
    elsewhere = build_tiny_llama(tmp_path / "elsewhere", seed=5)
    other = publish_adapter(s3.storage, place, tmp_path / "other", base=elsewhere, seed=3)
    whole = publish_artifact(s3.storage, place, tmp_path / "whole", base=base, tuned=elsewhere)
    for wrong, says in (
        (other, "Adapters 'de' and 'fr' were trained on different base models"),
        (whole, "Adapter 'fr': … is a whole model (INT8)"),
    ):
        fr = AdapterRef(name="fr", uri=wrong.scalars["artifactUri"], digest=wrong.output_digest)
        endpoint.refs = [de, fr]
        with pytest.raises(StageError) as error:
            endpoint.run(Stage.FETCH)
        assert error.value.reason is Reason.ADAPTERS_UNSUITABLE
        assert_says(error.value.message, *says.split(" … "))
    lost = "0" * 64
    endpoint.refs = [de, AdapterRef(name="fr", uri=de.uri.replace(de.digest, lost), digest=lost)]
    with pytest.raises(StageError, match=r"Adapter 'fr': .* contains no manifest\.json"):
        endpoint.run(Stage.FETCH)
    alone = StageInput(
        stage=Stage.FETCH, run=DEPLOYMENT, storage=s3.storage, artifact_uri=de.uri, artifact_digest=de.digest
    )
    with pytest.raises(StageError, match=r"is an adapter, .* spec\.source\.adapters"):
        execute(context(alone, tmp_path), fetch)
    assert de.uri.endswith(output_folder(Stage.PUBLISH, de.digest))


class Pod:
    """A pod whose server loads adapters while it runs, with the self-check beside it."""

    def __init__(self, endpoint: Endpoint, server: VllmContract, now: list[float]) -> None:
        self.endpoint, self.server, self.wanted = endpoint, server, WantedAdapters()
        asked = FetchParams(adapters=endpoint.refs, max_rank=8)
        storage = endpoint.storage
        self.source = AdapterSource(Places(storage), storage, asked, endpoint.models)
        self.loader = Loader(
            VllmAdapters(server.url),
            self.source.take,
            lambda name: VllmServer(server.url, adapter=name),
            checks.require_all,
            endpoint.models,
            "demo",
            lambda _: None,
            lambda: now[0],
        )

    def want(
        self,
        *names: str,
        required: str = "",
        withdrawn: WithdrawnPolicy = WithdrawnPolicy.REFUSE,
        required_gates: Sequence[str] = (),
    ) -> None:
        self.wanted = WantedAdapters(
            withdrawn=withdrawn,
            required_gates=list(required_gates),
            adapters=[
                WantedAdapter(name=each.name, uri=each.uri, digest=each.digest, required=each.name == required)
                for each in self.endpoint.refs
                if each.name in names
            ],
        )

    def settle(self, limits: SelfCheckLimits = LIMITS) -> dict[str, AdapterState]:
        self.loader.settle(self.wanted, limits)
        return self.states()

    def states(self) -> dict[str, AdapterState]:
        return {each.name: each.state for each in self.loader.reports().adapters}


def test_a_server_that_starts_again_needs_no_store(endpoint: Endpoint) -> None:
    """What it serves is on the pod's volume, whole and proved. The store is down."""
    endpoint.run(Stage.FETCH)
    down = endpoint.storage.model_copy(update={"endpoint": "http://127.0.0.1:9"})
    asked = FetchParams(adapters=endpoint.refs, max_rank=8, public_keys=[public_pem(new_key())])
    source = AdapterSource(Places(down), down, asked, endpoint.models)
    with mock.patch.object(AdapterSource, "download", side_effect=StageError(Reason.S3_UNREACHABLE, "down")):
        de, fr = (WantedAdapter(**each.model_dump(), required=True) for each in endpoint.refs)
        taken = [source.take(each) for each in (de, fr)]
        assert [each.base.rank for each in taken] == [4, 8]
        with pytest.raises(StageError, match="down"):  # what is new is asked what the policy says of it
            source.take(de.model_copy(update={"required": False}))
        weights = endpoint.models / fr.digest / "model" / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
        with pytest.raises(StageError, match="down"):
            source.take(fr)
        shutil.rmtree(endpoint.models / de.digest / "artifact")
        with pytest.raises(StageError, match="down"):
            source.take(de)


def test_one_that_would_fill_the_volume_of_a_pod_is_not_downloaded(endpoint: Endpoint) -> None:
    """The kubelet evicts a pod that writes more than its volume may hold, with all that it serves, and each of its
    replacements would do the same."""
    endpoint.run(Stage.FETCH)
    fr = endpoint.refs[1]
    model = endpoint.models / fr.digest / "model"
    whole = sum(each.stat().st_size for each in endpoint.models.rglob("*") if each.is_file())
    needed = whole - (model / "manifest.json").stat().st_size
    shutil.rmtree(model)
    asked, new = FetchParams(adapters=endpoint.refs, max_rank=8), WantedAdapter(**fr.model_dump())
    small = AdapterSource(Places(endpoint.storage), endpoint.storage, asked, endpoint.models, needed - 1)
    with pytest.raises(StageError, match="Adapter 'fr': ") as error:
        small.take(new)
    assert (error.value.reason, error.value.retriable) == (Reason.SCRATCH_FULL, False)
    assert_says(error.value.message, fr.uri.partition("/artifacts/")[0], "beside", "that are there", "scratchSize")
    assert not model.exists()
    replace(small, room=needed).take(new)
    assert (model / "adapter_model.safetensors").exists()
    shutil.rmtree(endpoint.models)
    with pytest.raises(StageError, match="Adapter 'de': ") as error:
        endpoint.run(Stage.FETCH, room=1)
    assert error.value.reason is Reason.SCRATCH_FULL


def test_one_that_the_policy_refuses_does_not_come_to_a_server_that_runs(
    endpoint: Endpoint, s3: SeaweedFS, source: str, place: str, tmp_path: Path
) -> None:
    """It was withdrawn, or lacks the verdict that is asked for. What was proved before stays, also after a restart."""
    target, _ = promoted(endpoint, s3, source, place, tmp_path)
    endpoint.run(Stage.FETCH)
    good = endpoint.contract()
    roots = {each.name: str(endpoint.models / each.digest / "model") for each in endpoint.refs}
    files = {roots[name]: replace(good.loras[f"demo:{name}"], root=roots[name]) for name in NAMES}
    now = [0.0]
    with running(replace(good, loras={}, files=files, seen=[])) as server:
        pod = Pod(endpoint, server, now)
        pod.want("de", required="de")
        pod.loader.begin(pod.wanted, SelfCheckLimits())

        def refused(withdrawn: WithdrawnPolicy, *gates: str) -> Reason:
            pod.want("de", required="de")
            pod.settle()
            pod.want("de", "fr", required="de", withdrawn=withdrawn, required_gates=gates)
            assert pod.settle() == {"de": AdapterState.LOADED, "fr": AdapterState.FAILED}
            assert server.loras.keys() == {"demo:de"}
            return pod.loader.reports().adapters[1].reason

        assert refused(WithdrawnPolicy.REFUSE, "accuracy") is Reason.GATES_NOT_PASSED
        for each in endpoint.refs:
            withdraw(target, each.digest, WITHDRAWAL)
        assert refused(WithdrawnPolicy.REFUSE) is Reason.ARTIFACT_WITHDRAWN
        assert refused(WithdrawnPolicy.WARN, "accuracy") is Reason.GATES_NOT_PASSED
        assert not [each for each in server.seen if "demo:fr" in each.values()], "its name has never answered"

        restarted = Pod(endpoint, server, now)
        restarted.want("de", required="de", required_gates=["accuracy"])
        restarted.loader.begin(restarted.wanted, SelfCheckLimits())
        assert restarted.states() == {"de": AdapterState.LOADED}
        restarted.want("de", "fr", required="de", withdrawn=WithdrawnPolicy.WARN)
        assert restarted.settle() == {"de": AdapterState.LOADED, "fr": AdapterState.LOADED}


def without_record(folder: Path, place: str) -> Promise:
    """What an artifact of an earlier version promises."""
    return replace(read_promise(folder, place), references=[])


def test_adapters_without_a_record_are_not_promoted_where_probabilities_are_required(endpoint: Endpoint) -> None:
    endpoint.run(Stage.FETCH)
    with running(endpoint.contract()) as server:
        endpoint.run(Stage.VERIFY, server.url, require_probabilities=True)
        with mock.patch("finetune_jobs.verify.read_promise", without_record), pytest.raises(StageError) as error:
            endpoint.run(Stage.VERIFY, server.url, require_probabilities=True)
    assert error.value.reason is Reason.VERIFICATION_FAILED
    assert_says(error.value.message, "Adapter 'de'", "logProbabilities", "no record of them")
    assert {each.name for each in error.value.checks} == {"de.checks", "de.logProbabilities"}


def test_one_without_a_record_does_not_come_to_a_server_that_runs_where_probabilities_are_required(
    endpoint: Endpoint,
) -> None:
    endpoint.run(Stage.FETCH)
    good = endpoint.contract()
    roots = {each.name: str(endpoint.models / each.digest / "model") for each in endpoint.refs}
    files = {roots[name]: replace(good.loras[f"demo:{name}"], root=roots[name]) for name in NAMES}
    asked = SelfCheckLimits(require_probabilities=True)
    with running(replace(good, loras={}, files=files, seen=[])) as server:
        pod = Pod(endpoint, server, [0.0])
        pod.want("de", required="de")
        pod.loader.begin(pod.wanted, asked)
        with mock.patch("finetune_jobs.verification.proof.read_promise", without_record):
            pod.want("de", "fr", required="de")
            assert pod.settle(asked) == {"de": AdapterState.LOADED, "fr": AdapterState.FAILED}
        assert server.loras.keys() == {"demo:de"}
        refused = pod.loader.reports().adapters[1]
        assert refused.reason is Reason.VERIFICATION_FAILED
        assert_says(refused.message, "Its adapter 'demo:fr'", "logProbabilities", "no record of them")


def test_adapters_come_and_go_on_a_server_that_runs(endpoint: Endpoint, tmp_path: Path) -> None:
    """Each proves itself under a name that nobody knows, and answers to its own from then on; one that fails never
    does, and changes nothing for the others."""
    endpoint.run(Stage.FETCH)
    good = endpoint.contract()
    shutil.rmtree(endpoint.models)
    de, fr = endpoint.refs
    lost = AdapterRef(name="lost", uri=de.uri.replace(de.digest, "0" * 64), digest="0" * 64)
    wanted = [WantedAdapter(**each.model_dump(), required=each is de) for each in (de, lost)]
    file = tmp_path / "wanted.json"
    file.write_text(WantedAdapters(adapters=wanted).model_dump_json(by_alias=True))
    fetched = endpoint.run(Stage.FETCH, wanted=str(file))
    assert fetched.output_digest == set_address({"de": de.digest, "fr": fr.digest}), (
        "where the base lies has not changed"
    )
    assert (endpoint.models / fetched.output_digest / "model" / "config.json").exists()
    assert not (endpoint.models / fr.digest).exists()
    paths = {each.name: str(endpoint.models / each.digest / "model") for each in endpoint.refs}
    files = {paths[name]: replace(good.loras[f"demo:{name}"], root=paths[name]) for name in NAMES}
    told = files[paths["fr"]]
    of_base = [each.model_copy(update={"artifact": each.base}) for each in told.references]
    silent = Lora(paths["fr"], as_base(list(told.answers)), of_base)
    now = [0.0]
    with running(replace(good, loras={"demo:old": files[paths["de"]]}, files=files, seen=[])) as server:
        pod = Pod(endpoint, server, now)
        pod.want("de", required="de")
        pod.loader.begin(pod.wanted, SelfCheckLimits())
        assert (pod.states(), {*server.loras}) == ({"de": AdapterState.LOADED}, {"demo:de"})
        assert [who for who, _ in pod.loader.watches()] == ["Its adapter 'demo:de'"]
        begun = len(server.seen)

        server.files = {**files, paths["fr"]: silent}
        pod.want("de", "fr", required="de")
        assert pod.settle() == {"de": AdapterState.LOADED, "fr": AdapterState.FAILED}
        assert server.loras.keys() == {"demo:de"}
        assert (endpoint.models / fr.digest / "model" / "adapter_model.safetensors").exists()
        assert_says(pod.loader.reports().adapters[1].message, "demo:fr", "differsFromBase")
        assert not [each for each in server.seen if "demo:fr" in each.values()], "its name has never answered"
        assert {each.get("model", "demo:de") for each in server.seen[begun:]} != {"demo:de"}, "it was asked"
        asked = len(server.seen)
        now[0] += 1000
        pod.settle()
        assert len(server.seen) == asked, "what has failed is not tried again"

        def of_another_base(each: WantedAdapter) -> Adapter:
            found = pod.source.download(each)
            return replace(found, base=found.base.model_copy(update={"digest": "9" * 64}))

        pod.want("de", required="de")
        pod.settle()
        assert (endpoint.models / fr.digest).exists()
        pod.loader.fetch = of_another_base
        pod.want("de", "fr", required="de")
        assert pod.settle()["fr"] is AdapterState.FAILED
        assert_says(pod.loader.reports().adapters[1].message, "'fr' was trained on another base model (999999999999)")
        assert "demo:fr" not in server.loras
        pod.want("de", required="de")
        pod.settle()
        pod.loader.fetch = pod.source.download
        server.files = files
        pod.want("de", "fr", required="de")
        assert pod.settle() == {"de": AdapterState.LOADED, "fr": AdapterState.LOADED}
        assert server.loras.keys() == {"demo:de", "demo:fr"}
        assert all(not watch.server.moved(0) for _, watch in pod.loader.watches()), "watched under its own name"

        restarted = Pod(endpoint, server, now)  # the self-check alone: clients go on getting answers
        restarted.want("de", "fr", required="de")
        begun = len(server.seen)
        restarted.loader.begin(restarted.wanted, SelfCheckLimits())
        moved = [each["lora_name"] for each in server.seen[begun:] if "lora_name" in each]
        assert "demo:de" not in moved
        assert restarted.states() == {"de": AdapterState.LOADED, "fr": AdapterState.LOADED}

        restarted.want("fr")
        assert restarted.settle() == {"fr": AdapterState.LOADED}
        assert server.loras.keys() == {"demo:fr"}
        now[0] += 100
        restarted.settle()
        assert (endpoint.models / de.digest).exists(), "requests that have begun may need it"
        now[0] += 1000
        restarted.settle()
        assert not (endpoint.models / de.digest).exists()

        pod = Pod(endpoint, replace(server, failure=(400, "no such field")), now)
        with running(pod.server):
            pod.want("fr", required="fr")
            with pytest.raises(StageError):
                Pod(endpoint, pod.server, now).loader.begin(pod.wanted, SelfCheckLimits())
