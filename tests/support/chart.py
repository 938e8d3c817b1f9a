"""The Helm chart, rendered by the real helm."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from functools import cache
from typing import Any

import yaml

from finetune_operator.settings import Settings
from hack.cluster import toolchain
from hack.cluster.layout import REPOSITORY
from tests.support.copies import copied

CHART = REPOSITORY / "charts" / "finetune-operator"
NAMESPACE = "finetune-system"
NAMESPACED = ("--set", "watchNamespaces={team-a,team-b}")
RUNNERS = ("--set", "runner.namespaces={team-a}")


KEPT = {"helm.sh/resource-policy": "keep"}


Object = dict[str, Any]


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(toolchain.program("helm")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def render(*arguments: str) -> list[Object]:
    """A file of values may be another one of the same name; all else is rendered once."""
    rendered = _rendered.__wrapped__(*arguments) if "--values" in arguments else _rendered(*arguments)
    return [copied(parsed) for document in rendered.split("\n---\n") if (parsed := _parsed(document))]


@cache
def _rendered(*arguments: str) -> str:
    done = helm("template", "finetune-operator", str(CHART), "--namespace", NAMESPACE, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@cache
def _parsed(document: str) -> Any:
    """The CRDs, which are most of what helm writes, are the same in every rendering."""
    return yaml.load(document, yaml.CSafeLoader)


def of_kind(objects: Iterable[Object], *kinds: str) -> list[Object]:
    return [each for each in objects if each["kind"] in kinds]


def settings(objects: Iterable[Object]) -> Settings:
    (config,) = (each for each in of_kind(objects, "ConfigMap") if "config.yaml" in each["data"])
    return Settings.model_validate(yaml.load(config["data"]["config.yaml"], yaml.CSafeLoader))


def rules(role: Object) -> set[tuple[str, str, tuple[str, ...]]]:
    """(group, resource, verbs) of a role."""
    return {
        (group, resource, tuple(rule["verbs"]))
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
