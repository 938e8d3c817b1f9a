"""Parts of the Helm chart generated from the models: CRD templates, RBAC rules, schema and reference of the values.

``values.yaml`` is written by hand. Its comments ("# -- …") are the descriptions and its defaults determine the types;
the models in ``finetune_operator.settings`` determine the shape of profiles, runtimes and limits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic.alias_generators import to_camel
from pydantic.json_schema import models_json_schema

from finetune_api.meta import MAX_NAME
from finetune_api.strategy import WATCH_INTERVAL
from finetune_operator.rbac import RULES, Rule
from finetune_operator.settings import NOT_OF_ENGINE, Engine, MetricContainer, Profile, Runtime, Settings
from hack.manifests import fields

Schema = dict[str, Any]
Path = tuple[str, ...]

_KEY = re.compile(r"^( *)([A-Za-z0-9_-]+):")
_COMMENT = re.compile(r"^ *# ?(-- )?(.*)$")


@dataclass(frozen=True)
class Values:
    """``values.yaml``: its defaults, and the description of every commented key."""

    defaults: dict[str, Any]
    comments: dict[Path, str]

    @classmethod
    def parse(cls, text: str) -> Values:
        """Read the file; a comment belongs to the key below it."""
        comments: dict[Path, str] = {}
        parents: list[tuple[int, str]] = []
        pending: list[str] = []
        for line in text.splitlines():
            if key := _KEY.match(line):
                indent = len(key[1])
                parents = [parent for parent in parents if parent[0] < indent] + [(indent, key[2])]
                if pending:
                    comments[tuple(name for _, name in parents)] = " ".join(pending)
            comment = _COMMENT.match(line)
            if comment is None:
                pending = []
            elif comment[1]:
                pending = [comment[2]]
            elif pending:
                pending.append(comment[2])
        return cls(yaml.safe_load(text), comments)


def crd_template(crd: str) -> str:
    """A CRD as a chart template: optional, upgraded with the chart, kept when the release is uninstalled.

    Raises ValueError if Helm would interpret part of it as a template action.
    """
    if "{{" in crd:
        raise ValueError("the CRD contains '{{', which Helm would execute; change the description or pattern")
    keep = "metadata:\n  annotations:\n    helm.sh/resource-policy: keep\n"
    return f"{{{{- if .Values.crds.enabled }}}}\n{crd.replace('metadata:' + chr(10), keep, 1)}{{{{- end }}}}\n"


def rules(given: Iterable[Rule] = RULES) -> str:
    """RBAC rules of the operator, for ClusterRole and Roles alike."""
    entries = [{"apiGroups": [rule.api_group], "resources": [rule.name], "verbs": list(rule.verbs)} for rule in given]
    return "# Generated from operator/finetune_operator/rbac.py by `make manifests`; do not edit.\n" + yaml.safe_dump(
        entries, sort_keys=False, default_flow_style=None
    )


def schema(values: Values) -> str:
    """``values.schema.json``: Helm validates values with it on lint, template, install and upgrade."""
    offered = (Profile, Runtime, MetricContainer, Settings)
    _, definitions = models_json_schema([(model, "validation") for model in offered])
    models = {name: _plain(model) for name, model in definitions["$defs"].items()}
    for with_image in ("Runtime", "MetricContainer"):
        models[with_image]["properties"]["image"] = {"$ref": "#/$defs/Image"}
    models["Runtime"]["allOf"] = [_closed_for(engine, fields) for engine, fields in NOT_OF_ENGINE.items()]
    settings = models.pop("Settings")["properties"]
    images = models.pop("Images")["properties"]
    known = _known(settings, images, models.pop("Proxy")["properties"], models.pop("Tenancy")["properties"])
    root = _infer(values.defaults, (), values.comments, known)
    root["properties"]["global"] = {"description": "Global values of a parent chart; not used here.", "type": "object"}
    document = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Values of the finetune-operator chart",
        **root,
        "$defs": dict(sorted((models | _OWN_DEFINITIONS).items())),
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


_NAME = f"^[a-z]([-a-z0-9]{{0,{MAX_NAME - 2}}}[a-z0-9])?$"
"""The API's name pattern, including the maximum length."""
_SCRAPE_INTERVAL = "^[1-9][0-9]*(s|m)$"
_STRINGS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
_PEER: Schema = {
    "type": "object",
    "minProperties": 1,
    "additionalProperties": False,
    "properties": {each: {"type": "object"} for each in ("namespaceSelector", "podSelector", "ipBlock")},
}
"""A peer of a NetworkPolicy; the API server validates its parts. An empty one would allow nobody."""
_OWN_DEFINITIONS: dict[str, Schema] = {
    "Image": {
        "type": "object",
        "description": "An image: registry/repository@digest, or registry/repository:tag if there is no digest.",
        "additionalProperties": False,
        "required": ["repository"],
        "properties": {
            "registry": {"type": "string", "description": "Overrides images.registry."},
            "repository": {"type": "string", "pattern": "^[a-z0-9]+([._/-]+[a-z0-9]+)*$"},
            "tag": {"type": "string", "description": "Default: images.tag."},
            "digest": {"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
        },
    },
    "NoImage": {
        "type": "object",
        "description": "An image that is not offered.",
        "additionalProperties": False,
        "properties": {each: {"const": ""} for each in ("registry", "repository", "tag", "digest")},
    },
    "Namespace": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63},
    "Resources": {
        "type": "object",
        "additionalProperties": False,
        "properties": {"requests": _STRINGS, "limits": _STRINGS},
    },
}


