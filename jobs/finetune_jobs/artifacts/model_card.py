"""The model card of an artifact, as Markdown with the metadata of Hugging Face's model cards (pure).

Format: https://huggingface.co/docs/hub/model-cards
"""

from collections.abc import Mapping
from typing import Final

from finetune_api.artifact_source import LONGEST_ADAPTER
from finetune_api.goals import Metric
from finetune_api.stages import StageInput
from finetune_jobs.artifacts.artifact import Metrics, ModelRef
from finetune_jobs.artifacts.card_metadata import MEASURES, SHARES, card_metadata, of_containers
from finetune_jobs.artifacts.measurements import SHOWN, Figure, Measurements

_WHO: Final = ("base", "tuned", "artifact")
"""The models of the scores' columns."""

_CARD: Final = """\
---
{metadata}
---
# {name}

{base} fine-tuned with {method}; {weights}.

## Scores on the test split
{samples} examples that were used neither for training nor for checkpoint selection; greedy decoding.

| measure | base | tuned | artifact (served) |
| --- | --- | --- | --- |
{scores}

{automation}## Data
{train} examples for training, {validation} for validation, {test} for the test, {labels} labels; {read} rows read,
{invalid} invalid, {duplicates} duplicates. Data set `{dataset}`.

## Training
{steps} steps, {tokens} tokens, {parameters} trainable parameters; training loss {loss}, validation loss
{validation_loss}.

## Lineage
| what | digest |
| --- | --- |
| data set | `{dataset}` |
| adapter | `{adapter}` |
| exported model | `{export}` |
| evaluation | `{evaluation}` |
{metrics}
{canaries}{licence}{requests}Made by {kind} {namespace}/{run}.

## Serving
```yaml
apiVersion: finetune.dev/v1alpha1
kind: AdapterDeployment
metadata:
  name: {name}
spec:
  runtime: {runtime}
  source:
{source}
```
"""

_SOURCE: Final = """\
    fineTuneJob:
      name: {run}"""
_ADAPTER_SOURCE: Final = """\
    adapters:
      - name: {adapter}
        fineTuneJob:
          name: {run}"""

_LICENCE: Final = """\
## Licence
The base model's card names the licence `{licence}`. The licence of the data may require more.

"""
_CANARIES: Final = """\
## Canaries
{number} made-up secrets were added to the training examples, each once in an epoch, to measure how much of its training
data the model reveals. Asked for them, the tuned model (before the export) reveals {told}; intervals are 95 %.
Memorisation is {memorisation}: 0 is chance, 1 is perfect recall. They are random codes of people who do not exist.

"""
_AUTOMATION: Final = """\
## Answers that need no human review
Request log-probabilities, and add up those of the answer's tokens, without the token that ends it. An answer whose sum
is at least the threshold can be accepted as it is. The thresholds were chosen on {chosen_on} validation examples, and
measured on the test examples; intervals are 95 %. `automation.json` has more precisions.

| target precision | threshold | accepted | right of these |
| --- | --- | --- | --- |
{rows}

"""
_CLOSED: Final = """\
## Requests
The model answers without thoughts. The chat template of these files closes the block of thoughts before every answer,
so requests need no variable (`enable_thinking`, `thinking`). Run the server without a reasoning parser, which might
treat the answer as a thought and return nothing.

"""
_THOUGHTS: Final = """\
## Requests
The model thinks before it answers; the scores are those of the answers alone. Thoughts end with `{end}`, and what
follows is the answer. Text Generation Inference returns both in `content`: use what follows the first `{end}`; a text
without it may have been cut off while the model thought. A server with a reasoning parser for this model returns the
answer in `content` and the thoughts separately. Thoughts count as tokens: the evaluation allowed `max_tokens` {tokens}.
For earlier turns, send the answers without their thoughts, or with these in `reasoning_content`, which the template
supports.

"""


