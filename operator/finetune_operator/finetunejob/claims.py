"""What a FineTuneJob asks for that the platform's tenancy may limit. Pure."""

from collections.abc import Iterator

from finetune_api.custom_metrics import MetricData
from finetune_api.dataset import Source
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.references import SecretKeyRef
from finetune_api.storage import InputStorage
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
    for field, storage in storages_of(spec):
        yield from store_claims(storage, f"{field}.endpoint", f"{field}.secretRef.name")
    for field, token in tokens_of(spec):
        yield from secret_claim(f"{field}.secretKeyRef.name", token)
    if spec.output.signing:
        yield from secret_claim("spec.output.signing.secretKeyRef.name", spec.output.signing.secret_key_ref)
    yield from _push_claims(spec)
    yield from _teacher_claims(spec)
    yield from _evaluation_claims(spec)
    yield from _tracking_claims(spec)
    yield from (Claim(Subject.INPUT, field, uri) for field, uri in _inputs(spec) if uri)
    if profile.has_price:
        yield Claim(Subject.COST, "spec.budget.maxCost", spec.budget.max_cost if spec.budget else "")


def _push_claims(spec: FineTuneJobSpec) -> Iterator[Claim]:
    """Registries and hubs get the model, and the login that is meant for them."""
    for number, target in enumerate(spec.output.push_to):
        place = f"spec.output.pushTo[{number}]"
        if target.oci:
            yield from _server_claims(f"{place}.oci.registry", target.oci.registry)
            yield from secret_claim(f"{place}.oci.secretRef.name", target.oci.secret_ref)
        if target.hugging_face:
            yield from _server_claims(f"{place}.huggingFace.endpoint", target.hugging_face.endpoint)
            yield from secret_claim(f"{place}.huggingFace.secretKeyRef.name", target.hugging_face.secret_key_ref)


def _teacher_claims(spec: FineTuneJobSpec) -> Iterator[Claim]:
    """The teacher gets prompts, and the key that is meant for it."""
    if distillation := spec.dataset.distillation:
        place, teacher = "spec.dataset.distillation.teacher", distillation.teacher
        yield from _server_claims(f"{place}.url", teacher.url)
        yield from secret_claim(f"{place}.secretKeyRef.name", teacher.secret_key_ref)


def _evaluation_claims(spec: FineTuneJobSpec) -> Iterator[Claim]:
    """The judge gets test examples and answers, a model to compare with gets examples, and each the key that is meant
    for it."""
    asked = {"baseline": spec.evaluation.baseline, "judge": spec.evaluation.judge}
    for field, other in asked.items():
        if other:
            place = f"spec.evaluation.{field}.endpoint"
            yield from _server_claims(f"{place}.url", other.endpoint.url)
            yield from secret_claim(f"{place}.secretKeyRef.name", other.endpoint.secret_key_ref)


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


def storages_of(spec: FineTuneJobSpec) -> Iterator[tuple[str, InputStorage]]:
    """Every storage that the spec has, by field."""
    yield "spec.storage", spec.storage
    beside: dict[str, InputStorage | None] = {"spec.output": spec.output.storage, "spec.model": spec.model.storage}
    beside |= {field: source.storage for field, source in _sources(spec)}
    if spec.dataset.pii.ner:
        beside["spec.dataset.pii.ner"] = spec.dataset.pii.ner.storage
    beside |= {field: data.storage for field, data in _metric_data(spec)}
    yield from ((f"{field}.storage", storage) for field, storage in beside.items() if storage)


def tokens_of(spec: FineTuneJobSpec) -> Iterator[tuple[str, SecretKeyRef | None]]:
    """The Hugging Face token of everything that is read, by field."""
    yield "spec.model", spec.model.secret_key_ref
    yield from ((field, source.secret_key_ref) for field, source in _sources(spec))


def _sources(spec: FineTuneJobSpec) -> Iterator[tuple[str, Source]]:
    """Every source of the data set, by field."""
    data = spec.dataset
    yield from ((f"spec.dataset.sources[{number}]", source) for number, source in enumerate(data.sources))
    yield from ((f"spec.dataset.benchmarks[{number}]", source) for number, source in enumerate(data.benchmarks))
    if data.replay:
        yield "spec.dataset.replay.source", data.replay.source


def _inputs(spec: FineTuneJobSpec) -> Iterator[tuple[str, str | None]]:
    """The URIs that are read, by field; None where the source is not a URI."""
    yield "spec.model.uri", spec.model.uri
    yield from ((f"{field}.uri", source.uri) for field, source in _sources(spec))
    if spec.dataset.pii.ner:
        yield "spec.dataset.pii.ner.uri", spec.dataset.pii.ner.uri
    yield from ((f"{field}.uri", data.uri) for field, data in _metric_data(spec))


def _metric_data(spec: FineTuneJobSpec) -> Iterator[tuple[str, MetricData]]:
    """What metric containers read beside the answers, by field."""
    for number, metric in enumerate(spec.evaluation.metrics):
        if metric.data:
            yield f"spec.evaluation.metrics[{number}].data", metric.data
