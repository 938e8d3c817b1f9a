"""Text Generation Inference 3.3, configured by environment variables of its launcher.

Read from huggingface/text-generation-inference v3.3.7 (launcher/src/main.rs, router/src/server.rs, Dockerfile,
tgi-entrypoint.sh). The stand-in ``images/tgi-cpu`` keeps the same contract.
"""

import math
from typing import Final

from finetune_api.meta import SERVING_PORT
from finetune_operator.framework.objects import Object
from finetune_operator.runtimes.plan import ServingPlan
from finetune_operator.settings import Runtime

_STARTUP_PERIOD_SECONDS: Final = 5


def render(runtime: Runtime, model_path: str) -> ServingPlan:
    """Environment, probes and drain of TGI for the model in ``model_path``.

    The path ends in the artifact's digest and ``model``. TGI returns it as ``model_id`` of ``/info``, which shows what
    a pod serves. ``REVISION`` must stay unset: with it, TGI contacts the hub even for a local path.
    """
    return ServingPlan(
        env={
            "JSON_OUTPUT": "true",
            **runtime.env,
            "MODEL_ID": model_path,
            "PORT": str(SERVING_PORT),
            "NUM_SHARD": str(runtime.num_shard),
            "MAX_INPUT_TOKENS": str(runtime.max_input_tokens),
            "MAX_TOTAL_TOKENS": str(runtime.max_total_tokens),
            "HF_HUB_OFFLINE": "1",
            "USAGE_STATS": "off",
            # What the verification compares. TGI 3 leaves them out otherwise, without an error (launcher/src/main.rs).
            "ENABLE_PREFILL_LOGPROBS": "true",
            # The defaults are below /root and /data, where an unprivileged server cannot write.
            "HOME": "/tmp",  # noqa: S108 - the pod's own volume
            "HF_HOME": "/tmp/huggingface",  # noqa: S108 - as above
        },
        # The port is closed until the model is loaded and warmed up: a refused connection means "still starting".
        startup=_health(_STARTUP_PERIOD_SECONDS, _startup_failures(runtime), timeout=5),
        # /health shares the event loop with the forward pass, so a long prefill delays its answer: short timeouts
        # would restart healthy pods.
        readiness=_health(5, 3, timeout=5),
        liveness=_health(30, 10, timeout=15),
        drain_seconds=runtime.drain_seconds,
        grace_seconds=runtime.termination_grace_seconds,
        # The router saves the tokenizer in ./out. Its working directory also holds the image's virtual environment,
        # so only this one folder may be mounted over.
        writable=("/usr/src/out",),
        shared_memory="1Gi" if runtime.num_shard > 1 else "",
    )


def _startup_failures(runtime: Runtime) -> int:
    return math.ceil(runtime.startup_timeout_seconds / _STARTUP_PERIOD_SECONDS)


def _health(period: int, failures: int, timeout: int) -> Object:
    return {
        "httpGet": {"path": "/health", "port": "http"},
        "periodSeconds": period,
        "failureThreshold": failures,
        "timeoutSeconds": timeout,
    }
