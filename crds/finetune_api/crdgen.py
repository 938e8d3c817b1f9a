"""Generates the CRD YAML from the pydantic models; ``make manifests`` writes it.

Pydantic writes JSON Schema 2020-12; Kubernetes needs a *structural schema* of OpenAPI v3
(https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/). The conversion
inlines references, drops what the API server rejects, and keeps descriptions (``kubectl explain``), bounds and
defaults. Every field must have a description, and every list and free text of a spec a bound, because the API server
estimates the cost of CEL rules from the largest possible value.
"""

from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel

from finetune_api import meta
from finetune_api.adapterdeployment import AdapterDeployment, AdapterDeploymentSpec
from finetune_api.base import ApiModel
from finetune_api.finetunejob import FineTuneJob, FineTuneJobSpec
from finetune_api.freeze import places
from finetune_api.job_status import FineTuneJobStatus
from finetune_api.rules import NotEmpty, Rule, frozen_at_work, name_rule
from finetune_api.serving_status import AdapterDeploymentStatus
from finetune_api.spelled import spelled_out

Schema = dict[str, Any]

_KEPT = frozenset(
    {"type", "description", "default", "enum", "format", "pattern", "items", "properties", "required"}
    | {"minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "maxProperties"}
    | {"additionalProperties", "x-kubernetes-validations", "x-kubernetes-preserve-unknown-fields"}
    | {"x-kubernetes-list-type", "x-kubernetes-list-map-keys"}
)


@dataclass(frozen=True)
class Kind:
    """One custom resource."""

    model: type[BaseModel]
    spec: type[BaseModel]
    status: type[BaseModel]
    kind: str
    plural: str
    short_name: str
    columns: tuple[tuple[str, str, str, int], ...]
    """Printer columns: name, type, JSON path, priority (1 shows only with ``-o wide``)."""
    selectable: tuple[str, ...]
    """JSON paths of the fields that ``kubectl get --field-selector`` and watches can select by."""
    rules: tuple[Rule, ...]
    """CEL rules over the whole object."""
    scale: Schema | None = None
    """The scale subresource."""


KINDS = (
    Kind(
        model=FineTuneJob,
        spec=FineTuneJobSpec,
        status=FineTuneJobStatus,
        kind=meta.FINETUNEJOB,
        plural=meta.FINETUNEJOBS,
        short_name="ftj",
        columns=(
            ("Phase", "string", ".status.phase", 0),
            ("Stages", "string", ".status.stagesDone", 0),
            ("Stage", "string", ".status.progress.stage", 0),
            ("Percent", "integer", ".status.progress.percent", 0),
            ("Accuracy", "string", ".status.evaluation.accuracy.artifact", 0),
            ("Base", "string", ".status.evaluation.accuracy.base", 1),
            ("Goals", "string", ".status.evaluation.goalsMet", 0),
            ("Reason", "string", ".status.conditions[?(@.type=='Ready')].reason", 0),
            ("Artifact", "string", ".status.artifact.uri", 1),
            ("Message", "string", ".status.conditions[?(@.type=='Ready')].message", 1),
            ("Age", "date", ".metadata.creationTimestamp", 0),
        ),
        selectable=(".status.phase", ".spec.profile"),
        rules=(name_rule(), frozen_at_work(FineTuneJobSpec)),
    ),
    Kind(
        model=AdapterDeployment,
        spec=AdapterDeploymentSpec,
        status=AdapterDeploymentStatus,
        kind=meta.ADAPTERDEPLOYMENT,
        plural=meta.ADAPTERDEPLOYMENTS,
        short_name="adep",
        columns=(
            ("Phase", "string", ".status.phase", 0),
            ("Ready", "string", ".status.conditions[?(@.type=='Ready')].status", 0),
            ("Revision", "string", ".status.stable.revision", 0),
            ("Candidate", "string", ".status.candidate.revision", 0),
            ("Canary", "string", ".status.candidate.canary.summary", 0),
            ("Previous", "string", ".status.previous.revision", 1),
            ("Replicas", "integer", ".status.readyReplicas", 0),
            ("Accuracy", "string", ".status.stable.accuracy", 0),
            ("Endpoint", "string", ".status.endpoint", 0),
            ("Url", "string", ".status.url", 1),
            ("Reason", "string", ".status.conditions[?(@.type=='Ready')].reason", 1),
            ("Message", "string", ".status.conditions[?(@.type=='Ready')].message", 1),
            ("Age", "date", ".metadata.creationTimestamp", 0),
        ),
        selectable=(".status.phase", ".spec.runtime"),
        rules=(name_rule(),),
        scale={
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        },
    ),
)


def crd(kind: Kind) -> Schema:
    """The CustomResourceDefinition of a kind."""
    schema = {
        "type": "object",
        "description": _docstring(kind.model),
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": "Version of this representation of the object."},
            "kind": {"type": "string", "description": "Kind of the object."},
            "metadata": {"type": "object"},
            "spec": _in_words(structural(kind.spec)),
            "status": _written(structural(kind.status), kind.status) | {"default": {"observedGeneration": -1}},
        },
        "x-kubernetes-validations": [rule.as_schema() for rule in kind.rules],
    }
    subresources: Schema = {"status": {}} | ({"scale": kind.scale} if kind.scale else {})
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{kind.plural}.{meta.GROUP}",
            "labels": {"app.kubernetes.io/part-of": meta.MANAGED_BY},
        },
        "spec": {
            "group": meta.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind.kind,
                "listKind": f"{kind.kind}List",
                "plural": kind.plural,
                "singular": kind.kind.lower(),
                "shortNames": [kind.short_name],
                "categories": ["finetune"],
            },
            "versions": [
                {
                    "name": meta.VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": subresources,
                    "additionalPrinterColumns": [
                        {"name": name, "type": kind_of, "jsonPath": path} | ({"priority": priority} if priority else {})
                        for name, kind_of, path, priority in kind.columns
                    ],
                    "selectableFields": [{"jsonPath": path} for path in kind.selectable],
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }


def structural(model: type[BaseModel]) -> Schema:
    """The structural schema of a model. Raises ValueError for what Kubernetes cannot express."""
    root = model.model_json_schema(by_alias=True, mode="validation")
    definitions = root.pop("$defs", {})
    schema = _convert(root, definitions, model.__name__)
    schema["description"] = _docstring(model)
    return schema


def _convert(node: Schema, definitions: Schema, path: str) -> Schema:
    node = _inline(node, definitions, path)
    result = {key: value for key, value in node.items() if key in _KEPT}
    if "description" in result:
        result["description"] = _one_line(result["description"])
    if node.get("additionalProperties") is False:
        result.pop("additionalProperties")
    if isinstance(result.get("additionalProperties"), dict):
        result["additionalProperties"] = _convert(result["additionalProperties"], definitions, f"{path}.*")
    if "items" in result:
        result["items"] = _convert(result["items"], definitions, f"{path}[]")
    if "properties" in result:
        result["properties"] = {
            name: _described(_convert(child, definitions, f"{path}.{name}"), f"{path}.{name}")
            for name, child in result["properties"].items()
        }
        _default_when_optional(result)
    if "const" in node:
        result["enum"] = [node["const"]]
    if result.get("type") == "array":
        result.setdefault("x-kubernetes-list-type", "atomic")
    return result


def _inline(node: Schema, definitions: Schema, path: str) -> Schema:
    """Resolve ``$ref`` and ``anyOf: [T, null]``; the field's own description wins over the type's."""
    node = dict(node)
    if "anyOf" in node:
        options = [option for option in node.pop("anyOf") if option.get("type") != "null"]
        if len(options) != 1:
            raise ValueError(f"{path}: a union of {len(options)} types has no structural schema")
        if node.get("default", ...) is None:
            del node["default"]
        node = options[0] | node
    if "$ref" in node:
        target = definitions[node.pop("$ref").rsplit("/", 1)[1]]
        node = _inline(target, definitions, path) | node
    return node


def _default_when_optional(schema: Schema) -> None:
    """Write defaults of nested objects as ``{}``, so that the API server fills in each field's own default.

    A default that CEL rules check must be complete: the API server checks it before it fills in defaults. It holds no
    null, which the API server refuses. An empty text that a rule refuses is no default.
    """
    for child in schema["properties"].values():
        if any(rule["rule"] == NotEmpty.RULE for rule in child.get("x-kubernetes-validations", [])):
            child.pop("default", None)
        nested = "default" in child and child.get("type") == "object" and "properties" in child
        if nested and "x-kubernetes-validations" not in child:
            child["default"] = {}
        elif nested:
            child["default"] = _present(child["default"])


def _present(value: Any) -> Any:
    """A default without what is null in it."""
    if isinstance(value, dict):
        return {name: _present(each) for name, each in value.items() if each is not None}
    return [_present(each) for each in value] if isinstance(value, list) else value


def _in_words(schema: Schema) -> Schema:
    """The schema of a spec, without the patterns that a rule spells out: people should read one complaint, in words."""
    for child in (*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])):
        _in_words(child)
    if spelled_out(schema):
        schema.pop("pattern", None)
    return schema


