"""What the Hugging Face hub reads of a model card: its metadata, as YAML (pure).

The hub checks them at each commit, and refuses the whole commit for one value that it does not take. So nothing stands
here that it might not know: the text of the card says it all the same.
Format: https://huggingface.co/docs/hub/model-cards#model-card-metadata
"""

import re
from typing import Final

from huggingface_hub import EvalResult, ModelCardData

from finetune_api.dataset import TaskType
from finetune_api.stages import StageInput
from finetune_jobs.artifacts.artifact import Metrics, ModelRef
from finetune_jobs.artifacts.measurements import Figure, MeasuredMetric

MEASURES: Final = {
    "accuracy": "accuracy",
    "exactMatch": "exact_match",
    "chrf": "chrf",
    "perplexity": "perplexity",
    "precision": "precision",
    "recall": "recall",
    "f1": "f1",
}
"""The measures of all tasks, each with the hub's name for it."""

SHARES: Final = {
    "validJson": "valid_json",
    "validSchema": "valid_schema",
    "toolUse": "tool_use",
    "toolName": "tool_name",
    "toolArguments": "tool_arguments",
    "toolFields": "tool_fields_f1",
}
"""Those that only some data have."""

_TASKS: Final = {
    TaskType.CLASSIFICATION: "text-classification",
    TaskType.EXTRACTION: "text-generation",
    TaskType.TEXT: "text-generation",
}
"""As the hub names them."""
_HUB_DATASET: Final = re.compile(r"hf://datasets/([^/@]+/[^/@]+)")
_HUB: Final = "hf://"
_UNNAMEABLE: Final = re.compile(r"[^A-Za-z0-9._-]+")
"""What the name of a data set or of a licence does not contain."""
_LICENCES: Final = frozenset(
    {"apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m", "bigscience-bloom-rail-1.0"}
    | {"bigcode-openrail-m", "afl-3.0", "artistic-2.0", "bsl-1.0", "bsd", "bsd-2-clause", "bsd-3-clause"}
    | {"bsd-3-clause-clear", "c-uda", "cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0"}
    | {"cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0"}
    | {"cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0"}
    | {"cdla-sharing-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "wtfpl", "ecl-2.0", "epl-1.0", "epl-2.0"}
    | {"etalab-2.0", "eupl-1.1", "eupl-1.2", "agpl-3.0", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1"}
    | {"lgpl-3.0", "isc", "h-research", "intel-research", "lppl-1.3c", "ms-pl", "apple-ascl", "apple-amlr", "mpl-2.0"}
    | {"odc-by", "odbl", "openrail++", "osl-3.0", "postgresql", "ofl-1.1", "ncsa", "unlicense", "zlib", "pddl"}
    | {"lgpl-lr", "deepfloyd-if-license", "fair-noncommercial-research-license", "llama2", "llama3", "llama3.1"}
    | {"llama3.2", "llama3.3", "llama4", "grok2-community", "gemma", "unknown", "other"}
)
"""The licences that the hub knows; it refuses any other (https://huggingface.co/docs/hub/repositories-licenses)."""


def card_metadata(given: StageInput, model: ModelRef, metrics: Metrics, name: str) -> str:
    """What the hub reads of a card, as YAML: origin, licence, and the artifact's scores (``model-index``)."""
    sources = given.params.prepare.dataset.sources if given.params.prepare else []
    on_hub = [match[1] for source in sources if (match := _HUB_DATASET.match(source.uri or ""))]
    results = [
        EvalResult(
            task_type=_TASKS[metrics.task],
            dataset_type=on_hub[0] if on_hub else name,
            dataset_name=f"{name}, test part",
            dataset_split="test",
            dataset_revision=given.upstream.dataset,
            metric_type=on_the_hub,
            metric_value=round(found.value, 4),
            metric_name=f"{measure} of the artifact",
            metric_args={"interval95": [round(found.low, 4), round(found.high, 4)]},
        )
        for measure, on_the_hub in (MEASURES | SHARES).items()
        if (found := _artifact(metrics, measure))
    ]
    results += [
        EvalResult(
            task_type=_TASKS[metrics.task],
            dataset_type=_nameable(each.label) or name,
            dataset_name=each.label or f"{name}, test part",
            metric_type=each.metric,
            metric_value=round(found.value, 4),
            metric_name=f"{each.metric} of the artifact",
            metric_args={"interval95": [round(found.low, 4), round(found.high, 4)], "cases": each.cases},
        )
        for each in of_containers(metrics)
        if (found := each.models.get("artifact"))
    ]
    licence, licence_name = _licence(metrics.base_license)
    data = ModelCardData(
        base_model=_hub_name(model.base_model_uri),
        license=licence,
        license_name=licence_name,
        datasets=list(dict.fromkeys(on_hub)) or None,
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        pipeline_tag="text-generation",
        tags=["finetune-operator", model.format],
        model_name=name,
        eval_results=results or None,
    )
    return str(data.to_yaml())


def _hub_name(uri: str) -> str | None:
    """As the hub names a model of its own; None for any other, which it refuses as a base model."""
    return uri.removeprefix(_HUB).partition("@")[0] if uri.startswith(_HUB) else None


def _licence(named: str) -> tuple[str | None, str | None]:
    """The licence that the base model's card names, and its name where the hub does not list it."""
    if not named or named.lower() in _LICENCES:
        return named.lower() or None, None
    return "other", _nameable(named).lower() or None


def _nameable(text: str) -> str:
    return _UNNAMEABLE.sub("-", text).strip("-.")


def _artifact(metrics: Metrics, measure: str) -> Figure | None:
    measured = metrics.measurements.of(measure) if metrics.measurements else None
    return measured.models.get("artifact") if measured else None


def of_containers(metrics: Metrics) -> list[MeasuredMetric]:
    """What metric containers measured: only their names have a dot."""
    measured = metrics.measurements.measured if metrics.measurements else []
    return [each for each in measured if "." in each.metric]
