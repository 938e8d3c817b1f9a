"""What all models of the contract share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydantic import BaseModel

import finetune_operator.settings
from finetune_api.adapterdeployment import AdapterDeploymentSpec
from finetune_api.base import ApiModel
from finetune_api.storage import Storage
from finetune_api.strategy import Strategy

pytestmark = pytest.mark.unit


def below(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A class and all that are made from it."""
    yield model
    for each in model.__subclasses__():
        yield from below(each)


def test_a_default_is_taken_and_not_copied() -> None:
    """A spec that says little has dozens of them, and each copy would be a deep one."""
    spec = AdapterDeploymentSpec.model_validate({"source": {"fineTuneJob": {"name": "intents"}}, "runtime": "tgi"})
    assert spec.strategy is AdapterDeploymentSpec.model_fields["strategy"].default
    assert isinstance(spec.strategy, Strategy)


def test_every_default_that_is_a_model_has_a_hash() -> None:
    assert finetune_operator.settings.Settings in set(below(ApiModel))
    defaults = {
        f"{model.__name__}.{name}": field.default
        for model in below(ApiModel)
        for name, field in model.model_fields.items()
        if isinstance(field.default, BaseModel)
    }
    assert len(defaults) > 20
    assert {name: isinstance(hash(default), int) for name, default in defaults.items()} == dict.fromkeys(defaults, True)


def test_equal_models_have_the_same_hash() -> None:
    given = {"labels": {"a": "1", "b": "2"}, "command": [["x"], ["y"]]}
    mixed = {"command": [["x"], ["y"]], "labels": {"b": "2", "a": "1"}}

    class Lists(ApiModel):
        labels: dict[str, str]
        command: list[list[str]]
        storage: Storage = Storage()

    one, other = Lists.model_validate(given), Lists.model_validate(mixed)
    assert one == other
    assert hash(one) == hash(other)
    assert hash(one) != hash(one.model_copy(update={"command": [["x"], ["z"]]}))
    assert {one, other} == {one}
