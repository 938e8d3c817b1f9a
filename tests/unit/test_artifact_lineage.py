"""Where an artifact comes from: its bill of materials, its manifest's lineage, its signed statement, its name."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from finetune_api.budget import HardwareFacts
from finetune_api.cards import power_watts
from finetune_api.layout import (
    MANIFEST,
    UNSIGNED,
    ChannelPointer,
    Lineage,
    Manifest,
    channel_object,
    output_folder,
    provenance_object,
)
from finetune_api.reasons import Reason
from finetune_api.stages import Stage, StageInput, StageResult, Upstream, input_key
from finetune_api.usage import Usage, together, usage_of
from finetune_jobs.artifacts.artifact import METRICS, MODEL_REF
from finetune_jobs.artifacts.bom import BOM
from finetune_jobs.artifacts.folders import fetch_folder, publish_folder, read_record, require_manifest
from finetune_jobs.artifacts.provenance import ADDRESS, PREDICATE_TYPE, STATEMENT_TYPE
from finetune_jobs.artifacts.signature import require_signature
from finetune_jobs.artifacts.signing import NotSignedError, load_public_key, unseal
from finetune_jobs.base.errors import StageError
from finetune_jobs.publish import move_channel, publish, sign_move_and_push
from finetune_jobs.runtime.runner import StageOutput, execute
from finetune_jobs.store.s3 import Store
from tests.support.published import BASE, KEY, new_key, private_pem, public_pem, publish_input, put_upstream
from tests.support.seaweedfs import SeaweedFS
from tests.support.sentences import assert_says
from tests.support.stages import RUN, context

pytestmark = [pytest.mark.unit, pytest.mark.slow]

H100 = HardwareFacts(profile="gpu", name="NVIDIA H100 PCIe", count=2, nodes=3, usd_per_hour=3.0)


@pytest.fixture
def chain(store: Store, tmp_path: Path) -> Upstream:
    return put_upstream(store, tmp_path / "made", image="registry/jobs@sha256:abc", usage=usage_of(H100, 600, 30))


def run(given: StageInput, folder: Path) -> StageResult:
    return execute(context(given, folder), publish, after=sign_move_and_push)


def bill_of(store: Store, digest: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(store.get(f"artifacts/{digest}/{BOM}") or b"")
    return found


def properties(component: dict[str, Any]) -> dict[str, str]:
    return {each["name"].removeprefix("finetune:"): each["value"] for each in component["properties"]}


def test_the_bill_of_materials_is_cyclonedx(s3: SeaweedFS, store: Store, chain: Upstream, tmp_path: Path) -> None:
    digest = run(publish_input(s3, store, chain), tmp_path).output_digest
    text = (store.get(f"artifacts/{digest}/{BOM}") or b"").decode()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bill = json.loads(text)
    model, (base, dataset, adapter) = bill["metadata"]["component"], bill["components"]
    assert (base["name"], base["version"]) == ("hf://acme/base", "0123abc")
    addresses = [properties(each)["contentDigest"] for each in (model, base, dataset, adapter)]
    assert addresses == [chain.export, chain.model, chain.dataset, chain.adapter]
    assert properties(model).items() >= {"training.seed": "0", "training.rank": "16", "format": "INT8"}.items()
    assert {"type": "accuracy", "value": "0.95", "slice": "test split, the exported files"} in model["modelCard"][
        "quantitativeAnalysis"
    ]["performanceMetrics"]
    exported = require_manifest(store, f"models/{chain.export}/quantized")
    assert [(each["name"], each["hashes"][0]["content"]) for each in model["components"]] == [
        (file.path, file.sha256) for file in exported.files
    ]


def test_the_bill_names_a_base_in_s3_by_its_whole_uri(
    s3: SeaweedFS, store: Store, chain: Upstream, tmp_path: Path
) -> None:
    uri = "s3://models/team@acme/base"
    base = bill_of(store, run(publish_input(s3, store, chain, base_model_uri=uri), tmp_path).output_digest)[
        "components"
    ][0]
    assert (base["name"], base["version"]) == (uri, chain.model[:12])


def test_the_same_parts_are_the_same_artifact_wherever_made(s3: SeaweedFS, place: str, tmp_path: Path) -> None:
    """Times, places and costs are in the manifest, which is no part of the address."""
    digests = []
    for number in range(2):
        store = Store.connect(s3.storage, f"{place}/{number}")
        usage = usage_of(H100, 100.0 * (number + 1), 1)
        chain = put_upstream(store, tmp_path / str(number), image=f"jobs:{number}", usage=usage)
        digests.append(run(publish_input(s3, store, chain, hardware=H100 if number else None), tmp_path).output_digest)
    assert len(set(digests)) == 1


def test_a_manifest_says_what_the_work_has_used(s3: SeaweedFS, store: Store, chain: Upstream, tmp_path: Path) -> None:
    given = publish_input(s3, store, chain, image="registry/data@sha256:def", operator_version="9.9")
    digest = run(given, tmp_path).output_digest
    lineage = require_manifest(store, f"artifacts/{digest}").lineage
    assert (lineage.image, lineage.operator_version, lineage.upstream) == ("registry/data@sha256:def", "9.9", chain)
    usage = lineage.usage
    assert usage is not None
    assert usage.seconds > 0
    assert usage.cpu_seconds > 0
    assert (usage.gpu_seconds, usage.cost_usd, usage.energy_wh) == (0, "", None)


@pytest.mark.parametrize(
    ("hardware", "used"),
    [
        (None, Usage(seconds=60, cpu_seconds=9)),
        (HardwareFacts(cpus=4), Usage(hardware=HardwareFacts(cpus=4), seconds=60, cpu_seconds=9)),
        (
            HardwareFacts(name="NVIDIA R999", count=1),
            Usage(hardware=HardwareFacts(name="NVIDIA R999", count=1), seconds=60, cpu_seconds=9, gpu_seconds=60),
        ),
    ],
    ids=["unknown", "no GPU", "unknown card, no price"],
)
def test_what_is_not_known_is_absent(hardware: HardwareFacts | None, used: Usage) -> None:
    assert usage_of(hardware, 60, 9) == used


def test_cost_and_energy_are_those_of_all_gpus() -> None:
    used = usage_of(H100, 600, 30)
    assert (used.gpu_seconds, used.cost_usd, used.energy_wh) == (3600, "3.00", 350)
    assert_says(used.energy_method, "GPU seconds", "board power", "upper bound", "PUE")


def test_parts_on_other_hardware_cost_what_they_cost() -> None:
    """An evaluation is reused where other metrics are asked for, also by a run on another profile."""
    cheap = H100.model_copy(update={"count": 1, "nodes": 1, "usd_per_hour": 0.5})
    parts = [usage_of(H100, 600, 30), usage_of(cheap, 3600, 9), usage_of(None, 60, 1)]
    used = together(parts)
    assert (used.seconds, used.cpu_seconds, used.gpu_seconds) == (4260, 40, 7200)
    assert (used.cost_usd, used.energy_wh) == ("3.50", 700)
    assert (together([]), together([parts[2]]).energy_method) == (Usage(), "")


def test_an_earlier_part_costs_what_it_did_on_its_own_hardware(
    s3: SeaweedFS, store: Store, chain: Upstream, tmp_path: Path
) -> None:
    """An evaluation is reused where other metrics are asked for, also by a run on another profile."""
    made = tmp_path / "out"
    made.mkdir()
    (made / "file").write_text("made")
    on_cpus = usage_of(HardwareFacts(cpus=4), 36_000, 9)
    given = publish_input(s3, store, chain, hardware=H100).model_copy(update={"stage": Stage.EVALUATE})
    execute(context(given, tmp_path), lambda _: StageOutput(folder=made, before=on_cpus))
    record = read_record(store, Stage.EVALUATE, given.input_key)
    assert record is not None
    usage = record.lineage.usage
    assert usage is not None
    assert usage.seconds > 36_000
    assert usage.hardware == H100
    assert usage.gpu_seconds < 36_000, "the GPUs were held by the second part only"


@pytest.mark.parametrize(
    ("name", "watts"),
    [
        ("NVIDIA H100 80GB HBM3", 700),
        ("NVIDIA H100 PCIe", 350),
        ("NVIDIA H100 NVL", 400),
        ("NVIDIA H200", 700),
        ("NVIDIA H200 NVL", 600),
        ("NVIDIA A100-SXM4-80GB", 400),
        ("NVIDIA A100-PCIE-40GB", 250),
        ("NVIDIA A100 80GB PCIe", 300),
        ("nvidia-tesla-t4", 70),
        ("NVIDIA L40S", 350),
        ("NVIDIA A100 80GB", None),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", None),
        ("", None),
    ],
)
def test_the_power_of_a_card(name: str, watts: int | None) -> None:
    assert power_watts(name) == watts


@pytest.mark.parametrize("kind", ["ed25519", "p256"])
def test_a_key_signs_where_the_artifact_comes_from(
    s3: SeaweedFS, store: Store, chain: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    key = new_key(kind)
    monkeypatch.setenv(KEY.variable, private_pem(key))
    made = run(publish_input(s3, store, chain, signed=True, image="registry/data@sha256:def"), tmp_path)
    public = load_public_key(public_pem(key), "the key")
    assert made.scalars["signedBy"] == public.keyid
    content = store.get(provenance_object(made.output_digest, public.keyid)) or b""
    said = json.loads(unseal(content, [public]))
    assert (said["_type"], said["predicateType"]) == (STATEMENT_TYPE, PREDICATE_TYPE)
    whole, *files = said["subject"]
    assert whole["digest"] == {ADDRESS: made.output_digest}
    manifest = require_manifest(store, f"artifacts/{made.output_digest}")
    assert {each["name"]: each["digest"]["sha256"] for each in files} == {f.path: f.sha256 for f in manifest.files}
    definition, details = said["predicate"]["buildDefinition"], said["predicate"]["runDetails"]
    assert {each["name"]: each["digest"][ADDRESS] for each in definition["resolvedDependencies"]} == {
        name: address for name, address in chain.model_dump(by_alias=False).items() if address
    }
    assert definition["resolvedDependencies"][0]["uri"] == BASE
    assert definition["externalParameters"]["train"]["training"]["seed"] == 0
    train = details["finetune_stages"]["train"]
    assert (train["image"], train["usage"]["energyWh"], train["usage"]["costUsd"]) == (
        "registry/jobs@sha256:abc",
        350,
        "3.00",
    )
    assert details["metadata"]["invocationId"] == f"team-a/transactions/{RUN.uid}/r1"
    with pytest.raises(NotSignedError, match="does not match its content, or was made with another key"):
        unseal(content, [load_public_key(public_pem(new_key(kind)), "another")])


def test_without_a_key_the_origin_is_said_and_proves_nothing(
    s3: SeaweedFS, store: Store, chain: Upstream, tmp_path: Path
) -> None:
    """It is what a key would have signed, and no policy that asks for a signature takes it for one."""
    given = publish_input(s3, store, chain, image="registry/data@sha256:def")
    digest = run(given, tmp_path).output_digest
    place = provenance_object(digest, UNSIGNED)
    said = json.loads(store.get(place) or b"")
    assert (said["_type"], said["predicateType"]) == (STATEMENT_TYPE, PREDICATE_TYPE)
    assert said["subject"][0]["digest"] == {ADDRESS: digest}
    details = said["predicate"]["runDetails"]
    assert details["finetune_stages"]["train"]["image"] == "registry/jobs@sha256:abc"
    first = store.get(place)
    run(given, tmp_path)
    assert store.get(place) == first, "written once"
    with pytest.raises(StageError) as error:
        require_signature(store, digest, [public_pem(new_key())])
    assert error.value.reason is Reason.SIGNATURE_MISSING


def falling_back(store: Store, chain: Upstream, folder: Path) -> tuple[Upstream, str]:
    """The chain with an evaluation that chose another format than the first, and the address of that format."""
    other, evaluation = folder / "merged", folder / "evaluation"
    other.mkdir(parents=True)
    (other / "model.safetensors").write_bytes(b"weights in 16 bits")
    digest = publish_folder(store, other, Stage.EXPORT, facts={"format": "Merged"}, lineage=Lineage(upstream=chain))
    fetch_folder(store, output_folder(Stage.EVALUATE, chain.evaluation), evaluation)
    metrics = json.loads((evaluation / METRICS).read_text())
    loss = next(each for each in metrics["measurements"]["differences"] if each["against"] == "tuned")
    found = {"accuracy": 0.9, "f1": 0.9, "loss": loss}
    metrics["formats"] = [
        {"format": "Merged", "digest": digest, "served": True, **found},
        {"format": "INT8", "digest": chain.export, "served": False, **found},
    ]
    (evaluation / METRICS).write_text(json.dumps(metrics))
    (evaluation / MANIFEST).unlink()
    return chain.with_output(Stage.EVALUATE, publish_folder(store, evaluation, Stage.EVALUATE)), digest


def test_the_signed_origin_is_that_of_the_format_that_is_served(
    s3: SeaweedFS, store: Store, chain: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = new_key()
    monkeypatch.setenv(KEY.variable, private_pem(key))
    chain, served = falling_back(store, chain, tmp_path / "formats")
    made = run(publish_input(s3, store, chain, signed=True), tmp_path)
    public = load_public_key(public_pem(key), "the key")
    content = store.get(provenance_object(made.output_digest, public.keyid)) or b""
    said = json.loads(unseal(content, [public]))["predicate"]
    named = {each["name"]: each for each in said["buildDefinition"]["resolvedDependencies"]}
    assert (named["export"]["uri"], named["export"]["digest"]) == (
        output_folder(Stage.EXPORT, served),
        {ADDRESS: served},
    )
    assert said["runDetails"]["finetune_stages"]["export"]["facts"] == {"format": "Merged"}


def test_what_is_served_is_read_from_what_the_artifacts_manifest_lists(
    s3: SeaweedFS, store: Store, chain: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is signed of a model.json that was changed since it was published."""
    digest = run(publish_input(s3, store, chain), tmp_path).output_digest
    store.put(f"artifacts/{digest}/{MODEL_REF}", (store.get(f"artifacts/{digest}/{MODEL_REF}") or b"") + b" ")
    monkeypatch.setenv(KEY.variable, private_pem(new_key()))
    with pytest.raises(StageError, match=r"model\.json is not the one that its manifest lists") as error:
        run(publish_input(s3, store, chain, signed=True), tmp_path)
    assert error.value.reason is Reason.ARTIFACT_CORRUPT
    assert [each.key for each in store.list(f"artifacts/{digest}/provenance")] == ["unsigned.json"]


