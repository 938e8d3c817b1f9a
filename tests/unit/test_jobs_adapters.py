"""Two adapters on one base, from export to a verified server: the real stages and real adapters.

The server is a stand-in for vLLM that answers what they answered.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from finetune_api.adapterdeployment import CheckOutcome, set_address
from finetune_api.layout import Withdrawal, output_folder
from finetune_api.reasons import Reason
from finetune_api.stages import (
    AdapterRef,
    FetchParams,
    Params,
    SelfCheckLimits,
    Stage,
    StageInput,
    StageResult,
    VerifyParams,
)
from finetune_jobs.artifacts.artifact import Answer, ReferenceText
from finetune_jobs.artifacts.bom import BOM
from finetune_jobs.artifacts.withdrawal import withdraw
from finetune_jobs.base.errors import StageError
from finetune_jobs.fetch import fetch
from finetune_jobs.promote import promote
from finetune_jobs.runtime.runner import execute
from finetune_jobs.self_check import Gate, Options, self_check
from finetune_jobs.store.s3 import Store
from finetune_jobs.verification.promise import read_promise
from finetune_jobs.verify import verify
from tests.support.artifacts import publish_adapter, publish_artifact
from tests.support.published import new_key, public_pem
from tests.support.seaweedfs import SeaweedFS
from tests.support.sentences import assert_says
from tests.support.stages import DEPLOYMENT, context
from tests.support.tiny_model import build_tiny_llama
from tests.support.vllm_server import Lora, VllmContract, running

pytestmark = [pytest.mark.unit, pytest.mark.slow]

NAMES = ("de", "fr")


class Endpoint:
    """An AdapterDeployment with two adapters, as its stages see it."""

    def __init__(self, s3: SeaweedFS, published: list[StageResult], work: Path) -> None:
        self.refs = [
            AdapterRef(name=name, uri=each.scalars["artifactUri"], digest=each.output_digest)
            for name, each in zip(NAMES, published, strict=True)
        ]
        self._s3, self._work = s3, work

    def run(self, stage: Stage, endpoint: str = "", max_rank: int = 8, signed_by: Sequence[str] = ()) -> StageResult:
        """Fetch or verify."""
        params = Params(
            fetch=FetchParams(adapters=self.refs, max_rank=max_rank, public_keys=list(signed_by)),
            verify=VerifyParams(
                endpoint=endpoint,
                engine="vllm",
                samples=12,
                min_agreement_percent=75,
                timeout_seconds=180,
                model="demo",
                adapters=self.refs,
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
        return execute(context(given, self._work), fetch if stage is Stage.FETCH else verify)

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


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return build_tiny_llama(tmp_path / "base", seed=1)


@pytest.fixture
def endpoint(s3: SeaweedFS, place: str, base: Path, tmp_path: Path) -> Endpoint:
    made = [
        publish_adapter(s3.storage, place, tmp_path / name, base=base, seed=seed, rank=rank)
        for name, seed, rank in zip(NAMES, (1, 2), (4, 8), strict=True)
    ]
    assert [each.scalars["format"] for each in made] == ["Adapter"] * 2
    assert len({each.scalars["baseDigest"] for each in made}) == 1
    assert [each.scalars["rank"] for each in made] == ["4", "8"]
    assert {each.scalars["architecture"] for each in made} == {"llama"}
    return Endpoint(s3, made, tmp_path)


def planted(server: VllmContract, name: str, lora: Lora) -> VllmContract:
    return replace(server, loras={**server.loras, name: lora}, seen=[])


def as_base(answers: list[Answer]) -> list[Answer]:
    return [each.model_copy(update={"artifact": each.base}) for each in answers]


def test_each_adapter_proves_itself_under_its_own_name(endpoint: Endpoint) -> None:
    fetched = endpoint.run(Stage.FETCH)
    address = set_address({each.name: each.digest for each in endpoint.refs})
    assert fetched.output_digest == address
    assert (endpoint.models / address / "model" / "config.json").exists()
    for each in endpoint.refs:
        assert (endpoint.models / each.digest / "model" / "adapter_model.safetensors").exists()
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


def test_promoted_adapters_bring_their_base_along(
    endpoint: Endpoint, s3: SeaweedFS, place: str, tmp_path: Path
) -> None:
    source, target = (Store.connect(s3.storage, each) for each in (place, f"{place}/production"))
    copied = [promote(source, target, each.digest, tmp_path / each.name / "copies") for each in endpoint.refs]
    assert [len(each) for each in copied] == [3, 2], "the base is copied once"
    endpoint.refs = [
        each.model_copy(update={"uri": target.uri(output_folder(Stage.PUBLISH, each.digest))}) for each in endpoint.refs
    ]
    fetched = endpoint.run(Stage.FETCH)
    assert (endpoint.models / fetched.output_digest / "model" / "config.json").exists()
    bill = json.loads((endpoint.models / endpoint.refs[0].digest / "artifact" / BOM).read_text())
    properties = {each["name"]: each["value"] for each in bill["metadata"]["component"]["properties"]}
    assert copied[0][0] == output_folder(Stage.EXPORT, properties["finetune:baseDigest"])
    with pytest.raises(StageError, match="Adapter 'de': ") as error:
        endpoint.run(Stage.FETCH, signed_by=[public_pem(new_key())])
    assert error.value.reason is Reason.SIGNATURE_MISSING
    withdraw(
        target, endpoint.refs[1].digest, Withdrawal(reason="licence", by="legal", withdrawn_at="2026-03-01T12:00:00Z")
    )
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
