"""What a custom resource asks for, one thing at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from finetune_api.references import SecretKeyRef, SecretRef
from finetune_api.storage import InputStorage


class Subject(StrEnum):
    """What a rule can limit; the value is the rule's field."""

    PROFILE = "profiles"
    RUNTIME = "runtimes"
    OUTPUT = "outputs"
    INPUT = "inputs"
    ENDPOINT = "endpoints"
    HOST = "hosts"
    TRANSPORT = "insecureHosts"
    SECRET = "secrets"
    COST = "maxUsdPerRun"
    GATEWAY = "gateways"
    INGRESS_CLASS = "ingressClasses"
    HOSTNAME = "hostnames"


@dataclass(frozen=True)
class Claim:
    """One thing that a custom resource asks for."""

    subject: Subject
    field: str
    """The field that asks for it, as people know it."""
    value: str
    """What it asks for; for COST the highest cost in US dollars, empty where the resource sets no limit; for ENDPOINT
    empty where it is AWS; for GATEWAY its namespace and name, with a slash between them."""


def store_claims(storage: InputStorage, endpoint: str, secret: str) -> Iterator[Claim]:
    """A store, and the keys that are sent there; ``endpoint`` and ``secret`` say in words where they are named."""
    yield Claim(Subject.ENDPOINT, endpoint, storage.endpoint or "")
    if storage.endpoint:
        yield Claim(Subject.TRANSPORT, endpoint, storage.endpoint)
    yield from secret_claim(secret, storage.secret_ref)


def secret_claim(field: str, reference: SecretRef | SecretKeyRef | None) -> Iterator[Claim]:
    """The Secret whose keys are sent; none where the resource names none."""
    if reference:
        yield Claim(Subject.SECRET, field, reference.name)
