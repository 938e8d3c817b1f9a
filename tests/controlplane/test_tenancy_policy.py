"""The API server refuses at ``kubectl apply`` what the operator would not run: both answer the same, word for word.

Each set of the chart's values is rendered by helm; its policies are applied to a real API server, for a namespace of
their own. Every resource goes to that namespace and to ``tenancy_violation``.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune_api import meta
from finetune_api.adapterdeployment import AdapterDeployment
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.reasons import REMEDIES, Reason
from finetune_operator.adapterdeployment.claims import claims_of as deployment_claims
from finetune_operator.adapterdeployment.observe import ObservedDeployment
from finetune_operator.finetunejob.claims import job_violation
from finetune_operator.framework.client import ApiError, KubeClient
from finetune_operator.framework.objects import Object
from finetune_operator.kinds import FINETUNEJOBS
from finetune_operator.settings import Settings
from finetune_operator.tenancy.verdict import tenancy_violation
from hack.cluster import toolchain
from hack.cluster.console import run
from hack.cluster.controlplane import ControlPlane
from hack.cluster.layout import REPOSITORY
from tests.controlplane.conftest import wait
from tests.support.crd_server import CrdServer
from tests.support.sentences import assert_says

pytestmark = pytest.mark.controlplane

CHART = REPOSITORY / "charts" / "finetune-operator"
NAMESPACE: Final = "tenancy-{}"
LARGE: Final = "large"
"""The values whose messages are long: for a test of their own."""
DIGEST: Final = "0123456789abcdef" * 4

VALUES: dict[str, Any] = {
    "none": {},
    "everything": {
        "rules": [
            {
                "namespaces": ["tenancy-every*"],
                "profiles": ["cpu-small", "gpu-a*"],
                "runtimes": ["tgi-*"],
                "outputs": ["s3://models-{namespace}/", "s3://team"],
                "inputs": ["s3://shared/base", "hf://acme", "hf://datasets/acme/rows@v1"],
                "endpoints": ["AWS", "https://s3.example", "http://minio.example:9000"],
                "hosts": ["*.example", "vllm*"],
                "insecureHosts": ["old.example", "*.corp"],
                "secrets": ["finetune-*", "s3.keys"],
                "gateways": ["gateways/public", "{namespace}/*"],
                "ingressClasses": ["nginx*"],
                "hostnames": ["*.{namespace}.example", "a.shared.example"],
                "maxUsdPerRun": 25.5,
            }
        ]
    },
    "choices": {
        "rules": [
            {"namespaces": ["tenancy-choices"], "profiles": ["gpu-l4"], "runtimes": [], "maxUsdPerRun": 10},
            {"namespaces": ["*"], "profiles": ["cpu-small"], "inputs": [], "outputs": ["s3://"], "secrets": []},
        ]
    },
    "others": {"rules": [{"namespaces": ["team-*"]}]},
    LARGE: {
        "rules": [
            {
                "namespaces": ["tenancy-large", *(f"team-{number:03}" for number in range(100))],
                "profiles": [f"profile-{number:03}" for number in range(100)],
                "outputs": [f"s3://models-{number:03}/{{namespace}}/results" for number in range(100)],
                "inputs": [f"s3://data-{number:03}/{{namespace}}/tables" for number in range(100)],
                "endpoints": [f"https://store-{number:03}.storage.example" for number in range(100)],
                "hosts": [f"server-{number:03}.models.example" for number in range(100)],
                "insecureHosts": [f"old-{number:03}.models.example" for number in range(100)],
                "secrets": [f"finetune-secret-{number:03}" for number in range(100)],
            }
        ]
    },
}
"""``tenancy`` in the chart's values, by the name of its namespace."""


