"""What the models are asked in an evaluation, and what they answer."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from finetune_api.dataset import TaskType
from finetune_api.evaluation import Examination
from finetune_jobs.artifacts.calls import CallFormat
from finetune_jobs.artifacts.measurements import Automation
from finetune_jobs.base.progress import Progress
from finetune_jobs.evaluation.automation import Weighed, automate
from finetune_jobs.evaluation.behaviour.canaries import questions_about, recall
from finetune_jobs.evaluation.behaviour.comparison import Behaviour, compare_behaviour
from finetune_jobs.evaluation.behaviour.exposure import Exposure, Recalled
from finetune_jobs.evaluation.behaviour.items import sets_for
from finetune_jobs.evaluation.behaviour.likelihood import Given
from finetune_jobs.evaluation.behaviour.probe import Probe, Responses, probe_for
from finetune_jobs.evaluation.choices import MOST_LABELS
from finetune_jobs.evaluation.clusters import Groups
from finetune_jobs.evaluation.disturbance import Disturbed
from finetune_jobs.evaluation.generate import (
    ROOM,
    Generated,
    Questions,
    answer_limit,
    cut,
    numbered,
    thoughts_limit,
)
from finetune_jobs.evaluation.generators.protocol import Generator, Generators
from finetune_jobs.evaluation.lenient import read
from finetune_jobs.evaluation.passages import Passage, longest_text, make_passages, said_positions
from finetune_jobs.evaluation.sample import sample
from finetune_jobs.evaluation.shots import choose_shots, with_shots
from finetune_jobs.evaluation.tasks import right_for
from finetune_jobs.evaluation.texts import Likelihoods
from finetune_jobs.modelling import chat
from finetune_jobs.modelling.calls import find_format
from finetune_jobs.modelling.canaries import Canary, read_canaries
from finetune_jobs.modelling.token_files import Conversation, iterate_split, longest_thoughts, read_split
from finetune_jobs.modelling.tokenizer import load_tokenizer, stop_token
from finetune_jobs.modelling.tuning import Tuning

BATCH_SIZE: Final = 16
"""Prompts in a batch; of short ones there are more."""


def labels_of(dataset: Path) -> list[str]:
    """The allowed labels of a prepared data set; empty where answers are no classes."""
    return list(json.loads((dataset / "labels.json").read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Paper:
    """What the models are asked, and the right answers."""

    task: TaskType
    tokenizer: Any
    stop: int
    """The token that ends an answer."""
    examples: Sequence[Conversation]
    """Of the test part."""
    truth: Sequence[str]
    labels: Sequence[str]
    """The allowed ones of a classification."""
    questions: Questions
    checked: Questions | None
    """Of the validation part, for the artifact only: among its answers a threshold is chosen. None: it is not asked."""
    checked_truth: Sequence[str]
    shots: Sequence[Conversation]
    """Examples that the base model is shown; empty: it is shown none."""
    probe: Probe
    canaries: Sequence[Canary]
    """Made-up secrets among what was trained; empty: none are."""
    passages: Sequence[Passage]
    expected: Sequence[Given]
    """The right answers as tokens, with what stands before them; empty: how likely they are is not asked."""
    calls: CallFormat | None = None
    """How the template writes calls of tools; None: no example is about tools, or they cannot be read."""

    def read(self, texts: Sequence[str]) -> list[str]:
        """What answers mean: calls of tools whatever the form, texts as they are."""
        return [self.calls.canonical(text) if self.calls else text for text in texts]

    def read_all(self, answers: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """The same of the answers of each model."""
        return {model: self.read(texts) for model, texts in answers.items()}

    def taken(self, texts: Sequence[str]) -> list[str]:
        """Answers of a model that was not tuned as a person would take them; a call is no answer with words around."""
        return [text if self.calls and self.calls.read(text) else read(self.task, text, self.labels) for text in texts]

    @property
    def groups(self) -> Groups | None:
        """Which of the examples are alike; None: each stands for itself."""
        return Groups.of([example.group for example in self.examples])

    def answers(self, formats: int) -> int:
        """How many answers an evaluation of an artifact in so many formats asks for, of all models together."""
        of_base = len(self.examples) * (2 if self.shots else 1)
        beside = len(self.probe.sets.general) + len(self.probe.sets.adversarial) + len(self.canaries)
        of_artifact = len(self.examples) + len(self.checked_truth) + len(self.probe.sets.adversarial)
        return of_base + len(self.examples) + 2 * beside + formats * of_artifact

    @property
    def roomy(self) -> Questions:
        """The same questions with room for a sentence around the answer."""
        ids = numbered("testWithRoom", len(self.questions.prompts))
        return replace(self.questions, limit=self.questions.limit + ROOM, ids=ids)

    @property
    def shown(self) -> Questions:
        """These after the examples."""
        prompts = [with_shots(each, self.shots) for each in self.questions.prompts]
        return replace(self.roomy, prompts=prompts, ids=numbered("testWithExamples", len(prompts)))

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with its answer, of all that is asked."""
        asked = [self.roomy, self.shown, self.probe.questions, questions_about(self.canaries)]
        written = [
            len(ids) + questions.limit
            for questions in (*asked, *filter(None, [self.checked]))
            for ids in questions.encoded(self.tokenizer)
        ]
        given = [len(each.prompt) + len(each.answer) for each in (*self.expected, *self.probe.given)]
        return max([*written, *given, *(len(passage.ids) for passage in self.passages)])


