"""Objects as an earlier version of the API had them, and the sentence with which each field is refused now."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Final

from finetune_api import meta

Object = dict[str, Any]
Path = tuple[str | int, ...]

_STORE: Final = "secretRef.name; its keys are AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_FILE: Final = "name the ConfigMap and its key in configMapKeyRef"
_KEY: Final = "name the Secret and its key with the API key in secretKeyRef"
_BUNDLE: Final = {"configMapName": "ca", "key": "ca.crt"}
_ROWS: Final = {"configMap": {"name": "rows", "key": "rows.csv"}}
_DATASET: Final = ("spec", "dataset")

JOB: Final[Object] = {
    "apiVersion": meta.API_VERSION,
    "kind": meta.FINETUNEJOB,
    "metadata": {"name": "old"},
    "spec": {
        "profile": "small",
        "model": {"uri": "s3://abc/model"},
        "dataset": {
            "sources": [{"uri": "s3://abc/rows.csv"}],
            "benchmarks": [{"uri": "s3://abc/benchmark.csv"}],
            "replay": {"source": {"uri": "s3://abc/general.jsonl"}},
            "pii": {"ner": {"uri": "s3://abc/names"}},
            "distillation": {"teacher": {"url": "http://t/v1", "model": "m"}},
        },
        "output": {
            "uri": "s3://abc",
            "name": "old",
            "pushTo": [{"oci": {"registry": "https://r", "repository": "a"}}],
        },
        "evaluation": {
            "metrics": [{"name": "suite", "data": {"uri": "s3://abc/questions"}}],
            "judge": {"endpoint": {"url": "http://j/v1", "model": "m"}},
            "baseline": {"endpoint": {"url": "http://b/v1", "model": "m"}},
        },
    },
}
DEPLOYMENT: Final[Object] = {
    "apiVersion": meta.API_VERSION,
    "kind": meta.ADAPTERDEPLOYMENT,
    "metadata": {"name": "old"},
    "spec": {"runtime": "tgi", "source": {"artifact": {"uri": f"s3://abc/artifacts/{'0' * 64}"}}},
}
ADAPTERS: Final[Object] = {
    **DEPLOYMENT,
    "spec": {"runtime": "vllm", "source": {"adapters": [{"name": "fr", **DEPLOYMENT["spec"]["source"]}]}},
}
CHANNEL: Final[Object] = {
    **DEPLOYMENT,
    "spec": {"runtime": "tgi", "source": {"output": {"uri": "s3://abc", "name": "transactions"}}},
}

ADAPTER_CHANNELS: Final[Object] = {
    **DEPLOYMENT,
    "spec": {"runtime": "vllm", "source": {"adapters": [{"name": "fr", **CHANNEL["spec"]["source"]}]}},
}


_STORAGES: Final[list[tuple[Object, Path]]] = [
    (JOB, ("spec", "storage")),
    (JOB, ("spec", "model", "storage")),
    (JOB, ("spec", "output", "storage")),
    (JOB, (*_DATASET, "sources", 0, "storage")),
    (JOB, (*_DATASET, "benchmarks", 0, "storage")),
    (JOB, (*_DATASET, "replay", "source", "storage")),
    (JOB, (*_DATASET, "pii", "ner", "storage")),
    (JOB, ("spec", "evaluation", "metrics", 0, "data", "storage")),
    (DEPLOYMENT, ("spec", "source", "artifact", "storage")),
    (ADAPTERS, ("spec", "source", "adapters", 0, "artifact", "storage")),
    (CHANNEL, ("spec", "source", "output", "storage")),
    (ADAPTER_CHANNELS, ("spec", "source", "adapters", 0, "output", "storage")),
]


@dataclass(frozen=True)
class Old:
    """A field of an earlier version, written into an object that is otherwise of this one."""

    body: Object
    path: Path
    """Where ``value`` stands, which holds the field."""
    value: Object
    says: str
    """Part of the complaint: what to write instead."""

    def __str__(self) -> str:
        return ".".join(map(str, (self.body["kind"], *self.path, *self.value)))

    @property
    def object(self) -> Object:
        """The whole object."""
        made = copy.deepcopy(self.body)
        target: Any = made
        for step in self.path:
            target = target[step] if isinstance(step, int) else target.setdefault(step, {})
        if self.value == _ROWS:
            target.clear()  # a source is either a URI or a file
        target.update(self.value)
        return made


OLD: Final = [
    *(Old(body, path, {"credentials": {"secretName": "s3"}}, _STORE) for body, path in _STORAGES),
    *(Old(body, (*path, "caBundle"), _BUNDLE, "configMapKeyRef") for body, path in _STORAGES),
    Old(JOB, ("spec", "output", "pushTo", 0, "oci", "caBundle"), _BUNDLE, "configMapKeyRef"),
    *(Old(body, path, {"pathStyle": False}, "addressing: VirtualHost for false") for body, path in _STORAGES),
    Old(JOB, ("spec", "storage"), {"credentials": {"secretName": "s3", "accessKeyIdKey": "id"}}, _STORE),
    Old(JOB, (*_DATASET, "sources", 0), _ROWS, _FILE),
    Old(JOB, (*_DATASET, "benchmarks", 0), _ROWS, _FILE),
    Old(JOB, (*_DATASET, "replay", "source"), _ROWS, _FILE),
    *(
        Old(JOB, path, {"credentials": {"secretName": "t"}}, _KEY)
        for path in (
            (*_DATASET, "distillation", "teacher"),
            ("spec", "evaluation", "judge", "endpoint"),
            ("spec", "evaluation", "baseline", "endpoint"),
        )
    ),
    Old(JOB, (*_DATASET, "duplicates"), {"dropNear": True}, "near: Drop"),
    Old(JOB, (*_DATASET, "distillation"), {"dropRefusals": True}, "refusals: Drop"),
    Old(JOB, ("spec", "training"), {"dora": True}, "adapter: DoRA"),
    Old(JOB, ("spec", "training"), {"rslora": True}, "scaling: RootOfRank"),
    Old(JOB, ("spec", "tracking", "mlflow"), {"url": "http://m", "credentials": {"secretName": "m"}}, "secretRef.name"),
    Old(JOB, ("spec", "tracking", "wandb"), {"credentials": {"secretName": "w"}}, "secretKeyRef"),
]
"""One for each retired field of the CRDs."""