@dataclass
class Refusals:
    """The two that judge, in one namespace."""

    api: KubeClient
    server: CrdServer
    plane: ControlPlane
    namespace: str
    settings: Settings

    def job(self, changes: Object) -> Object:
        """A FineTuneJob that asks for little, and more: ``changes`` by dotted path."""
        spec = {
            "profile": "cpu-small",
            "model": {"uri": "s3://shared/base"},
            "dataset": {"sources": [{"uri": "s3://team/rows.csv"}]},
            "output": {"uri": "s3://team", "name": "tried"},
        }
        return self._object(meta.FINETUNEJOB, spec, changes)

    def deployment(self, changes: Object) -> Object:
        """An AdapterDeployment that asks for little, and more."""
        artifact = {"uri": f"s3://team/artifacts/{DIGEST}"}
        return self._object(meta.ADAPTERDEPLOYMENT, {"runtime": "tgi-cpu", "source": {"artifact": artifact}}, changes)

    def _object(self, kind: str, spec: Object, changes: Object) -> Object:
        for path, value in changes.items():
            *parents, last = path.split(".")
            place = spec
            for parent in parents:
                place = place.setdefault(parent, {})
            place[last] = copy.deepcopy(value)
        metadata = {"name": "tried", "namespace": self.namespace}
        return {"apiVersion": meta.API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}

    def operators(self, body: Object) -> str:
        """What the operator would say; empty: nothing."""
        if body["kind"] == meta.FINETUNEJOB:
            return job_violation(self.settings, self.namespace, FineTuneJobSpec.model_validate(body["spec"]))
        resource = AdapterDeployment.model_validate(
            {**body, "metadata": body["metadata"] | {"uid": "", "generation": 1}}
        )
        claims = deployment_claims(ObservedDeployment(resource, self.settings))
        return tenancy_violation(self.settings.tenancy, self.settings.free_profiles, self.namespace, claims)

    def servers(self, body: Object) -> str:
        """What the API server says; empty: it takes the resource, which it is not to keep."""
        status, answer = self.server.send("POST", body, namespace=self.namespace)
        assert status in (201, 403), answer
        return "" if status == 201 else str(answer["message"])

    def enforce(self, action: str) -> None:
        """What the policy for FineTuneJobs does with what it does not allow."""
        name = f"{meta.FINETUNEJOBS}.finetune-operator.finetune-system"
        patch = json.dumps({"spec": {"validationActions": [action]}})
        self.plane.kubectl("patch", "validatingadmissionpolicybinding", name, "--type", "merge", "--patch", patch)

    def agree(self, body: Object) -> str:
        """What both say of a resource; fails where they differ."""
        expected, said = self.operators(body), self.servers(body)
        if expected:
            assert_says(said, expected)
        else:
            assert said == ""
        return expected


@pytest.fixture(scope="module", params=[name for name in VALUES if name != LARGE])
def refusals(
    request: pytest.FixtureRequest, crds: CrdServer, api: KubeClient, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Refusals]:
    """A namespace with the chart's policies, which must not fail: outside of tests a failure lets everything pass."""
    namespace, plane = NAMESPACE.format(request.param), crds.plane
    values = {"tenancy": VALUES[request.param], "watchNamespaces": [namespace]}
    path = tmp_path_factory.mktemp("values") / "values.yaml"
    path.write_text(yaml.safe_dump(values))
    policies, configuration = rendered(path)
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": policies})
    plane.kubectl("create", "namespace", namespace)
    plane.kubectl("apply", "-f", "-", stdin=text.replace('"failurePolicy": "Ignore"', '"failurePolicy": "Fail"'))
    result = Refusals(api, crds, plane, namespace, configuration)
    refused = {"output.uri": "s3://nobodys/../place", "profile": "gpu-h100-80", "storage.endpoint": "http://10.0.0.1"}
    wait(lambda: result.servers(result.job(refused)), "the policy to be in force")
    beyond = {"runtime": "beyond", "source.artifact.storage.endpoint": "http://10.0.0.1"}
    wait(lambda: result.servers(result.deployment(beyond)), "the other policy to be in force")
    yield result
    plane.kubectl("delete", "--ignore-not-found", "--wait=false", "-f", "-", stdin=text)
    plane.kubectl("delete", "namespace", namespace, "--wait=false")