def set_paper(base: Path, dataset: Path, tuning: Tuning, task: TaskType, evaluation: Examination) -> Paper:
    """What is asked of the models of a base and a data set. Raises StageError (ModelUnsupported)."""
    tokenizer = load_tokenizer(base)
    examples = sample(read_split(dataset, "test"), evaluation.max_samples, task)
    # No threshold is sought where whole answers are hardly ever right, or follow thoughts that may go either way.
    weighed = task is not TaskType.TEXT and not tuning.thoughts
    checked = sample(read_split(dataset, "validation"), evaluation.max_samples, task) if weighed else []
    stop, labels = stop_token(base, tokenizer), labels_of(dataset)
    truth, checked_truth = (
        [chat.answer_text(tokenizer, each.messages, stop, each.tools, thoughts=tuning.thoughts) for each in rows]
        for rows in (examples, checked)
    )
    about_tools = any(each.tools or each.messages[-1].get("tool_calls") for each in (*examples, *checked))
    limit = answer_limit(tokenizer, [*labels, *truth, *checked_truth])
    questions = Questions(
        [example.prompt for example in examples],
        max(limit, thoughts_limit(longest_thoughts(dataset))) if tuning.thoughts else limit,
        BATCH_SIZE,
        tuning.thoughts,
        [example.tools for example in examples],
        numbered("test", len(examples)),
    )
    others = replace(
        questions,
        prompts=[each.prompt for each in checked],
        tools=[each.tools for each in checked],
        ids=numbered("validation", len(checked)),
    )
    return Paper(
        task=task,
        tokenizer=tokenizer,
        stop=stop,
        examples=examples,
        truth=truth,
        labels=labels,
        questions=questions,
        checked=others if checked else None,
        checked_truth=checked_truth,
        # A model that thinks is shown none: the thoughts of the examples are what it would have to be shown.
        shots=[] if tuning.thoughts else _shots(base, dataset, tokenizer, questions, task),
        probe=probe_for(tokenizer, stop, sets_for(evaluation)),
        canaries=read_canaries(dataset),
        passages=make_passages(tokenizer, examples, stop, longest_text(base), thoughts=tuning.thoughts),
        expected=[_given(tokenizer, each, stop, tuning, id_) for each, id_ in zip(examples, questions.ids, strict=True)]
        if task is TaskType.TEXT
        else [],
        calls=find_format(tokenizer, stop, thoughts=tuning.thoughts) if about_tools else None,
    )


def _shots(base: Path, dataset: Path, tokenizer: Any, questions: Questions, task: TaskType) -> list[Conversation]:
    """Examples to show, as many as the base model has positions for before the longest question and its answer. Further
    ones would make it look worse than a person finds it, and vLLM refuses such a prompt."""
    chosen, positions = choose_shots(iterate_split(dataset, "train"), task), said_positions(base)
    if positions is None or not questions.prompts:
        return chosen

    def length(prompt: Sequence[chat.Message], tools: chat.Tools) -> int:
        return len(chat.prompt_ids(tokenizer, prompt, tools)) + questions.limit + ROOM

    longest, tools = max(zip(questions.prompts, questions.tools, strict=True), key=lambda each: length(*each))
    while chosen and length(with_shots(longest, chosen), tools) > positions:
        chosen.pop()
    return chosen


