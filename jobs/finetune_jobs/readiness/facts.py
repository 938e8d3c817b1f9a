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
    """What happened to the rows, in this order.

    ``read + added`` is the sum of ``invalid``, ``dropped``, ``duplicates``, ``near_dropped``, ``outside_pilot`` and
    ``parts``, if everything was counted; ``unexplained`` is what is missing.
    """

    read: int
    """Rows of all sources, invalid ones included."""
    parts: Mapping[Part, int]
    """Examples by part."""
    invalid: Counts = field(default_factory=dict)
    """Invalid rows, by kind of fault."""
    dropped: Counts = field(default_factory=dict)
    """Examples dropped by a rule (cleaning, language, personal data, length, contamination), by kind."""
    duplicates: int = 0
    """Examples dropped as exact duplicates of an earlier one."""
    near_duplicates: int | None = 0
    """Examples that are near duplicates of an earlier one; None: not checked."""
    near_dropped: int = 0
    """Those of them that were dropped."""
    outside_pilot: int = 0
    """Training examples outside a pilot's sample."""
    added: int = 0
    """Examples beyond the rows: pieces of long ones, repetitions by weight, replayed general data."""
    repeated_pieces: int = 0
    """Those of them dropped again as exact duplicates of an earlier one."""

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
        """Rows that are neither examples nor dropped; 0 if everything was counted."""
        lost = sum(self.invalid.values()) + sum(self.dropped.values()) + self.duplicates + self.near_dropped
        return self.read + self.added - lost - self.outside_pilot - self.kept


@dataclass(frozen=True)
class Beside:
    """Rows that are read beside those of the sources and are no part of their account."""

    read: int
    """Invalid ones included."""
    invalid: Counts = field(default_factory=dict)
    """By kind of fault; these are dropped."""

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
    """How longer ones are handled."""
    by_part: Mapping[Part, Mapping[int, int]] = field(default_factory=dict)
    """For every part: how many examples (value) have how many tokens (key). Empty: not measured."""
    over: int = 0
    """Examples that were longer than ``max_length``."""
    longest: int = 0
    """Tokens of the longest one, before anything was done about it."""
    left_out: int = 0
    """Exchanges that were too long by themselves and left out of conversations that were split."""

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
    """How they were handled."""
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
    """Display name, e.g. accuracy."""
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
    placeholders: int = 0
    """Test examples that hold placeholders for personal data or secrets."""
    masked_answers: int = 0
    """Examples of all parts whose answer does."""
    thoughts: Mapping[Part, int] | None = None
    """Examples by part whose answers have thoughts; None: the model learns none."""
    without_thoughts: int = 0
    """Examples of a model that learns to think whose answers have none."""
    longest_answer: int = 0
    """Tokens of the longest answer with its thoughts."""
    escaped: Counts = field(default_factory=dict)
    """Control tokens of the base model that were escaped in the texts."""
    languages: Counts = field(default_factory=dict)
    """Rows by ISO 639-1 code, those of other languages than the spec's included; ``und`` where a text says too little.
    Empty where no languages were requested."""
    split_provided: bool = False
    """Whether the sources say which part a row belongs to."""
    seed: int = 0
    """spec.dataset.split.seed."""
    leaks: int | None = None
    """Near-duplicate pairs of a test and a training example after the split; None: not compared."""
    across: int = 0
    """Rows for training that were left out because a test that a source provides holds (nearly) the same."""
    contaminated: int | None = None
    """Examples dropped because they share 13 consecutive words with a benchmark; None: no benchmark was given."""
    tests_in_benchmark: int = 0
    """Those in a test part that a source provides: they stay, since they are not trained on."""
    benchmarks: Beside | None = None
    """Rows of the benchmarks."""
    replay: Beside | None = None
    """Rows of general data."""
    canaries: int = 0
    """Made-up secrets that are trained beside the examples, and counted nowhere else."""
    source_digest: str = ""
    """Identity of the source files (dataset.sources.source_digest)."""
    dataset_digest: str = ""
    """Identity of the examples. Not the address of the data set's folder, which holds the page itself."""
    baseline: Baseline | None = None
    """Known once the base model was evaluated."""
