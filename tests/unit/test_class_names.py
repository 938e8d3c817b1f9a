"""A name stands for one class in a package, so that a reader who meets it knows which."""

import re
from collections import defaultdict
from pathlib import Path
from typing import Final

import pytest

import finetune_api
import finetune_jobs
import finetune_operator
import tgi_cpu

pytestmark = pytest.mark.unit

_CLASS: Final = re.compile(r"^class (\w+)", re.MULTILINE)
"""The classes of a module, without those inside others."""


@pytest.mark.parametrize("package", [finetune_api, finetune_jobs, finetune_operator, tgi_cpu], ids=lambda p: p.__name__)
def test_class_names_are_unique(package: object) -> None:
    root = Path(str(getattr(package, "__file__", ""))).parent
    places: dict[str, list[str]] = defaultdict(list)
    for path in sorted(root.rglob("*.py")):
        for name in _CLASS.findall(path.read_text(encoding="utf-8")):
            places[name].append(path.relative_to(root).as_posix())
    assert len(places) > 10, "nothing was read"
    assert {name: files for name, files in places.items() if len(files) > 1} == {}
