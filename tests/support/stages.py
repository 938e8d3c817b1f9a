"""Running the jobs' stages in tests: in this process with a Context, or as the container would."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from finetune_api.dataset import Columns, Dataset, Source, Task
from finetune_api.evaluation import Evaluation
from finetune_api.export import Export
from finetune_api.finetunejob import Output
from finetune_api.layout import output_folder
from finetune_api.meta import ADAPTERDEPLOYMENT, FINETUNEJOB
from finetune_api.stages import (
    EvaluateParams,
    ExportParams,
    Params,
    PrepareParams,
    PublishParams,
    RunRef,
    Stage,
    StageInput,
    StageResult,
    TrainParams,
    Upstream,
    input_key,
)
from finetune_api.storage import InputStorage, Storage
from finetune_api.training import Training
from finetune_jobs.artifacts.artifact import ModelRef
from finetune_jobs.base.progress import Progress
from finetune_jobs.runtime.runner import Context, results_root
from finetune_jobs.store.places import Places
from finetune_jobs.store.s3 import Store
from tests.support import forked
from tests.support.forked import Forked
from tests.support.seaweedfs import User

PYTHON = Path(sys.executable)
RUN = RunRef(kind=FINETUNEJOB, namespace="team-a", name="transactions", uid="0b8a", id="r1")
DEPLOYMENT = RunRef(kind=ADAPTERDEPLOYMENT, namespace="team-a", name="transactions", uid="77fe", id="v1")


def prepare_params(**fields: Any) -> PrepareParams:
    """Parameters of prepare: the fields of a Dataset, and those that stand beside it."""
    dataset = {name: fields.pop(name) for name in list(fields) if name in Dataset.model_fields}
    return PrepareParams(dataset=Dataset(**dataset), **fields)


def model_ref(**fields: Any) -> ModelRef:
    """An exported model at some address, as it stands beside an artifact."""
    digest = "5" * 64
    some = {"folder": output_folder(Stage.EXPORT, digest), "format": "INT8", "base_model_uri": "s3://m/tiny"}
    return ModelRef(**{"digest": digest, "size_bytes": 9} | some | fields)


def pipeline_params(sources: list[str], output: Output, /, **prepare: Any) -> Params:
    """Parameters of every stage, for sources with the columns text and label; ``[]``: some source that is not read."""
    defaults: dict[str, Any] = {
        "sources": [Source(uri=uri) for uri in sources or ["s3://data/rows.csv"]],
        "columns": Columns(input="text", label="label"),
    }
    return Params(
        prepare=prepare_params(**defaults | prepare),
        train=TrainParams(training=Training()),
        export=ExportParams(export=Export(), method="QLoRA"),
        evaluate=EvaluateParams(evaluation=Evaluation(), task=Task(), method="QLoRA"),
        publish=PublishParams(output=output, format="INT8"),
    )


def stage_input(
    stage: Stage,
    storage: Storage,
    output: Output,
    params: Params,
    upstream: Upstream | None = None,
    **fields: Any,
) -> StageInput:
    """What the operator would write for a stage of a FineTuneJob."""
    chain = upstream or Upstream(source="", model="")
    key = "" if stage is Stage.RESOLVE else input_key(stage, chain, params)
    given = {"run": RUN, "base_model_uri": "s3://data/model"} | fields
    return StageInput(
        stage=stage, storage=storage, output=output, params=params, upstream=chain, input_key=key, **given
    )


def context(given: StageInput, folder: Path) -> Context:
    """A Context as the runner makes it; keys come from the environment."""
    scratch = folder / f"scratch-{len(list(folder.glob('scratch-*')))}"
    scratch.mkdir()
    places = Places(given.storage)
    store = places.open(results_root(given), given.results_storage)
    return Context(given, store, places, Progress(given.stage), scratch, folder / "models")


class Lent(Places):
    """Every place over the connection of one store."""

    def __init__(self, store: Store) -> None:
        super().__init__(Storage())
        self._store = store

    def open(self, uri: str, storage: InputStorage | None = None) -> Store:
        """The place, whatever its storage."""
        return self._store.at(uri)


Started: TypeAlias = "subprocess.Popen[bytes] | Forked"  # a text: a program that is forked has no such class
"""A stage's process."""
STDERR: Final = "stderr.log"
"""Where the folder of a stage that has ended has its standard error."""


@dataclass(frozen=True)
class Ended:
    """How a stage's process ended."""

    code: int
    result: StageResult
    log: list[dict[str, Any]]
    """JSON lines of its standard error; what libraries write past the logs is left out."""


def run_process(
    given: StageInput,
    folder: Path,
    user: User,
    *arguments: str,
    python: Path = PYTHON,
    variables: Mapping[str, str] = MappingProxyType({}),
    fresh: bool = False,
    program: str = "",
) -> Ended:
    """Run a stage as its container does: ``python -m finetune_jobs.<stage>``, with the environment of ``user`` and
    ``variables`` only. ``fresh``: by a Python that starts, rather than one that has made the imports; variables that
    Python or a library reads while it starts need that. ``program``: what runs in the stage's place."""
    process = start_process(
        given, folder, user, *arguments, python=python, variables=variables, fresh=fresh, program=program
    )
    return wait_for(process, folder)


def start_process(
    given: StageInput,
    folder: Path,
    user: User,
    *arguments: str,
    python: Path = PYTHON,
    variables: Mapping[str, str] = MappingProxyType({}),
    fresh: bool = False,
    program: str = "",
) -> Started:
    """As ``run_process``, but returns the running process, for ``wait_for`` with the same ``folder``."""
    input_file, result_file = folder / "input.json", folder / "result.json"
    input_file.write_text(given.model_dump_json(by_alias=True))
    command = [program or f"finetune_jobs.{given.stage}", "--input", str(input_file), "--result", str(result_file)]
    command += ["--metrics-port", "0", *arguments]
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
    environment |= user.environment() | dict(variables)
    if not fresh:
        return forked.start(command, environment, python=str(python))
    return subprocess.Popen(
        [str(python), "-m", *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def wait_for(process: Started, folder: Path) -> Ended:
    """The end of a stage's process, which must come before the time of a test is over."""
    _, errors = process.communicate(timeout=580)
    code = process.wait()
    (folder / STDERR).write_bytes(errors)
    log = [json.loads(line) for line in errors.decode().splitlines() if line.startswith("{")]
    return Ended(code, StageResult.model_validate_json((folder / "result.json").read_bytes()), log)
