"""A name stands for one class in a package, so that a reader who meets it knows which."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

import finetune_api
import finetune_jobs
import finetune_operator
import tgi_cpu

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("package", [finetune_api, finetune_jobs, finetune_operator, tgi_cpu], ids=lambda p: p.__name__)
def test_class_names_are_unique(package: object) -> None:
    root = Path(str(getattr(package, "__file__", ""))).parent
    places: dict[str, list[str]] = defaultdict(list)
    for path in sorted(root.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                places[node.name].append(path.relative_to(root).as_posix())
    assert len(places) > 10, "nothing was read"
    assert {name: files for name, files in places.items() if len(files) > 1} == {}
