"""What a FineTuneJob asks for that the platform's tenancy may limit. Pure."""

from collections.abc import Iterator

from finetune_api.finetunejob import FineTuneJobSpec
from finetune_operator.settings import Profile, Settings
from finetune_operator.tenancy.claim import Claim, Subject, secret_claim, store_claims
from finetune_operator.tenancy.verdict import tenancy_violation


def job_violation(settings: Settings, namespace: str, spec: FineTuneJobSpec) -> str:
    """What the platform's tenancy has against a spec whose profile exists; empty: nothing."""
    claims = claims_of(spec, settings.profiles[spec.profile])
    return tenancy_violation(settings.tenancy, settings.free_profiles, namespace, claims)


def claims_of(spec: FineTuneJobSpec, profile: Profile) -> Iterator[Claim]:
    """Hardware, money, every place in a store, and every server that gets a key or data."""
    yield Claim(Subject.PROFILE, "spec.profile", spec.profile)
    yield Claim(Subject.OUTPUT, "spec.output.uri", spec.output.uri)
    yield from store_claims(spec.storage, "spec.storage.endpoint", "spec.storage.secretRef.name")
    yield from _teacher_claims(spec)
    yield from _tracking_claims(spec)
    yield from (Claim(Subject.INPUT, field, uri) for field, uri in _inputs(spec) if uri)
    if profile.has_price:
        yield Claim(Subject.COST, "spec.budget.maxCost", spec.budget.max_cost if spec.budget else "")


def _teacher_claims(spec: FineTuneJobSpec) -> Iterator[Claim]:
    """The teacher gets prompts, and the key that is meant for it."""
    if distillation := spec.dataset.distillation:
        place, teacher = "spec.dataset.distillation.teacher", distillation.teacher
        yield from _server_claims(f"{place}.url", teacher.url)
        yield from secret_claim(f"{place}.secretKeyRef.name", teacher.secret_key_ref)


def _tracking_claims(spec: FineTuneJobSpec) -> Iterator[Claim]:
    """Tracking servers get settings and losses, and the keys that are meant for them."""
    place = "spec.tracking"
    if mlflow := spec.tracking.mlflow:
        yield from _server_claims(f"{place}.mlflow.url", mlflow.url)
        yield from secret_claim(f"{place}.mlflow.secretRef.name", mlflow.secret_ref)
    if wandb := spec.tracking.wandb:
        yield from _server_claims(f"{place}.wandb.baseUrl", wandb.base_url)
        yield from secret_claim(f"{place}.wandb.secretKeyRef.name", wandb.secret_key_ref)


def _server_claims(field: str, url: str) -> Iterator[Claim]:
    yield Claim(Subject.HOST, field, url)
    yield Claim(Subject.TRANSPORT, field, url)


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