def _known(settings: Schema, images: Schema, proxy: Schema, tenancy: Schema) -> dict[Path, Schema]:
    """Schemas that cannot be inferred from a default value."""
    namespaces = {"type": "array", "uniqueItems": True, "items": {"$ref": "#/$defs/Namespace"}}
    image = {"$ref": "#/$defs/Image"}
    return {
        ("watchNamespaces",): namespaces,
        ("images", "pullPolicy"): images["pullPolicy"] | {"enum": ["Always", "IfNotPresent", "Never"]},
        **{("images", each): image for each in ("operator", "data", "prepare", "jobs", "quantize", "proxy")},
        ("images", "evaluateVllm"): {"anyOf": [image, {"$ref": "#/$defs/NoImage"}]},
        ("profiles",): _by_name("Profile") | {"minProperties": 1},
        ("runtimes",): _by_name("Runtime"),
        ("metricContainers",): _by_name("MetricContainer"),
        ("runner", "namespaces"): namespaces,
        ("runner", "serviceAccountName"): {"type": "string", "pattern": _NAME},
        ("runner", "annotations"): _STRINGS,
        ("runner", "networkPolicy", "metricsFrom"): {"type": "array", "items": _PEER},
        **{("proxy", each): proxy[each] for each in ("httpProxy", "httpsProxy")},
        ("tenancy", "rules"): tenancy["rules"],
        ("serving", "ingressFrom"): {"type": "array", "items": _PEER},
        ("serving", "metricsFrom"): {"type": "array", "items": _PEER},
        ("serving", "verificationFloors"): {"type": "array", "items": {"$ref": "#/$defs/VerificationFloor"}},
        ("serving", "longestWatchInterval"): {"type": "string", "pattern": WATCH_INTERVAL},
        ("serving", "formerRoutes"): {"$ref": "#/$defs/FormerRoutes"},
        ("serving", "ingresses", "annotations"): _STRINGS,
        ("operator", "replicas"): {"type": "integer", "minimum": 1, "maximum": 5},
        ("operator", "instance"): settings["instance"],
        ("operator", "workers"): settings["workers"],
        ("operator", "resyncSeconds"): settings["resyncSeconds"],
        ("operator", "keepEndedSeconds"): settings["keepEndedSeconds"],
        ("operator", "progressSeconds"): settings["progressSeconds"],
        ("operator", "maxConcurrentRollouts"): {"type": "integer", "minimum": 1},
        ("operator", "policySeconds"): settings["policySeconds"],
        ("operator", "logFormat"): {"enum": ["plain", "json"]},
        ("operator", "resources"): {"$ref": "#/$defs/Resources"},
        ("operator", "nodeSelector"): _STRINGS,
        ("operator", "tolerations"): {"type": "array", "items": {"type": "object"}},
        ("metrics", "withoutCrds"): {"enum": ["Skip", "Fail", "Create"]},
        ("metrics", "podMonitor", "labels"): _STRINGS,
        ("metrics", "podMonitor", "interval"): {"type": "string", "pattern": _SCRAPE_INTERVAL},
        ("metrics", "alerts", "labels"): _STRINGS,
        ("metrics", "endpoints", "podMonitor", "labels"): _STRINGS,
        ("metrics", "endpoints", "podMonitor", "interval"): {"type": "string", "pattern": _SCRAPE_INTERVAL},
        ("metrics", "endpoints", "rules", "labels"): _STRINGS,
        ("metrics", "dashboards", "labels"): _STRINGS,
        ("metrics", "dashboards", "annotations"): _STRINGS,
        ("networkPolicy", "metricsFrom"): {"type": "array", "items": _PEER},
        ("networkPolicy", "apiServerPorts"): {
            "type": "array",
            "minItems": 1,
            "items": {"type": "integer", "minimum": 1, "maximum": 65535},
        },
    }


