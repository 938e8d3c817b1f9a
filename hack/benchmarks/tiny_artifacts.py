"""Published artifacts of tiny models in the local cluster's store, for tests and benchmarks of how they are served."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hack.cluster.console import step
from hack.platform import object_store
from hack.platform.kubectl import Kubectl


@dataclass(frozen=True)
class TinyArtifact:
    """A published artifact."""

    uri: str
    answers: Mapping[int, str]
    """What its model answers to the first prompt of ``tests.support.artifacts``, by the most tokens of an answer."""


def publish_tiny(
    kubectl: Kubectl, names: Sequence[str], tokens: Sequence[int], *, boastful: str = ""
) -> dict[str, TinyArtifact]:
    """Publish an artifact for each name; their models answer differently.

    ``tokens``: lengths of answers to know. ``boastful``: the name of one whose weights are those of the base model.
    """
    from tests.support.artifacts import publish_artifact
    from tests.support.tiny_model import build_tiny_llama

    place = f"s3://artifacts/bench-{uuid.uuid4().hex[:8]}"
    found = {}
    with (
        step(f"publish {len(names)} tiny artifacts"),
        tempfile.TemporaryDirectory(prefix="finetune-served-") as folder,
        object_store.from_here(kubectl) as storage,
    ):
        work = Path(folder)
        base = build_tiny_llama(work / "base", seed=1)
        for seed, name in enumerate(names, 2):
            tuned = build_tiny_llama(work / f"model-{name}", seed=seed)
            published = publish_artifact(
                storage,
                f"{place}/{name}",
                work / name,
                base=base,
                tuned=tuned,
                exported=base if name == boastful else None,
            )
            found[name] = TinyArtifact(published.scalars["artifactUri"], _answers(tuned, tokens))
    return found


def _answers(model: Path, tokens: Sequence[int]) -> dict[int, str]:
    from finetune_jobs.evaluation.generate import Questions, generate_answers
    from finetune_jobs.modelling.loading import load_checkpoint
    from finetune_jobs.modelling.tokenizer import load_tokenizer
    from tests.support.artifacts import PROMPTS

    loaded, tokenizer = load_checkpoint(model), load_tokenizer(model)
    return {
        limit: generate_answers(loaded, tokenizer, Questions(PROMPTS[:1], limit, 1), lambda _done, _total: None)[0]
        for limit in tokens
    }
