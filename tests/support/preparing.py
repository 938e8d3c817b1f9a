"""Reading small data sets in tests, file by file and as prepare does it, without a store."""

from pathlib import Path
from typing import Any

from finetune_api.dataset import DataFormat, Source, Task, TaskType
from finetune_api.stages import PrepareParams
from finetune_jobs.dataset.account import require_enough, require_learnable, require_valid
from finetune_jobs.dataset.collect import Collected, Collector, Copy
from finetune_jobs.dataset.division import divide
from finetune_jobs.dataset.formats import format_of
from finetune_jobs.dataset.intake import Intake
from finetune_jobs.dataset.sources import SourceFile
from finetune_jobs.dataset.tokens import Encoder
from finetune_jobs.modelling.tokenizer import load_tokenizer, stop_token


class Reader:
    """Reads files of examples for one base model."""

    def __init__(self, base: Path) -> None:
        self.tokenizer = load_tokenizer(base)
        self.stop = stop_token(base, self.tokenizer)

    def read(self, folder: Path, content: bytes, name: str = "rows.jsonl", **fields: Any) -> Collected:
        """The rows of one file, ``s3://data/<name>``; ``fields`` are those of PrepareParams, by default of free text.

        Raises StageError as prepare does, and for a single row that is invalid.
        """
        params = params_of(name, **fields)
        path, spool = folder / "source", folder / "spool"
        path.write_bytes(content)
        source = params.sources[0]
        kind = format_of(source.name, source.format)
        file = SourceFile(source, source.name, len(content), "", kind, False, lambda _target: None)
        encoder = Encoder(self.tokenizer, self.stop, params)
        with Collector(params, Intake(params), encoder, spool) as collector:
            collector.read([Copy(file, path)], lambda _done, _total: None)
        made = collector.made
        require_valid(made.ledger, params)
        encoder.require_short()
        require_learnable(made.ledger, params)
        require_enough(made.ledger, divide(made.ledger, made.clusters, made.texts, params))
        return made


def params_of(name: str = "rows.jsonl", kind: DataFormat | None = None, **fields: Any) -> PrepareParams:
    """What prepare is asked for: one source, of which no row may be invalid."""
    defaults = {"task": Task(type=TaskType.TEXT), "max_invalid_percent": 0}
    return PrepareParams(sources=[Source(uri=f"s3://data/{name}", format=kind)], **defaults | fields)
