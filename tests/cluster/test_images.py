"""Every image starts as a restricted pod and holds what it is for, and nothing that it must not hold."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hack.platform import local
from hack.platform.kubectl import Kubectl
from tests.support.restricted import ended, pod, restricted_namespace

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

IMPORT = """
import importlib, importlib.util, os, pathlib, sys
wanted, unwanted = (names.split(',') for names in sys.argv[1:3])
for name in wanted:
    importlib.import_module(name)
found = [name for name in unwanted if name and importlib.util.find_spec(name)]
programs = [name for name in ('uv', 'pip') if any(os.path.exists(f'{d}/{name}') for d in os.environ['PATH'].split(':'))]
code = [str(path) for path in pathlib.Path('/opt/app').rglob('*.py') if not list(path.parent.glob('__pycache__/*.pyc'))]
print(found + programs + code)
"""

CONTENTS = [
    ("operator", "kopf,kubernetes,finetune_api,finetune_operator", "torch,boto3,finetune_jobs"),
    ("data", "boto3,finetune_api,finetune_jobs", "torch,kopf,finetune_operator"),
    ("prepare", "transformers,presidio_analyzer,rensa,pyarrow,openai,finetune_jobs", "torch,kopf,finetune_operator"),
    ("jobs", "torch,transformers,peft,trl,bitsandbytes,datasets,finetune_jobs", "kopf,llmcompressor,finetune_operator"),
    ("quantize", "llmcompressor,torch,peft,finetune_jobs", "kopf,trl,finetune_operator"),
    ("tgi-cpu", "torch,transformers,uvicorn,tgi_cpu", "kopf,finetune_operator"),
]


@pytest.fixture(scope="module")
def namespace() -> Iterator[Kubectl]:
    with restricted_namespace("images") as kubectl:
        yield kubectl


def run_restricted(kubectl: Kubectl, name: str, *command: str) -> str:
    """Run a command in an image as the restricted pod that the operator would make; returns what it printed."""
    kubectl.apply(pod(name, local.images()[name], *command))
    end = ended(kubectl, name, seconds=300)
    output = kubectl("logs", name)
    assert end["exitCode"] == 0, output
    return output


@pytest.mark.parametrize(("name", "wanted", "unwanted"), CONTENTS, ids=[row[0] for row in CONTENTS])
def test_an_image_holds_what_it_is_for(namespace: Kubectl, name: str, wanted: str, unwanted: str) -> None:
    assert run_restricted(namespace, name, "python", "-c", IMPORT, wanted, unwanted).splitlines()[-1] == "[]"


def test_the_object_store_image_starts(namespace: Kubectl) -> None:
    said = run_restricted(namespace, "seaweedfs", "weed", "version")  # it advertises on stderr, before or after
    assert any(line.startswith("version") for line in said.splitlines()), said
