"""What gates said of an artifact: ``gates/<hash>.json``, beside the files of its folder.

The folder is the same whatever the goals were, so their outcome is no part of it: one run may publish it as accepted
and another, with other goals, as a candidate. Each verdict is an object of its own, written once.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from finetune_api.artifact_source import Channel
from finetune_api.gates import GateOutcome, GoalStatus, unpacked
from finetune_api.hashing import canonical_json, short
from finetune_api.layout import GatesRecord, gates_folder, output_folder
from finetune_api.reasons import Reason
from finetune_api.review import ReviewStatus
from finetune_api.stages import PublishParams, Stage, StageResult
from finetune_api.verification import GatesPolicy
from finetune_jobs.artifacts.artifact import MODEL_REF, ModelRef
from finetune_jobs.artifacts.channel import channel_of
from finetune_jobs.artifacts.folders import get_listed, require_manifest
from finetune_jobs.base.documents import parse_json
from finetune_jobs.base.errors import StageError
from finetune_jobs.base.wording import shorten
from finetune_jobs.store.s3 import Store

MAX_WORDS: Final = 400
"""Longest account of gates that were not passed, in characters: it goes into messages of a status."""


def record_gates(store: Store, params: PublishParams, result: StageResult) -> None:
    """Write down what publish decided about an artifact; nothing where an equal verdict stands there."""
    artifact = result.output_digest
    folder = output_folder(Stage.PUBLISH, artifact)
    content = get_listed(store, folder, require_manifest(store, folder), MODEL_REF)
    task = parse_json(content, ModelRef, store.uri(f"{folder}/{MODEL_REF}")).task
    found = result.scalars.get("goals")  # none: an earlier version kept this result
    record = GatesRecord(
        channel=channel_of(result.scalars),
        are_set=bool(params.gates.goals),
        goals=unpacked(found, params.gates.texts(task)) if found else [],
        review=_review(result),
    )
    store.put_if_absent(f"{gates_folder(artifact)}/{short(record, 16)}.json", canonical_json(record))


def read_gates(store: Store, artifact: str) -> list[GatesRecord]:
    """Every verdict on an artifact. Raises StageError (ArtifactCorrupt) for one that cannot be read."""
    folder = gates_folder(artifact)
    found: list[GatesRecord] = []
    for entry in store.list(folder):
        place = f"{folder}/{entry.key}"
        if (content := store.get(place)) is not None:
            found.append(parse_json(content, GatesRecord, store.uri(place)))
    return found


def require_gates(store: Store, artifact: str, policy: GatesPolicy, required: Sequence[str]) -> None:
    """Raises StageError (GatesNotPassed, ArtifactCorrupt) if the artifact has not passed what a policy asks for."""
    if policy is GatesPolicy.ANY and not required:
        return
    missing = list(_missing(read_gates(store, artifact), policy, required))
    if missing:
        place = store.uri(output_folder(Stage.PUBLISH, artifact))
        raise StageError(Reason.GATES_NOT_PASSED, shorten(f"{place}: {' '.join(missing)}", MAX_WORDS))


def _missing(known: Sequence[GatesRecord], policy: GatesPolicy, required: Sequence[str]) -> Iterator[str]:
    """What the verdicts lack, a sentence each. Pure."""
    if not known:
        yield "it has no record of its gates."
        return
    if policy is GatesPolicy.PASSED and not any(each.channel is Channel.STABLE for each in known):
        missed = [goal for each in known for goal in each.goals if goal.outcome is not GateOutcome.PASS]
        yield "it was published as a candidate only."
        yield from dict.fromkeys(goal.sentence for goal in missed)
        if any(each.review for each in known):
            yield f"People said: {', '.join(dict.fromkeys(each.review for each in known if each.review))}."
    for name in required:
        found = [goal for each in known if each.are_set for goal in each.goals if goal.about == name]
        if not found:
            yield f"no goal about {name} was set."
        elif not any(_met(goal) for goal in found):
            yield from dict.fromkeys(f"{name} is required. {goal.sentence}" for goal in found)


def _met(goal: GoalStatus) -> bool:
    return goal.outcome is GateOutcome.PASS and bool(goal.value)


def _review(result: StageResult) -> str:
    said = result.scalars.get("review", "")
    return ReviewStatus.model_validate_json(said).outcome.value if said else ""
