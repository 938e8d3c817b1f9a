"""The example on public data, on the local cluster (`make test-examples`): it learns what its YAML promises."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from finetune_api.finetunejob import FineTuneJob
from finetune_api.job_status import Phase
from hack.cluster.layout import REPOSITORY, cache_directory
from hack.data import data_file, missing
from hack.models import ensure_smollm2
from hack.platform import local, object_store
from hack.platform.kubectl import Kubectl, wait_for
from tests.support.teams import team_namespace

DATA = "banking77/train.csv"

pytestmark = [
    pytest.mark.examples,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(not data_file(DATA).exists(), reason=missing(DATA)),
]


@pytest.fixture
def team() -> Iterator[Kubectl]:
    """A namespace on the local cluster, with the test model in the store."""
    kubectl = local.kubectl()
    local.install_platform(kubectl)
    object_store.upload(kubectl, ensure_smollm2(cache_directory()), "base-models", "smollm2-135m-instruct")
    with team_namespace(kubectl) as namespace:
        yield namespace


def test_banking77_on_a_sample(team: Kubectl, tmp_path: Path) -> None:
    """A third of the rows of ten intents, with few steps."""
    sample = tmp_path / "banking77.csv"
    with data_file(DATA).open(newline="") as source, sample.open("w", newline="") as target:
        rows = list(csv.DictReader(source))
        intents = sorted({row["category"] for row in rows})[:10]
        writer = csv.DictWriter(target, fieldnames=["text", "category"])
        writer.writeheader()
        chosen = [row for row in rows if row["category"] in intents]
        writer.writerows(chosen[::3])
    object_store.upload(team, sample, "datasets", "banking77.csv")
    example = yaml.safe_load((REPOSITORY / "examples" / "banking77" / "finetunejob.yaml").read_text())
    example["spec"]["training"] |= {"maxSteps": 50}
    # Only whether it learns: the demo asks about all else, which takes most of an evaluation's time on a CPU.
    example["spec"]["evaluation"] = {"maxSamples": 30, "general": "Off", "adversarial": "Off"}
    team.apply(example)
    job = wait_for("banking77", lambda: succeeded(team), 1500, interval=3)
    assert job.status.evaluation
    assert float(job.status.evaluation.accuracy.artifact) > float(job.status.evaluation.accuracy.base)


def succeeded(kubectl: Kubectl) -> FineTuneJob | None:
    """The FineTuneJob once it has succeeded; fails the test when it has failed."""
    job = FineTuneJob.model_validate(kubectl.get("ftj", "banking77"))
    assert job.status.phase is not Phase.FAILED, [each.message for each in job.status.conditions]
    return job if job.status.phase is Phase.SUCCEEDED else None