def rendered(values: Path) -> tuple[list[Object], Settings]:
    """The chart's policies with their bindings, and the operator's configuration."""
    chart = ("finetune-operator", str(CHART), "--namespace", "finetune-system")
    text = run([toolchain.program("helm"), "template", *chart, "--values", values])
    objects = [each for each in yaml.load_all(text, yaml.CSafeLoader) if each]
    policies = [each for each in objects if each["kind"].startswith("ValidatingAdmissionPolicy")]
    [config] = [each for each in objects if each["kind"] == "ConfigMap"]
    return policies, Settings.model_validate(yaml.safe_load(config["data"]["config.yaml"]))


URIS = [
    "s3://team/x",
    "s3://team/../other",
    "s3://teams/x",
    "s3://shared/base/m",
    "s3://shared//base/m",
    "hf://acme/m@v1",
]
URLS = [
    *(
        "https://api.example",
        "http://api.example",
        "https://openai.com:8443",
        "http://vllm",
        "http://vllm.models.svc:80",
    ),
    *("http://OLD.example", "http://134744072", "http://store.corp:9000/x", "http://minio.example:9000"),
]
SECRETS = ["finetune-keys", "s3.keys", "s3-keys", "root"]
DATA = [
    *("s3://team/rows.csv", "s3://team/a/*.csv", "s3://other/", "s3://shared/base/./x", "s3://team/x//y"),
    *("hf://datasets/acme/rows@v1/a.csv", "hf://datasets/acme/rows@v2/a.csv"),
]
STORAGES: list[dict[str, Any]] = [
    {},
    {"endpoint": "https://S3.example"},
    {"endpoint": "http://10.0.0.1", "secretRef": {"name": "root"}},
    {"secretRef": {"name": "finetune-keys"}},
]
TOKENS = [{"name": name, "key": "token"} for name in ("finetune-hub", "root")]
TEACHER = "dataset.distillation.teacher"


def reached(uris: list[str]) -> list[Object]:
    """What is read, in each of the ways that its URI can be reached."""
    sources: list[Object] = [{"uri": uri} for uri in uris]
    sources += [{"uri": uri, "storage": storage} for uri in uris[:1] for storage in STORAGES]
    hub = [uri for uri in uris if uri.startswith("hf://")]
    return sources + [{"uri": uri, "secretKeyRef": token} for uri in hub[:1] for token in TOKENS]


SOURCES = reached(DATA)


def hub(fields: Mapping[str, Any] = MappingProxyType({}), secret: str = "finetune-hub") -> Object:
    """A place on the Hugging Face hub to push to."""
    return {"huggingFace": {"repository": "a/b", "secretKeyRef": {"name": secret, "key": "k"}, **fields}}


