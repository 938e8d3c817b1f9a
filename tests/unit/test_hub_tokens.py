"""Gated models and data sets of the hub, opened with the token that the spec names, which goes to no other host."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest
from huggingface_hub import constants

from finetune_api.dataset import Dataset, Source
from finetune_api.finetunejob import Output
from finetune_api.meta import ExitCode
from finetune_api.reasons import REMEDIES, Reason
from finetune_api.references import SecretKeyRef
from finetune_api.stages import Stage, Upstream
from finetune_jobs.modelling.base_model import fetch_base_model, find_base_model
from finetune_jobs.reading.sources import find_sources
from finetune_jobs.store.places import Places
from tests.support.fake_hub import fake_hub
from tests.support.seaweedfs import ADMIN, SeaweedFS
from tests.support.stages import context, pipeline_params, run_process, stage_input

pytestmark = [pytest.mark.unit, pytest.mark.slow]

NAMED: Final = SecretKeyRef(name="hub", key="token")
TOKEN: Final = "hf_aTokenWithAccess"
TOKENS: Final = {TOKEN: True, "hf_aTokenWithout": False}
MODEL: Final = "hf://org/model@main"
MODEL_FILES: Final = {"config.json": b"{}", "model.safetensors": b"w" * 3000, "tokenizer.json": b"{}"}
DATA: Final = "hf://datasets/org/set@main/rows.csv"
CHAIN: Final = Upstream(source="1", dataset="3", adapter="4")
ROWS: Final = b"text,label\n" + b"a,b\n" * 1000


def test_a_gated_model_is_found_and_copied(
    s3: SeaweedFS, place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(NAMED.variable, f"{TOKEN}\n")
    with fake_hub(monkeypatch, "model", "org/model", MODEL_FILES, tokens=TOKENS) as seen:
        found = find_base_model(Places(s3.storage), MODEL, None, NAMED)
        output = Output(uri=place, name="made")
        given = stage_input(
            Stage.EXPORT,
            s3.storage,
            output,
            pipeline_params([], output),
            CHAIN.model_copy(update={"model": found.digest}),
            base_model_uri=MODEL,
            base_model_secret_key_ref=NAMED,
        )
        fetch_base_model(context(given, tmp_path), tmp_path / "base")
    assert (tmp_path / "base" / "model.safetensors").read_bytes() == MODEL_FILES["model.safetensors"]
    assert set(seen.hub) == {f"Bearer {TOKEN}"}
    assert seen.elsewhere
    assert set(seen.elsewhere) == {""}, "the token is the hub's alone"


def test_a_gated_data_set_is_found_and_copied(s3: SeaweedFS, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(NAMED.variable, TOKEN)
    sources = [Source(uri=DATA, secret_key_ref=NAMED)]
    with fake_hub(monkeypatch, "dataset", "org/set", {"rows.csv": ROWS}, tokens=TOKENS) as seen:
        [file] = find_sources(Places(s3.storage), Dataset(sources=sources))
        file.copy_to(tmp_path / "rows.csv")
    assert (tmp_path / "rows.csv").read_bytes() == ROWS
    assert set(seen.hub) == {f"Bearer {TOKEN}"}
    assert set(seen.elsewhere) == {""}


def test_a_source_without_a_token_sends_that_of_no_other(s3: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAMED.variable, TOKEN)
    with fake_hub(monkeypatch, "dataset", "org/set", {"rows.csv": ROWS}) as seen:
        find_sources(Places(s3.storage), Dataset(sources=[Source(uri=DATA)]))
    assert set(seen.hub) == {""}


@pytest.mark.parametrize(("token", "code"), [(TOKEN, ExitCode.OK), ("hf_aTokenWithout", ExitCode.FATAL)])
def test_the_stage_takes_the_token_and_tells_nobody(
    s3: SeaweedFS, place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, token: str, code: ExitCode
) -> None:
    """Neither its result nor its log has it, and the remedy names the field."""
    s3.client().put_object(Bucket="data", Key=f"{place.removeprefix('s3://data/')}/rows.csv", Body=ROWS)
    output = Output(uri=f"{place}/out", name="made")
    params = pipeline_params([f"{place}/rows.csv"], output)
    given = stage_input(
        Stage.RESOLVE, s3.storage, output, params, base_model_uri=MODEL, base_model_secret_key_ref=NAMED
    )
    with fake_hub(monkeypatch, "model", "org/model", MODEL_FILES, tokens=TOKENS):
        variables = {NAMED.variable: token, "HF_ENDPOINT": constants.ENDPOINT}
        ended = run_process(given, tmp_path, ADMIN, variables=variables, fresh=True)
    assert ended.code == code, ended.result.message
    assert token not in str(ended)
    if code is ExitCode.FATAL:
        assert ended.result.reason is Reason.GATED_MODEL_UNAUTHORIZED
        assert "spec.model.secretKeyRef" in REMEDIES[ended.result.reason]
