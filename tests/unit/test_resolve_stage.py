"""The stage resolve against a real S3 server: what it finds, and what it refuses before anything is spent."""

from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_api.artifact_source import Channel
from finetune_api.finetunejob import Output
from finetune_api.gates import GateOutcome, GoalStatus, packed
from finetune_api.goals import MAX_GOALS
from finetune_api.hashing import canonical_json
from finetune_api.job_status import MAX_PROMPTING
from finetune_api.layout import (
    MANIFEST,
    READINESS_PAGE,
    REPORTS_INDEX,
    UNSIGNED,
    ChannelPointer,
    Lineage,
    StageRecord,
    channel_object,
    gates_folder,
    output_folder,
    provenance_object,
    run_folder,
)
from finetune_api.meta import ExitCode
from finetune_api.push import MAX_TARGETS
from finetune_api.readiness import MAX_SUMMARY
from finetune_api.reasons import REMEDIES, Reason
from finetune_api.review import ReviewStatus
from finetune_api.stages import (
    FOUND_SCALARS,
    MAX_RESULT_BYTES,
    PIPELINE,
    Outcome,
    Stage,
    StageResult,
    Upstream,
    input_key,
)
from finetune_api.storage import Encryption, EncryptionAlgorithm, Storage
from finetune_jobs.artifacts.folders import publish_record
from finetune_jobs.base.errors import StageError
from finetune_jobs.prepare import prepare
from finetune_jobs.resolve import resolve
from finetune_jobs.runtime.results import write_result
from finetune_jobs.runtime.runner import Context, StageOutput, execute
from finetune_jobs.store.s3 import Store
from tests.support.first_stages import given, model_of, source_of
from tests.support.forgetful_store import forgetful
from tests.support.seaweedfs import ADMIN, SeaweedFS
from tests.support.sentences import assert_says
from tests.support.stages import RUN, context, pipeline_params, run_process, stage_input

pytestmark = [pytest.mark.unit, pytest.mark.slow]


def test_resolve_finds_what_was_done(s3: SeaweedFS, stocked: Store, tmp_path: Path) -> None:
    asked = given(stocked, Stage.RESOLVE, s3.storage)
    before = execute(context(asked, tmp_path), resolve)
    assert (before.found, before.scalars["sourceDigest"]) == ([], source_of(stocked))
    made = execute(context(given(stocked, Stage.PREPARE, s3.storage), tmp_path), prepare)
    after = execute(context(asked, tmp_path), resolve)
    assert [(f.stage, f.output_digest, f.scalars, f.run) for f in after.found] == [
        (Stage.PREPARE, made.output_digest, made.scalars, RUN.id)
    ]
    assert made.scalars.keys() == FOUND_SCALARS[Stage.PREPARE]
    assert execute(context(asked.model_copy(update={"reuse": False}), tmp_path), resolve).found == []
    stocked.delete(f"out/{output_folder(Stage.PREPARE, made.output_digest)}/{MANIFEST}")
    assert execute(context(asked, tmp_path), resolve).found == []
    index = f"{run_folder(RUN)}/{REPORTS_INDEX}"
    assert [entry.key for entry in stocked.list("out/runs")] == [index.removeprefix("runs/")], "no probe is left"
    page = (stocked.get(f"out/{index}") or b"").decode()
    assert f"{output_folder(Stage.PREPARE, made.output_digest)}/{READINESS_PAGE}" in page, "it was reused: linked here"


def test_a_lost_result_is_found_whatever_became_of_what_it_was_made_from(
    s3: SeaweedFS, stocked: Store, tmp_path: Path
) -> None:
    """A bucket of the day may have another file by now, and the model another name."""
    begun = Upstream(source=source_of(stocked), model=model_of(stocked))
    made = execute(context(given(stocked, Stage.PREPARE, s3.storage), tmp_path), prepare)
    stocked.put("rows.csv", b"text,label\nanother,a\n")
    stocked.delete("model/config.json")
    asked = given(stocked, Stage.RESOLVE, s3.storage).model_copy(update={"upstream": begun})
    [found] = execute(context(asked, tmp_path), resolve).found
    assert (found.stage, found.output_digest, found.run) == (Stage.PREPARE, made.output_digest, RUN.id)


