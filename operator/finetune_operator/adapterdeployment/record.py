"""Which record a revision's pods are made from, and a new one where none is the same choice. Pure."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from finetune_api import meta
from finetune_api.serving_status import AdapterDeploymentStatus, RevisionState, RevisionStatus
from finetune_operator.adapterdeployment.adapters import read_back
from finetune_operator.adapterdeployment.decided import is_as_decided
from finetune_operator.adapterdeployment.history import was_rolled_back
from finetune_operator.adapterdeployment.observe import ObservedDeployment
from finetune_operator.adapterdeployment.revision import (
    accepted_keys,
    api_keys_secret,
    asked_hash,
    choice_of,
    revision_of,
    tls_secret,
)
from finetune_operator.adapterdeployment.stored_record import Record
from finetune_operator.adapterdeployment.turns import ACTIVE
from finetune_operator.framework.objects import DEPLOYMENTS
from finetune_operator.resources.deployment import (
    Serving,
    fetch_request,
    pod_template,
)
from finetune_operator.resources.stage_job import input_config_map

_INPUT_VOLUME: Final = "input"


def record_for(observed: ObservedDeployment, serving: Serving) -> Record:
    """What would serve: a revision that proved itself or is under way, if it is the same choice; or else what this
    release makes of it.

    A revision that failed is no such revision: another release, with other pods, may do better. In place it is one:
    to find that out would be a gap in service that nobody asked for; and so it is if clients had reached it.
    """
    known = observed.records
    choice = choice_of(serving, observed.settings)
    same = [known[name] for name in _standing(observed) if name in known and known[name].choice == choice]
    if same:
        return same[0]
    revision = revision_of(observed, serving)
    if revision in known:
        return known[revision]
    fresh = _rendered(observed, serving, choice, revision)
    return _adopted(observed, fresh) or fresh


def recorded(observed: ObservedDeployment, revision: RevisionStatus) -> Record | None:
    """The record of a revision in the status. Without one, what this release makes, if that is the same revision."""
    known = observed.records
    if revision.revision in known:
        return known[revision.revision]
    runtime = observed.settings.runtimes.get(revision.runtime)
    if runtime is None or revision.storage is None:
        return None
    place = (revision.artifact_uri, revision.artifact_digest, revision.storage)
    spec = observed.resource.spec
    keys = (accepted_keys(spec), api_keys_secret(spec))
    adapters = read_back(revision.adapters)
    serving = Serving(*place, revision.runtime, runtime, *keys, adapters, tls_secret=tls_secret(spec))
    fresh = _rendered(observed, serving, choice_of(serving, observed.settings), revision_of(observed, serving))
    return fresh if fresh.revision == revision.revision else _adopted(observed, fresh)


def failed_in_place(observed: ObservedDeployment) -> RevisionStatus | None:
    """The candidate that has failed for this spec, where another try would be another gap: a release that makes other
    pods of the same choice, or a blocker that has passed, is no reason for one."""
    status, spec = observed.resource.status, observed.resource.spec
    tried = status.candidate
    if tried is None or tried.state is not RevisionState.FAILED or tried.spec_hash != asked_hash(observed):
        return None
    return tried if spec.in_place and status.stable is not None else None


def fallen(status: AdapterDeploymentStatus) -> RevisionStatus | None:
    """The candidate, if clients had reached it before it fell, as what served or as a canary. They are not sent there
    again because a release makes other pods of the same choice, or a blocker has passed."""
    tried = status.candidate
    if tried is None:
        return None
    as_canary = tried.state is RevisionState.FAILED and tried.taken_back_at is not None
    return tried if as_canary or was_rolled_back(status.revisions, tried) else None


def _standing(observed: ObservedDeployment) -> Iterator[str]:
    """Revisions whose pods serve or have served clients, and the one that is being proved, or has failed in place."""
    status = observed.resource.status
    for revision in (status.stable, status.previous):
        if revision is not None:
            yield revision.revision
    candidate = status.candidate
    if candidate is None:
        return
    if candidate.state in ACTIVE or failed_in_place(observed) or fallen(status):
        yield candidate.revision


def _rendered(observed: ObservedDeployment, serving: Serving, choice: str, revision: str) -> Record:
    """What this release makes of a choice."""
    fetch = input_config_map(fetch_request(observed.owner, serving, observed.settings, revision))
    labels = {name: value for name, value in fetch["metadata"]["labels"].items() if name not in observed.owner.labels}
    return Record(
        revision=revision,
        number=max((each.number for each in observed.records.values()), default=0) + 1,
        choice=choice,
        serving=serving,
        template=pod_template(observed.owner, serving, observed.settings, revision),
        input_name=fetch["metadata"]["name"],
        input_labels=labels,
        input_data=fetch["data"],
    )


def _adopted(observed: ObservedDeployment, fresh: Record) -> Record | None:
    """The stable revision, if a release without records started it, and it serves what is asked for.

    Its pods stay as they are. What the values decide of them must be as in the pods that this release would make, and
    the download must have checked the signature as the policy asks.
    """
    stable = observed.resource.status.stable
    live = observed.child(DEPLOYMENTS, stable.deployment) if stable else None
    if stable is None or live is None or stable.revision in observed.records:
        return None
    serving = fresh.serving
    if serving.is_protected or serving.runtime.model_cache:  # no release without records knew of any
        return None
    same = (serving.artifact_uri, serving.artifact_digest, serving.storage, serving.runtime_name)
    if same != (stable.artifact_uri, stable.artifact_digest, stable.storage, stable.runtime):
        return None
    template = live["spec"]["template"]
    names = [each["configMap"]["name"] for each in template["spec"]["volumes"] if each["name"] == _INPUT_VOLUME]
    # The name has the input's hash in it, and so that of its keys: nothing else here tells what was checked.
    request = fetch_request(observed.owner, serving, observed.settings, stable.revision)
    known = next((name for name in (request.name, request.name_with_defaults) if names == [name]), None)
    if known is None or not is_as_decided(template["spec"], fresh.template["spec"], serving.runtime):
        return None
    return replace(
        fresh,
        revision=stable.revision,
        template={"metadata": {"labels": template["metadata"]["labels"]}, "spec": template["spec"]},
        input_name=known,
        input_labels={**fresh.input_labels, meta.LABEL_REVISION: stable.revision},
        input_data=input_config_map(request)["data"],
    )
