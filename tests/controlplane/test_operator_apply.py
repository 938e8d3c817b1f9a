"""What the operator writes, on a real API server, by a cache that lags behind."""

from __future__ import annotations

import pytest

from finetune_api.base import ObjectMeta
from finetune_operator.framework.actions import Action, Apply, Patch
from finetune_operator.framework.apply import apply_action
from finetune_operator.framework.cache import Cache
from finetune_operator.framework.client import ApiError
from finetune_operator.framework.objects import SERVICES
from finetune_operator.framework.ownership import Owner
from finetune_operator.kinds import ADAPTERDEPLOYMENTS
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