@pytest.mark.parametrize("alike", [False, True], ids=["of other content", "alike"])
def test_a_run_that_reuses_nothing_finds_what_it_has_made_itself(
    s3: SeaweedFS, stocked: Store, tmp_path: Path, alike: bool
) -> None:
    """The keys lead to the results of an earlier run, also where both have made the same; that a run which reuses
    nothing must not take those was no reason to lose its own."""
    earlier, begun = RUN.model_copy(update={"id": "r0"}), Upstream(source=source_of(stocked), model=model_of(stocked))
    asked, made = given(stocked, Stage.RESOLVE, s3.storage), dict[str, list[str]]()
    for run, reuse in ((earlier, True), (RUN, False)):
        chain = begun
        for stage in PIPELINE[:2]:

            def work(context: Context, content: str = "same" if alike else run.id) -> StageOutput:
                (context.scratch / "out").mkdir()
                (context.scratch / "out" / "file").write_text(content)
                return StageOutput(folder=context.scratch / "out")

            key = input_key(stage, chain, asked.params)
            fields = {"stage": stage, "run": run, "reuse": reuse, "reuse_own": not reuse, "input_key": key}
            alone = asked.model_copy(update={"upstream": chain, **fields})
            output = execute(context(alone, tmp_path), work).output_digest
            made.setdefault(run.id, []).append(output)
            chain = chain.with_output(stage, output)
        found = execute(context(asked.model_copy(update={"run": run, "upstream": chain}), tmp_path), resolve).found
        assert [(each.output_digest, each.run) for each in found] == [(output, run.id) for output in made[run.id]]
    assert (made["r0"] == made[RUN.id]) is alike


NOT_OF_TEXTS = {f"accuracy{model}" for model in ("Base", "FewShot", "Tuned", "Artifact")} | {"perplexityFewShot"}
"""What an evaluation of texts, which has the most scores, does not have."""


def longest_scalars() -> dict[Stage, dict[str, str]]:
    """What each stage tells, as long as it gets."""
    reached = GoalStatus(goal="-", value="-0.1234", low="-0.1234", high="-0.1234", outcome=GateOutcome.INCONCLUSIVE)
    rates = {"win_rate": "0.1234", "low": "0.1234", "high": "0.1234"}
    words = {
        "readiness": "r" * MAX_SUMMARY,
        "ended": Reason.TRAINING_COMPLETED.value,
        "channel": Channel.CANDIDATE.value,
        "goals": packed([reached.model_copy(update={"deciding_rows": 1_000_000})] * MAX_GOALS),
        "review": ReviewStatus(outcome=GateOutcome.FAIL, votes=100_000, reviewers=1000, **rates).model_dump_json(),
        "prompting": "p" * MAX_PROMPTING,
        "format": "Merged",
        "architecture": "a" * 64,
    }
    found = {stage: {name: words.get(name, "1234567890") for name in FOUND_SCALARS[stage]} for stage in PIPELINE}
    found[Stage.EVALUATE] = {
        name: "1234567890" if name.startswith("perplexity") else "0.1234"
        for name in found[Stage.EVALUATE]
        if name not in NOT_OF_TEXTS
    }
    found[Stage.TRAIN] |= dict.fromkeys(
        ("steps", "trainLoss", "validationLoss", "tokens", "learningRate"), "1234567890"
    )
    found[Stage.PUBLISH] |= {"artifactUri": f"s3://{'u' * 520}/artifacts/{'5' * 64}", "signedBy": "5" * 64}
    return found


