"""Another model, behind an OpenAI-compatible URL, answers the test examples: whether using that one would have done.

It sees the same prompts after the examples that the base model is shown, which is what a person would try with it, and
has room for words around an answer.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from finetune_api.hashing import digest
from finetune_api.judging import OtherModel
from finetune_api.reasons import Reason
from finetune_api.stages import RunRef
from finetune_jobs.base.errors import StageError
from finetune_jobs.base.progress import Progress, Report
from finetune_jobs.chat_api.answer_collector import AnswerCollector, AnswerSource
from finetune_jobs.chat_api.chat_model import ChatModel
from finetune_jobs.chat_api.journal import Journal
from finetune_jobs.chat_api.terms import Terms, Turns
from finetune_jobs.evaluation.asking import Paper
from finetune_jobs.evaluation.shots import PLAIN, with_shots
from finetune_jobs.modelling.token_files import Conversation
from finetune_jobs.store.s3 import Store

log = logging.getLogger(__name__)

_PLACE: Final = "spec.evaluation.baseline"


@dataclass(frozen=True)
class _Asked:
    """A test example as it is asked."""

    turns: Turns
    identity: str


def asker(
    store: Store, run: RunRef, other: OtherModel, progress: Progress, stopping: threading.Event
) -> Callable[[Paper], list[str]]:
    """What asks the model about an evaluation's paper, with its key, and a journal in which its answers outlive the
    pod. Raises StageError: SecretMissing, TeacherRefused (the key is none), as Store."""
    secret = other.endpoint.secret_key_ref
    terms = Terms(
        server=other.endpoint,
        role="model of spec.evaluation.baseline",
        place=_PLACE,
        key_variable=secret.variable if secret else "",
        max_answer_tokens=other.max_answer_tokens,
        concurrency=other.concurrency,
        requests_per_minute=other.requests_per_minute,
    )
    source = AnswerSource(terms, ChatModel.from_environment(terms), Journal.of(store, run, "baseline", terms.recipe))
    report = progress.part(0.0, 0.05, "another model")
    return lambda paper: ask_elsewhere(paper.examples, paper.shots, source, report, stopping)


def ask_elsewhere(
    examples: Sequence[Conversation],
    shots: Sequence[Conversation],
    source: AnswerSource,
    report: Report | None,
    stopping: threading.Event,
) -> list[str]:
    """What the model writes to each test example, as it is; nothing where an example has tools, which every server
    answers in a form of its own. A prompt that it will not take is answered with nothing, which is wrong.

    Raises StageError: TeacherUnavailable where answers stay away, so that not all models had the same rows;
    TeacherRefused, as Store. Raises StoppedError once ``stopping`` is set.
    """
    prompts = [with_shots(example.prompt, shots) for example in examples]
    plain = all(turn.keys() <= PLAIN for prompt in prompts for turn in prompt)
    if not plain or any(example.tools for example in examples):
        log.warning("%s is not asked: test examples have tools or thoughts, which servers write in other forms", _PLACE)
        return []
    recipe, journal = source.terms.recipe, source.journal
    asked = [_Asked(prompt, digest([recipe, prompt])) for prompt in prompts]
    collector = AnswerCollector(source)
    fresh = [each for each in {each.identity: each for each in asked}.values() if each.identity not in journal]
    try:
        asyncio.run(collector.run(iter(fresh), len(fresh), report, stopping))
    finally:
        journal.flush()
    lost = [error for error in collector.given_up.values() if not error.refused]
    if lost:
        raise StageError(
            Reason.TEACHER_UNAVAILABLE,
            f"{source.model.url}: {len(lost)} of {len(asked)} test examples were not answered; the last time, the "
            f"{source.terms.role} {lost[-1]}. All models must answer the same ones. The answers so far are kept.",
            retriable=True,
        )
    answers = [journal.find(each.identity) for each in asked]
    return [answer.text if answer else "" for answer in answers]
