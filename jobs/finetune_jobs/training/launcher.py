"""Starts the processes that train together in a pod, one per GPU, and reports for them.

Each is this stage's own program with torchrun's environment variables and writes its own result; the pod's is chosen
from them. torchrun itself is not used: it keeps neither exit codes nor messages, and if one process fails it ends the
others with SIGTERM, which means "save a checkpoint" here (docs/decisions/0006-training-on-several-gpus-and-pods.md).
"""

import argparse
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from pydantic import ValidationError

from finetune_api.meta import ExitCode
from finetune_api.reasons import Reason
from finetune_api.stages import Stage, StageResult
from finetune_jobs.runtime import logs
from finetune_jobs.runtime.results import failure, write_result

log = logging.getLogger(__name__)

LAST_WORDS_SECONDS: Final = 55.0
"""How long the others may continue after one has failed: to notice it, and to save a last checkpoint."""
_POLL_SECONDS: Final = 0.2


@dataclass(frozen=True)
class Ended:
    """How one process ended."""

    rank: int
    code: int
    """Its exit code; negative: the signal that killed it."""
    result: StageResult | None
    """What it wrote, if anything."""


def own_rank(environment: Mapping[str, str]) -> int | None:
    """Rank of this process among those that train together; None if it was not started as one of them."""
    return int(environment["RANK"]) if "RANK" in environment else None


def launch(options: argparse.Namespace) -> NoReturn:
    """Run the processes of this pod and exit for all: with the stage's result on node 0, without one elsewhere."""
    logs.set_up(Stage.TRAIN, terminal=sys.stderr.isatty())
    with tempfile.TemporaryDirectory(prefix="finetune-train-", ignore_cleanup_errors=True) as folder:
        ranks = range(options.node * options.processes, (options.node + 1) * options.processes)
        results = {rank: Path(folder, f"result-{rank}.json") for rank in ranks}
        shared = Path(folder, "shared")
        shared.mkdir()
        log.info("starting %s of %s processes", len(ranks), options.nodes * options.processes)
        started = {
            rank: subprocess.Popen(
                _command(options, results[rank], shared),
                env=os.environ | _variables(options, rank),
            )
            for rank in ranks
        }
        _pass_on_sigterm(started)
        ended = [Ended(rank, code, _read(results[rank])) for rank, code in supervise(started)]
    result, code = verdict(ended)
    logs.take_down()
    if result:
        write_result(options.result, result)
    sys.exit(code)


def supervise(
    processes: Mapping[int, "subprocess.Popen[bytes]"], last_words: float = LAST_WORDS_SECONDS
) -> list[tuple[int, int]]:
    """Wait for all; rank and exit code in the order of their ends.
    Once the first process (rank 0) has ended, or any has failed, the others have ``last_words`` seconds left.
    """
    running, ended, deadline = dict(processes), list[tuple[int, int]](), float("inf")
    while running:
        for rank, process in list(running.items()):
            if (code := process.poll()) is not None:
                del running[rank]
                ended.append((rank, code))
                if code or rank == 0:
                    deadline = min(deadline, time.monotonic() + last_words)
        if running and time.monotonic() > deadline:
            log.error("process %s does not exit and is killed", ", ".join(map(str, running)))
            for process in running.values():
                process.kill()
        time.sleep(_POLL_SECONDS)
    return ended


def verdict(ended: Sequence[Ended]) -> tuple[StageResult | None, ExitCode]:
    """The pod's result and exit code. Once the first process has succeeded, the rest does not matter; of failures, the
    first one counts that was not caused by another process's end."""
    first = next((each for each in ended if each.rank == 0), None)
    if first and first.code == ExitCode.OK:
        return first.result, ExitCode.OK
    failed = [each for each in ended if each.code != ExitCode.OK]
    if not failed:
        return None, ExitCode.OK
    cause = min(failed, key=_blame)
    if cause.result and cause.code in set(ExitCode):
        return cause.result, ExitCode(cause.code)
    how = f"was killed by signal {-cause.code}" if cause.code < 0 else f"ended with exit code {cause.code}"
    message = f"Process {cause.rank} of the training {how} without a result; see the end of the pod's log."
    return failure(Stage.TRAIN, Reason.STAGE_CRASHED, message), ExitCode.RETRIABLE


def _blame(ended: Ended) -> int:
    """Which of several failures is the cause: the lowest. Where one process has decided that all restart, others may
    not get to say so: on GPUs they wait for it in NCCL, which aborts them, or until they are killed (``supervise``).
    Where processes have only lost another one, it is that which a signal has ended."""
    if ended.code == ExitCode.RESTART_GROUP:
        return 3 if ended.result is None or ended.result.reason is Reason.PEER_LOST else 1
    return 2 if ended.code < 0 else 0


def _command(options: argparse.Namespace, result: Path, shared: Path) -> list[str]:
    command = [sys.executable, "-m", "finetune_jobs.train", "--input", options.input, "--result", str(result)]
    cache = ["--model-cache", options.model_cache] if options.model_cache else []
    cache += ["--model-cache-limit", str(options.model_cache_limit)] if options.model_cache_limit else []
    return [*command, "--scratch", str(shared), "--metrics-port", str(options.metrics_port), *cache]


def _variables(options: argparse.Namespace, rank: int) -> dict[str, str]:
    """What torch and accelerate read: torchrun's contract (https://pytorch.org/docs/stable/elastic/run.html). The pod's
    CPUs are divided."""
    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    return {
        "OMP_NUM_THREADS": str(max(1, threads // options.processes)),
        "RANK": str(rank),
        "WORLD_SIZE": str(options.nodes * options.processes),
        "LOCAL_RANK": str(rank % options.processes),
        "LOCAL_WORLD_SIZE": str(options.processes),
        "MASTER_ADDR": options.coordinator,
        "MASTER_PORT": str(options.coordinator_port),
    }


def _pass_on_sigterm(processes: Mapping[int, "subprocess.Popen[bytes]"]) -> None:
    """The processes decide together how to handle SIGTERM; this one keeps waiting for them."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        for process in processes.values():
            process.send_signal(signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)


def _read(path: Path) -> StageResult | None:
    try:
        return StageResult.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
