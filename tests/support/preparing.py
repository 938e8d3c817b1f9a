"""Preparing small data sets in tests: one file by itself without a store, or sources in S3 through the real stage."""

import json
from pathlib import Path
from typing import Any

from finetune_api.dataset import DataFormat, DatasetSource, Source, Task, TaskType
from finetune_api.finetunejob import Output
from finetune_api.gates import Gates
from finetune_api.layout import output_folder
from finetune_api.stages import PrepareParams, Stage, StageResult, Upstream
from finetune_jobs.modelling.base_model import find_base_model
from finetune_jobs.modelling.control_tokens import NO_CONTROL_TOKENS, ControlTokens
from finetune_jobs.modelling.tokenizer import load_tokenizer, stop_token
from finetune_jobs.preparation.collect import Collected, Collector, Copy
from finetune_jobs.preparation.intake import Intake
from finetune_jobs.preparation.tokens import Encoder
from finetune_jobs.prepare import prepare
from finetune_jobs.readiness.preparation_report import require_enough, require_learnable, require_valid
from finetune_jobs.reading.formats import format_of
from finetune_jobs.reading.inputs import inputs_digest
from finetune_jobs.reading.sources import SourceFile
from finetune_jobs.runtime.runner import execute
from finetune_jobs.splitting.division import divide
from finetune_jobs.store.s3 import Store
from tests.support.seaweedfs import SeaweedFS
from tests.support.stages import Lent, context, pipeline_params, prepare_params, stage_input

Row = dict[str, Any]
NAMES = "amber basil cedar delta ember fjord grape hazel ivory jewel karma lemon mango noble olive pearl"
WORDS = NAMES.split(" ")


def text(number: int) -> str:
    """Words of which no two numbers share many."""
    return " ".join(WORDS[(number * prime + step) % len(WORDS)] + str(number) for step, prime in enumerate((3, 5, 7)))


def rows(count: int = 200, begin: int = 0) -> list[Row]:
    """Rows of two classes, of which no two are alike."""
    return [{"text": text(n), "label": "ab"[n % 2]} for n in range(begin, begin + count)]


class Reader:
    """Reads files of examples for one base model."""

    def __init__(self, base: Path) -> None:
        self.tokenizer = load_tokenizer(base)
        self.stop = stop_token(base, self.tokenizer)

    def read(self, folder: Path, content: bytes, name: str = "rows.jsonl", **fields: Any) -> Collected:
        """The rows of one file, ``s3://data/<name>``; ``fields`` as ``prepare_params``, by default of free text.

        Raises StageError as prepare does, and for a single row that is invalid.
        """
        params = params_of(name, **fields)
        path, spool = folder / "source", folder / "spool"
        path.write_bytes(content)
        file = source_file(params.dataset.all_sources[0], len(content))
        encoder = Encoder(self.tokenizer, self.stop, params)
        with Collector(intake_of(params), encoder, spool) as collector:
            collector.read([Copy(file, path)], lambda _done, _total: None)
        made = collector.made
        require_valid(made.ledger, params.dataset)
        encoder.require_short()
        require_learnable(made.ledger, params)
        near = made.near(params.dataset.duplicates.sought_percent)
        division = divide(made.ledger, near, made.texts, params.dataset)
        require_enough(made.ledger, division, params.dataset.split)
        return made


def source_file(origin: DatasetSource, size: int = 0) -> SourceFile:
    """The one file of a source, of which a test has the copy already."""
    name = origin.source.name
    return SourceFile(origin, name, size, "", format_of(name, origin.source.format), False, lambda _target: None)


def params_of(name: str = "rows.jsonl", kind: DataFormat | None = None, **fields: Any) -> PrepareParams:
    """What prepare is asked for: one source, of which no row may be invalid."""
    defaults = {"task": Task(type=TaskType.TEXT), "max_invalid_percent": 0}
    return prepare_params(sources=[Source(uri=f"s3://data/{name}", format=kind)], **defaults | fields)


def intake_of(params: PrepareParams, controls: ControlTokens = NO_CONTROL_TOKENS) -> Intake:
    """What takes the rows of a stage with these parameters."""
    return Intake(params.dataset, params.task, controls=controls)


class Prepared:
    """A place with a base model, and what the stage made there."""

    def __init__(self, s3: SeaweedFS, place: str, base: Path, folder: Path) -> None:
        self.s3, self.base, self.folder = s3, base, folder
        self.store, self.gates = Store.connect(s3.storage, place), Gates()
        for file in base.glob("*.json"):
            self.store.put(f"model/{file.name}", file.read_bytes())
        self.store.put("model/model.safetensors", b"weights")

    def put(self, name: str, rows: list[dict[str, Any]], **fields: Any) -> Source:
        """A source of these rows, as JSON lines."""
        self.store.put(name, b"".join(json.dumps(row).encode() + b"\n" for row in rows))
        return Source(uri=self.store.uri(name), **fields)

    def run(self, *sources: Source, **prepare_fields: Any) -> StageResult:
        """Prepare the sources; by default with the columns text and label."""
        output = Output(uri=self.store.uri("out"), name="trial")
        fields = {"sources": list(sources)} | prepare_fields
        made = pipeline_params([], output, **fields)
        assert made.publish
        params = made.model_copy(update={"publish": made.publish.model_copy(update={"gates": self.gates})})
        assert params.prepare
        upstream = Upstream(
            source=inputs_digest(Lent(self.store), params.prepare.dataset),
            model=find_base_model(Lent(self.store), self.store.uri("model")).digest,
        )
        model = self.store.uri("model")
        self.given = stage_input(Stage.PREPARE, self.s3.storage, output, params, upstream, base_model_uri=model)
        self.result = execute(context(self.given, self.folder), prepare)
        return self.result

    def file(self, name: str) -> bytes:
        """A file of the data set that was made last."""
        folder = output_folder(Stage.PREPARE, self.result.output_digest)
        return self.store.get(f"out/{folder}/{name}") or b""

    def texts(self, part: str) -> list[str]:
        """What the model is asked in the examples of a part."""
        return [json.loads(line)["messages"][-2]["content"] for line in self.file(f"{part}.jsonl").splitlines()]

    @property
    def report(self) -> Any:
        """report.json."""
        return json.loads(self.file("report.json"))
