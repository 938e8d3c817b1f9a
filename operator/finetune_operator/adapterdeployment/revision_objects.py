"""The objects of a revision, as actions that make or restore them: those of a candidate, and those that serve."""

from finetune_api.endpoint_stages import SelfCheckLimits
from finetune_api.strategy import watch_seconds
from finetune_operator.adapterdeployment.delivery import wanted_adapters
from finetune_operator.adapterdeployment.observe import ObservedDeployment
from finetune_operator.adapterdeployment.revision import api_keys_secret, tls_secret
from finetune_operator.adapterdeployment.stored_record import Record
from finetune_operator.adapterdeployment.target import Target
from finetune_operator.framework.actions import Action, Delete, Patch
from finetune_operator.framework.objects import (
    CONFIG_MAPS,
    CONTROLLER_REVISIONS,
    DEPLOYMENTS,
    NETWORK_POLICIES,
    SERVICES,
    Object,
)
from finetune_operator.resources.client_proxy import has_proxy, is_protected, speaks_tls
from finetune_operator.resources.deployment import deployment, deployment_name, server_labels
from finetune_operator.resources.drift import ensure, ensure_exists, has_content, holds, is_fixed
from finetune_operator.resources.network_policy import candidate_policy, serving_policy
from finetune_operator.resources.self_check import has_self_check, self_check_config_map, source_of_limits
from finetune_operator.resources.service import candidate_service, leads_elsewhere, names_no_revision, public_service
from finetune_operator.runtimes import ENGINES
from finetune_operator.tenancy.floor import strictest


def serve(
    observed: ObservedDeployment, target: Target, replicas: int | None = None, *, is_shared: bool = False
) -> tuple[Action, ...]:
    """The target serves: restore its objects, with as many pods as the spec asks for unless it is said how many.
    ``is_shared``: beside a canary. A share that ends is taken back first: whatever is refused of the rest, no client
    is sent to a canary that has crashed."""
    pods = _pods(observed, target, observed.resource.spec.replicas if replicas is None else replicas)
    traffic = direct_traffic(observed, target.revision, is_shared=is_shared)
    live = observed.child(SERVICES, observed.owner.name)
    return (*traffic, *pods) if live is not None and names_no_revision(live) and not is_shared else (*pods, *traffic)


def start_candidate(
    observed: ObservedDeployment, target: Target, replicas: int, *, is_open: bool, is_asked: bool
) -> tuple[Action, ...]:
    """The candidate's objects. The policy comes first: until it is verified, only the verifier reaches its pods.

    Once it is verified, its own Service is not needed (``is_asked``): a quota may have room for one Service only, the
    public one.
    """
    owner, revision = observed.owner, target.revision
    service = candidate_service(owner, revision, tls=speaks_tls(target.record.template))
    closed = candidate_policy(owner, revision, observed.settings.serving, has_proxy=has_proxy(target.record.template))
    policy = open_policy(observed, revision) if is_open else closed
    asked = () if not is_asked else ensure(SERVICES, service, observed.child(SERVICES, service["metadata"]["name"]))
    return (
        *ensure(NETWORK_POLICIES, policy, observed.child(NETWORK_POLICIES, policy["metadata"]["name"])),
        *asked,
        *_pods(observed, target, replicas),
    )


def _pods(observed: ObservedDeployment, target: Target, replicas: int) -> tuple[Action, ...]:
    """The record comes first: from then on the revision's pods are made from it."""
    owner, record = observed.owner, target.record
    name = deployment_name(owner, record.revision)
    has_room = not observed.resource.spec.in_place
    wanted = deployment(owner, record.serving, record.revision, replicas, record.template, has_room=has_room)
    return (
        *ensure_exists(
            CONTROLLER_REVISIONS,
            observed.child(CONTROLLER_REVISIONS, name),
            lambda: record.controller_revision(owner),
        ),
        *ensure_exists(
            CONFIG_MAPS, observed.child(CONFIG_MAPS, record.input_name), lambda: record.input_config_map(owner)
        ),
        *_limits(observed, target, name),
        *ensure(DEPLOYMENTS, wanted, observed.child(DEPLOYMENTS, name)),
    )