def render(
    given: StageInput,
    model: ModelRef,
    dataset: Mapping[str, str],
    adapter: Mapping[str, str],
    metrics: Metrics,
    max_tokens: int,
) -> str:
    """The card of the artifact that publish's input asks for; the mappings are the scalars of the stages before,
    ``max_tokens`` is the most that an answer took in the evaluation."""
    scores = metrics.scalars
    rows = [
        f"| {m} | " + " | ".join(scores.get(f"{m}{who.capitalize()}", "–") for who in _WHO) + " |"
        for m in MEASURES
        if f"{m}Artifact" in scores
    ]
    rows += _shares(metrics)
    rows += _custom(metrics)
    training = given.params.train.training if given.params.train else None
    name = given.output.name if given.output else given.run.name
    return _CARD.format(
        metadata=card_metadata(given, model, metrics, name),
        name=name,
        base=model.base_model_uri,
        weights=_weights(model),
        source=_source(given.run.name, model),
        runtime="vllm" if model.base else "tgi",
        method=training.method.value if training else "a low-rank adapter",
        samples=scores.get("samples", "–"),
        scores="\n".join(rows),
        automation=_automation(metrics),
        train=dataset.get("rowsTrain", "–"),
        validation=dataset.get("rowsValidation", "–"),
        test=dataset.get("rowsTest", "–"),
        labels=dataset.get("labels", "–"),
        read=dataset.get("rowsRead", "–"),
        invalid=dataset.get("rowsInvalid", "–"),
        duplicates=dataset.get("rowsDuplicates", "–"),
        steps=adapter.get("steps", "–"),
        tokens=adapter.get("tokens", "–"),
        loss=adapter.get("trainLoss", "–"),
        validation_loss=adapter.get("validationLoss", "–"),
        parameters=adapter.get("trainableParameters", "–"),
        dataset=given.upstream.dataset,
        adapter=given.upstream.adapter,
        export=model.digest,
        evaluation=given.upstream.evaluation,
        metrics=_metric_data(given),
        canaries=_canaries(metrics),
        licence=_LICENCE.format(licence=metrics.base_license) if metrics.base_license else "",
        requests=_requests(metrics, max_tokens),
        kind=given.run.kind,
        namespace=given.run.namespace,
        run=given.run.name,
    )


def _metric_data(given: StageInput) -> str:
    """A row for the files that metric containers have read; empty where there are none."""
    runs = given.params.evaluate.metrics if given.params.evaluate else []
    read = [f"{run.name} `{run.data.uri}`" for run in runs if run.data]
    return f"| data of {', '.join(read)} | `{given.upstream.metrics}` |\n" if read else ""


def _shares(metrics: Metrics) -> list[str]:
    found = [it for measure in SHARES if metrics.measurements and (it := metrics.measurements.of(measure))]
    return [
        f"| {it.metric} | {' | '.join(f'{it.models[who].value:.4f}' if who in it.models else '–' for who in _WHO)} |"
        for it in found
    ]


def _custom(metrics: Metrics) -> list[str]:
    """Rows of the scores for what metric containers measured."""
    return [
        f"| {each.metric}{f' of {each.label}' if each.label else ''} | "
        + " | ".join(f"{each.models[who].value:.4g}" if who in each.models else "–" for who in _WHO)
        + " |"
        for each in of_containers(metrics)
    ]


def _automation(metrics: Metrics) -> str:
    """From which probability on an answer needs no human review; empty where no threshold was found."""
    measured = [metrics.measurements.automated(precision) for precision in SHOWN] if metrics.measurements else []
    levels = [found for found in measured if found and found.threshold is not None]
    if not levels:
        return ""
    rows = [
        f"| {it.precision:.0%} | {it.threshold:.6f} | {_share(it.share)} | {it.right} of {it.taken}, "
        f"{_share(it.reached)} |"
        for it in levels
    ]
    return _AUTOMATION.format(chosen_on=levels[0].chosen_on, rows="\n".join(rows))


def _canaries(metrics: Metrics) -> str:
    """What the model gives away; empty where nothing was planted."""
    measured = metrics.measurements or Measurements(rows=0)
    leaks, known = measured.of(Metric.CANARY_LEAKS), measured.of(Metric.MEMORISATION)
    if leaks is None:
        return ""
    it = known.models["tuned"] if known else None
    memorisation = f"{it.value:.2f} ({it.low:.2f} to {it.high:.2f})" if it else "not known"
    return _CANARIES.format(number=leaks.cases, told=_share(leaks.models["tuned"]), memorisation=memorisation)


def _share(figure: Figure) -> str:
    return f"{figure.value:.1%} ({figure.low:.1%} to {figure.high:.1%})"


def _requests(metrics: Metrics, max_tokens: int) -> str:
    """How a model with a template that has thoughts must be asked; empty for another one."""
    if marks := metrics.thoughts:
        return _THOUGHTS.format(end=marks.end, tokens=max_tokens)
    return _CLOSED if metrics.closed else ""


def _source(run: str, model: ModelRef) -> str:
    """How an AdapterDeployment names what the FineTuneJob has published."""
    if model.base:
        return _ADAPTER_SOURCE.format(run=run, adapter=run[:LONGEST_ADAPTER].rstrip("-"))
    return _SOURCE.format(run=run)


def _weights(model: ModelRef) -> str:
    size = _size(model.size_bytes)
    if model.base:
        base = f"base model `{model.base.digest[:12]}` in 16 bits"
        return f"the adapter alone ({size}, rank {model.base.rank}), to be loaded on {base}, which lies beside it"
    return f"weights as {model.format} safetensors ({size}), merged, so no adapter is loaded at serving"


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
