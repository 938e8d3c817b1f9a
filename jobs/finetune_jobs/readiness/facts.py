"""Everything that the readiness report knows of a data set: counts, kinds and digests, never the text of a row.

The classes are plain data: ``pydantic.TypeAdapter(Facts)`` writes them as JSON and reads them back, so that a later
stage can complete them (``dataclasses.replace(facts, baseline=...)``) and make the page again.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from finetune_api.dataset import OnFinding, TooLong
from finetune_jobs.examples.parts import Part

Counts = Mapping[str, int]
"""Numbers by kind."""


@dataclass(frozen=True)
class Rows:
    """What became of the rows, in the order in which it happens.

    ``read + added`` is the sum of ``invalid``, ``dropped``, ``duplicates``, ``near_dropped``, ``outside_pilot`` and
    ``parts``, if everything was counted; ``unexplained`` is what is missing.
    """

    read: int
    """Rows of all sources, invalid ones included."""
    parts: Mapping[Part, int]
    """Examples by part."""
    invalid: Counts = field(default_factory=dict)
    """Rows that are no example, by kind of fault."""
    dropped: Counts = field(default_factory=dict)
    """Examples that a rule left out (cleaning, language, personal data, length, contamination), by kind."""
    duplicates: int = 0
    """Examples left out because an earlier one is the same."""
    near_duplicates: int | None = 0
    """Examples that say nearly the same as another that came before; None: nobody looked."""
    near_dropped: int = 0
    """Those of them that were left out."""
    outside_pilot: int = 0
    """Training examples that the sample of a pilot leaves aside."""
    added: int = 0
    """Examples that are no row: pieces of long ones, repetitions by weight, replayed general data."""
    repeated_pieces: int = 0
    """Those of them that were left out again, because an earlier one is the same."""

    @property
    def kept(self) -> int:
        """Examples in the three parts."""
        return sum(self.parts.values())

    @property
    def distinct(self) -> int:
        """Examples of the task without those that were added, and with those that a pilot leaves aside."""
        return max(0, self.kept + self.outside_pilot + self.repeated_pieces - self.added)

    @property
    def unexplained(self) -> int:
        """Rows that went in and are neither among the examples nor among those left out; 0 if nothing was forgotten."""
        lost = sum(self.invalid.values()) + sum(self.dropped.values()) + self.duplicates + self.near_dropped
        return self.read + self.added - lost - self.outside_pilot - self.kept


@dataclass(frozen=True)
class Beside:
    """Rows that are read beside those of the sources and are no part of their account."""

    read: int
    """Invalid ones included."""
    invalid: Counts = field(default_factory=dict)
    """By kind of fault; these are left out."""

    @property
    def wrong(self) -> int:
        """Invalid rows."""
        return sum(self.invalid.values())


@dataclass(frozen=True)
class Lengths:
    """Tokens of the examples as they are trained, instruction and answer included."""

    max_length: int
    """spec.training.maxLength in tokens."""
    rule: TooLong
    """What became of longer ones."""
    by_part: Mapping[Part, Mapping[int, int]] = field(default_factory=dict)
    """For every part: how many examples (value) have how many tokens (key). Empty: nobody measured."""
    over: int = 0
    """Examples that were longer than ``max_length``."""
    longest: int = 0
    """Tokens of the longest one, before anything was done about it."""

    def histogram(self, part: Part | None = None) -> Counter[int]:
        """Examples by number of tokens, of one part or of all."""
        total: Counter[int] = Counter()
        for name, counts in self.by_part.items():
            if part in (None, name):
                total.update(counts)
        return total


@dataclass(frozen=True)
class Findings:
    """Personal data or secrets that were found."""

    mode: OnFinding
    """What became of them."""
    counts: Counts = field(default_factory=dict)
    """Places by kind, e.g. EMAIL_ADDRESS."""
    only: Sequence[str] = ()
    """The kinds that were looked for, where the spec names some; empty: all that are known."""
    names: bool = False
    """Of personal data: whether a language model looked for names and addresses, which no pattern finds."""


@dataclass(frozen=True)
class Baseline:
    """What the base model scores on the test examples before any training."""

    measure: str
    """Name for people, e.g. accuracy."""
    value: float
    samples: int
    """Test examples that were asked."""
    interval: tuple[float, float] | None = None
    """95 % interval of the value."""
    share: bool = True
    """Whether the value is a share of right answers, 0 to 1; otherwise, e.g. a perplexity, it has no upper end."""


@dataclass(frozen=True)
class Facts:
    """One data set, as prepare made it."""

    sources: Sequence[str]
    """URIs of the sources."""
    task: str
    """finetune_api.dataset.TaskType."""
    rows: Rows
    lengths: Lengths
    pii: Findings
    secrets: Findings
    labels: Mapping[str, Mapping[Part, int]] = field(default_factory=dict)
    """Examples by label and part; empty for a task without classes."""
    languages: Counts = field(default_factory=dict)
    """Rows by ISO 639-1 code, those of other languages than the spec's included; ``und`` where a text says too little.
    Empty where no languages were asked for: nobody looked."""
    split_provided: bool = False
    """Whether the sources say which part a row belongs to."""
    seed: int = 0
    """spec.dataset.split.seed."""
    leaks: int | None = None
    """Pairs of a test and a training example that say nearly the same, after the division; None: nobody compared."""
    contaminated: int | None = None
    """Examples left out because they share 13 words in a row with a benchmark; None: no benchmark was given."""
    tests_in_benchmark: int = 0
    """Those of a test that a source provides: they stay, for nothing is learnt from them."""
    benchmarks: Beside | None = None
    """Rows of the benchmarks."""
    replay: Beside | None = None
    """Rows of general data."""
    source_digest: str = ""
    """Identity of the source files (dataset.sources.source_digest)."""
    dataset_digest: str = ""
    """Identity of the examples. Not the address of the data set's folder, which holds the page itself."""
    baseline: Baseline | None = None
    """Known once the base model was evaluated."""
