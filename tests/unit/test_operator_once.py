"""What follows from an observation is worked out once for that, and anew for another."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from finetune_operator.adapterdeployment import record
from finetune_operator.adapterdeployment.stored_record import Record
from finetune_operator.adapterdeployment.target import Target, find_target
from finetune_operator.framework.once import once
from tests.support.played_pods import BETTER
from tests.support.serving import serving
from tests.support.serving_specs import pinned

pytestmark = pytest.mark.unit


@dataclass(frozen=True)
class Seen:
    number: int


asked: list[int] = []


@once
def doubled(seen: Seen) -> int:
    """Twice the number."""
    asked.append(seen.number)
    return 2 * seen.number


@once
def nothing(seen: Seen) -> None:
    asked.append(seen.number)


def test_it_is_worked_out_once_for_each_observation() -> None:
    asked.clear()
    seen = Seen(1)
    other = replace(seen, number=2)
    assert [doubled(seen), doubled(seen), doubled(other), doubled(other)] == [2, 2, 4, 4]
    assert asked == [1, 2]
    assert doubled.__doc__ == "Twice the number."
    assert seen == Seen(1)


def test_nothing_is_a_result_too() -> None:
    asked.clear()
    seen = Seen(3)
    assert [nothing(seen), nothing(seen), doubled(seen)] == [None, None, 6]
    assert asked == [3, 3]


def test_a_pass_renders_the_pods_of_a_new_choice_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in the way asks for the target's record, and so does the target."""
    cluster = serving()
    cluster.spec = pinned(BETTER)
    rendered: list[str] = []

    def counting(*args: Any) -> Record:
        made = rendering(*args)
        rendered.append(made.revision)
        return made

    rendering = record._rendered
    monkeypatch.setattr(record, "_rendered", counting)
    found = find_target(cluster.observe())
    assert isinstance(found, Target)
    assert rendered == [found.revision]
