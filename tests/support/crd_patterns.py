"""Texts that each pattern of the CRDs' schemas accepts and refuses; the API server and the models must agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from finetune_api import (
    adapterdeployment,
    artifact_source,
    crdgen,
    custom_metrics,
    dataset,
    distillation,
    meta,
    push,
    references,
    routes,
    storage,
    strategy,
    verification,
)
from finetune_api.base import is_retired
from finetune_api.spelled import spelled_out

Object = dict[str, Any]

KINDS = {kind.kind: kind for kind in crdgen.KINDS}


def _current(schema: Object) -> Object:
    """The schema without the fields that only refuse objects of earlier versions, and with the patterns that it spells
    out in a rule: ``complaint`` is what the API server says of a text that such a pattern refuses."""
    result = dict(schema)
    if words := spelled_out(schema):
        result |= dict(zip(("pattern", "complaint"), words, strict=True))
    if "properties" in schema:
        fields = {name: each for name, each in schema["properties"].items() if not is_retired(each)}
        result["properties"] = {name: _current(each) for name, each in fields.items()}
    if "items" in schema:
        result["items"] = _current(schema["items"])
    return result


SCHEMAS = {
    name: _current(crdgen.crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]) for name, kind in KINDS.items()
}
DIGEST = "0123456789abcdef" * 4


def complaint(schema: Object) -> str:
    """What the API server says of a text that a field's pattern refuses."""
    return str(schema.get("complaint") or f"should match '{schema['pattern']}'")


@dataclass(frozen=True)
class Pattern:
    """Texts that a pattern accepts and refuses, and one accepted text of any given length.

    The last accepted text stands in every valid object.
    """

    accepted: tuple[str, ...]
    refused: tuple[str, ...]
    long: Callable[[int], str] | None = None
    """None where no accepted text is as long as the length bound."""


def _pattern_of(path: str) -> str:
    """The pattern of a FineTuneJob's field, or of its items."""
    node = SCHEMAS[meta.FINETUNEJOB]
    for name in path.split("."):
        node = node["properties"][name]
        node = node.get("items", node)
    return str(node["pattern"])


