"""The documentation against the code: links, YAML, commands, fields, reasons, and the names of what stages write."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from finetune_api import crdgen, layout, meta, telemetry
from finetune_api.adapterdeployment import AdapterDeployment
from finetune_api.finetunejob import FineTuneJob
from finetune_api.reasons import Reason
from finetune_api.serving_status import ServingPhase
from finetune_api.stages import Stage
from finetune_api.tracking import MLFLOW_SECRET_KEYS, WANDB_KEY_VARIABLE
from finetune_jobs.artifacts import artifact
from finetune_jobs.modelling.tuning import TUNING
from finetune_jobs.runtime import commandline
from finetune_operator.framework.conditions import ConditionType
from hack.benchmarks.__main__ import NAMES as BENCHMARKS
from hack.cluster.layout import REPOSITORY
from tests.support.pages import CODE, PAGES, anchors, blocks, every_page, identify, links, prose
from tests.support.sentences import sentences

pytestmark = pytest.mark.unit

KINDS: Final[dict[str, type[FineTuneJob | AdapterDeployment]]] = {
    "FineTuneJob": FineTuneJob,
    "AdapterDeployment": AdapterDeployment,
}
PATH: Final = re.compile(r"(?:spec|status)(?:\.[a-z]\w*(?:\[\])?)+")
"""A field of a custom resource, as the reference writes it: spec.dataset.sources[].part."""

QUOTED: Final = re.compile(rf"(?:(?:{'|'.join(Reason)}) )?… ([a-z].+)")
"""A part of a message, after its reason or after what is left out."""


# Links


def broken_links(page: Path) -> Iterator[str]:
    for match in links(page):
        target, _, anchor = match["target"].partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        path = (page.parent / target).resolve() if target else page
        if not path.is_relative_to(REPOSITORY) or not path.exists():
            yield f"{match['target']}: no such file"
        elif anchor and path.suffix == ".md" and anchor not in anchors(path):
            yield f"{match['target']}: no such heading"


@every_page
def test_every_link_leads_somewhere(page: Path) -> None:
    assert list(broken_links(page)) == []


def test_a_new_user_finds_every_page_from_the_readme() -> None:
    found, waiting = set[Path](), [REPOSITORY / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in found or page.suffix != ".md":
            continue
        found.add(page)
        targets = (match["target"].partition("#")[0] for match in links(page))
        linked = [(page.parent / target).resolve() for target in targets if target and "://" not in target]
        waiting += [path for path in linked if path.is_file()]
        waiting += [inner for path in linked if path.is_dir() for inner in path.glob("*.md")]
    docs = {page for page in PAGES if page.is_relative_to(REPOSITORY / "docs")}
    assert sorted(identify(page) for page in docs - found) == []


@every_page
def test_every_table_has_a_cell_for_each_column(page: Path) -> None:
    """A line that breaks off, or a sign for a column within a cell, makes a table unreadable."""
    lines = prose(page).splitlines()
    broken = []
    for number, (above, line) in enumerate(pairwise(["", *lines]), start=1):
        if above.startswith("|") and line and (not line.startswith("|") or columns(above) != columns(line)):
            broken.append(f"line {number} of the prose: {line[:60]}")
    assert broken == []


def columns(row: str) -> int:
    return len(re.findall(r"(?<!\\)\|", row)) - 1


# YAML


@every_page
def test_every_yaml_block_can_be_read(page: Path) -> None:
    for block in blocks(page, "yaml"):
        documents(block)


def documents(block: str) -> list[Any]:
    """The documents of a block of YAML."""
    return list(yaml.load_all(block, yaml.CSafeLoader))


@every_page
def test_every_custom_resource_is_valid(page: Path) -> None:
    for block in blocks(page, "yaml"):
        for document in documents(block):
            if isinstance(document, dict) and document.get("apiVersion") == meta.API_VERSION:
                KINDS[document["kind"]].model_validate(document)


@pytest.mark.slow
@every_page
def test_every_part_of_a_spec_names_fields_that_exist(page: Path) -> None:
    """A block that shows a part of a resource begins with ``spec`` or with one of its fields."""
    parts = {name for path in fields() if (name := path.removeprefix("spec.")) and "." not in name and path != name}
    for block in blocks(page, "yaml"):
        for document in documents(block):
            if not isinstance(document, dict) or "apiVersion" in document:
                continue
            shown = document.get("spec", document)
            if set(shown) <= parts:
                assert [path for path in leaves(shown, "spec") if path not in fields()] == []


def leaves(value: Any, path: str) -> Iterator[str]:
    """The path of every field of a YAML document."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield f"{path}.{name}"
            yield from leaves(inner, f"{path}.{name}")
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, f"{path}[]")