def _limits(observed: ObservedDeployment, target: Target, name: str) -> tuple[Action, ...]:
    """What the pods prove themselves by, as the spec has it now. It says so of the revision that it asks for: another
    one, which serves on, was verified by other limits, and by tighter ones its next pod might never become ready. Where
    the source is gone, or has no artifact now, the spec still asks for what came from it; and where pods take adapters
    while they run, for all but one that is not there yet."""
    live, spec = observed.child(CONFIG_MAPS, name), observed.resource.spec
    source = ",".join(spec.source.followed)
    stays = source_of_limits(live) == source or target.asked_adapters is not None
    asked = target.is_asked or (target.source_blocker is not None and stays)
    if not has_self_check(target.record.template) or (live is not None and not asked):
        return ()
    counts = strictest(observed.settings.serving.verification_floors, observed.owner.namespace, spec.verification)
    limits = SelfCheckLimits(
        min_agreement_percent=counts.min_agreement_percent,
        max_distance=None if counts.max_distance is None else float(counts.max_distance),
        require_probabilities=counts.require_probabilities,
        watch_seconds=_watch_seconds(observed),
    )
    labels = server_labels(observed.owner, target.revision)
    adapters = wanted_adapters(observed, target.record, target.adapters)
    wanted = self_check_config_map(observed.owner, name, labels, limits, source, adapters)
    marks = {"annotations": wanted["metadata"]["annotations"]}
    same = live is not None and holds(live["metadata"], marks) and has_content(live, wanted)
    if live is not None and not same and is_fixed(live):  # the next pass makes it anew
        return (Delete(CONFIG_MAPS, name, live["metadata"]["uid"]),)
    return () if same else ensure(CONFIG_MAPS, wanted, live)


def _watch_seconds(observed: ObservedDeployment) -> int:
    """How often pods are asked while they serve: as the spec says, and at least as often as the platform does."""
    asked = watch_seconds(observed.resource.spec.quality_watch.interval)
    longest = watch_seconds(observed.settings.serving.longest_watch_interval)
    return min(asked or longest, longest or asked)


def is_as_recorded(observed: ObservedDeployment, record: Record) -> bool:
    """Whether the pods of a revision are there, as they were proved: neither deleted nor changed by anybody."""
    live = observed.child(DEPLOYMENTS, deployment_name(observed.owner, record.revision))
    if live is None or "deletionTimestamp" in live["metadata"]:
        return False
    return holds(live["spec"]["template"], record.template)


def direct_traffic(observed: ObservedDeployment, revision: str, *, is_shared: bool = False) -> tuple[Action, ...]:
    """Clients may reach the pods of the revision, and the public Service points to them; ``is_shared``: and to those of
    a canary."""
    policy = open_policy(observed, revision)
    service = public_service(observed.owner, revision, is_shared=is_shared, tls=is_encrypted(observed, revision))
    return (
        *ensure(NETWORK_POLICIES, policy, observed.child(NETWORK_POLICIES, policy["metadata"]["name"])),
        *_led(service, observed.child(SERVICES, service["metadata"]["name"])),
    )


def _led(service: Object, live: Object | None) -> tuple[Action, ...]:
    """A Service, as it is to be. One that changes its protocol is never beside a canary (``canary.takes_steps``), so
    that its selector has no more keys than the new one."""
    if live is None or not leads_elsewhere(live, service):
        return ensure(SERVICES, service, live)
    changed = {"metadata": {"labels": service["metadata"]["labels"]}, "spec": service["spec"]}
    return (Patch(SERVICES, service["metadata"]["name"], changed),)


def open_policy(observed: ObservedDeployment, revision: str) -> Object:
    """The policy that lets clients reach a revision: the proxy where there is one, otherwise the server."""
    template, spec = _template(observed, revision), observed.resource.spec
    return serving_policy(
        observed.owner,
        revision,
        observed.settings.serving,
        has_proxy=is_proxied(observed, revision),
        is_protected=is_protected(template) if template else bool(api_keys_secret(spec) or tls_secret(spec)),
    )


def is_proxied(observed: ObservedDeployment, revision: str) -> bool:
    """Whether the pods of a revision have the proxy. Pods do not tell: the cache keeps no containers of theirs."""
    template, spec = _template(observed, revision), observed.resource.spec
    if template:
        return has_proxy(template)
    runtime = observed.settings.runtimes.get(spec.runtime)
    needed = runtime is not None and ENGINES[runtime.engine].NEEDS_PROXY
    return needed or bool(api_keys_secret(spec) or tls_secret(spec))


def is_encrypted(observed: ObservedDeployment, revision: str) -> bool:
    """Whether the pods of a revision speak TLS."""
    template = _template(observed, revision)
    return speaks_tls(template) if template else bool(tls_secret(observed.resource.spec))


def _template(observed: ObservedDeployment, revision: str) -> Object | None:
    """What the pods of a revision are made from. Of one of which nothing is known there are no pods yet: it is the one
    that the spec asks for."""
    found = observed.records.get(revision)
    live = observed.child(DEPLOYMENTS, deployment_name(observed.owner, revision))
    template: Object | None = found.template if found else (live or {}).get("spec", {}).get("template")
    return template