_URIS = {
    storage.S3_URI: Pattern(
        ("s3://abc", "s3://abc/", "s3://a.b-c/d/e_f=1.csv"),
        (
            "https://abc/d",
            "s3://ab",
            "s3://Abc/d",
            "s3://abc/d e",
            "s3://abc/d?x=1",
            "s3://-abc/d",
            "file:///etc/passwd",
        ),
        lambda n: "s3://abc/" + "a" * (n - 9),
    ),
    storage.MODEL_URI: Pattern(
        ("s3://abc/model", "hf://org/name@main", "hf://org/na.me@0123abc"),
        ("s3://abc", "s3://abc/", "hf://org/name", "hf://name@main", "org/name", "hf://o/n@a b", "s3://abc/$(x)"),
        lambda n: "s3://abc/" + "a" * (n - 9),
    ),
    dataset.DATA_URI: Pattern(
        (
            "s3://abc/",
            "s3://abc/folder/",
            "s3://abc/*.jsonl",
            "s3://a.b-c/x/part-*.parquet",
            "hf://datasets/org/na.me@0123abc/",
            "hf://datasets/org/name@refs/convert/parquet/default/train/*.parquet",
            "hf://datasets/org/name@main/data.csv",
            "s3://abc/rows.csv",
        ),
        (
            "s3://abc",
            "s3://ab/rows.csv",
            "s3://abc/*/rows.csv",
            "s3://abc/a b.csv",
            "s3://abc/rows.csv?x=1",
            "s3://abc/$(x)",
            "s3://abc/rows.csv\n",
            "hf://org/name@main/data.csv",
            "hf://datasets/org/name/data.csv",
            "hf://datasets/org/name@main",
            "hf://datasets/name@main/data.csv",
            "hf://datasets/org/name@main/*/data.csv",
            "https://abc/rows.csv",
            "file:///etc/passwd",
        ),
        lambda n: "s3://abc/" + "a" * (n - 9),
    ),
    artifact_source.LOOK_INTERVAL: Pattern(
        ("0m", "1m", "24h", "9999m", "5m"), ("", "0s", "0h", "60s", "00m", "100h", "5", "m", "10000m", "1d")
    ),
    artifact_source.ARTIFACT_URI: Pattern(
        (f"s3://abc/artifacts/{DIGEST}", f"s3://abc/x/y/artifacts/{DIGEST}"),
        (
            "s3://abc/artifacts/0",
            f"s3://abc/models/{DIGEST}",
            f"s3://abc/artifacts/{DIGEST}/",
            f"abc/artifacts/{DIGEST}",
        ),
        lambda n: f"s3://abc/{'a' * (n - 84)}/artifacts/{DIGEST}",
    ),
    verification.PUBLIC_KEY: Pattern(
        (
            "-----BEGIN PUBLIC KEY-----\na\n-----END PUBLIC KEY-----",
            "-----BEGIN PUBLIC KEY-----\nMCow+/AyEA=\nab==\n-----END PUBLIC KEY-----\n",
        ),
        (
            "-----BEGIN PRIVATE KEY-----\nab==\n-----END PRIVATE KEY-----\n",
            "-----BEGIN PUBLIC KEY-----\r\nab==\r\n-----END PUBLIC KEY-----\r\n",
            "-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n",
            "-----BEGIN PUBLIC KEY----- ab== -----END PUBLIC KEY-----",
            "MCow+/AyEA==",
        ),
    ),
    _pattern_of("spec.storage.endpoint"): Pattern(
        ("http://s3", "https://s3.example.com:8333"),
        ("s3", "ftp://s3", "http://s3/path", "http://user:pw@s3", "http://s3:123456", "http://s3?x"),
        lambda n: "http://" + "a" * (n - 7),
    ),
    push.REGISTRY_URL: Pattern(
        ("http://r", "https://ghcr.io", "http://registry.tools.svc:5000"),
        (
            "registry.example",
            "https://ghcr.io/",
            "https://ghcr.io/acme",
            "oci://ghcr.io",
            "https://user:pw@r",
            "http://r:123456",
        ),
        lambda n: "http://" + "a" * (n - 7),
    ),
    push.REPOSITORY: Pattern(
        ("a", "a-b_c.d__e", "acme/support"),
        ("Acme", "/a", "a/", "a//b", "a..b", "-a", "a:v1", "a@b", "ä"),
        lambda n: "a" * n,
    ),
    push.TAG: Pattern(("v1", "_", "1.0-rc.1_x"), (".v1", "-v1", "a/b", "a:b", "a b", "ä"), lambda n: "a" * n),
    push.COPY_DIGEST: Pattern(
        (DIGEST[:40], f"sha256:{DIGEST}"),
        (f"{DIGEST}abcdef0", f"sha512:{DIGEST}", f"sha256:{DIGEST[:-1]}g", DIGEST[:41]),
    ),
    push.HUB_REPOSITORY: Pattern(
        ("acme/support", "a/b", "Acme-1/x_.y", "a/a__b", "0/0"),
        ("support", "ab/", "/ab", "a/b/c", "a--b/c", "a/b..c", "-a/b", "a/b-", "a/b.", "_a/b", "a/b@v1", "ä/b"),
        lambda n: f"a/{'b' * (n - 2)}",
    ),
    push.HUB_TAG: Pattern(
        ("v1", "_", "1.0-rc.1_x"), (".v1", "-v1", "v1.", "a..b", "a/b", "a:b", "a b", "a^", "ä"), lambda n: "a" * n
    ),
    distillation.TEACHER_URL: Pattern(
        ("http://t/v1", "http://vllm.models.svc:8000/v1", "https://t/a/~b/v1", "https://api.openai.com/v1"),
        (
            "http://teacher",
            "http://teacher/v2",
            "http://teacher/v1/",
            "http://teacher//v1",
            "http:///teacher/v1",
            "ftp://teacher/v1",
            "https://user:pw@teacher/v1",
            "https://teacher:123456/v1",
            "https://teacher/v1?key=x",
            "https://teacher/v1#x",
        ),
        lambda n: f"http://{'a' * (n - 10)}/v1",
    ),
    _pattern_of("spec.tracking.mlflow.url"): Pattern(
        ("http://ml", "https://m/", "https://m.example.com/path/x", "http://mlflow.tracking.svc:5000"),
        (
            "mlflow.tracking",
            "file:///mlruns",
            "sqlite:///x.db",
            "http://user:pw@mlflow",
            "http://mlflow:123456",
            "http://mlflow?x=1",
            "http://mlflow/a b",
        ),
        lambda n: "http://" + "a" * (n - 7),
    ),
}

