"""Text Generation Inference 3.3, configured by environment variables of its launcher.

Read from huggingface/text-generation-inference v3.3.7 (launcher/src/main.rs, router/src/server.rs, Dockerfile,
tgi-entrypoint.sh). The stand-in ``images/tgi-cpu`` keeps the same contract.
"""

from typing import Final

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

NEEDS_PROXY: Final = False
"""When it stops, it answers what it has been asked and closes connections that are idle (axum's graceful shutdown)."""
_RESERVE_SECONDS: Final = 30
"""Of the grace period, for the launcher itself."""
_DTYPE: Final = "DTYPE"


def render(runtime: Runtime, model: ServedModel) -> ServingPlan:
    """Environment, probes and drain of TGI.

    TGI returns the path as ``model_id`` of ``/info``, which shows what a pod serves; it answers to any model name, so
    it is told none. ``REVISION`` must stay unset: with it, TGI contacts the hub even for a local path.
    """
    return ServingPlan(
        env={
            "JSON_OUTPUT": "true",
            **runtime.env,
            "MODEL_ID": model.path,
            "PORT": str(SERVING_PORT),
            **({"HOSTNAME": LOOPBACK} if model.behind_proxy else {}),
            "NUM_SHARD": str(runtime.num_shard),
            "MAX_INPUT_TOKENS": str(runtime.max_input_tokens),
            "MAX_TOTAL_TOKENS": str(runtime.max_total_tokens),
            "HF_HUB_OFFLINE": "1",
            "USAGE_STATS": "off",
            # What the verification compares. TGI 3 leaves them out otherwise, without an error (launcher/src/main.rs).
            "ENABLE_PREFILL_LOGPROBS": "true",
            # The launcher waits so long for the router, and then once more for the shards.
            "GRACEFUL_TERMINATION_TIMEOUT": str(max(1, seconds_after_drain(runtime, _RESERVE_SECONDS) // 2)),
            # The defaults are below /root and /data, where an unprivileged server cannot write.
            "HOME": "/tmp",  # noqa: S108 - the pod's own volume
            "HF_HOME": "/tmp/huggingface",  # noqa: S108 - as above
        },
        # The port is closed until the model is loaded and warmed up: a refused connection means "still starting".
        startup=startup_probe(runtime),
        # /health shares the event loop with the forward pass, so a long prefill delays its answer: short timeouts
        # would restart healthy pods.
        readiness=health_probe(5, 3, timeout=5),
        liveness=health_probe(30, 10, timeout=15),
        read_paths=("/health", "/info", "/v1/models"),
        # "/" is where huggingface_hub's text_generation asks.
        write_paths=(
            *("/", "/generate", "/generate_stream", "/v1/chat/completions", "/v1/completions"),
            *("/tokenize", "/chat_tokenize"),
        ),
        drain_seconds=runtime.drain_seconds,
        grace_seconds=runtime.termination_grace_seconds,
        # The router saves the tokenizer in ./out. Its working directory also holds the image's virtual environment,
        # so only this one folder may be mounted over.
        writable=("/usr/src/out",),
        shared_memory="1Gi" if runtime.num_shard > 1 else "",
    )


def held_in_memory(runtime: Runtime, weights: int) -> int:
    """Without a GPU all of them: the stand-in, and TGI's build for CPUs."""
    return 0 if has_gpu(runtime) else weights


def highest_rank(runtime: Runtime) -> int:
    """None are served: an adapter that TGI does not know is answered by its base, and so is every name that is not
    checked before it (docs/decisions/0067-adapters-come-and-go-while-a-server-runs.md)."""
    return 0


def run_time_rank(runtime: Runtime, rank: int) -> int:
    """As above."""
    return 0


def dtype(runtime: Runtime) -> str:
    """From the launcher's variable."""
    return runtime.env.get(_DTYPE, "")
