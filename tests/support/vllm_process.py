"""The real vLLM as a process on loopback, from the CPU build's own environment, told what the operator tells a pod."""

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from finetune_operator.runtimes import serving_plan
from finetune_operator.runtimes.plan import ServedModel
from finetune_operator.settings import Engine, Runtime
from hack.cluster.layout import cache_directory, free_port
from tests.support.server_process import ServerProcess

START_TIMEOUT_S: Final = 900.0
"""Ready after 45 s on two idle cores; nothing but the imports took five minutes on busy ones."""
NAME: Final = "transactions"
"""The name under which it serves its model."""
RUNTIME: Final = Runtime(
    engine=Engine.VLLM,
    image="unused",
    # Nothing that takes a C++ compiler; a small cache, and no cores of its own.
    args=["--enforce-eager", "--max-num-seqs=8"],
    env={"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "TORCHDYNAMO_DISABLE": "1"},
    max_total_tokens=2048,
    drain_seconds=5,
    termination_grace_seconds=80,
)
"""As hack/platform/vllm-cpu.yaml has it for the image."""


def python() -> Path:
    """The environment's Python; ``python3 -m hack.environments vllm-cpu`` makes it."""
    return Path(os.environ.get("FINETUNE_VLLM_PYTHON", cache_directory() / "venvs" / "vllm-cpu" / "bin" / "python"))


@contextmanager
def vllm(
    model: Path | ServedModel, work: Path, arguments: Sequence[str] = (), runtime: Runtime = RUNTIME
) -> Iterator[ServerProcess]:
    """Start it for a checkpoint, ready; further arguments win. What a pod writes to /tmp is written below ``work``."""
    served = model if isinstance(model, ServedModel) else ServedModel(str(model), NAME)
    plan, port, home = serving_plan(runtime, served), free_port(), work / "tmp"
    home.mkdir(exist_ok=True)
    environment = {name: value.replace("/tmp", str(home), 1) for name, value in plan.env.items()}
    environment |= {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    log = work / f"vllm-{port}.log"
    command = [str(python()), "-m", "vllm.entrypoints.openai.api_server", *plan.args]
    command += [f"--port={port}", "--host=127.0.0.1", *arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, cwd=home, stdout=output, stderr=output, start_new_session=True
        )
    try:
        server = ServerProcess(f"http://127.0.0.1:{port}", process, log, START_TIMEOUT_S, pause=0.5)
        server.wait_until_ready()
        yield server
    finally:
        process.terminate()
        try:
            process.wait(timeout=90)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