def _given(tokenizer: Any, example: Conversation, stop: int, tuning: Tuning, id_: str) -> Given:
    """What the model was trained to find likely."""
    encoded = chat.encode(tokenizer, example.messages, stop, example.tools, thoughts=tuning.thoughts)
    begin = len(encoded.labels) - sum(label != chat.IGNORED for label in encoded.labels)
    return Given(encoded.input_ids[:begin], encoded.input_ids[begin:], id_)


def expected_losses(generator: Generator, paper: Paper, progress: Progress, begin: float, end: float) -> list[float]:
    """The negative log-likelihood of each right answer, in nats; empty where it is not asked."""
    if not paper.expected:
        return []
    means = generator.losses(paper.expected, progress.part(begin, end, "likelihood of the right answers"))
    return [mean * len(each.answer) for mean, each in zip(means, paper.expected, strict=True)]


@dataclass(frozen=True)
class TrainedAnswers:
    """What base and tuned model said."""

    answers: dict[str, list[str]]
    """Of ``base``, in each way in which it was asked, and of ``tuned``."""
    wordy: dict[str, list[str]]
    """What those of them were read from that are taken as a person would take them: ``verbose`` and ``fewShot``."""
    behaviour: Behaviour
    likely: dict[str, list[list[float]]]
    """Of ``base`` and ``tuned``: the log-probabilities of each passage."""
    losses: dict[str, list[float]]
    """Of ``base`` and ``tuned``: how unlikely each right answer is."""
    beside: Responses
    """What the base model said to the sets of ``behaviour``."""


def ask_trained(models: Generators, paper: Paper, progress: Progress) -> TrainedAnswers:
    """Base and tuned model, one after the other: none is kept here, so that its memory is free for the next."""
    progress.report(0.0, "loading the base model")
    (answers, wordy), before = _ask_base(models.base(), paper, progress)
    answers["tuned"], after = _ask_tuned(models.tuned(), paper, progress)
    behaviour = compare_behaviour(paper.probe.sets, before.seen, after.seen, paper.probe.note)
    if paper.canaries:
        behaviour = replace(behaviour, exposure=Exposure(before.known, after.known))
    return TrainedAnswers(
        answers,
        wordy,
        behaviour,
        {"base": before.likely, "tuned": after.likely},
        {"base": before.losses, "tuned": after.losses},
        before.seen,
    )


_Base = tuple[dict[str, list[str]], dict[str, list[str]]]
"""The base model's answers by the way in which it was asked; and what it said with room for a sentence, as it is."""


def _ask_base(generator: Generator, paper: Paper, progress: Progress) -> "tuple[_Base, _Beside]":
    found = _answers_of_base(generator, paper, progress)
    return found, _ask_beside(generator, paper, "base model", progress.within(0.24, 0.35, ""))


def _ask_tuned(generator: Generator, paper: Paper, progress: Progress) -> "tuple[list[str], _Beside]":
    answers = texts_of(generator.write(paper.questions, progress.part(0.35, 0.48, "tuned model")))
    return answers, _ask_beside(generator, paper, "tuned model", progress.within(0.48, 0.6, ""))


@dataclass(frozen=True)
class _Beside:
    """What base and tuned model are both asked beside the task's questions."""

    likely: list[list[float]]
    losses: list[float]
    seen: Responses
    known: Recalled


def _ask_beside(generator: Generator, paper: Paper, name: str, progress: Progress) -> _Beside:
    return _Beside(
        [generator.log_probs(passage) for passage in paper.passages],
        expected_losses(generator, paper, progress, 0.0, 0.1),
        paper.probe.ask(generator, progress, 0.1, 0.8, name),
        recall(generator, paper.tokenizer, paper.stop, paper.canaries, progress.within(0.8, 1.0, f"{name}, ")),
    )


