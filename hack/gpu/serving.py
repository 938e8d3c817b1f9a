"""vLLM serves an artifact on this GPU, and the verification of a rollout finds that it is what was evaluated."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from finetune_api.endpoint_stages import VerifyParams
from finetune_api.export import ExportFormat
from finetune_api.layout import output_folder
from finetune_api.meta import ExitCode
from finetune_api.stages import Params, Stage, StageInput
from finetune_operator.runtimes.plan import ServedModel
from finetune_operator.settings import Engine, Runtime
from hack import environments
from hack.cluster.console import ClusterError
from hack.cluster.layout import REPOSITORY, cache_directory
from hack.gpu.bench import LOGS, PASSED, Bench
from hack.gpu.check import Check, skipped
from hack.gpu.exporting import evaluated, input_of, params_of
from hack.gpu.machine import VISIBLE
from tests.support import vllm_process
from tests.support.stages import DEPLOYMENT, Ended

PROJECT = REPOSITORY / "hack" / "gpu" / "vllm"
"""vLLM as its users install it, locked: it needs another torch than training does."""
BLACKWELL = (10, 0)
"""From here on vLLM's CUTLASS kernels have no 8-bit integers (finetune_api.compatibility)."""
SAMPLES = 24


def verified(bench: Bench) -> Iterator[Check]:
    """A model is trained, exported, evaluated and published; then fetched, served and verified."""
    try:
        python, quantizer = _environment(bench), environments.quantize()
    except ClusterError as error:
        yield skipped("serve", f"vLLM's or the quantizer's environment cannot be made: {error}")
        return
    bench = bench.within("serve")
    kind = ExportFormat.FP8 if bench.on_gpu and bench.cards[0].capability >= BLACKWELL else ExportFormat.INT8
    trained = bench.run(bench.input_of(bench.training(learning_rate="1e-3", max_steps=48), "served"))
    if trained.code != ExitCode.OK:
        yield Check("serve", "training", trained.result.message, "an end", False)
        return
    made = evaluated(bench, kind, bench.upstream.with_output(Stage.TRAIN, trained.result.output_digest), quantizer)
    if isinstance(made, str):
        yield Check("serve", f"{kind.value}, exported and evaluated", made, "an artifact and a score", False)
        return
    published = bench.run(input_of(bench, Stage.PUBLISH, params_of(bench, kind), made[0]))
    if published.code != ExitCode.OK:
        yield Check("serve", f"{kind.value}, published", published.result.message, "an artifact", False)
        return
    yield _check(bench, kind, published.result.output_digest, python)


def _check(bench: Bench, kind: ExportFormat, digest: str, python: Path) -> Check:
    models, uri = bench.folder / "models", bench.store.uri(output_folder(Stage.PUBLISH, digest))
    fetched = _run(bench, Stage.FETCH, uri, None, "--models", str(models))
    if fetched.code != ExitCode.OK:
        return Check("serve", f"{kind.value}, fetched", fetched.result.message, "a model", False)
    os.environ["FINETUNE_VLLM_PYTHON"] = str(python)
    served = ServedModel(str(models / digest / "model"), vllm_process.NAME)
    with ExitStack() as running:
        running.callback(_keep_log, bench.folder)
        try:
            server = running.enter_context(vllm_process.vllm(served, bench.folder, runtime=_runtime(bench)))
        except AssertionError as error:
            last = f"it is not ready; its log ends with {str(error).splitlines()[-1]}"
            return Check("serve", f"vLLM with {kind.value}", last, "a server", False)
        asked = VerifyParams(endpoint=server.url, engine="vllm", samples=SAMPLES, min_agreement_percent=75)
        ended = _run(bench, Stage.VERIFY, uri, asked)
    seen = next((each.seen for each in ended.result.checks if each.name == "logProbabilities"), "none")
    found = f"{ended.result.message} Log-probabilities: {seen}"
    return Check("serve", f"vLLM with {kind.value}", found, "every check passed", ended.code == ExitCode.OK)


def _keep_log(folder: Path) -> None:
    """What vLLM has said, beside what the stages have."""
    for log in folder.glob("vllm-*.log"):
        shutil.copyfile(log, LOGS / log.name)


def _run(bench: Bench, stage: Stage, uri: str, verify: VerifyParams | None, *arguments: str) -> Ended:
    """A stage of an AdapterDeployment."""
    params = Params(verify=verify)
    given = StageInput(stage=stage, run=DEPLOYMENT, storage=bench.server.storage, artifact_uri=uri, params=params)
    return bench.run(given, *arguments)


def _environment(bench: Bench) -> Path:
    """The Python of vLLM: its CPU build in a rehearsal, if it is there. Raises ClusterError."""
    if bench.on_gpu:
        return environments.sync(cache_directory() / "venvs" / "gpu-check-vllm", [], PROJECT)
    if not vllm_process.python().exists():
        raise ClusterError("the CPU build of vLLM is missing; `make test-vllm` installs it")
    return vllm_process.python()


def _runtime(bench: Bench) -> Runtime:
    """vLLM as a pod is told, without the minutes in which it captures graphs, and with half of the GPU."""
    if not bench.on_gpu:
        return vllm_process.RUNTIME
    return Runtime(
        engine=Engine.VLLM,
        image="unused",
        args=["--enforce-eager", "--gpu-memory-utilization=0.5"],
        # flashinfer's sampler is compiled by CUDA's compiler, which a machine with a driver need not have.
        env={
            VISIBLE: bench.numbers[0],
            "VLLM_USE_FLASHINFER_SAMPLER": "0",
            **{name: os.environ[name] for name in PASSED if name in os.environ},
        },
        drain_seconds=5,
        termination_grace_seconds=80,
    )
