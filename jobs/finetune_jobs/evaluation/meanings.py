"""What the figures on an evaluation's page mean, for each task. No model, no figure."""

from dataclasses import dataclass
from typing import Final

from finetune_api.dataset import TaskType
from finetune_jobs.artifacts.measurements import CHANCE
from finetune_jobs.reports.page import Fact


@dataclass(frozen=True)
class Words:
    """How the page speaks of a task."""

    right: str
    """What an answer is that counts."""
    precision: str
    recall: str
    mean: str
    unknown: str = ""
    """Name of the column with answers that cannot be scored; empty: there are none."""
    unknown_means: str = ""
    share: str = "Accuracy"
    """What the share of right answers is called."""
    said: tuple[str, str] = ("✓ right", "✕ wrong")
    """Beside an answer that is right, and beside one that is not."""
    lead: str = ""
    """What counts, at the top of the page; empty: an answer that is ``right``."""


WORDS: Final = {
    TaskType.CLASSIFICATION: Words(
        "exactly the label",
        "Of the answers that name a label, the share that are right.",
        "Of the examples of a label, the share that were found.",
        "The mean over the labels (macro): a rare label counts as much as a frequent one.",
        "no label",
        "Answers that are none of the allowed labels; they count as wrong.",
    ),
    TaskType.EXTRACTION: Words(
        "the same JSON value; white space and the order of keys do not count",
        "Of the fields in an answer, the share with the right value.",
        "Of the expected fields, the share that the answer has right.",
        "The mean over the examples: one wrong field costs a part, not the whole answer.",
        "no JSON",
        "Answers that are not valid JSON; they count as wrong and have no right field.",
    ),
    TaskType.TEXT: Words(
        "the same words; letter case, punctuation, articles and white space do not count",
        "Of the words in an answer, the share that are in the expected answer.",
        "Of the words in the expected answer, the share that are in the answer.",
        "The mean over the examples, as in SQuAD: a good answer in other words scores low.",
        share="Exact match",
        said=("✓ the same words", "in other words"),
        lead=(
            "A text is not just right or wrong: what counts is how much it has in common with the expected answer. A "
            "good answer in other words scores low, so compare these figures, and have people compare the answers."
        ),
    ),
}

_OF_TEXT: Final = (
    Fact(
        "chrF",
        [
            "How many sequences of up to six characters the answer and the expected answer share, as an F-score that "
            "weighs recall twice as much as precision (Popović 2015; sacrebleu's defaults); the mean over the "
            "examples. It works for every language, and gives credit for parts of words."
        ],
    ),
    Fact(
        "Perplexity",
        [
            "How unsure a model is of the expected answer: on average, as if it had to guess each token among this "
            "many equally likely ones. 1 is certain; lower is better. The model does not write an answer here, so "
            "other wording costs it nothing. Compare only models with the same tokenizer. The interval reflects how "
            "much the examples differ. A change is given as a share of the perplexity before."
        ],
    ),
)
"""Figures of texts alone."""


_OF_A_LABEL: Final = (
    " Of one label, which has few of the examples, it follows from the intervals of both models and from how often "
    "they get the same examples right (square-and-add, Newcombe 1998)."
)
_GROUPS: Final = (
    "The examples form {groups} groups of similar rows (spec.dataset.groupBy, near duplicates, pieces of one "
    "conversation). Ten examples of one group say less than one example each of ten groups, so intervals come from "
    "resampling whole groups (cluster bootstrap, with Student's quantile, which widens them if groups are few), and no "
    "exact test is used."
)


def meanings(task: TaskType, groups: int = 0) -> list[Fact]:
    """One sentence or two for each figure. ``groups``: of examples that are alike; 0: each stands for itself."""
    words = WORDS[task]
    return [
        *(_OF_TEXT if task is TaskType.TEXT else ()),
        Fact(words.share, [f"The share of answers that are {words.right}."]),
        Fact(
            "95 % interval",
            [
                f"In 95 of 100 such tests it contains the {words.share.lower()} that very many examples of this kind "
                "would give (Wilson). More test examples make it narrower."
            ],
        ),
        Fact(
            "Interval of a difference",
            [
                "Both models answered the same examples, so the examples are resampled many times and both models "
                "scored on each sample (paired bootstrap, with four imaginary examples that either may get right). If "
                "it contains 0, chance could explain the difference; for the "
                f"{words.share.lower()}, McNemar's test decides."
                f"{_OF_A_LABEL if task is TaskType.CLASSIFICATION else ''}"
            ],
        ),
        *([Fact("Groups", [_GROUPS.format(groups=f"{groups:,}")])] if groups else []),
        Fact("Precision", [words.precision]),
        Fact("Recall", [words.recall]),
        Fact("F1", ["The harmonic mean of precision and recall: high only if both are."]),
        Fact("All three", [words.mean]),
        Fact(
            "p (McNemar)",
            [
                "How often chance alone would cause a difference this large if both models were equally good; below "
                f"{CHANCE}, the difference counts as real."
            ],
        ),
        *([Fact(words.unknown[0].upper() + words.unknown[1:], [words.unknown_means])] if words.unknown else []),
    ]
