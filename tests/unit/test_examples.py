"""Every YAML file of examples/: valid, and about things that exist. (tests/cluster applies them.)"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from finetune_api.adapterdeployment import AdapterDeployment
from finetune_api.finetunejob import FineTuneJob
from finetune_api.storage import Storage
from finetune_jobs.fit.admission import admit
from finetune_operator.finetunejob.hardware import hardware_facts
from finetune_operator.settings import Profile
from hack.cluster.layout import REPOSITORY
from hack.platform import object_store

pytestmark = pytest.mark.unit

EXAMPLES = REPOSITORY / "examples"
FILES = sorted(EXAMPLES.rglob("*.yaml"))
MODELS: dict[str, type[FineTuneJob | AdapterDeployment]] = {
    "FineTuneJob": FineTuneJob,
    "AdapterDeployment": AdapterDeployment,
}
CHART = yaml.load((REPOSITORY / "charts" / "finetune-operator" / "values.yaml").read_text(), yaml.CSafeLoader)


def document(path: Path) -> dict[str, Any]:
    """The one document of a file."""
    content: dict[str, Any] = yaml.load(path.read_text(), yaml.CSafeLoader)
    return content


@cache
def validator(kind: str) -> jsonschema.Draft202012Validator:
    """Checks against the schema that the API server applies, which is read and checked once."""
    crd = document(REPOSITORY / "crds" / f"finetune.dev_{kind.lower()}s.yaml")
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [each for each in map(document, FILES) if each["kind"] == kind]


def identify(path: Path) -> str:
    return str(path.relative_to(EXAMPLES))


def test_there_is_an_example_of_each_kind() -> None:
    assert {document(path)["kind"] for path in FILES} == set(MODELS)


@pytest.mark.parametrize("path", FILES, ids=identify)
def test_is_valid(path: Path) -> None:
    content = document(path)
    assert set(content) == {"apiVersion", "kind", "metadata", "spec"}
    assert set(content["metadata"]) == {"name"}
    validator(content["kind"]).validate(content)
    parsed = MODELS[content["kind"]].model_validate(content)
    assert (parsed.api_version, parsed.kind) == (content["apiVersion"], content["kind"])


ON_AWS = document(EXAMPLES / "aws" / "finetunejob.yaml")
LOCAL = [job for job in of_kind("FineTuneJob") if job != ON_AWS]


@pytest.mark.parametrize("job", LOCAL, ids=lambda job: job["metadata"]["name"])
def test_a_job_names_what_the_local_cluster_has(job: dict[str, Any]) -> None:
    spec = FineTuneJob.model_validate(job).spec
    assert spec.profile in CHART["profiles"]
    assert spec.storage.endpoint == object_store.ENDPOINT
    uris = [spec.model.uri, spec.output.uri, *(source.uri or "" for source in spec.dataset.sources)]
    assert {uri.split("/")[2] for uri in uris} <= set(object_store.BUCKETS)


def test_the_job_for_aws_has_no_keys_and_fits_its_gpu_as_its_page_says() -> None:
    spec = FineTuneJob.model_validate(ON_AWS).spec
    assert spec.storage == Storage(region=spec.storage.region)
    profile = Profile.model_validate(CHART["profiles"][spec.profile])
    qwen = {"model_type": "qwen2", "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28}
    qwen |= {"num_key_value_heads": 4, "intermediate_size": 18944, "vocab_size": 152064, "tie_word_embeddings": False}
    admitted = admit(qwen, spec.training, hardware_facts(spec.profile, profile))  # refuses what training or export lack
    assert admitted.memory is not None
    assert profile.gpu is not None
    told = f"some {admitted.memory.gib:.1f} of the L4's {profile.gpu.memory_gib:g} GiB"
    assert told in (EXAMPLES / "aws" / "README.md").read_text()


@pytest.mark.parametrize("deployment", of_kind("AdapterDeployment"), ids=lambda each: each["metadata"]["name"])
def test_a_deployment_names_a_job_and_a_runtime_that_exist(deployment: dict[str, Any]) -> None:
    spec = AdapterDeployment.model_validate(deployment).spec
    assert spec.runtime in CHART["runtimes"]
    if (followed := spec.source.output) is not None:
        outputs = [job["spec"]["output"] for job in of_kind("FineTuneJob")]
        assert (followed.uri, followed.name) in {(each["uri"], each["name"]) for each in outputs}
        return
    assert spec.source.fine_tune_job
    assert spec.source.fine_tune_job.name in {job["metadata"]["name"] for job in of_kind("FineTuneJob")}
