"""Tenancy rules, and what they have against what a namespace asks for."""

from __future__ import annotations

from typing import Any

from finetune_operator.tenancy.claim import Claim, Subject
from finetune_operator.tenancy.rules import Tenancy, TenancyRule
from finetune_operator.tenancy.verdict import tenancy_violation

ASKED = {
    Subject.PROFILE: Claim(Subject.PROFILE, "spec.profile", "gpu-l4"),
    Subject.RUNTIME: Claim(Subject.RUNTIME, "spec.runtime", "tgi"),
    Subject.OUTPUT: Claim(Subject.OUTPUT, "spec.output.uri", "s3://models/team-a/v2"),
    Subject.INPUT: Claim(Subject.INPUT, "spec.model.uri", "hf://acme/base@v1"),
    Subject.ENDPOINT: Claim(Subject.ENDPOINT, "spec.storage.endpoint", "https://S3.example"),
    Subject.SECRET: Claim(Subject.SECRET, "spec.storage.secretRef.name", "s3-keys"),
    Subject.HOST: Claim(Subject.HOST, "spec.tracking.mlflow.url", "https://MLflow.example:5000/api"),
    Subject.TRANSPORT: Claim(Subject.TRANSPORT, "spec.tracking.mlflow.url", "https://MLflow.example:5000/api"),
    Subject.GATEWAY: Claim(Subject.GATEWAY, "spec.access.route.httpRoute.parentRefs[0]", "gateways/public"),
    Subject.INGRESS_CLASS: Claim(Subject.INGRESS_CLASS, "spec.access.route.ingress.className", "nginx"),
    Subject.HOSTNAME: Claim(Subject.HOSTNAME, "spec.access.route.ingress.host", "a.team-a.example"),
    Subject.COST: Claim(Subject.COST, "spec.budget.maxCost", "25.00"),
}


def rule(*namespaces: str, **limits: Any) -> TenancyRule:
    return TenancyRule(namespaces=list(namespaces) or ["team-a"], **limits)


def said(*rules: TenancyRule, claims: list[Claim] | None = None) -> str:
    """What the rules have against team-a's claims."""
    asked = [*ASKED.values()] if claims is None else claims
    return tenancy_violation(Tenancy(rules=list(rules)), ["cpu-small"], "team-a", asked)