JOB_FIELDS: dict[str, list[Any]] = {
    "profile": ["gpu-l4", "gpu-a100-40", "gpu-h100-80"],
    "budget.maxCost": ["0", "10.00", "25.50", "25.51", "9999999.99"],
    "output.uri": [
        "s3://team/x",
        "s3://models-tenancy-everything",
        "s3://models-other",
        "s3://team/a/./b",
        "s3://team/",
    ],
    "output.storage": STORAGES,
    "model": reached(
        [*URIS[:1], "s3://shared/base", "s3://shared/base2", "hf://acme/m@v1", "hf://acme2/m@v1", "hf://x/m@v1"]
    ),
    "dataset.sources": [
        *([source] for source in SOURCES),
        [{"configMapKeyRef": {"name": "rows", "key": "a.csv"}}, *SOURCES[-4:]],
    ],
    "dataset.benchmarks": [[{"uri": "s3://team/b.csv"}, source] for source in SOURCES],
    "dataset.replay.source": SOURCES,
    "dataset.pii.ner": reached(["s3://team/ner", "s3://other/ner"]),
    "evaluation.metrics": [
        *([{"name": "a"}, {"name": "b", "data": data}] for data in reached(["s3://team/tasks", "s3://other/tasks"])),
    ],
    "output.pushTo": [
        *([{"oci": {"registry": url.removesuffix("/x"), "repository": "a"}}] for url in URLS),
        *([{"oci": {"registry": "https://api.example", "repository": "a", "secretRef": {"name": n}}}] for n in SECRETS),
        [{"oci": {"registry": url.removesuffix("/x"), "repository": "a"}} for url in URLS[:4]],
        *([hub({"endpoint": url.removesuffix("/x")})] for url in URLS),
        *([hub({"endpoint": "https://api.example"}, name)] for name in SECRETS),
        [{"oci": {"registry": "https://api.example", "repository": "a"}}, hub()],
    ],
    "storage.endpoint": [
        "https://S3.example",
        "http://s3.example",
        "http://MinIO.example:9000",
        "http://store:8333",
    ],
    "storage.secretRef.name": SECRETS,
    TEACHER: [
        {"url": f"{url.removesuffix('/x')}/v1", "model": "m"} | extra
        for url in URLS
        for extra in ({}, {"secretKeyRef": {"name": "root", "key": "k"}})
    ],
    "evaluation.judge.endpoint": [
        {"url": f"{url.removesuffix('/x')}/v1", "model": "m", "secretKeyRef": {"name": "root", "key": "k"}}
        for url in URLS[:3]
    ],
    "evaluation.baseline.endpoint": [{"url": f"{url.removesuffix('/x')}/v1", "model": "m"} for url in URLS[:3]],
    "tracking.mlflow": [{"url": url} for url in URLS] + [{"url": "https://a.example", "secretRef": {"name": "x"}}],
    "tracking.wandb": [
        {"secretKeyRef": {"name": "finetune-wandb", "key": "k"}},
        *({"baseUrl": url, "secretKeyRef": {"name": "finetune-wandb", "key": "k"}} for url in URLS),
    ],
}
PARENTS = [
    [{"name": "public", "namespace": "gateways"}],
    [{"name": "own", "sectionName": "https"}],
    [{"name": name, "namespace": "gateways"} for name in ("public", "private", "other", "public")],
]
HOSTS = [["a.shared.example"], ["b.tenancy-everything.example", "a.shared.example"], ["axshared.example", "b.example"]]
DEPLOYMENT_FIELDS: dict[str, list[Any]] = {
    "runtime": ["tgi-cpu", "tgi"],
    "source.artifact.uri": [f"s3://team/artifacts/{DIGEST}", f"s3://shared/base/../x/artifacts/{DIGEST}"],
    "source.artifact.storage.endpoint": JOB_FIELDS["storage.endpoint"],
    "source.artifact.storage.secretRef.name": SECRETS,
    "access.apiKeys.secretRef.name": SECRETS,
    "access.tls.secretRef.name": SECRETS,
    "access.route.httpRoute": [
        *({"parentRefs": parents, "hostnames": ["a.shared.example"]} for parents in PARENTS),
        *({"parentRefs": PARENTS[0], "hostnames": hosts} for hosts in HOSTS),
    ],
    "access.route.ingress": [
        {"className": name, "host": host, "tlsSecretRef": {"name": secret}}
        for name, [host, *_], secret in zip(("nginx-public", "other", "nginx"), HOSTS, SECRETS, strict=False)
    ],
    "source": [
        {"fineTuneJob": {"name": "any"}},
        *({"output": {"name": "any"} | each} for each in reached(["s3://team", "s3://other/x", "s3://shared/base"])),
        *(
            {"adapters": [{"name": name, "artifact": artifact} for name in ("b", "a")]}
            for artifact in reached([f"s3://{team}/artifacts/{DIGEST}" for team in ("team", "other")])
        ),
        *(
            {"adapters": [{"name": "b", "output": {"name": "any"} | each}, {"name": "a", "artifact": pinned}]}
            for each in reached(["s3://team", "s3://other/x"])
            for pinned in reached([f"s3://other/artifacts/{DIGEST}"])
        ),
    ],
}


def test_of_one_thing_at_a_time(refusals: Refusals) -> None:
    """Every field that is claimed, with values that some rules allow and others do not."""
    said = [refusals.agree(refusals.job({field: value})) for field, values in JOB_FIELDS.items() for value in values]
    said += [
        refusals.agree(refusals.deployment({field: value}))
        for field, values in DEPLOYMENT_FIELDS.items()
        for value in values
    ]
    assert any(said), "something is refused"
    assert all(said) == (refusals.namespace == NAMESPACE.format("others")), "something is allowed"


