"""The data of examples/transactions and its FineTuneJob belong together.

Apart from the other examples: personal data is looked for, and what that imports takes longer than all of them.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from finetune_api.dataset import DataFormat
from finetune_api.finetunejob import FineTuneJob
from finetune_jobs.examples.ledger import Ledger, Place
from finetune_jobs.examples.validation import Example
from finetune_jobs.preparation.intake import Intake
from finetune_jobs.reading.readers import read_rows
from finetune_jobs.reading.rows import Fault
from hack.cluster.layout import REPOSITORY
from tests.unit.test_transactions_generator import generator

pytestmark = pytest.mark.unit

EXAMPLE = REPOSITORY / "examples" / "transactions" / "finetunejob.yaml"


@pytest.mark.slow
def test_the_transactions_fit_their_job(tmp_path: Path) -> None:
    """The generator's accounts are the job's labels, and its dirt is found, below what the job accepts."""
    spec = FineTuneJob.model_validate(yaml.safe_load(EXAMPLE.read_text())).spec
    dataset = spec.dataset
    assert spec.task.labels == list(generator.CATEGORIES)
    assert all(label in dataset.instruction for label in spec.task.labels)
    made, dirt = generator.generate(1500, 7)
    generator.write(made, tmp_path / "transactions.csv")
    intake, rows = Intake(dataset, spec.task), Ledger()
    assert dataset.columns
    for row in read_rows(tmp_path / "transactions.csv", "transactions.csv", DataFormat.CSV, dataset.columns.names):
        rows.read += 1
        example = row if isinstance(row, Fault) else intake.take(row)
        if isinstance(example, Fault):
            rows.faults.add("transactions.csv", example)
        elif isinstance(example, Example):
            rows.is_new(example, Place(0, "transactions.csv", row.line))
    assert rows.read == 1500
    assert rows.faults.total == dirt["missingLabels"] + dirt["emptyDescriptions"] + dirt["misspeltLabels"]
    assert rows.faults.total * 100 <= rows.read * dataset.max_invalid_percent
    assert rows.duplicates == dirt["exactDuplicates"] + dirt["respeltDuplicates"]