def _closed_for(engine: Engine, names: Iterable[str]) -> Schema:
    """Refuses the fields of a runtime that an engine has no use for, as the operator does when it starts."""
    return {
        "if": {"properties": {"engine": {"const": engine.value}}, "required": ["engine"]},
        "then": {"properties": {to_camel(name): False for name in names}},
    }


def _by_name(model: str) -> Schema:
    """A map from names to models. Uses a pattern because Helm's error for propertyNames shows the wrong place."""
    return {"type": "object", "additionalProperties": False, "patternProperties": {_NAME: {"$ref": f"#/$defs/{model}"}}}


_MAY_BE_NULL = frozenset({("operator", "maxConcurrentRollouts")})
"""Keys that null removes with a meaning."""


def _infer(value: Any, path: Path, comments: dict[Path, str], known: dict[Path, Schema]) -> Schema:
    """Schema of a key: the known one, or inferred from its default. Raises ValueError if it has no comment."""
    described = {"description": comments[path]} if path in comments else {}
    if path in known:
        return known[path] | described
    if isinstance(value, dict):
        children = {name: _infer(child, (*path, name), comments, known) for name, child in value.items()}
        # Required: null removes a key, but the templates need all others.
        required = [name for name in children if (*path, name) not in _MAY_BE_NULL]
        closed = {"type": "object", "additionalProperties": False, "required": required}
        return described | closed | {"properties": children}
    if not described:
        raise ValueError(f"values.yaml: {'.'.join(path)} has no description; add a line '# -- …' above it")
    if isinstance(value, list):
        return described | {"type": "array", "items": {"type": "string"}}
    return described | {"type": {bool: "boolean", int: "integer", str: "string"}[type(value)]}


def _plain(model: Any) -> Any:
    """A model's schema without titles, which gives clearer errors, and CEL rules, which Helm does not know; optional
    fields instead of unions with null."""
    if isinstance(model, list):
        return [_plain(each) for each in model]
    if not isinstance(model, dict):
        return model
    kept = {
        key: _plain(value)
        for key, value in model.items()
        if not (key == "title" and isinstance(value, str)) and key != "x-kubernetes-validations"
    }
    if isinstance(kept.get("description"), str):
        kept["description"] = " ".join(kept["description"].split())
    options = [option for option in kept.get("anyOf", []) if option.get("type") != "null"]
    if len(options) != 1:
        return kept
    return {key: value for key, value in kept.items() if key not in {"anyOf", "default"}} | options[0]


def reference(values: Values) -> str:
    """``docs/reference/values.md``: every commented key with its default; fields of profiles, runtimes and rules."""
    lines = [
        "<!-- Generated from charts/finetune-operator/values.yaml by `make manifests`; do not edit. -->",
        "# Values of the chart",
        "",
        "Helm validates them against the chart's schema on every command. You can define any number of profiles,",
        "runtimes and rules; the tables below list their fields.",
        "",
        "| key | default | description |",
        "| --- | --- | --- |",
    ]
    for path, text in values.comments.items():
        default: Any = values.defaults
        for name in path:
            default = default[name]
        shown = "see values.yaml" if isinstance(default, dict) and default else f"`{json.dumps(default)}`"
        lines.append(f"| `{'.'.join(path)}` | {shown} | {text.replace('|', chr(92) + '|')} |")
    return "\n".join([*lines, *fields.tables()]) + "\n"