def drawn(fields: dict[str, list[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Some of the fields, with one of their values each."""
    return st.fixed_dictionaries({}, optional={field: st.sampled_from(values) for field, values in fields.items()})


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn(JOB_FIELDS))
def test_of_many_things_at_once(refusals: Refusals, changes: dict[str, Any]) -> None:
    refusals.agree(refusals.job(changes))


def as_much(store: dict[str, Any], token: dict[str, Any]) -> Object:
    """The longest lists, with a store or a token for each item."""
    login = {"secretRef": {"name": token["name"]}}
    of_store, of_hub = {"uri": DATA[0], "storage": store}, {"uri": "hf://datasets/acme/rows@v1/a.csv"}
    return {
        "output.storage": store,
        "output.pushTo": [{"oci": {"registry": "https://api.example", "repository": "a"} | login}] * 4,
        "model": {"uri": "s3://team/x", "storage": store},
        "dataset.sources": [of_store] * 15 + [of_hub | {"secretKeyRef": token}],
        "dataset.benchmarks": [of_store] * 4,
        "dataset.replay.source": of_store,
        "dataset.pii.ner": {"uri": "s3://team/ner", "storage": store},
        "evaluation.metrics": [{"name": name, "data": {"uri": "s3://team/t", "storage": store}} for name in "abcdefgh"],
    }


def test_of_as_much_as_the_api_takes(refusals: Refusals) -> None:
    """The API server limits what a policy may cost."""
    for store, token in ((STORAGES[1] | STORAGES[3], TOKENS[0]), (STORAGES[0], TOKENS[1])):
        refusals.agree(refusals.job(as_much(store, token)))


@pytest.mark.parametrize("refusals", ["everything"], indirect=True)
def test_an_update_that_asks_for_nothing_new_passes(refusals: Refusals) -> None:
    """What was there before the rules can be suspended, labelled and deleted, but not be made to ask for more."""
    body = refusals.job({"profile": "gpu-l4"})
    refusals.enforce("Audit")

    def taken() -> Object | None:
        try:
            return refusals.api.create(FINETUNEJOBS, body)
        except ApiError:
            return None

    made = wait(taken, "the policy to be no longer in force")
    refusals.enforce("Deny")
    other = body | {"metadata": body["metadata"] | {"name": "other"}}
    wait(lambda: refusals.servers(other), "the policy to be in force again")
    place = (FINETUNEJOBS, refusals.namespace, made["metadata"]["name"])
    refusals.api.patch(*place, {"spec": {"suspend": True}, "metadata": {"labels": {"any": "thing"}}})
    with pytest.raises(ApiError) as error:
        refusals.api.patch(*place, {"spec": {"output": {"uri": "s3://other"}}})
    assert_says(
        str(error.value),
        "spec.profile is 'gpu-l4'",
        "spec.output.uri is 's3://other'",
        "tenancy.rules in the chart's values",
    )
    refusals.api.delete(*place, made["metadata"]["uid"])


def test_the_remedy_is_the_operators(refusals: Refusals) -> None:
    said = refusals.servers(refusals.job({"profile": "gpu-h100-80"}))
    assert_says(said, REMEDIES[Reason.NOT_ALLOWED].partition(";")[0])


@pytest.mark.parametrize("refusals", [LARGE], indirect=True)
def test_of_a_rule_that_allows_hundreds_of_things(refusals: Refusals) -> None:
    """The API server takes 5 kB of a message. What is longer is cut, rather than replaced by one that names nothing."""
    said = refusals.agree(refusals.job({}))
    assert_says(said, "profile-007 or 92 more.", "results or 92 more.", "tables or 192 more.")
    body = refusals.job(as_much(STORAGES[2], TOKENS[1]))
    expected, said = refusals.operators(body), refusals.servers(body)
    assert len(expected) > 20_000
    assert expected[:4500] in said
    assert_says(said, f"({expected.count('; namespace ')} in all)", "tenancy.rules in the chart's values")