def test_another_key_signs_the_same_artifact(
    s3: SeaweedFS, store: Store, chain: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First without a key, then with one, then with a second: each time publish has another input key."""
    digests: set[str] = set()
    keys: set[str] = set()
    for signed in (False, True, True):
        key = new_key()
        monkeypatch.setenv(KEY.variable, private_pem(key))
        given = publish_input(s3, store, chain, signed=signed, reuse=len(keys) < 2)
        digests.add(run(given, tmp_path).output_digest)
        keys.add(given.input_key)
    (digest,) = digests
    assert len(keys) == 2
    assert len(list(store.list(f"artifacts/{digest}/provenance"))) == 3


def test_one_signature_that_proves_it_is_enough(
    s3: SeaweedFS, store: Store, chain: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also beside a damaged one of another key that counts; two damaged ones are none."""
    keys = [new_key(), new_key()]
    for key in keys:
        monkeypatch.setenv(KEY.variable, private_pem(key))
        digest = run(publish_input(s3, store, chain, signed=True), tmp_path).output_digest
    damaged, whole = (load_public_key(public_pem(key), "a key").keyid for key in keys)
    accepted = [public_pem(key) for key in keys]
    store.put(provenance_object(digest, damaged), b"{}")
    assert require_signature(store, digest, accepted) == whole
    store.put(provenance_object(digest, whole), b"{}")
    with pytest.raises(StageError) as error:
        require_signature(store, digest, accepted)
    assert error.value.reason is Reason.SIGNATURE_INVALID
    assert damaged in error.value.message


def test_another_reference_is_another_input(s3: SeaweedFS, store: Store, chain: Upstream) -> None:
    params = publish_input(s3, store, chain, signed=True).params
    other = json.loads(params.model_dump_json(by_alias=True).replace(f'"name":"{KEY.name}"', '"name":"other"'))
    again = type(params).model_validate(other)
    assert input_key(Stage.PUBLISH, chain, params) != input_key(Stage.PUBLISH, chain, again)


def test_a_private_key_goes_nowhere(
    s3: SeaweedFS,
    store: Store,
    chain: Upstream,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pem = private_pem(new_key())
    secret = pem.splitlines()[1]
    monkeypatch.setenv(KEY.variable, pem)
    made = run(publish_input(s3, store, chain, signed=True), tmp_path)
    stored = b"".join(store.get(each.key) or b"" for each in store.list())
    assert secret.encode() not in stored
    assert base64.b64decode(secret) not in stored
    assert secret not in caplog.text + made.model_dump_json()


BAD_KEYS = {
    "nothing": ("", Reason.SECRET_MISSING, "Secret 'signing' must contain a private key under 'private.pem'"),
    "no PEM": ("hunter2", Reason.KEY_UNUSABLE, "Key 'private.pem' of Secret 'signing' is not a private key in PEM"),
    "damaged": (
        "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        Reason.KEY_UNUSABLE,
        "not a private key",
    ),
    "public": (public_pem(new_key()), Reason.KEY_UNUSABLE, "is not a private key in PEM"),
    "locked": (private_pem(new_key(), "hunter2"), Reason.KEY_UNUSABLE, "encrypted with a password"),
    "RSA": (private_pem(rsa.generate_private_key(65537, 2048)), Reason.KEY_UNUSABLE, "RSAPrivateKey … Ed25519 … P-256"),
    "P-384": (private_pem(ec.generate_private_key(ec.SECP384R1())), Reason.KEY_UNUSABLE, "only Ed25519 … P-256"),
}


def test_a_bad_key_publishes_nothing(
    s3: SeaweedFS, store: Store, chain: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, (pem, reason, parts) in BAD_KEYS.items():
        monkeypatch.setenv(KEY.variable, pem)
        with pytest.raises(StageError) as error:
            run(publish_input(s3, store, chain, signed=True), tmp_path)
        assert error.value.reason is reason, name
        assert_says(error.value.message, *parts.split(" … "))
        assert "hunter2" not in error.value.message, name
        made = ("artifacts", "channels", "owners", "keys/publish")
        assert [entry.key for place in made for entry in store.list(place)] == [], name


def test_a_newer_manifest_is_not_guessed_at(s3: SeaweedFS, store: Store, chain: Upstream, tmp_path: Path) -> None:
    place = f"datasets/{chain.dataset}/{MANIFEST}"
    manifest = Manifest.model_validate_json(store.get(place) or b"")
    store.put(place, manifest.model_copy(update={"schema_version": 2}).model_dump_json(by_alias=True).encode())
    with pytest.raises(StageError) as error:
        run(publish_input(s3, store, chain), tmp_path)
    assert error.value.reason is Reason.MANIFEST_NEWER
    assert_says(error.value.message, store.uri(place), "schemaVersion 2", "up to 1")
    assert list(store.list("artifacts")) == []


def race(store: Store, asked: Sequence[StageInput], folder: Path) -> list[StageError | None]:
    """Each moves the channel to an artifact of its own, all at the same moment."""
    start = Barrier(len(asked))

    def move(number: int) -> StageError | None:
        given = context(asked[number], folder / str(number))
        start.wait()
        try:
            move_channel(given, str(number) * 64)
        except StageError as error:
            return error
        return None

    for number in range(len(asked)):
        (folder / str(number)).mkdir()
    with ThreadPoolExecutor(len(asked)) as threads:
        return list(threads.map(move, range(len(asked))))


def test_of_jobs_that_race_for_a_name_one_wins(s3: SeaweedFS, store: Store, chain: Upstream, tmp_path: Path) -> None:
    """Nobody's pointer is overwritten, and each of the others says who has the name."""
    owners = [RUN.model_copy(update={"name": f"job-{number}"}) for number in range(4)]
    ends = race(store, [publish_input(s3, store, chain, run=owner) for owner in owners], tmp_path)
    pointer = ChannelPointer.model_validate_json(store.get(channel_object("transactions")) or b"")
    won = owners.index(pointer.owner)
    assert pointer.artifact_digest == str(won) * 64
    assert [number for number, error in enumerate(ends) if error is None] == [won]
    for error in filter(None, ends):
        assert error.reason is Reason.OUTPUT_NAME_CONFLICT
        assert_says(error.message, "owners/transactions.json", f"belongs to FineTuneJob team-a/job-{won}")
