"""The example of distillation, from its generator to examples for training."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api.dataset import DataFormat, Task, TaskType
from finetune_api.distillation import Distillation
from finetune_api.meta import TEACHER_KEY_VARIABLE
from finetune_jobs.chat_api.chat_model import ChatModel
from finetune_jobs.distillation.prompts import prompt_column, read_prompts, terms_of
from finetune_jobs.examples.ledger import Ledger
from finetune_jobs.examples.validation import Example, Rules
from finetune_jobs.reading.readers import read_rows
from finetune_jobs.store.s3 import Store
from hack.cluster.layout import REPOSITORY
from tests.support.distilling import KEY, SOURCE, run
from tests.support.teacher_server import Reply, TeacherServer, fails, says

pytestmark = pytest.mark.unit


EXAMPLE = REPOSITORY / "examples" / "support"
EXAMPLE_DIGEST = "4d56aab50f7a73c4d5cb909b395772054b1b270163d7e8266ef0c0ee6a19584a"


@pytest.fixture(scope="module")
def example_prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that README.md has one make, by a process of its own, isolated from site packages."""
    out = tmp_path_factory.mktemp("support") / "support.jsonl"
    command = [sys.executable, "-I", str(EXAMPLE / "generate.py"), "--rows", "600", "--seed", "7", "--out", str(out)]
    subprocess.run(command, check=True)
    return out


def sections() -> dict[str, str]:
    """The manual by section."""
    parts = (EXAMPLE / "MANUAL.md").read_text().split("\n## ")[1:]
    return {title: " ".join(text.split()) for title, _, text in (part.partition("\n") for part in parts)}


def example_spec() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((EXAMPLE / "finetunejob.yaml").read_text())["spec"]
    return content


@pytest.mark.slow
def test_the_examples_prompts_are_the_same_everywhere_and_cover_the_manual(example_prompts: Path) -> None:
    content = example_prompts.read_bytes()
    rows = [json.loads(line) for line in content.splitlines()]
    counts = Counter(row["topic"] for row in rows)
    assert hashlib.sha256(content).hexdigest() == EXAMPLE_DIGEST
    assert len(rows) == 600
    assert len({row["prompt"] for row in rows}) == 588
    assert set(counts) == set(sections())
    assert all(40 <= count <= 60 for count in counts.values())


def test_the_examples_teacher_has_the_whole_manual_before_it() -> None:
    instruction = " ".join(example_spec()["dataset"]["distillation"]["instruction"].split())
    assert all(text in instruction for text in sections().values())


@pytest.mark.slow
def test_the_example_works_from_prompts_to_examples(store: Store, example_prompts: Path, tmp_path: Path) -> None:
    """A server that now and then is busy, breaks, refuses or says too little, as they are. A part of the prompts."""
    spec = example_spec()
    lines = example_prompts.read_text().splitlines(keepends=True)[-160:]  # of all topics, and six of them twice
    few_prompts = tmp_path / "few.jsonl"
    few_prompts.write_text("".join(lines))
    topics = {row["prompt"]: row["topic"] for row in map(json.loads, lines)}
    manual, bad_days = sections(), list(topics)[::25]

    def expert(prompt: str, nth: int) -> Reply:
        place = list(topics).index(prompt)
        if nth == 1 and place % 40 == 0:
            return (fails(500), fails(429, headers={"Retry-After": "0.05"}), Reply(200, b"<html>"))[place // 40 % 3]
        if prompt in bad_days:
            return (says("I'm sorry, but I can't help with that."), says("Yes."))[place // 25 % 2]
        return says(f"About case {place}: {manual[topics[prompt]]}", usage=(820, 90))

    with TeacherServer.running(expert, key=KEY) as server:
        given_spec = spec["dataset"]["distillation"]
        given_spec["teacher"]["url"] = server.url
        given_spec.pop("requestsPerMinute", None)
        distillation = Distillation.model_validate(given_spec)
        rows = read_rows(few_prompts, SOURCE, DataFormat.JSONL, [prompt_column(distillation)])
        ledger = Ledger()
        asked = list(read_prompts(SOURCE, rows, distillation, ledger, group_by="topic"))
        teacher = ChatModel.from_environment(terms_of(distillation), {TEACHER_KEY_VARIABLE: KEY})
        outcome = run(store, asked, distillation, teacher)
    result = outcome.result
    assert (len(asked), ledger.faults.total, result.prompts, result.repeated) == (160, 0, 154, 6)
    assert dict(result.faults.kinds) == {"refusal": 4, "tooShort": 3}
    assert result.examples == 154 - 7
    assert len(server.received) == 154 + 4
    rules = Rules(task=Task(type=TaskType.TEXT), columns=None)
    examples = [rules.example(row) for row in outcome.rows]
    assert all(isinstance(each, Example) and manual[row.fields["topic"]] in each.label
               for each, row in zip(examples, outcome.rows, strict=True))  # fmt: skip
    assert [row.line for row in outcome.rows] == sorted(row.line for row in outcome.rows)
    all_cost = result.cost / result.prompts * 588
    assert Decimal("0.08") < all_cost < Decimal("0.12") < Decimal(distillation.max_cost or "0")


# The documentation

PAGE = (REPOSITORY / "docs" / "how-to" / "distill.md").read_text(encoding="utf-8")


def test_the_page_explains_every_kind_of_fault() -> None:
    jobs = REPOSITORY / "jobs" / "finetune_jobs"
    paths = [*(jobs / "distillation").glob("*.py"), *(jobs / "chat_api").glob("*.py")]
    source = "".join(path.read_text(encoding="utf-8") for path in paths)
    kinds = re.findall(r"""(?:_fault|AttemptError)\(\s*"(\w+)\"""", source)
    assert {"truncated", "teacherTimeout"} <= set(kinds)
    explained = {kind for kind in kinds if f"`{kind}`" in PAGE}
    assert set(kinds) - explained == {"teacherBusy"}  # costs time, never an answer


def test_the_pages_spec_is_one() -> None:
    first, template = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    content = yaml.safe_load(first)["dataset"]["distillation"] | yaml.safe_load(template)
    assert Distillation.model_validate(content).question_template == content["questionTemplate"]
