"""The first two stages, resolve and prepare, for one source and one base model: a stocked store, and their inputs."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune_api.dataset import Dataset, Source
from finetune_api.finetunejob import Output
from finetune_api.stages import PrepareParams, Stage, StageInput, Upstream
from finetune_api.storage import Storage
from finetune_jobs.modelling.base_model import find_base_model
from finetune_jobs.reading.sources import find_sources, source_digest
from finetune_jobs.runtime.runner import Context, StageOutput
from finetune_jobs.store.s3 import Store
from tests.support.stages import Lent, pipeline_params, stage_input


def rows(count: int = 300, labels: Sequence[str] = "abc") -> bytes:
    """A CSV with ``count`` different examples."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["text", "label"])
    writer.writerows([f"payment number {n}, at shop {n % 7}", labels[n % len(labels)]] for n in range(count))
    return out.getvalue().encode()


def stock(store: Store, base: Path) -> Store:
    """Put good sources (rows.csv) and a base model (model/), of which prepare needs the tokenizer, below ``store``."""
    store.put("rows.csv", rows())
    for file in base.glob("*.json"):
        store.put(f"model/{file.name}", file.read_bytes())
    store.put("model/model.safetensors", b"weights")
    store.put("model/pytorch_model.bin", b"a pickle that nobody takes")
    return store


def given(store: Store, stage: Stage, storage: Storage, **prepare_fields: Any) -> StageInput:
    """Input of resolve or prepare for the sources of ``store``."""
    output = Output(uri=store.uri("out"), name="transactions")
    params = pipeline_params([store.uri("rows.csv")], output, **prepare_fields)
    upstream = Upstream() if stage is Stage.RESOLVE else Upstream(source=source_of(store), model=model_of(store))
    return stage_input(stage, storage, output, params, upstream, base_model_uri=store.uri("model"))


def source_of(store: Store) -> str:
    """Digest of the sources."""
    return source_digest(find_sources(Lent(store), Dataset(sources=[Source(uri=store.uri("rows.csv"))])))


def model_of(store: Store) -> str:
    """Digest of the base model."""
    return find_base_model(Lent(store), store.uri("model")).digest


def need_prepare(found: StageInput) -> PrepareParams:
    """The parameters of prepare, which ``given`` always sets."""
    assert found.params.prepare
    return found.params.prepare


def never(_: Context) -> StageOutput:
    """A stage that must not run, because its result is there."""
    raise AssertionError("the work was done again")
