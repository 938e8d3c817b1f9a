"""What the models of an evaluation are asked, counted before there are data. Pure.

It repeats what ``evaluation`` does, which no module here may import: tests compare the two. Whether the models think is
known only from the data. One that does not is counted: it is asked in more ways, but an answer with thoughts is longer.
Not counted: canaries, of which there are few, and the model of ``spec.evaluation.baseline``, which runs elsewhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from finetune_api.dataset import TaskType
from finetune_api.evaluation import Coverage, Examination
from finetune_api.training import Training

GENERAL: Final[Mapping[Coverage, int]] = {Coverage.OFF: 0, Coverage.SAMPLE: 18, Coverage.FULL: 222}
"""Questions of the general set, which base and tuned model answer."""
ADVERSARIAL: Final[Mapping[Coverage, int]] = {Coverage.OFF: 0, Coverage.SAMPLE: 12, Coverage.FULL: 166}
"""Questions of the adversarial set, which each format of the exported model answers too."""
BESIDE_TOKENS: Final = 32
"""Most tokens of an answer to one of these questions (``evaluation.behaviour.probe``)."""
QUESTION_TOKENS: Final = 120
"""Tokens that a model reads for each of them, given answers whose likelihood is asked included: the 4,500 of both
samples (``evaluation.behaviour.items``) without those of the 30 answers, for each."""
ROOM: Final = 32
"""More tokens for a base model, which may write a sentence around its answer (``evaluation.generate``)."""
LABEL_TOKENS: Final = 16
"""Tokens of a label with what is generated to see that an answer ends there. An assumption."""
ANSWER_SHARE: Final = 1 / 4
"""Other answers, as a share of ``maxLength``. An assumption: all models generate as much as the longest right one."""
PASSAGES: Final = 16
"""Examples whose tokens each model finds more or less likely (``evaluation.passages``)."""
LONG_TOKENS: Final = 2 * 1008
"""The same of the two long texts, of examples and of words."""
DISTURBED: Final = 2
"""How often the exported model reads all of these again: with the right positions and with wrong ones
(``evaluation.disturbance``). Each format is counted, though only those read them that may be the artifact."""
NOISY: Final = 8
"""Those of the examples that it also reads with noise (``evaluation.reference``)."""
TWINS: Final = 2
"""How often (``evaluation.disturbance``)."""


@dataclass(frozen=True)
class Asked:
    """What one model is asked."""

    answers: int
    """Answers to each example of the task."""
    more_tokens: int = 0
    """Tokens for each example beyond those of right answers: room for a sentence, labels to choose among."""
    likelihoods: int = 0
    """How often it is given an example with the right answer, to see how likely it finds that."""
    beside: int = 0
    """Questions beside the task, however many examples there are."""
    readings: int = 1
    """How often it reads the examples and the long texts whose tokens it finds more or less likely."""
    noisy: int = 0
    """Further readings of one of these examples."""


@dataclass(frozen=True)
class Asking:
    """What all models are asked."""

    base: Asked
    tuned: Asked
    exported: Asked
    """Each format of the exported model."""
    answer_tokens: float
    """Tokens of an answer to an example of the task."""


def asking(task: TaskType, evaluation: Examination, training: Training) -> Asking:
    """What an evaluation asks of each model.

    The base model answers twice with room for a sentence, at once and after examples, and chooses among the labels of a
    classification. The exported model also answers as many examples of the validation part, among whose answers a
    threshold is chosen, unless answers are free texts.
    """
    is_label, is_text = task is TaskType.CLASSIFICATION, task is TaskType.TEXT
    both = GENERAL[evaluation.general] + ADVERSARIAL[evaluation.adversarial]
    likelihoods = 1 if is_text else 0
    return Asking(
        base=Asked(2, 2 * ROOM + (LABEL_TOKENS if is_label else 0), likelihoods, both),
        tuned=Asked(1, 0, likelihoods, both),
        exported=Asked(
            1 if is_text else 2,
            0,
            likelihoods,
            ADVERSARIAL[evaluation.adversarial],
            readings=1 + DISTURBED,
            noisy=TWINS * NOISY,
        ),
        answer_tokens=LABEL_TOKENS if is_label else max(LABEL_TOKENS, ANSWER_SHARE * training.max_length),
    )
