"""The page of a run, laid out (pure); ``stored`` collects what stands on it.

This module says what each section is made of, ``run_report.html.j2`` says where on the page.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from finetune_api.layout import Manifest, run_folder
from finetune_api.stages import Stage, StageInput
from finetune_jobs.evaluation.conclusion import Conclusion
from finetune_jobs.evaluation.page_parts import PageParts
from finetune_jobs.reports import page
from finetune_jobs.reports.index import Report
from finetune_jobs.reports.page import Fact, uris
from finetune_jobs.run_report.data import DataReport, data_section
from finetune_jobs.run_report.training import History, training_section
from finetune_jobs.run_report.usage import usage_section
from finetune_jobs.run_report.verdict import RunEnding

TITLE: Final = "Report of {name}"
_SOURCES: Final = 3


@dataclass(frozen=True)
class RunFacts:
    """All that the page is made of. What an earlier version did not write is empty."""

    ending: RunEnding
    manifests: Mapping[Stage, Manifest]
    """Of the run's results, in the order of the stages."""
    folders: Mapping[Stage, str]
    """Where they lie, relative to the output URI."""
    goals: Sequence[Conclusion] = ()
    verdicts: Sequence[Conclusion] = ()
    """What a judge and people said."""
    data: DataReport | None = None
    history: History = field(default_factory=History)
    evaluation: PageParts | None = None
    """The parts of the evaluation's page."""
    reports: Sequence[Report] = ()
    """The other pages of the run that are there."""


def render_run(given: StageInput, facts: RunFacts) -> str:
    """The page, as it stands in the run's folder. Equal facts give equal bytes."""
    training = facts.manifests.get(Stage.TRAIN)
    made = {stage: manifest.lineage for stage, manifest in facts.manifests.items()}
    return page.render(
        "run_report/run_report.html.j2",
        TITLE.format(name=given.run.name),
        [*_identity(given), *([Fact("Artifact", [facts.ending.artifact], code=True)] if facts.ending.artifact else [])],
        ending=facts.ending,
        goals=facts.goals,
        verdicts=facts.verdicts,
        data=data_section(facts.data) if facts.data else None,
        training=training_section(facts.history, training.facts if training else {}),
        evaluation=facts.evaluation,
        usage=usage_section(made, given.run),
        reports=facts.reports,
        up="../" * len(run_folder(given.run).split("/")),
        origin=[Fact(stage.value, [folder], code=True) for stage, folder in facts.folders.items()],
    )


def _identity(given: StageInput) -> list[Fact]:
    run, params = given.run, given.params
    identity = [
        Fact("Job", [f"{run.namespace}/{run.name}"]),
        Fact("Run", [run.id]),
        Fact("Base model", [given.base_model_uri], code=True),
    ]
    if params.evaluate:
        identity.append(Fact("Task", [f"{params.evaluate.task.type.value}, tuned with {params.evaluate.method}"]))
    if params.prepare:
        identity.append(uris("Data", [source.name for source in params.prepare.dataset.sources], _SOURCES))
    return identity