def test_all_results_of_a_run_fit_a_termination_message(s3: SeaweedFS, stocked: Store, tmp_path: Path) -> None:
    """Nothing that the operator reads is lost, with the longest scalars of every stage."""
    asked = given(stocked, Stage.RESOLVE, s3.storage)
    results, chain, said = (
        stocked.below("out"),
        Upstream(source=source_of(stocked), model=model_of(stocked)),
        longest_scalars(),
    )
    for number, stage in enumerate(PIPELINE, 1):
        output = str(number) * 64
        made = {"outcome": Outcome.SUCCEEDED, "reason": Reason.STAGE_SUCCEEDED, "output_digest": output}
        result = StageResult(stage=stage, scalars=said[stage], **made)
        record = StageRecord(result=result, lineage=Lineage(run=asked.run))
        results.put(f"{output_folder(stage, output)}/{MANIFEST}", b"{}")
        publish_record(results, stage, input_key(stage, chain, asked.params), record)
        chain = chain.with_output(stage, output)
    pointer = ChannelPointer(artifact_digest="5" * 64, owner=asked.run, updated_at="2026-01-01T00:00:00Z")
    results.put(channel_object("transactions", Channel.CANDIDATE), canonical_json(pointer))
    results.put(provenance_object("5" * 64, UNSIGNED), b"{}")
    results.put(f"{gates_folder('5' * 64)}/1.json", b"{}")
    resolved = execute(context(asked, tmp_path), resolve)
    write_result(str(tmp_path / "result"), resolved)
    text = (tmp_path / "result").read_bytes()
    assert len(text) <= MAX_RESULT_BYTES
    read = StageResult.model_validate_json(text)
    told = {**FOUND_SCALARS, Stage.EVALUATE: FOUND_SCALARS[Stage.EVALUATE] - NOT_OF_TEXTS}
    assert {entry.stage: entry.scalars.keys() for entry in read.found} == told
    assert read.scalars == resolved.scalars
    assert read.message == resolved.message


def test_what_publish_tells_fits_a_termination_message(tmp_path: Path) -> None:
    """With a copy in as many registries as there may be, and the longest message: its end is the first to go."""
    scalars = longest_scalars()[Stage.PUBLISH] | {
        "goldenPrompts": "1234567890",
        "pushed": " ".join([f"sha256:{'5' * 64}"] * MAX_TARGETS),
    }
    result = StageResult(
        stage=Stage.PUBLISH,
        outcome=Outcome.SUCCEEDED,
        reason=Reason.STAGE_SUCCEEDED,
        output_digest="5" * 64,
        scalars=scalars,
        message="m" * 1024,
    )
    for message in ("m" * 1024, "ü" * 1024, "字" * 1024, '"' * 1024):
        write_result(str(tmp_path / "result"), result.model_copy(update={"message": message}))
        text = (tmp_path / "result").read_bytes()
        assert len(text) <= MAX_RESULT_BYTES
        read = StageResult.model_validate_json(text)
        assert read.scalars == scalars
        assert len(read.message) >= 256


def test_resolve_sees_changes_of_the_model_but_not_of_pickles(s3: SeaweedFS, stocked: Store, tmp_path: Path) -> None:
    def model_digest() -> str:
        return execute(context(given(stocked, Stage.RESOLVE, s3.storage), tmp_path), resolve).scalars["modelDigest"]

    first = model_digest()
    stocked.put("model/pytorch_model.bin", b"another pickle")
    assert model_digest() == first
    stocked.put("model/model.safetensors", b"weightz")
    assert model_digest() != first


Spoil = Callable[[Store], None]


def _no_source(store: Store) -> None:
    store.delete("rows.csv")


def _no_model(store: Store) -> None:
    for entry in store.list("model"):
        store.delete(f"model/{entry.key}")


def _no_config(store: Store) -> None:
    store.delete("model/config.json")


def _only_pickles(store: Store) -> None:
    store.delete("model/model.safetensors")


def _other_owner(store: Store) -> None:
    owner = RUN.model_copy(update={"namespace": "team-b", "name": "cards"})
    pointer = ChannelPointer(artifact_digest="0" * 64, owner=owner, updated_at="2026-01-01T00:00:00Z")
    store.put(f"out/{channel_object('transactions')}", canonical_json(pointer))