def _written(schema: Schema, model: type[BaseModel] | None) -> Schema:
    """The schema of a status, which only the operator writes: without rules, and without empty defaults, because the
    API server must not fill in what the operator omits."""
    _keep_what_is_read(schema, model)
    below = {place.name: place.below for place in places(model)} if model else {}
    children = [(child, below.get(name)) for name, child in schema.get("properties", {}).items()]
    for child, its_model in [*children, *([(schema["items"], model)] if "items" in schema else [])]:
        _written(child, its_model)
        child.pop("x-kubernetes-validations", None)
        if child.get("default") in ("", []):
            del child["default"]
    return schema


def _keep_what_is_read(schema: Schema, model: type[BaseModel] | None) -> None:
    """Of retired fields, keep those with a successor: the API server drops what the schema lacks, also of what is
    stored. It must not fill in the successor's default beside them."""
    retired = model.retired if model and issubclass(model, ApiModel) else {}
    for name, field in retired.items() if "properties" in schema else ():
        if field.successor:
            schema["properties"][name] = {"type": field.type, "description": "Written by earlier versions."}
            schema["properties"][field.successor.name].pop("default", None)
        else:
            del schema["properties"][name]


def _described(schema: Schema, path: str) -> Schema:
    if not schema.get("description") and not path.startswith("ObjectMeta"):
        raise ValueError(f"{path}: a field without a description")
    return schema


def _docstring(model: type[BaseModel]) -> str:
    return _one_line(model.__doc__ or "")


def _one_line(text: str) -> str:
    """Without the source's line breaks: ``kubectl explain`` wraps by itself."""
    return " ".join(text.split())


class _Dumper(yaml.CSafeDumper):
    """YAML that Go parses as intended: text that looks like a number (``2e-4``) is quoted."""


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    numeric = text[:1].isdigit() and text.replace("e", "").replace("-", "").replace(".", "").isdigit()
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'" if numeric else None)


_Dumper.add_representer(str, _text)


HEADER = "# Generated from crds/finetune_api by `make manifests`; do not edit.\n"


def text(kind: Kind) -> str:
    """The CRD as the YAML file that is committed."""
    return HEADER + yaml.dump(crd(kind), Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


def file_name(kind: Kind) -> str:
    """Name of that file."""
    return f"{meta.GROUP}_{kind.plural}.yaml"