_NAMES = {
    meta.NAME_PATTERN: Pattern(("a", "a-1", "abc"), ("1a", "A", "a-", "a.b", "a_b", "ä", "a\n"), lambda n: "a" * n),
    references.OBJECT_NAME: Pattern(("a", "1", "a.b-c"), ("A", "a_b", "-a", "a/", "team-a/secret"), lambda n: "a" * n),
    references.DATA_KEY: Pattern(
        ("a", "AWS_ACCESS_KEY_ID", ".hidden", "_x-1.JSONL.gz", "rows.csv"),
        (".", "..", "..a", "../a", "a/b", "a b", "ä", "a\n"),
        lambda n: "a" * n,
    ),
    _pattern_of("spec.storage.region"): Pattern(("a", "eu-central-1"), ("EU", "eu_1", "eu 1"), lambda n: "a" * n),
    _pattern_of("spec.rerun"): Pattern(
        ("", "2026-01-31T12:00:00Z", "a.b_c"), ("a b", "a/b", "$x", "ä"), lambda n: "a" * n
    ),
    routes.NAMESPACE: Pattern(("a", "1", "a-b"), ("A", "a.b", "-a", "a-", "a\n"), lambda n: "a" * n),
    routes.HOSTNAME: Pattern(
        ("a.b", "1.a", "a-b.models.example"),
        ("localhost", "*.example", "A.example", "a..b", "a.b.", "-a.b", "a.b-", "a_b.c", "a.b/c", "a.b:80", "a.b\n"),
        lambda n: "a." + "a" * (n - 2),
    ),
    routes.PATH_PREFIX: Pattern(
        ("/", "/a", "/v1.2/~a_B-c", "/a/b"),
        ("a", "/a/", "//", "/a//b", "/.", "/..", "/a/../b", "/a b", "/a?b", "/.a", "/%2e", "/a\n"),
        lambda n: "/" + "a" * (n - 1),
    ),
    adapterdeployment.REVISION: Pattern(
        ("", "0123abcd"), ("0123abc", "0123ABCD", "previous", "-1", "$x"), lambda n: "0" * n
    ),
    distillation.MODEL_NAME: Pattern(
        ("m", "llama3:8b", "a@1+x", "Qwen/Qwen3-30B-A3B-Instruct-2507"),
        ("-m", "/m", ".m", "m n", "m,n", "$(m)", "ä", "m\n"),
        lambda n: "a" * n,
    ),
    _pattern_of("spec.storage.encryption.kmsKeyId"): Pattern(
        ("arn:aws:kms:eu-west-1:111122223333:key/1234-ab", "my.key_1", "alias/models"),
        ("a b", "a@b", "$(a)", "ä", "a\n"),
        lambda n: "a" * n,
    ),
    _pattern_of("spec.tracking.mlflow.experiment"): Pattern(
        ("7", "Team A/model_1.x-y"), (" a", "/a", "-a", "a:b", "a\tb", "ä", "a\n"), lambda n: "a" * n
    ),
    _pattern_of("spec.tracking.wandb.entity"): Pattern(
        ("7", "acme.research_a-1"), (" a", "-a", ".a", "a b", "a/b", "a:b", "ä", "a\n"), lambda n: "a" * n
    ),
    _pattern_of("spec.tracking.wandb.project"): Pattern(
        ("7", "Support answers_1.x-y"),
        (" a", "-a", "a/b", "a#b", "a?", "a%b", "a:b", "ä", "a\n"),
        lambda n: "a" * n,
    ),
    _pattern_of("spec.dataset.pii.ner.package"): Pattern(
        ("a", "7", "en_core_web-sm.x"), ("En", "_a", "-a", "../a", "a/b", "a b", "a==1"), lambda n: "a" * n
    ),
    _pattern_of("spec.dataset.pii.entities"): Pattern(
        ("AB", "PERSON", "EMAIL_ADDRESS"), ("", "A", "email", "_AB", "A-B", "A1", "A B"), lambda n: "A" * n
    ),
    _pattern_of("spec.dataset.cleaning.languages"): Pattern(
        ("de", "en"), ("", "e", "EN", "e1", "e-"), lambda n: "a" * n
    ),
    _pattern_of("spec.training.targetModules"): Pattern(
        ("q", "layers.0.mlp", "q_proj"), ("q-proj", "q proj", "q*", "(q|k)_proj", "ä"), lambda n: "a" * n
    ),
    _pattern_of("status.dataset.digest"): Pattern(
        (DIGEST,), (DIGEST.upper(), "g" * 64), lambda n: DIGEST if n == 64 else "0" * n
    ),
}

_NAMES |= {
    custom_metrics.CUSTOM_PATTERN: Pattern(
        ("a.b", "lm-eval.acc_norm", "politeness.score2"),
        ("", "a", "a.", ".b", "A.b", "a.2", "a.b.c", "a.b_", "a-.b", "a b.c", "a." + "b" * 25),
        lambda n: "a" * (n - 25) + "." + "b" * 24,
    ),
    verification.GATE: Pattern(
        ("accuracy", "judgeWinRate", "lm-eval.acc_norm"),
        ("", "Accuracy", "accuracy ", "accuracyx", "custom", "a.", ".b", "a.2", "xaccuracy"),
        lambda n: "a" * (n - 25) + "." + "b" * 24,
    ),
    custom_metrics.PARAMETER_PATTERN: Pattern(
        ("a", "num-fewshot", "num_fewshot", "Tasks2"), ("", "2a", "a-", "_a", "a b", "a.b", "ä"), lambda n: "a" * n
    ),
}

