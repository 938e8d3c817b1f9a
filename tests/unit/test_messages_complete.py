"""Every module that can tell a user what is wrong with the input has a test that provokes all of its sentences.

The sentences are read from the source (``tests.support.sentences``): a new one that no test provokes fails, and so does
a new module that makes errors and is named nowhere here.
"""

import re
from pathlib import Path
from typing import Final

import pytest

import finetune_jobs

pytestmark = pytest.mark.unit

HERE: Final = Path(__file__).parent
JOBS: Final = Path(finetune_jobs.__path__[0])
MAKES_ERRORS: Final = re.compile(r"\b(StageError|Fault|AttemptError)\(")

TABLES: Final = {
    "test_messages_rows": [
        *("examples.shapes", "examples.validation", "preparation.intake", "examples.ledger", "distillation.prompts"),
    ],
    "test_messages_files": [
        *("reading.content", "reading.csv_rows", "reading.formats", "reading.json_list", "reading.jsonl"),
        *("reading.lines", "reading.parquet", "reading.readers", "reading.rows"),
    ],
    "test_messages_datasets": [
        *(
            "readiness.preparation_report",
            "splitting.leakage",
            "preparation.tokens",
            "text.language",
            "text.pii.recognition",
        ),
        "text.pii.ner",
    ],
    "test_messages_distillation": [
        *("distillation.distil", "distillation.filters", "chat_api.answers", "chat_api.answer_collector"),
        *("chat_api.pace", "chat_api.chat_model", "text.schemas"),
    ],
    "test_messages_models": [
        *("modelling.tokenizer", "modelling.chat", "modelling.encoding", "modelling.loading", "training.adapter"),
    ],
    "test_messages_fit": ["fit.admission", "fit.afterwards", "fit.interruptions", "fit.recipe"],
    "test_messages_suitability": ["fit.suitability"],
    "test_rounded_checkpoints": ["fit.rounded"],
    "test_fit_exported": ["fit.exported"],
    "test_messages_data_goals": ["evaluation.measurable"],
    "test_messages_goals": ["evaluation.applicable", "evaluation.gates"],
    "test_judging": ["evaluation.judging.admission"],
    "test_review": ["evaluation.review.votes", "evaluation.review.verdict"],
    "test_cards": ["modelling.cards"],
    "test_custom_metrics": ["evaluation.custom.figures", "evaluation.custom.exchange"],
    "test_metric_data": ["evaluation.custom.data", "store.copyable"],
    "test_dataset_sources": ["reading.sources", "reading.hub_files", "store.hub"],
    "test_dataset_prepare": [
        *("prepare", "preparation.download", "preparation.collect", "preparation.replay", "reading.inputs"),
        "preparation.planting",
    ],
    "test_jobs_basemodel": ["modelling.base_model"],
    "test_modelling_thinking": ["modelling.thinking"],
    "test_control_tokens": ["preparation.guard"],
}
"""Test modules that provoke every sentence of modules of the jobs, and these."""
PACKAGES: Final = {
    "test_messages_files": "reading.",
    "test_messages_fit": "fit.",
}
"""Test modules that name the modules of one package without it."""
NOT_OF_THE_INPUT: Final = {
    "base.errors": "the operator's input, the pod: test_jobs_runner",
    "promote": "the store: test_promote",
    "store.s3": "the store: test_jobs_store",
    "store.errors": "the store: test_jobs_store",
    "store.authorities": "a ConfigMap: test_jobs_private_ca, test_registry",
    "store.registry": "a registry: test_registry",
    "artifacts.push": "a registry: test_push",
    "store.hub_repository": "a hub: test_hub_push",
    "store.stored_file": "the store: test_hub_push",
    "artifacts.hub_push": "a hub: test_hub_push",
    "store.transfers": "the store: test_transfers",
    "artifacts.ancestry": "results: test_trace_descendants",
    "artifacts.channel": "results: test_output_names",
    "artifacts.folders": "results: test_jobs_artifact",
    "artifacts.gates": "results: test_artifact_gates",
    "artifacts.withdrawal": "results: test_artifact_withdrawal",
    "exporting.adapter": "results: test_export",
    "exporting.comparison": "results: test_export_comparison",
    "exporting.offload": "results: test_export_benchmarks",
    "exporting.positions": "results: test_exported_positions",
    "exporting.rescaling": "the model itself: test_export_comparison",
    "runtime.tools": "a command's options: test_artifact_withdrawal",
    "artifacts.signature": "results: test_artifact_policy",
    "artifacts.signing": "a Secret: test_artifact_lineage",
    "review": "a command's options: test_review_command",
    "evaluation.elsewhere": "a server: test_elsewhere",
    "evaluation.generators.on_vllm": "the image: test_generators",
    "evaluation.generators.vllm_process": "the image: test_generators",
    "evaluation.review.stored": "results: test_review_command",
    "base.documents": "results: test_jobs_runner",
    "runtime.runner": "the operator's input, the pod: test_jobs_runner",
    "runtime.stage_input": "the operator's input: test_jobs_runner",
    "resolve": "the store: test_resolve_stage",
    "publish": "results: test_jobs_artifact",
    "fetch": "results: test_jobs_serving",
    "trace": "a command's options: test_trace",
    "verify": "a server: test_jobs_serving, test_jobs_artifact",
    "self_check": "the pod: test_quality_watch",
    "analyse": "a server: test_jobs_analyse",
    "follow": "the store: test_jobs_follow",
    "runtime.adapters": "results: test_jobs_adapters",
    "verification.delivery": "the pod: test_delivery",
    "verification.loading": "results: test_jobs_adapters",
    "verification.checks": "a server: test_verification_checks",
    "verification.connection": "a server: test_jobs_serving, test_jobs_artifact, test_verification_vllm",
    "verification.observation": "a server: test_verification_stream",
    "verification.reach": "a Secret: test_proxy_tls",
    "verification.servers": "the operator's input: test_verification_checks",
    "modelling.device": "the pod: test_train_stage",
    "training.callbacks": "the training itself: test_train_watchdogs",
    "training.checkpoints": "the store: test_train_checkpoints",
    "training.learning_curve": "the training itself: test_learning_curve",
    "training.ownership": "another pod: test_train_attempts",
    "training.shards": "another pod: test_train_shards",
    "training.stall": "the training itself: test_train_watchdogs",
    "training.team": "another pod: test_train_together",
    "training.kernels": "the GPU: test_train_kernels",
    "training.memory": "the GPU's memory: test_train_recovery",
    "training.trainer": "the GPU's memory: test_train_recovery",
    "training.wandb_run": "a Secret: test_tracking_wandb",
}
"""What else may go wrong, and where that is tested."""


def test_every_module_that_makes_errors_is_known() -> None:
    makers = {
        ".".join(path.relative_to(JOBS).with_suffix("").parts)
        for path in JOBS.rglob("*.py")
        if MAKES_ERRORS.search(path.read_text())
    }
    known = [module for modules in TABLES.values() for module in modules]
    known += NOT_OF_THE_INPUT
    assert len(known) == len(set(known))
    assert makers - set(known) == set()


@pytest.mark.parametrize("name", TABLES)
def test_every_table_is_held_against_its_modules(name: str) -> None:
    text = (HERE / f"{name}.py").read_text()
    assert "unsaid(" in text
    package = PACKAGES.get(name, "")
    named = [module.removeprefix(package) for module in TABLES[name]]
    assert [module for module in named if f'"{module}"' not in text and f"finetune_jobs.{module}" not in text] == []


@pytest.mark.parametrize("reference", NOT_OF_THE_INPUT.values())
def test_what_is_tested_elsewhere_is(reference: str) -> None:
    for name in reference.partition(": ")[2].split(", "):
        assert (HERE / f"{name}.py").is_file()
