"""The command line of the stages: ``python -m finetune_jobs.<stage>``, the same in a pod and on your machine."""

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from finetune_api.dataset import Columns, Dataset, Source, Task
from finetune_api.endpoint_stages import AnalyseParams, FollowParams, VerifyParams
from finetune_api.evaluation import Examination
from finetune_api.export import Export
from finetune_api.finetunejob import Output
from finetune_api.layout import output_folder
from finetune_api.meta import (
    ADAPTERDEPLOYMENT,
    FINETUNEJOB,
    INDEX_VARIABLE,
    INPUT_FILE,
    METRICS_DIR,
    METRICS_PORT,
    MODELS_DIR,
    TEACHER_KEY_VARIABLE,
    TRAINING_PORT,
    ExitCode,
)
from finetune_api.stages import (
    DEPENDS_ON,
    OF_ENDPOINTS,
    EvaluateParams,
    ExportParams,
    Params,
    PrepareParams,
    PublishParams,
    RunRef,
    Stage,
    StageInput,
    TrainParams,
    Upstream,
)
from finetune_api.storage import Storage
from finetune_api.tracking import WANDB_KEY_VARIABLE
from finetune_api.training import Training
from finetune_jobs.runtime import logs

TERMINATION_LOG: Final = Path("/dev/termination-log")
"""Where the kubelet reads a container's termination message unless its spec says otherwise."""

_WORK: Final[Mapping[Stage, tuple[str, str, str]]] = {
    Stage.RESOLVE: (
        "Checks, before anything costly starts, what already exists and whether the rest can be made.",
        "the sources and the base model (by HEAD and LIST), keys/; or an artifact's manifest",
        "nothing but a probe of the bucket, which it deletes",
    ),
    Stage.PREPARE: (
        "Reads, validates and splits the examples.",
        "the sources, the base model's tokenizer; with a teacher runs/<name>/<uid>/distillation/",
        "datasets/<digest>/; with a teacher runs/<name>/<uid>/distillation/",
    ),
    Stage.TRAIN: (
        "Trains the model on a prepared data set; a restart resumes from its newest checkpoint.",
        "datasets/<digest>/, the base model, runs/<name>/<uid>/checkpoints/",
        "models/<digest>/adapter/, runs/<name>/<uid>/checkpoints/ and tracking/",
    ),
    Stage.EXPORT: (
        "Merges the trained weights into the base model and quantises it for serving.",
        "the base model, models/<digest>/adapter/",
        "models/<digest>/quantized/",
    ),
    Stage.EVALUATE: (
        "Runs the test examples through the base model, the tuned one and the exported files.",
        "datasets/<digest>/, the base model, models/<digest>/",
        "evaluations/<digest>/",
    ),
    Stage.PUBLISH: (
        "Combines data set, model and evaluation into an artifact and points its output name's channel to it.",
        "the manifests of all stages before",
        "artifacts/<digest>/, channels/<output name>/, owners/<output name>.json",
    ),
    Stage.FETCH: (
        "Downloads an artifact's model to a server's folder and verifies every file.",
        "artifacts/<digest>/, models/<digest>/",
        "the folder of --models",
    ),
    Stage.VERIFY: (
        "Verifies that a running server answers with the right artifact.",
        "artifacts/<digest>/, the server's endpoint",
        "nothing but its result",
    ),
    Stage.ANALYSE: (
        "Compares the errors and latencies of a canary's servers with those of the serving revision.",
        "/metrics of the pods of both revisions",
        "nothing but its result",
    ),
    Stage.FOLLOW: (
        "Reports which artifact a channel of an output name points to, for an endpoint that follows it.",
        "channels/<output name>/, owners/<output name>.json; of the artifact that it exists and was not withdrawn",
        "nothing but its result",
    ),
}
"""What each stage does, reads and writes; relative paths are below the output URI."""

