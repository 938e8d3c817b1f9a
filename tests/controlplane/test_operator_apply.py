"""What the operator writes, on a real API server, by a cache that lags behind."""

from __future__ import annotations

import pytest

from finetune_api.base import ObjectMeta
from finetune_api.endpoint_stages import SelfCheckLimits
from finetune_operator.framework.actions import Action, Apply, Create, Patch
from finetune_operator.framework.apply import apply_action
from finetune_operator.framework.cache import Cache
from finetune_operator.framework.client import ApiError
from finetune_operator.framework.objects import CONFIG_MAPS, SERVICES, Object
from finetune_operator.framework.ownership import Owner
from finetune_operator.framework.stripped import strip
from finetune_operator.kinds import ADAPTERDEPLOYMENTS
from finetune_operator.resources.drift import is_fixed
from finetune_operator.resources.self_check import self_check_config_map
from finetune_operator.resources.service import public_service
from tests.controlplane.serving import NAME, Serving
from tests.support.played_pods import GOOD
from tests.support.serving_specs import pinned

pytestmark = pytest.mark.controlplane


def test_an_object_that_somebody_else_has_made_meanwhile_stays_as_it_is(serving: Serving) -> None:
    api, namespace, cache = serving.team.api, serving.team.namespace, Cache()
    owner = Owner.of(ADAPTERDEPLOYMENTS, ObjectMeta.model_validate(serving.create(pinned(GOOD))["metadata"]))
    before, after = public_service(owner, "11111111"), public_service(owner, "22222222")
    ours = api.create(SERVICES, before)
    cache.record(SERVICES, ours)
    apply_action(api, cache, owner, Apply(SERVICES, after))
    api.delete(SERVICES, namespace, NAME, ours["metadata"]["uid"])
    spec = {"selector": {"app": "theirs"}, "ports": [{"port": 80}]}
    body = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": NAME, "namespace": namespace}, "spec": spec}
    theirs = api.create(SERVICES, body)
    actions: list[Action] = [Apply(SERVICES, before), Patch(SERVICES, NAME, {"spec": before["spec"]})]
    for action in actions:
        with pytest.raises(ApiError) as refused:
            apply_action(api, cache, owner, action)
        assert refused.value.conflict, refused.value
    assert api.get(SERVICES, namespace, NAME) == theirs


def test_an_object_that_is_gone_is_for_the_next_pass_to_make(serving: Serving) -> None:
    api, namespace, cache = serving.team.api, serving.team.namespace, Cache()
    owner = Owner.of(ADAPTERDEPLOYMENTS, ObjectMeta.model_validate(serving.create(pinned(GOOD))["metadata"]))
    ours = api.create(SERVICES, public_service(owner, "11111111"))
    cache.record(SERVICES, ours)
    api.delete(SERVICES, namespace, NAME, ours["metadata"]["uid"])
    with pytest.raises(ApiError) as refused:
        apply_action(api, cache, owner, Apply(SERVICES, public_service(owner, "22222222")))
    assert refused.value.conflict, refused.value


def test_an_input_that_somebody_has_made_beforehand_is_made_anew(serving: Serving) -> None:
    """Its name can be told, and whoever may create ConfigMaps may name any owner in one. Content is what counts."""
    api, namespace, cache = serving.team.api, serving.team.namespace, Cache()
    owner = Owner.of(ADAPTERDEPLOYMENTS, ObjectMeta.model_validate(serving.create(pinned(GOOD))["metadata"]))
    ours = self_check_config_map(owner, "demo-input", {}, SelfCheckLimits(max_distance=0.5), "") | {"immutable": True}
    theirs = api.create(CONFIG_MAPS, ours | {"data": {"limits.json": "{}"}})
    apply_action(api, cache, owner, Create(CONFIG_MAPS, ours))
    made = api.get(CONFIG_MAPS, namespace, "demo-input")
    assert made is not None
    assert made["data"] == ours["data"]
    assert made["metadata"]["uid"] != theirs["metadata"]["uid"]
    apply_action(api, cache, owner, Create(CONFIG_MAPS, ours))
    assert api.get(CONFIG_MAPS, namespace, "demo-input") == made


@pytest.mark.parametrize("fixed", [{"immutable": True}, {"data": {}, "binaryData": {"limits.json": "e30="}}])
def test_what_a_config_map_holds_cannot_always_be_changed_back(serving: Serving, fixed: Object) -> None:
    """Why limits that somebody has fixed so are deleted first (``is_fixed``)."""
    api, cache = serving.team.api, Cache()
    owner = Owner.of(ADAPTERDEPLOYMENTS, ObjectMeta.model_validate(serving.create(pinned(GOOD))["metadata"]))
    ours = self_check_config_map(owner, "demo-limits", {}, SelfCheckLimits(max_distance=0.5), "")
    live = api.create(CONFIG_MAPS, ours | {"data": {"limits.json": "{}"}} | fixed)
    assert is_fixed(strip(CONFIG_MAPS, live))
    with pytest.raises(ApiError) as refused:
        apply_action(api, cache, owner, Apply(CONFIG_MAPS, ours))
    assert refused.value.status == 422, refused.value