# Names


@cache
def fields() -> frozenset[str]:
    """The path of every field of both kinds, from their CRDs, e.g. spec.dataset.sources[].part."""
    return frozenset(
        path
        for kind in KINDS
        for part in ("spec", "status")
        for path in described(schema(kind)["properties"][part], part)
    )


def schema(kind: str) -> dict[str, Any]:
    crd = yaml.load((REPOSITORY / "crds" / f"finetune.dev_{kind.lower()}s.yaml").read_text(), yaml.CSafeLoader)
    content: dict[str, Any] = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return content


def described(node: dict[str, Any], path: str) -> Iterator[str]:
    yield path
    for name, inner in node.get("properties", {}).items():
        yield from described(inner, f"{path}.{name}")
    if "items" in node:
        yield from described(node["items"], f"{path}[]")


@pytest.mark.slow
@every_page
def test_every_field_that_is_named_exists(page: Path) -> None:
    code = [*CODE.findall(prose(page)), *blocks(page, "console", "sh")]
    known = fields() | {path.replace("[]", "") for path in fields()}
    assert sorted({path for text in code for path in PATH.findall(text)} - known) == []


@cache
def said() -> str:
    """Every sentence in the code of jobs and operator; {} stands for numbers, and for what an f-string leaves open."""
    files = [path for folder in ("jobs", "operator") for path in sorted((REPOSITORY / folder).rglob("*.py"))]
    return re.sub(r"\d+", "{}", "\n".join(text for path in files for text in sentences(path)))


@pytest.mark.slow
@every_page
def test_every_message_that_is_quoted_in_part_is_said(page: Path) -> None:
    """Tables of what you see name a reason and a part of its message: DatasetInvalid … rows are invalid."""
    quoted = {match[1] for code in CODE.findall(prose(page)) if (match := QUOTED.fullmatch(code))}
    assert sorted(part for part in quoted if re.sub(r"\d+", "{}", part) not in said()) == []


@every_page
def test_every_benchmark_that_is_named_exists(page: Path) -> None:
    named = re.findall(r"NAME=([a-z_]+)", page.read_text(encoding="utf-8"))
    assert sorted(set(named) - set(BENCHMARKS)) == []


