"""Wrong weights whose answers may all be right are refused. The rest of them: ``make bench NAME=planted_artifacts``."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from finetune_api.adapterdeployment import CheckOutcome
from finetune_api.dataset import TaskType
from finetune_jobs.modelling.token_files import Conversation
from finetune_jobs.verification.observation import Promise
from hack.cluster.layout import cache_directory
from hack.models import ensure_smollm2
from tests.support.artifacts import record
from tests.support.planted import (
    BASE,
    DOUBLE,
    GOOD,
    LOST_LAYER,
    WRONG_ROPE,
    Plant,
    Weights,
    serve_and_check,
    weights_only,
    write_artifact,
)
from tests.support.training import rows

pytestmark = [pytest.mark.unit, pytest.mark.slow]

BLOCK = "mlp.up_proj.weight"
"""What the tuning has changed: a little of every layer."""


@pytest.fixture(scope="module")
def base() -> Path:
    return ensure_smollm2(cache_directory())


@pytest.fixture(scope="module")
def tuned(base: Path) -> Weights:
    """The base with random updates of rank four, which stand in for a tuning."""
    random = torch.Generator().manual_seed(1)
    weights: dict[str, torch.Tensor] = load_file(base / "model.safetensors")
    for name, weight in weights.items():
        if name.endswith(BLOCK):
            down, up = (torch.randn(shape, generator=random) for shape in ((4, weight.shape[1]), (weight.shape[0], 4)))
            update = up @ down
            weights[name] = (weight.float() + 0.3 * weight.float().norm() / update.norm() * update).to(weight.dtype)
    return weights


@pytest.fixture(scope="module")
def promise(base: Path, tuned: Weights, tmp_path_factory: pytest.TempPathFactory) -> Promise:
    """What an evaluation records, of a few short texts and a long one."""
    artifact = write_artifact(tmp_path_factory.mktemp("evaluated") / "model", base, tuned)
    references = record(base, artifact, [Conversation(**row) for row in rows(40)])
    short, long = [r for r in references if not r.long], [r for r in references if r.long]
    return weights_only([*short[:4], *long[:1]], TaskType.CLASSIFICATION)


@pytest.mark.parametrize(
    ("plant", "check"),
    [
        (GOOD, ""),
        (BASE, "differsFromBase"),
        (DOUBLE, "logProbabilities"),
        (LOST_LAYER, "logProbabilities"),
        (WRONG_ROPE, "positions"),
    ],
    ids=lambda value: value.name if isinstance(value, Plant) else "",
)
def test_only_the_evaluated_weights_pass(
    plant: Plant, check: str, base: Path, tuned: Weights, promise: Promise, tmp_path: Path
) -> None:
    served = write_artifact(tmp_path / "model", base, tuned, plant)
    checks = serve_and_check(served, tmp_path, promise)
    failed = {each.name: each.seen for each in checks if each.outcome is CheckOutcome.FAILED}
    assert set(failed) >= {check} if check else not failed, failed
