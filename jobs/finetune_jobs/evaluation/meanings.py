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
        "Of the answers that name a label, the share that is right.",
        "Of the examples of a label, the share that was found.",
        "The mean over the labels (macro): a rare label counts as much as a frequent one.",
        "no label",
        "Answers that are none of the allowed labels; they count as wrong.",
    ),
    TaskType.EXTRACTION: Words(
        "the same JSON value; white space and the order of keys do not count",
        "Of the fields in an answer, the share with the right value.",
        "Of the fields that are expected, the share that the answer has right.",
        "The mean over the examples: one wrong field costs a part, not the whole answer.",
        "no JSON",
        "Answers that are not valid JSON; they count as wrong and have no right field.",
    ),
    TaskType.TEXT: Words(
        "the same words; letter case, punctuation, articles and white space do not count",
        "Of the words in an answer, the share that the expected answer has, too.",
        "Of the words that are expected, the share that the answer has.",
        "The mean over the examples, as SQuAD counts: a good answer in other words scores low.",
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
            "How many characters in a row, up to six, answer and expected answer have in common, as an F-score in "
            "which what is missing counts twice as much as what is too much (Popović 2015; sacrebleu's defaults); the "
            "mean over the examples. It works in every language, and for half a word."
        ],
    ),
    Fact(
        "Perplexity",
        [
            "Among how many equally likely tokens a model would have to guess, on average, to be as unsure of the "
            "expected answer as it is: 1 is certain, lower is better. The model writes nothing, so its own words cost "
            "it nothing. Only models with the same tokenizer can be compared. Its interval comes from how much the "
            "examples differ. What a step changed is a share of the perplexity before."
        ],
    ),
)
"""Figures of texts alone."""


_GROUPS: Final = (
    "The examples stand in {groups} groups whose rows are alike (spec.dataset.groupBy, near duplicates, pieces of one "
    "conversation), and ten of one group do not tell as much as ten groups: intervals hold those of whole groups drawn "
    "again (cluster bootstrap, with Student's quantile, so that few groups make them wide), and no exact test decides."
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
                f"Where the {words.share.lower()} on very many examples of this kind would lie, in 95 of 100 such "
                "tests (Wilson): more test examples make it narrower."
            ],
        ),
        Fact(
            "Interval of a difference",
            [
                "Both models answered the same examples, so these are drawn again many times and both scored on each "
                "draw (paired bootstrap, with four imaginary examples that either may get right). Where it holds 0, "
                f"chance could explain the difference; for the {words.share.lower()} McNemar's test decides."
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
                "How often chance alone would make a difference as large as this, if both models were equally good; "
                f"below {CHANCE} the difference is taken as real."
            ],
        ),
        *([Fact(words.unknown[0].upper() + words.unknown[1:], [words.unknown_means])] if words.unknown else []),
    ]
