"""vLLM 0.32, configured by arguments of its OpenAI-compatible server.

Read from vllm-project/vllm v0.32.0 (vllm/entrypoints/openai/cli_args.py, vllm/utils/argparse_utils.py, vllm/envs.py,
docker/Dockerfile) and run with the CPU build of that version (the image ``vllm-cpu``). Both entry points, ``vllm
serve`` and ``vllm.entrypoints.openai.api_server``, take the same arguments.
"""

import re
from typing import Final

from finetune_api.artifact_source import MAX_ADAPTERS
from finetune_api.meta import SERVING_PORT
from finetune_operator.runtimes.plan import (
    LOOPBACK,
    ServedModel,
    ServingPlan,
    has_gpu,
    health_probe,
    seconds_after_drain,
    startup_probe,
)
from finetune_operator.settings import Runtime

NEEDS_PROXY: Final = True
"""While it finishes its requests it answers others with status 500, and its answers before that do not tell clients to
close their connections. Without a proxy, every client that keeps one would hear an error when its pod stops."""
_RESERVE_SECONDS: Final = 15
"""Of the grace period, for the processes to end once the last request is answered."""
_CACHE: Final = "/tmp/cache"  # noqa: S108 - the pod's own volume
_DTYPE: Final = "--dtype"
_DTYPES: Final = {"auto": "", "half": "float16", "float": "float32"}
"""vLLM's other words for number formats."""
_RANKS: Final = (8, 16, 32, 64, 128, 256, 320, 512)
"""What --max-lora-rank may be (MaxLoRARanks in vllm/config/lora.py); 1 would save nothing."""
_MAX_RANK: Final = "--max-lora-rank"
_TARGETS: Final = "--lora-target-modules"
_LAYERS: Final = (
    *("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "query_key_value", "Wqkv", "c_attn", "dense", "out_proj"),
    *("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"),
    *("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "in_proj_qkvz", "in_proj_ba"),
    *("gate_proj", "up_proj", "gate_up_proj", "down_proj", "c_fc", "c_proj", "fc1", "fc2", "fc_in", "fc_out"),
    *("dense_h_to_4h", "dense_4h_to_h", "experts", "shared_expert_gate"),
)
"""Linear layers by the names that the model families have for them (finetune_jobs/fit/families.json), without the
output layer; vLLM passes over those that a model does not have (vllm/lora/utils.py)."""
_OFFLOADED: Final = "--cpu-offload-gb"
_OFFLOADED_CACHE: Final = "--kv-offloading-size"
_CPU_CACHE: Final = "VLLM_CPU_KVCACHE_SPACE"
_NUMBER: Final = re.compile(r"\d+(\.\d+)?", re.ASCII)
_ALONE: Final = {"VLLM_HOST_IP": LOOPBACK, "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
"""All its processes are in one pod, so what they tell each other over TCP stays on loopback. Without these they take
the pod's own address, and whoever reaches it could connect (vLLM's page on security). vLLM 0.32 itself meets in a
file there; the ports of gloo and NCCL remain."""
_JSON_LOG: Final[dict[str, str | None]] = {"--logging-config.formatter": "json", "--no-use-tqdm-on-load": None}
"""Its own lines and uvicorn's as JSON, no bars while it loads weights and captures graphs. An admin's own
--logging-config.formatter or --use-tqdm-on-load wins."""
_QUIET: Final = {"TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore"}
"""No bars elsewhere and no warnings of Python: they go past the log."""
_NO_RESOLVERS: Final = {"VLLM_LORA_RESOLVER_CACHE_DIR": "", "VLLM_LORA_RESOLVER_HF_REPO_LIST": ""}
"""With them set, a name that nobody has proved would be looked for in a folder or on the hub
(vllm/plugins/lora_resolvers)."""


def render(runtime: Runtime, model: ServedModel) -> ServingPlan:
    """Arguments, environment, probes and drain of vLLM.

    vLLM returns the path as ``root`` of ``/v1/models``, which shows what a pod serves, and answers 404 to any other
    model name than the one that it is given. Of adapters it returns names and paths likewise, each with its base as
    ``parent``.
    """
    options = {
        **_JSON_LOG,
        **_options(runtime),
        "--model": model.path,
        "--served-model-name": model.name,
        "--port": str(SERVING_PORT),
        **({"--host": LOOPBACK} if model.behind_proxy else {}),
        "--max-model-len": str(runtime.max_total_tokens),
        "--tensor-parallel-size": str(runtime.num_shard),
        # The default, 0, kills the engine at once and leaves streams open that never end.
        "--shutdown-timeout": str(seconds_after_drain(runtime, _RESERVE_SECONDS)),
        # Sampling and penalties of the checkpoint would change answers wherever a client leaves them open; the artifact
        # was evaluated without them. Stop tokens are read all the same.
        "--generation-config": "vllm",
        # Probes and scrapes would fill the log.
        "--disable-access-log-for-endpoints": "/health,/metrics",
        **_room(model, runtime),
    }
    return ServingPlan(
        env={
            **_ALONE,
            **_QUIET,
            **runtime.env,
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            # Either would let a request change what a verified server serves. Where it loads adapters while it runs,
            # none is among the arguments: one that was removed since would keep a pod from starting. The server listens
            # on loopback then, and the proxy before it has no path for that.
            "VLLM_SERVER_DEV_MODE": "0",
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": str(int(bool(model.adapters))),
            **(_NO_RESOLVERS if model.adapters else {}),
            # All that it writes, kernels that it compiles included, goes to the pod's own volume.
            "HOME": "/tmp",  # noqa: S108 - as above
            "XDG_CACHE_HOME": _CACHE,
            "XDG_CONFIG_HOME": _CACHE,
            "HF_HOME": f"{_CACHE}/huggingface",
            "VLLM_CACHE_ROOT": f"{_CACHE}/vllm",
            "VLLM_CONFIG_ROOT": f"{_CACHE}/vllm-config",
            "TRITON_CACHE_DIR": f"{_CACHE}/triton",
            "TORCHINDUCTOR_CACHE_DIR": f"{_CACHE}/inductor",
            # torch asks for the user's name, and the pod's user has none in the image.
            "USER": "vllm",
        },
        args=(
            *(name if value is None else f"{name}={value}" for name, value in options.items()),
            *_targets(model, runtime),
        ),
        # The port is closed until the engine is ready, and /health needs no key where the server has one.
        startup=startup_probe(runtime),
        readiness=health_probe(5, 3, timeout=5),
        liveness=health_probe(30, 10, timeout=15),
        read_paths=("/health", "/v1/models"),
        # Not /v1/load_lora_adapter, /reset_prefix_cache, /sleep and their like (vllm/entrypoints/serve).
        write_paths=(
            *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens"),
            *("/tokenize", "/detokenize"),
        ),
        drain_seconds=runtime.drain_seconds,
        grace_seconds=runtime.termination_grace_seconds,
        # Its processes pass on messages and images through it, one GPU or not: its CPU build takes 160 MiB and ends in
        # the container runtime's 64.
        shared_memory=f"{runtime.num_shard}Gi",
    )


def held_in_memory(runtime: Runtime, weights: int) -> int:
    """Without a GPU all weights, and the KV cache, if its size is given; with GPUs, what the admin moves from them into
    pinned memory: of the weights so many GiB a GPU, of the KV cache so many of all GPUs (vllm/config/offload.py and
    cache.py)."""
    if not has_gpu(runtime):
        return weights + _gib(runtime.env.get(_CPU_CACHE))
    options = _options(runtime)
    offloaded = min(weights, _gib(options.get(_OFFLOADED)) * runtime.num_shard)
    return offloaded + _gib(options.get(_OFFLOADED_CACHE))


def highest_rank(runtime: Runtime) -> int:
    """The admin's limit, or the engine's; what is no number, vLLM refuses when it starts."""
    given = _options(runtime).get(_MAX_RANK) or ""
    return int(given) if given.isdecimal() and int(given) else _RANKS[-1]


def run_time_rank(runtime: Runtime, rank: int) -> int:
    """The room that it was started with: the admin's limit, or the smallest of the engine's that holds the rank."""
    return highest_rank(runtime) if _MAX_RANK in _options(runtime) else _smallest(rank)


def _room(model: ServedModel, runtime: Runtime) -> dict[str, str | None]:
    """What adapters need: a place in a batch for each of them, so that none waits for another; and of the ranks that
    the engine knows the smallest that holds theirs, as each takes so much memory.

    Others may come while the server runs: there is one place more, for the one that proves itself; those for which
    there is no place by then take turns. In the host's memory there is room for all that the API allows.
    """
    if not model.adapters:
        return {}
    given = {} if _MAX_RANK in _options(runtime) else {_MAX_RANK: str(_smallest(model.rank))}
    places = {"--max-loras": str(len(model.adapters) + 1), "--max-cpu-loras": str(MAX_ADAPTERS + 1)}
    return {"--enable-lora": None, **places, **given}


def _smallest(rank: int) -> int:
    """Of the ranks that the engine knows, the smallest that holds one."""
    return min((each for each in _RANKS if each >= rank), default=_RANKS[-1])


def _targets(model: ServedModel, runtime: Runtime) -> tuple[str, ...]:
    """Which layers adapters may change on a CPU: all but the output layer, unless the admin names some.

    With adapters, vLLM 0.32 for CPUs ends if it is asked for a prompt's probabilities, as every check of the weights
    does, while it answers another request: for the output layer it takes one adapter index a request, and there are as
    many rows as the prompt has tokens (``add_lora_logits`` in vllm/lora/punica_wrapper/punica_cpu.py). Training changes
    no output layer. GPUs use other code, and may serve adapters of anybody's layers.
    """
    if not model.adapters or has_gpu(runtime) or _TARGETS in _options(runtime):
        return ()
    return (_TARGETS, *_LAYERS)


def dtype(runtime: Runtime) -> str:
    """From the argument, in torch's words."""
    given = _options(runtime).get(_DTYPE) or "auto"
    return _DTYPES.get(given, given)


def _gib(given: str | None) -> int:
    """A setting in GiB, in bytes; 0 for none. What is no number, vLLM refuses when it starts."""
    return int(float(given) * (1 << 30)) if given and _NUMBER.fullmatch(given) else 0


def _options(runtime: Runtime) -> dict[str, str | None]:
    """The admin's arguments; None: an option without a value."""
    split = (argument.partition("=") for argument in runtime.args)
    return {name: value if separator else None for name, separator, value in split}
