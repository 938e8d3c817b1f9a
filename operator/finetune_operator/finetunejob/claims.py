"""What a FineTuneJob asks for that the platform's tenancy may limit. Pure."""

from collections.abc import Iterator

from finetune_api.finetunejob import FineTuneJobSpec
from finetune_operator.finetunejob.hardware import hardware_facts
from finetune_operator.settings import Profile
from finetune_operator.tenancy import Claim, Subject


def claims_of(spec: FineTuneJobSpec, profile: Profile) -> Iterator[Claim]:
    """Hardware, money, and every place in a store. ConfigMaps and Secrets belong to the namespace: no claims."""
    yield Claim(Subject.PROFILE, "spec.profile", spec.profile)
    yield Claim(Subject.OUTPUT, "spec.output.uri", spec.output.uri)
    yield Claim(Subject.ENDPOINT, "spec.storage.endpoint", spec.storage.endpoint)
    yield from (Claim(Subject.INPUT, field, uri) for field, uri in _inputs(spec) if uri)
    if hardware_facts(spec.profile, profile).usd_per_second:
        yield Claim(Subject.COST, "spec.budget.maxCost", spec.budget.max_cost if spec.budget else "")


def _inputs(spec: FineTuneJobSpec) -> Iterator[tuple[str, str | None]]:
    """The URIs that are read, by field; None where the source is not a URI."""
    data = spec.dataset
    yield "spec.model.uri", spec.model.uri
    for number, source in enumerate(data.sources):
        yield f"spec.dataset.sources[{number}].uri", source.uri
    for number, source in enumerate(data.benchmarks):
        yield f"spec.dataset.benchmarks[{number}].uri", source.uri
    if data.replay:
        yield "spec.dataset.replay.source.uri", data.replay.source.uri
    if data.pii.ner:
        yield "spec.dataset.pii.ner.uri", data.pii.ner.uri
