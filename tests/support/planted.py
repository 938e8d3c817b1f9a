"""Artifacts that are wrong in one way each, to be served in the place of the good one; and what verification says."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file, save_file

from finetune_api.compatibility import VLLM
from finetune_api.dataset import TaskType
from finetune_api.export import ExportFormat
from finetune_api.serving_status import VerificationCheck
from finetune_jobs.artifacts.artifact import ReferenceText
from finetune_jobs.exporting.transformers_v4 import write_transformers_v4
from finetune_jobs.modelling.loading import copy_tokenizer
from finetune_jobs.verification.checks import make_checks
from finetune_jobs.verification.engine import ModelServer
from finetune_jobs.verification.observation import Promise, observe
from finetune_jobs.verification.tgi import TgiServer
from finetune_jobs.verification.vllm import VllmServer
from tests.support.tgi_process import tgi_cpu
from tests.support.tiny_model import LORA_TARGETS, W8A8, edit_json
from tests.support.vllm_process import vllm

MIN_AGREEMENT: Final = 75

Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Plant:
    """How an artifact is wrong."""

    name: str
    strength: float = 1.0
    """How often the adapter counts."""
    lost_layer: int | None = None
    """The layer whose MLP adds nothing."""
    rope: float = 1.0
    """What the base of the rotary positions is multiplied with."""
    noise: float = 0.0
    """Standard deviation of the scales' relative error."""
    is_base: bool = False
    """The base model's own files, as they are, in place of the artifact's."""


GOOD: Final = Plant("good")
BASE: Final = Plant("base", strength=0)
"""The base's weights, rounded as the artifact's are: what an export writes whose adapter is missing."""
BASE_ITSELF: Final = Plant("base under the adapter's name", is_base=True)
DOUBLE: Final = Plant("adapter x 2", strength=2)
LOST_LAYER: Final = Plant("one MLP layer zeroed", lost_layer=15)
WRONG_ROPE: Final = Plant("RoPE theta x 0.7", rope=0.7)
PLANTS: Final = (
    BASE,
    BASE_ITSELF,
    DOUBLE,
    Plant("adapter x 0.5", strength=0.5),
    Plant("adapter x 0.8", strength=0.8),
    LOST_LAYER,
    WRONG_ROPE,
    Plant("RoPE theta x 0.1", rope=0.1),
    Plant("scales with 25 % noise", noise=0.25),
)


def write_artifact(
    out: Path,
    base: Path,
    tuned: Weights,
    plant: Plant = GOOD,
    *,
    rounded: bool = True,
) -> Path:
    """The tuned model as a checkpoint in INT8, or in 16 bits if it is not ``rounded``, wrong as the plant says.
    ``tuned``: merged weights by name."""
    if plant.is_base:
        shutil.copytree(base, out)
        write_transformers_v4(out)
        return out
    out.mkdir(parents=True)
    for name in ("config.json", "generation_config.json"):
        (out / name).write_bytes((base / name).read_bytes())
    copy_tokenizer(base, out)
    before = load_file(base / "model.safetensors")
    random = torch.Generator().manual_seed(0)
    weights: dict[str, torch.Tensor] = {}
    for name, weight in before.items():
        merged = weight.float() + plant.strength * (tuned[name].float() - weight.float())
        if plant.lost_layer is not None and name.startswith(f"model.layers.{plant.lost_layer}.mlp.down_proj."):
            merged = torch.zeros_like(merged)
        if rounded and name.split(".")[-2] in LORA_TARGETS:
            scale = merged.abs().amax(dim=1, keepdim=True).clamp(min=1e-8) / 127
            weights[name] = (merged / scale).round().clamp(-128, 127).to(torch.int8)
            scale *= 1 + plant.noise * torch.randn(scale.shape, generator=random)
            weights[f"{name}_scale"] = scale.to(torch.bfloat16)
        else:
            weights[name] = merged.to(torch.bfloat16)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    if rounded:
        edit_json(out / "config.json", quantization_config=W8A8)
    write_transformers_v4(out)
    _turn(out / "config.json", plant.rope)
    return out


def serve_and_check(engine: str, model: Path, work: Path, promise: Promise) -> list[VerificationCheck]:
    """What the stand-in for TGI, or vLLM for CPUs, proves of the promise when it serves the model."""
    if engine == VLLM:
        with vllm(model, work) as server:
            return prove(VllmServer(server.url), promise)
    env = {"ENABLE_PREFILL_LOGPROBS": "true"}
    with tgi_cpu(model, work, env=env, fresh=False) as process:
        process.wait_until_ready()
        return prove(TgiServer(process.url), promise)


def prove(server: ModelServer, promise: Promise) -> list[VerificationCheck]:
    """What a server that is ready proves of the promise."""
    observed = observe(server, promise, server.served().limits, lambda _number, _total: None)
    return make_checks(observed, MIN_AGREEMENT)


def weights_only(references: Sequence[ReferenceText], task: TaskType) -> Promise:
    """A promise of nothing but probabilities."""
    return Promise(golden=(), sample=(), references=references, task=task, format=ExportFormat.INT8)


def _turn(config: Path, factor: float) -> None:
    """Multiply the base of the rotary positions, in both dialects."""
    content = json.loads(config.read_text(encoding="utf-8"))
    theta = factor * content["rope_theta"]
    edit_json(config, rope_theta=theta, rope_parameters=content["rope_parameters"] | {"rope_theta": theta})
