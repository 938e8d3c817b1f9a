"""Published artifacts of tiny models in the local cluster's store, for tests and benchmarks of how they are served."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune_api.compatibility import TGI, VLLM
from hack.cluster.console import step
from hack.cluster.layout import cache_directory
from hack.models import ensure_smollm2
from hack.platform import local, object_store
from hack.platform.kubectl import Kubectl

RUNTIMES = {"tgi-cpu": TGI, "vllm-cpu": VLLM}
"""The runtimes of the local cluster, each with its engine."""


@dataclass(frozen=True)
class TinyArtifact:
    """A published artifact."""

    uri: str
    answers: Mapping[int, str]
    """What its model answers to the first prompt of ``tests.support.artifacts``, by the most tokens of an answer."""


def install(kubectl: Kubectl, runtime: str) -> None:
    """The operator with one of ``RUNTIMES``."""
    local.install_platform(kubectl)
    if RUNTIMES[runtime] == VLLM:
        local.install_vllm_runtime(kubectl)


def publish_tiny(
    kubectl: Kubectl, names: Sequence[str], tokens: Sequence[int], *, boastful: str = "", engine: str = TGI
) -> dict[str, TinyArtifact]:
    """Publish an artifact for each name; their models answer differently.

    ``tokens``: lengths of answers to know. ``boastful``: the name of one whose weights are those of the base model.
    ``engine``: vLLM reads no model as tiny, and gets SmolLM2-135M without some of its layers (two names at most).
    """
    from tests.support.artifacts import publish_artifact

    place = f"s3://artifacts/bench-{uuid.uuid4().hex[:8]}"
    found = {}
    with (
        step(f"publish {len(names)} tiny artifacts"),
        tempfile.TemporaryDirectory(prefix="finetune-served-") as folder,
        object_store.from_here(kubectl) as storage,
    ):
        work = Path(folder)
        base, *models = (_small if engine == VLLM else _tiny)(work, len(names))
        for name, tuned in zip(names, models, strict=True):
            published = publish_artifact(
                storage,
                f"{place}/{name}",
                work / name,
                base=base,
                tuned=tuned,
                exported=base if name == boastful else None,
            )
            found[name] = TinyArtifact(published.scalars["artifactUri"], _answers(tuned, tokens))
    return found


def _tiny(work: Path, count: int) -> list[Path]:
    """A base of random weights, and models of others."""
    from tests.support.tiny_model import build_tiny_llama

    return [build_tiny_llama(work / f"model-{seed}", seed=seed) for seed in range(1, count + 2)]


def _small(work: Path, count: int) -> list[Path]:
    """SmolLM2 without the MLPs of some layers, in 16 bits. The layers were chosen by hand: without these, the answers
    are the same in float32 and bfloat16, without others often not."""
    import torch
    from safetensors.torch import load_file

    from tests.support.planted import write_artifact

    whole = ensure_smollm2(cache_directory())
    weights, found = load_file(whole / "model.safetensors"), []
    for number, layers in enumerate(((8, 9, 10, 11), (12,), (20, 21))[: count + 1]):
        lost = tuple(f"model.layers.{layer}.mlp.down_proj." for layer in layers)
        changed = {name: torch.zeros_like(each) if name.startswith(lost) else each for name, each in weights.items()}
        found.append(write_artifact(work / f"model-{number}", whole, changed, rounded=False))
    return found


def _answers(model: Path, tokens: Sequence[int]) -> dict[int, str]:
    from finetune_jobs.evaluation.generate import Questions, generate_answers
    from finetune_jobs.modelling.loading import load_checkpoint
    from finetune_jobs.modelling.tokenizer import load_tokenizer
    from tests.support.artifacts import PROMPTS

    loaded, tokenizer = load_checkpoint(model), load_tokenizer(model)
    return {
        limit: generate_answers(loaded, tokenizer, Questions(PROMPTS[:1], limit, 1), lambda _done, _total: None)[0]
        for limit in tokens
    }