_TEMPLATES = {
    _pattern_of("spec.dataset.columns.template"): Pattern(
        ("{a}", "{first name}", "{{a}}", "Subject: {subject}\n\n{body}"),
        ("text", "{}text", "{text", "text}", "{{}}", "}text{"),
        lambda n: "{a}" + "a" * (n - 3),
    ),
    _pattern_of("spec.dataset.distillation.questionTemplate"): Pattern(
        ("{document}", "{document}{document}", "Ask one question about:\n{document}"),
        ("the document", "{documents}", "{ document }", "{Document}", "{the document}"),
        lambda n: "{document}" + "a" * (n - 10),
    ),
}

_NUMBERS = {
    # 10 characters are the longest amount of money, so that its length bound (16) cannot be reached.
    _pattern_of("spec.budget.maxCost"): Pattern(
        ("0", "25", "12.5", "9999999.99"), ("", "-1", ".5", "1.", "1.234", "1e3", "1,50", "12345678", "5 USD")
    ),
    # 19 characters are the longest number, so that its length bound (20) cannot be reached.
    _pattern_of("spec.training.learningRate"): Pattern(
        ("0", "2e-4", "0.05", "123456.12345678e-10"), ("", "-1", ".5", "1.", "1e", "0,5", "NaN", "1234567", "1 ")
    ),
    # 6 characters are the longest share, so that its length bound (16) cannot be reached.
    _pattern_of("spec.evaluation.review.winRate"): Pattern(
        ("0", "1", "1.0000", "0.5", "0.9525"), ("", "1.1", "2", ".5", "0.", "0.12345", "-0.5", "0,5", "95", "0.5 ")
    ),
    # 11 characters are the longest bound, so that its length bound (16) cannot be reached.
    _pattern_of("spec.evaluation.goals.atMost"): Pattern(
        ("8.5", "999999.9999", "0", "1", "0.05"),
        ("", "-1", "01", ".5", "8.", "1234567", "8.12345", "1e3", "8,5", "8.5 "),
    ),
    # 5 characters are the longest precision, so that its length bound (16) cannot be reached.
    _pattern_of("spec.evaluation.goals.atPrecision"): Pattern(
        ("0.5", "0.90", "0.98", "0.995", "0.999"), ("", "0.49", "1", "1.0", "0.", ".9", "0.985", "0,98", "98", "0.98 ")
    ),
    # 5 characters are the longest distance, so that its length bound (16) cannot be reached.
    verification.DISTANCE: Pattern(
        ("0", "0.55", "9.999", "1.5", "0.7"), ("", "-1", ".5", "1.", "10", "0.1234", "1e3", "0,5", "0.5 nats")
    ),
    # All drops have 3 or 4 characters, so that the length bound (4) cannot be exceeded.
    verification.DROP: Pattern(
        ("0.01", "0.99", "0.5", "0.05", "0.1"), ("", "0", "0.0", "0.00", "1", "1.0", ".1", "0.", "0.1%", "0,1", "10 %")
    ),
    # 5 and 4 characters are the longest increases, so that their length bounds (16) cannot be reached.
    strategy.ERROR_INCREASE: Pattern(
        ("0", "0.01", "0.999", "0.5", "0.000"), ("", "1", "0.", ".1", "0.0001", "-0", "0,01", "1 %", "0.01 ")
    ),
    strategy.LATENCY_INCREASE: Pattern(
        ("0", "0.5", "9.99", "1", "2.25"), ("", "10", "1.", ".5", "0.123", "-1", "0,5", "50%", "0.5x")
    ),
    verification.DURATION: Pattern(
        ("1ms", "1s", "999s", "250ms", "999999ms"),
        ("", "0s", "0ms", "1", "1.5s", "1000s", "2m", "10 ms", "-1s", "1s500ms", "1S", "050ms"),
    ),
    strategy.KEEP: Pattern(
        ("0s", "90s", "10m", "99h", "99999s"),
        ("", "10", "m", "1d", "10 m", "1h30m", "-1s", "1.5h", "100h", "10M"),
        lambda n: "9" * (n - 1) + "s",
    ),
    strategy.WATCH_INTERVAL: Pattern(
        ("0s", "10s", "99999s", "1m", "5m", "9999m", "1h", "99h"),
        ("", "5", "5s", "9s", "0m", "00s", "05m", "1d", "1h30m", "-1s", "1.5h", "100h", "5M", "10000m"),
    ),
    _pattern_of("spec.training.dropout"): Pattern(
        ("0", "0.5", "0.05"),
        ("", "1", "1.0", ".5", "0.", "00.5", "-0.5", "0,5", "5e-1", "0.5 "),
        lambda n: "0." + "1" * (n - 2),
    ),
}

PATTERNS = _URIS | _NAMES | _TEMPLATES | _NUMBERS
"""By the pattern."""