@pytest.mark.parametrize(
    ("spoil", "reason", "parts"),
    [
        (_no_source, Reason.DATASET_NOT_FOUND, "{place}/rows.csv … does not exist"),
        (_no_model, Reason.MODEL_NOT_FOUND, "{place}/model … no files"),
        (
            _no_config,
            Reason.MODEL_NOT_FOUND,
            "{place}/model … no config.json (found: generation_config.json, model.safetensors, pytorch_model.bin, "
            "tokenizer.json, tokenizer_config.json)",
        ),
        (
            _only_pickles,
            Reason.MODEL_UNSUPPORTED,
            "{place}/model … pickles (pytorch_model.bin), … run code … *.safetensors",
        ),
        (
            _other_owner,
            Reason.OUTPUT_NAME_CONFLICT,
            "{place}/out/channels/transactions/stable.json … FineTuneJob team-b/cards, … team-a/transactions may not … "
            "gone for good, delete {place}/out/owners/transactions.json and what is below … /out/channels/transactions",
        ),
    ],
)
def test_resolve_refuses_before_anything_is_spent(
    s3: SeaweedFS, stocked: Store, place: str, tmp_path: Path, spoil: Spoil, reason: Reason, parts: str
) -> None:
    asked = given(stocked, Stage.RESOLVE, s3.storage)
    spoil(stocked)
    with pytest.raises(StageError) as error:
        execute(context(asked, tmp_path), resolve)
    assert error.value.reason is reason
    assert_says(error.value.message, *parts.format(place=place).split(" … "))
    assert reason in REMEDIES


@pytest.mark.parametrize(
    ("field", "uri", "parts"),
    [
        ("output", "s3://no-such-bucket/out", "s3://no-such-bucket/out … bucket 'no-such-bucket' … not exist"),
        (
            "source",
            "s3://no-such-bucket/rows.csv",
            "s3://no-such-bucket/rows.csv … bucket 'no-such-bucket' … not exist",
        ),
        (
            "model",
            "s3://no-such-bucket/model",
            "s3://no-such-bucket/model … bucket 'no-such-bucket' … not exist",
        ),
    ],
)
def test_a_missing_bucket_is_named(
    s3: SeaweedFS, stocked: Store, tmp_path: Path, field: str, uri: str, parts: str
) -> None:
    output = Output(uri=uri if field == "output" else stocked.uri("out"), name="transactions")
    params = pipeline_params([uri if field == "source" else stocked.uri("rows.csv")], output)
    model = uri if field == "model" else stocked.uri("model")
    with pytest.raises(StageError) as error:
        execute(
            context(stage_input(Stage.RESOLVE, s3.storage, output, params, base_model_uri=model), tmp_path), resolve
        )
    assert error.value.reason is Reason.BUCKET_NOT_FOUND
    assert_says(error.value.message, *parts.split(" … "))


def test_resolve_refuses_a_store_that_forgets_conditions(s3: SeaweedFS, stocked: Store, tmp_path: Path) -> None:
    with forgetful(s3.endpoint, ADMIN) as endpoint, pytest.raises(StageError) as error:
        execute(context(given(stocked, Stage.RESOLVE, Storage(endpoint=endpoint)), tmp_path), resolve)
    assert error.value.reason is Reason.S3_CONDITIONAL_WRITES_UNSUPPORTED
    assert list(stocked.list("out")) == []


def test_resolve_refuses_an_encryption_that_the_store_does_not_give(
    s3: SeaweedFS, stocked: Store, tmp_path: Path
) -> None:
    encryption = Encryption(algorithm=EncryptionAlgorithm.KMS, kms_key_id="unknown")
    storage = s3.storage.model_copy(update={"encryption": encryption})
    ended = run_process(given(stocked, Stage.RESOLVE, storage), tmp_path, ADMIN)
    assert (ended.code, ended.result.reason) == (ExitCode.FATAL, Reason.S3_ENCRYPTION_REFUSED)
    assert "storage.encryption (algorithm aws:kms, kmsKeyId 'unknown')" in ended.result.message
    assert REMEDIES[Reason.S3_ENCRYPTION_REFUSED] not in ended.result.message, "the operator appends it"