def test_the_page_of_benchmarks_has_them_all() -> None:
    page = (REPOSITORY / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert [name for name in BENCHMARKS if f"`{name}`" not in page] == []


@every_page
def test_every_file_of_this_repository_that_is_named_exists(page: Path) -> None:
    folders = ("charts", "crds", "docs", "examples", "hack", "images", "jobs", "operator", "tests")
    named = {
        code.partition(" ")[0]
        for code in CODE.findall(prose(page))
        if code.startswith(tuple(f"{folder}/" for folder in folders)) and not set(code) & set("<>*{}…$")
    }
    named |= set(re.findall(r"\btests/\w+/test_\w+\.py", prose(page)))
    assert sorted(name for name in named if not (REPOSITORY / name.partition("::")[0]).exists()) == []


def test_every_place_that_contributors_are_sent_to_exists() -> None:
    """The tables of what to change name files and folders of the repository, or of one of its packages."""
    page = prose(REPOSITORY / "CONTRIBUTING.md").partition("## Where to change what")[2].partition("\n## ")[0]
    homes = [REPOSITORY / home for home in ("", "jobs", "jobs/finetune_jobs", "operator/finetune_operator")]
    named = {code for code in CODE.findall(page) if code.endswith((".py", "/")) or "/" in code}
    assert len(named) > 40
    assert sorted(name for name in named if not any((home / name).exists() for home in homes)) == []


@pytest.mark.slow
def test_every_page_that_the_code_names_exists() -> None:
    """Docstrings and messages send readers to pages."""
    code = [
        path
        for folder in ("charts", "crds", "hack", "images", "jobs", "operator")
        for ending in ("*.py", "*.yaml", "Dockerfile")
        for path in sorted((REPOSITORY / folder).rglob(ending))
    ]
    named = {
        name for path in code for name in re.findall(r"(?<!/)\bdocs/[\w/-]+\.md\b", path.read_text(encoding="utf-8"))
    }
    assert sorted(name for name in named if not (REPOSITORY / name).exists()) == []


# What the stages write


def source(*folders: str) -> str:
    """The code of some packages of the jobs."""
    home = REPOSITORY / "jobs" / "finetune_jobs"
    return "".join(
        path.read_text(encoding="utf-8") for folder in folders for path in sorted((home / folder).glob("*.py"))
    )


def test_every_fault_of_a_row_is_explained() -> None:
    page = (REPOSITORY / "docs" / "how-to" / "prepare-data.md").read_text(encoding="utf-8")
    code = source("reading", "examples", "preparation")
    kinds = set(re.findall(r'Fault\([^()]*(?:\([^()]*\)[^()]*)*?"([a-z]+[A-Z]\w+|empty|ragged)"', code))
    assert {"missingColumn", "ragged", "unknownLabel", "wrongToolCall"} <= kinds
    assert sorted(kind for kind in kinds if f"`{kind}`" not in page) == []


def test_every_way_out_of_a_row_is_explained() -> None:
    page = (REPOSITORY / "docs" / "concepts" / "data.md").read_text(encoding="utf-8")
    kinds = set(re.findall(r'dropped\["(\w+)"\] \+=', source("preparation", "readiness")))
    assert {"inBenchmark", "tooLong", "sourceWeight"} <= kinds
    assert sorted(kind for kind in kinds if f"`{kind}`" not in page) == []


def test_every_reason_is_one() -> None:
    """CamelCase words that end like reasons, in code: a reason that was renamed would stay in the pages."""
    reasons = {reason.value for reason in Reason}
    looks_like_one = re.compile(
        r"[A-Z][a-z]+(?:[A-Z][a-z]+)*(?:Unavailable|Refused|Exceeded|Invalid|Unknown|Missing|Denied|Hung|Diverged|Finite)"
    )
    for page in PAGES:
        named = {code for code in CODE.findall(prose(page)) if looks_like_one.fullmatch(code)}
        assert (page.name, sorted(named - reasons)) == (page.name, [])


def scalars_in(tree: ast.AST) -> Iterator[str]:
    """Keys of the dictionaries that a module makes for ``StageResult.scalars``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name in ("scalars", "_scalars", "facts"):
            yield from keys_in(node)
        if isinstance(node, ast.keyword) and node.arg == "scalars":
            yield from keys_in(node.value)


def keys_in(tree: ast.AST) -> Iterator[str]:
    """Constant keys of dictionaries, written at once or one by one."""
    for node in ast.walk(tree):
        keys = node.keys if isinstance(node, ast.Dict) else [node.slice] if isinstance(node, ast.Subscript) else []
        yield from (key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str))


@pytest.mark.slow
def test_every_scalar_is_in_the_table_of_the_stages() -> None:
    page = (REPOSITORY / "docs" / "reference" / "stages.md").read_text(encoding="utf-8")
    modules = [path.read_text(encoding="utf-8") for path in (REPOSITORY / "jobs").rglob("*.py")]
    named = {name for module in modules if "scalars" in module for name in scalars_in(ast.parse(module))}
    assert {"rowsRead", "ended", "fitGib", "teacherCostUsd", "agreementPercent", "samples"} <= named
    assert sorted(name for name in named if f"`{name}`" not in page) == []


def test_every_file_variable_and_option_is_on_the_page_of_the_stages(capsys: pytest.CaptureFixture[str]) -> None:
    page = (REPOSITORY / "docs" / "reference" / "stages.md").read_text(encoding="utf-8")
    files = [layout.MANIFEST, layout.READINESS_PAGE, TUNING, artifact.GOLDEN, artifact.SAMPLE, artifact.MODEL_REF]
    files += [artifact.MODEL_CARD, artifact.ANSWERS, artifact.METRICS]
    variables = [meta.TEACHER_KEY_VARIABLE, *MLFLOW_SECRET_KEYS, WANDB_KEY_VARIABLE]
    with pytest.raises(SystemExit):
        commandline.parse(Stage.TRAIN, ["--help"])
    options = re.findall(r"--[a-z-]+", capsys.readouterr().out)
    codes = [f"| {code.value} |" for code in meta.ExitCode]
    assert [name for name in [*files, *variables, *options] if f"`{name}`" not in page] == []
    assert [stage for stage in Stage if f"| `{stage}` |" not in page] == []
    assert [code for code in codes if code not in page] == []


def test_every_metric_is_on_the_page_of_tracking_and_its_pod_monitor_finds_the_pods() -> None:
    page = (REPOSITORY / "docs" / "how-to" / "track.md").read_text(encoding="utf-8")
    assert [name for name in telemetry.HELP if f"`{name}`" not in page] == []
    (stages,) = (
        yaml.safe_load(block)["spec"]
        for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
        if "PodMonitor" in block
    )
    assert stages["selector"] == {"matchLabels": {meta.LABEL_ROLE: "stage"}}
    assert set(stages["podTargetLabels"]) <= {meta.LABEL_OWNER_NAME, meta.LABEL_RUN, meta.LABEL_STAGE}
    assert [endpoint["port"] for endpoint in stages["podMetricsEndpoints"]] == ["metrics"]


def test_alerts_are_about_conditions_that_the_kinds_have() -> None:
    page = REPOSITORY / "docs" / "how-to" / "track.md"
    (metrics,) = (yaml.safe_load(block) for block in blocks(page, "yaml") if "CustomResourceStateMetrics" in block)
    settings = metrics["kube-state-metrics"]
    followed = [each["groupVersionKind"] for each in settings["customResourceState"]["config"]["spec"]["resources"]]
    assert [(each["group"], each["version"], each["kind"]) for each in followed] == [
        (meta.GROUP, meta.VERSION, kind.kind) for kind in crdgen.KINDS
    ]
    assert settings["rbac"]["extraRules"][0]["resources"] == [kind.plural for kind in crdgen.KINDS]
    (rules,) = (block for block in blocks(page, "yaml") if "PrometheusRule" in block)
    assert set(re.findall(r'[ {]type="(\w+)"', rules)) == {
        ConditionType.STALLED,
        ConditionType.READY,
        ConditionType.DEGRADED,
    }


def test_argo_cds_health_checks_read_conditions_that_the_kinds_have() -> None:
    """They are Lua, which nothing here runs: what could go stale in them are the names."""
    (block,) = (block for block in blocks(REPOSITORY / "docs/how-to/gitops.md", "yaml") if "kind: ConfigMap" in block)
    checks = yaml.safe_load(block)["data"]
    assert set(checks) == {f"resource.customizations.health.{meta.GROUP}_{kind}" for kind in KINDS}
    for kind in KINDS:
        check = checks[f"resource.customizations.health.{meta.GROUP}_{kind}"]
        told = schema(kind)["properties"]["status"]["properties"]["conditions"]["description"]
        read = set(re.findall(r'(?:is|says)\["(\w+)"\]', check))
        assert {"Stalled", "Ready"} <= read <= set(ConditionType)
        assert [name for name in read if name not in told] == []
        assert {f"obj.{path}" for path in ("status.observedGeneration", "status.conditions")} <= set(
            re.findall(r"obj(?:\.\w+)+", check)
        )
    endpoint = checks[f"resource.customizations.health.{meta.GROUP}_AdapterDeployment"]
    assert re.findall(r'phase == "(\w+)"', endpoint) == [ServingPhase.DEGRADED]
    assert endpoint.index('is["Degraded"]') < endpoint.index('is["Reconciling"]'), "pods are tried again for ever"