_EPILOG: Final = """\
reads:   {reads}
writes:  {writes}
         runs/<name>/<uid>/logs/ (the log's end, for stages of a FineTuneJob)

environment:
  AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY  keys for each storage without a secretRef; without them the pod's or
                                            machine's own identity
  FINETUNE_SECRET.<name>_<key>              value of a Secret's key, for each secretRef or secretKeyRef of the input
  TMPDIR                                    parent of the scratch folder, which needs space for the models
  OMP_NUM_THREADS                           number of CPU threads for computation
{more}
exit codes:
  {ok:2d}  done: the result is written, and what it names is complete in the store
  {fatal:2d}  cannot succeed unchanged: the result's reason and message say what to change
  {retriable:2d}  may succeed later: the store or the pod's node was unavailable, or the stage was told to stop
  {restart_group:2d}  another of the pods that train together was lost: all restart from the last checkpoint

example:
  python -m finetune_jobs.{stage} --example > input.json    # then put in your own URIs, or take a pod's input:
  kubectl get configmap JOB -o jsonpath='{{.data.input\\.json}}' > input.json
  python -m finetune_jobs.{stage} --input input.json --result -
"""
_MORE: Final[Mapping[Stage, str]] = {
    Stage.PREPARE: f"""\
  {TEACHER_KEY_VARIABLE:42}API key of the teacher, if the input's distillation has one that requires it
""",
    Stage.TRAIN: f"""\
  MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD or MLFLOW_TRACKING_TOKEN
                                            login for the server that the input's tracking.mlflow names
  {WANDB_KEY_VARIABLE:42}login for the server that its tracking.wandb names
""",
}
"""Further variables of a stage's environment."""


