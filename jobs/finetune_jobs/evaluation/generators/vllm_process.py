"""vLLM as a process of its own: started for one model, asked in lines of JSON, gone with all of its memory.

A process, since vLLM needs other versions of its libraries than this stage does, gives back a GPU's memory only when it
ends, and takes its process along when it fails. It gets no keys of the store.
"""

import json
import logging
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import torch

from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.base.wording import shorten
from finetune_jobs.modelling.tuning import adapter_config

log = logging.getLogger(__name__)

_VARIABLE: Final = "FINETUNE_VLLM_PYTHON"
"""Names another Python than that of the image."""
_PYTHON: Final = "/opt/vllm/bin/python"
"""Of the image ``evaluate-vllm``."""
_WORKER: Final = Path(__file__).with_name("vllm_worker.py")
_LOG: Final = "vllm.log"
_PASSED: Final = ("CUDA_", "LD_LIBRARY_PATH", "NVIDIA_", "NCCL_", "OMP_", "PATH", "TMPDIR", "TZ", "VLLM_")
"""How the names of variables begin that the process gets; keys and passwords are not among them."""
_ON_CPU: Final = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # Otherwise it wants a C++ compiler.
    "TORCHDYNAMO_DISABLE": "1",
}
_RANKS: Final = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's max_lora_rank may be (MaxLoRARanks in vllm/config/lora.py); 1 would save nothing."""
_WAIT_SECONDS: Final = 30
"""For a process to end once its input is closed."""
_SHOWN: Final = 300
"""Characters of what vLLM says in a message."""
_LAST: Final = 4000
"""Bytes at the end of what it has printed in which its last words are looked for."""
REMEDY: Final = "Set spec.evaluation.generator to Transformers, which runs every model that was trained here"


@dataclass(frozen=True)
class Loaded:
    """What a process loads."""

    name: str
    """For messages, e.g. "the base model"."""
    model: Path
    longest: int
    """Tokens of the longest prompt with its answer."""
    adapter: Path | None = None
    """PEFT's folder; None: there is none."""

    def request(self, dtype: str) -> dict[str, Any]:
        """As the process reads it."""
        return {
            "model": str(self.model),
            "longest": self.longest,
            "dtype": dtype,
            "gpus": max(1, torch.cuda.device_count()),
            "adapter": str(self.adapter) if self.adapter else None,
            "rank": _room(self.adapter) if self.adapter else None,
        }


class VllmProcess:
    """A running process. Raises StageError (GeneratorFailed) if there is no vLLM, if it cannot load the model, and
    whenever it ends before it is closed."""

    def __init__(self, loaded: Loaded, work: Path) -> None:
        """``work``: for what it writes, its log among it."""
        self.dtype = _dtype()
        """What it computes in."""
        self._loaded, self._log = loaded, work / _LOG
        work.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log_file:
            self._process = subprocess.Popen(
                # -P: the folder of the worker holds modules of names that libraries may import.
                [str(_python()), "-P", str(_WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log_file,
                env=_environment(work),
                cwd=work,
                encoding="utf-8",
                start_new_session=True,
            )
        try:
            self.version = str(self._exchange(loaded.request(self.dtype), "load it")["version"])
        except BaseException:
            self.close()
            raise
        log.info("vLLM %s has loaded %s", self.version, loaded.name)

    def ask(self, kind: str, prompts: Sequence[Sequence[int]], *, adapted: bool, **wanted: Any) -> list[Any]:
        """What the worker finds of each prompt; ``adapted``: with its adapter."""
        asked = {"kind": kind, "prompts": [list(each) for each in prompts], "adapted": adapted, **wanted}
        return list(self._exchange(asked, "answer")["found"])

    def close(self) -> None:
        """End it and its own processes, whatever they do; their memory is free then."""
        if self._process.returncode is not None:
            return  # it was closed: its number may be another's by now
        if self._process.stdin:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        self._signal(signal.SIGTERM)  # it has nothing to save
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_WAIT_SECONDS)
        self._signal(signal.SIGKILL)  # what is left, also where it has ended before its own processes
        self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()

    def _signal(self, number: signal.Signals) -> None:
        """To it and to its own processes, of which it has some with several GPUs."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _exchange(self, asked: Mapping[str, Any], what: str) -> Mapping[str, Any]:
        said = ""
        if self._process.stdin and self._process.stdout:
            with suppress(BrokenPipeError):  # it has ended, and its last words are in its log
                self._process.stdin.write(json.dumps(asked) + "\n")
                self._process.stdin.flush()
                said = self._process.stdout.readline()
        found: Mapping[str, Any] = json.loads(said) if said.endswith("\n") else {"error": self._last_words()}
        if "error" in found:
            self._fail(str(found["error"]), what)
        return found

    def _fail(self, why: str, what: str) -> NoReturn:
        log.error("vLLM's log ends with:\n%s", self._tail())
        shown = shorten(why, _SHOWN)
        raise StageError(
            Reason.GENERATOR_FAILED,
            f"spec.evaluation.generator is VLLM, and for {self._loaded.name}, vLLM could not {what}: {shown}. "
            f"{REMEDY}, or correct what vLLM says; the pod's log has more.",
        )

    def _last_words(self) -> str:
        self.close()
        code = self._process.returncode
        lines = [line.strip() for line in self._tail().splitlines() if line.strip()]
        return f"its process ended with code {code}" + (f" and the words {lines[-1]!r}" if lines else "")

    def _tail(self) -> str:
        return self._log.read_bytes()[-_LAST:].decode("utf-8", "replace")


def _python() -> Path:
    """Of vLLM's environment. Raises StageError (GeneratorFailed)."""
    path = Path(os.environ.get(_VARIABLE, _PYTHON))
    if path.exists():
        return path
    raise StageError(
        Reason.GENERATOR_FAILED,
        f"spec.evaluation.generator is VLLM, and the image of this stage has no vLLM: {path} does not exist. {REMEDY}, "
        "or ask the platform's admin to set images.evaluateVllm of the chart's values to an image that is built from "
        "images/evaluate-vllm.",
    )


def _environment(work: Path) -> dict[str, str]:
    """All that it writes, kernels that it compiles included, goes to the stage's own volume."""
    own = {name: value for name, value in os.environ.items() if name.startswith(_PASSED) and name != _VARIABLE}
    cache = str(work / "cache")
    return {
        **({} if torch.cuda.is_available() else _ON_CPU),
        **own,
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # With one GPU, the engine runs in the worker's own process, and ends with it.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_HOST_IP": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
        "HOME": str(work),
        "XDG_CACHE_HOME": cache,
        "XDG_CONFIG_HOME": cache,
        "HF_HOME": f"{cache}/huggingface",
        "VLLM_CACHE_ROOT": f"{cache}/vllm",
        "VLLM_CONFIG_ROOT": f"{cache}/vllm-config",
        "TRITON_CACHE_DIR": f"{cache}/triton",
        "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor",
        # torch asks for the user's name, and the pod's user has none in the image.
        "USER": "vllm",
    }


def _dtype() -> str:
    """What a vLLM runtime computes exported files in: their own bfloat16, or float16 on a GPU that has no other."""
    no_bfloat16 = torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False)
    return "float16" if no_bfloat16 else "bfloat16"


def _room(adapter: Path) -> int:
    """Of the ranks that vLLM knows, the smallest that holds the adapter's."""
    rank = int(adapter_config(adapter)["r"])
    return min((each for each in _RANKS if each >= rank), default=_RANKS[-1])