def _answers_of_base(generator: Generator, paper: Paper, progress: Progress) -> _Base:
    """Not with room, and not for a choice, where models think: an answer then has room enough, and no label is likely
    before the thoughts."""
    tokenizer, questions = paper.tokenizer, paper.questions
    if questions.thoughts:
        return {"base": texts_of(generator.write(questions, progress.part(0.05, 0.2, "base model")))}, {}
    said, chosen = _said_and_chosen(generator, paper, progress)
    wordy = {"verbose": texts_of(said)}
    if paper.shots:
        report = progress.part(0.2, 0.24, "base model, few-shot")
        wordy["fewShot"] = texts_of(generator.write(paper.shown, report))
    # Read strictly, and ended where the tuned model has to end, is only what answers the artifact's own prompt.
    found = {"base": [cut(tokenizer, each, questions.limit) for each in said]}
    found |= {way: paper.taken(texts) for way, texts in wordy.items()}
    if chosen:
        found["constrained"] = chosen
    return found, wordy


def texts_of(answers: Sequence[Generated]) -> list[str]:
    """The answers as texts."""
    return [each.text for each in answers]


def _said_and_chosen(generator: Generator, paper: Paper, progress: Progress) -> tuple[list[Generated], list[str]]:
    """What the base model writes with room for a sentence, and which labels it would choose, if it is asked that."""
    report = progress.part(0.05, 0.2, "base model")
    if paper.task is not TaskType.CLASSIFICATION or not 1 < len(paper.labels) <= MOST_LABELS:
        return generator.write(paper.roomy, report), []
    return generator.write_and_choose(paper.roomy, paper.labels, paper.stop, report)


@dataclass(frozen=True)
class ServedAnswers:
    """What the artifact said."""

    answers: Sequence[Generated]
    checked: Sequence[Generated]
    """To the questions of the validation part."""
    likely: list[list[float]]
    """Its log-probabilities of each passage."""
    losses: list[float]
    """As ``expected_losses``."""
    beside: Responses
    """Its answers to the adversarial set."""
    disturbed: Mapping[int, Disturbed]
    """What it finds of each passage that is recorded with wrong positions and with noise, by its number; empty for a
    format that cannot be the artifact, of which nothing is recorded."""


def ask_artifact(generator: Generator, paper: Paper, progress: Progress) -> ServedAnswers:
    """The test questions, those of the validation part, the passages, undisturbed, and what is adversarial: it is what
    is served."""
    checked: list[Generated] = []
    if paper.checked is not None:
        checked = generator.write(paper.checked, progress.part(0.1, 0.4, "validation part"), weighed=True)
    answers = generator.write(paper.questions, progress.part(0.4, 0.85, "answers"), weighed=paper.checked is not None)
    found = ServedAnswers(
        answers,
        checked,
        [generator.log_probs(passage) for passage in paper.passages],
        expected_losses(generator, paper, progress, 0.85, 0.95),
        paper.probe.of_safety.ask(generator, progress, 0.95, 1.0, "exported model"),
        disturbed={},
    )
    progress.report(1.0)
    return found


def likelihoods_of(paper: Paper, losses: Mapping[str, list[float]]) -> Likelihoods | None:
    """How unlikely each model found the right answers, from its ``expected_losses``; None where it was not asked."""
    if not paper.expected:
        return None
    return Likelihoods([len(each.answer) for each in paper.expected], losses, paper.groups)


def automation_of(paper: Paper, served: ServedAnswers) -> list[Automation]:
    """What needs no human review; nothing, if no validation examples were asked."""
    right = right_for(paper.task)

    def weighed(truth: Sequence[str], answers: Sequence[Generated]) -> list[Weighed]:
        said = paper.read([answer.text for answer in answers])
        rows = zip(paper.read(truth), answers, said, strict=True)
        return [Weighed(answer.log_probability, right(wanted, text)) for wanted, answer, text in rows]

    if paper.checked is None:
        return []
    answered = weighed(paper.truth, served.answers)
    return automate(
        weighed(paper.checked_truth, served.checked),
        [replace(each, group=row.group) for each, row in zip(answered, paper.examples, strict=True)],
    )