def parse(stage: Stage, argv: list[str] | None) -> argparse.Namespace:
    """The options ``input``, ``result``, ``models``, ``models_room``, ``metrics``, ``model_cache``,
    ``model_cache_limit``, ``metrics_port``; ``--help`` and ``--example`` end the process."""
    does, reads, writes = _WORK[stage]
    parser = argparse.ArgumentParser(
        prog=f"python -m finetune_jobs.{stage}",
        description=f"{does} Stage {stage} of finetune-operator; runs in a pod and outside Kubernetes alike.",
        epilog=_EPILOG.format(
            stage=stage,
            reads=reads,
            writes=writes,
            more=_MORE.get(stage, ""),
            ok=ExitCode.OK,
            fatal=ExitCode.FATAL,
            retriable=ExitCode.RETRIABLE,
            restart_group=ExitCode.RESTART_GROUP,
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    in_pod = "KUBERNETES_SERVICE_HOST" in os.environ and TERMINATION_LOG.exists()
    parser.add_argument("--input", default=INPUT_FILE, metavar="FILE", help="StageInput as JSON (default: %(default)s)")
    parser.add_argument(
        "--result",
        default=str(TERMINATION_LOG) if in_pod else "-",
        metavar="FILE",
        help="where the StageResult goes; - is standard output (default: %(default)s)",
    )
    parser.add_argument(
        "--models",
        default=MODELS_DIR,
        metavar="DIR",
        help="where fetch puts the server's models (default: %(default)s)",
    )
    parser.add_argument(
        "--models-room",
        type=int,
        default=0,
        metavar="BYTES",
        help="that fetch may put there (default: not known)",
    )
    parser.add_argument(
        "--metrics",
        default=METRICS_DIR,
        metavar="DIR",
        help="what an evaluation and its metric containers exchange (default: %(default)s)",
    )
    parser.add_argument(
        "--model-cache",
        metavar="DIR",
        help="folder that keeps models, and that stages may share at the same time (default: none)",
    )
    parser.add_argument(
        "--model-cache-limit",
        type=int,
        default=0,
        metavar="BYTES",
        help="that it may hold (default: as many as its file system has)",
    )
    parser.add_argument(
        "--metrics-port",
        type=int,
        default=METRICS_PORT,
        metavar="PORT",
        help="progress as Prometheus metrics, at /metrics (default: %(default)s)",
    )
    parser.add_argument("--example", action="store_true", help="print a template of this stage's input and exit")
    parser.add_argument(
        "--scratch", metavar="DIR", help="folder for the files of this attempt (default: a temporary one)"
    )
    if stage is Stage.TRAIN:
        _add_together(parser)
    logs.take_down()  # what is wrong with the command line is told to a person
    options = parser.parse_args(argv)
    if options.example:
        sys.stdout.write(example_input(stage).model_dump_json(by_alias=True, indent=2, exclude_none=True) + "\n")
        sys.exit(ExitCode.OK)
    return options


def _add_together(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "several processes",
        "The effective batch stays that of the input: each process takes its share of every step's examples.",
    )
    group.add_argument(
        "--processes", type=int, default=1, metavar="N", help="processes here, one per GPU (default: %(default)s)"
    )
    group.add_argument(
        "--nodes", type=int, default=1, metavar="N", help="pods or machines that train together (default: %(default)s)"
    )
    group.add_argument(
        "--node",
        type=int,
        default=int(os.environ.get(INDEX_VARIABLE, "0")),
        metavar="I",
        help=f"number of this one, from 0 (default: {INDEX_VARIABLE}, else 0)",
    )
    group.add_argument(
        "--coordinator",
        default="localhost",
        metavar="HOST",
        help="host name of number 0 (default: %(default)s); every port between them must be open",
    )
    group.add_argument(
        "--coordinator-port",
        type=int,
        default=TRAINING_PORT,
        metavar="PORT",
        help="where number 0 waits for the others (default: %(default)s)",
    )


def example_input(stage: Stage) -> StageInput:
    """A complete input, except that the addresses of earlier results are all zeros.

    It has no inputKey (the runner makes it) and reuses nothing, so that edits always take effect.
    """
    root = "s3://models/team-a"
    if stage in OF_ENDPOINTS:
        return StageInput(
            stage=stage,
            run=_run(ADAPTERDEPLOYMENT),
            storage=_STORAGE,
            artifact_uri=f"{root}/{output_folder(Stage.PUBLISH, _ADDRESS)}",
            artifact_digest=_ADDRESS,
            params=_ENDPOINT_PARAMS.get(stage, Params()),
        )
    output = Output(uri=root, name="transactions")
    params = _params(output)
    known = dict.fromkeys(DEPENDS_ON.get(stage, ()), _ADDRESS)
    return StageInput(
        stage=stage,
        run=_run(FINETUNEJOB),
        storage=_STORAGE,
        output=output,
        base_model_uri="s3://models/base/SmolLM2-135M-Instruct",
        reuse=False,
        upstream=Upstream(**known),
        # resolve needs the parameters of all stages, for their keys
        params=params if stage is Stage.RESOLVE else Params(**{stage.value: getattr(params, stage.value)}),
    )


_ADDRESS: Final = "0" * 64
_STORAGE: Final = Storage(endpoint="http://localhost:8333")
_ENDPOINT_PARAMS: Final = {
    Stage.VERIFY: Params(
        verify=VerifyParams(endpoint="http://localhost:8080", samples=20, min_agreement_percent=90),
    ),
    Stage.ANALYSE: Params(
        analyse=AnalyseParams(
            engine="vllm",
            stable_engine="vllm",
            canary=["http://localhost:8080"],
            stable=["http://localhost:8081"],
            until="2030-01-01T00:00:00Z",
            min_requests=100,
            max_error_increase=0.01,
            max_latency_increase=0.5,
        )
    ),
    Stage.FOLLOW: Params(follow=FollowParams(uri="s3://models/team-a", name="transactions")),
}


def _run(kind: str) -> RunRef:
    return RunRef(kind=kind, namespace="team-a", name="transactions", uid="by-hand", id="r1")


def _params(output: Output) -> Params:
    training, export, task = Training(), Export(), Task()
    method = training.method.value
    return Params(
        prepare=PrepareParams(
            dataset=Dataset(
                sources=[Source(uri="s3://datasets/transactions.csv")],
                columns=Columns(input="text", label="label"),
                instruction="Answer with the category of the transaction.",
            )
        ),
        train=TrainParams(training=training),
        export=ExportParams(export=export, method=method),
        evaluate=EvaluateParams(evaluation=Examination(), task=task, method=method),
        publish=PublishParams(output=output, format=export.format.value),
    )
