"""The checklist before training, checked by a machine: every item passes, warns or fails, says why and what to do.

Warn means "look at this", Fail means "a model trained on it, or its scores, cannot be trusted". Nothing here stops a
run: what must not be trained on at all, prepare refuses by itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from finetune_api.dataset import OnFinding, TaskType, TooLong
from finetune_api.readiness import BASELINE, EASY_BASELINE, Readiness
from finetune_jobs.base.wording import shorten
from finetune_jobs.evaluation.metrics import wilson
from finetune_jobs.examples.parts import Part
from finetune_jobs.readiness.facts import Baseline, Beside, Facts, Findings
from finetune_jobs.reports.bins import quantile

MIN_EXAMPLES: Final = 500
"""Fewest examples that suit an adapter: the usual advice is 500 to 5,000 good ones."""
MIN_TRAIN: Final = 50
"""Fewest training examples that change a model: OpenAI's guide to fine-tuning sees improvements from 50 on."""
MIN_PART: Final = 10
"""Fewest examples of a part: below it neither a loss curve nor a score says anything."""
SOUND_TEST: Final = 100
"""Fewest test examples: with 100 a share of 80 % is known to about 8 points either way (Wilson)."""
MAX_INVALID: Final = 0.05
"""Share of invalid rows from which the source deserves a look: the default of spec.dataset.maxInvalidPercent."""
MAX_DROPPED: Final = 0.20
"""Share of examples that rules may drop before the rules deserve a look (own judgement)."""
MAX_NEAR: Final = 0.20
"""Share of kept near duplicates from which a set is smaller than it looks (own judgement)."""
MAX_OVER_LENGTH: Final = 0.01
"""Share of long examples that may be dropped without a warning (own judgement): beyond it long cases are missing."""
MAX_IMBALANCE: Final = 10.0
"""Largest to smallest class: above it the small ones are learned late or never, and accuracy hides it."""
MIN_CLASS: Final = 10
"""Fewest examples of a class: with the default split one of them is in the test."""
_NAMED: Final = "report.json names file, line and field of the first faults"
_SHOWN: Final = 3
"""Labels and kinds that a sentence names before it says "and more"."""


class State(StrEnum):
    """How an item stands."""

    PASS = "Pass"
    WARN = "Warn"
    FAIL = "Fail"


@dataclass(frozen=True)
class Item:
    """One line of the checklist."""

    name: str
    """One word, as the summary says it."""
    state: State
    evidence: str
    """What was found, in sentences."""
    remedy: str = ""
    """What to do about it; empty when the item passes."""


def check(facts: Facts) -> list[Item]:
    """All items in the order of the page. A task without classes has no item ``balance``, and a model that learns to
    answer at once no item ``thoughts``."""
    checks = [
        *(_examples, _structured, _cleaned, _duplicates, _anonymised, _secrets, _split, _leakage),
        *([_balance] if facts.labels else []),
        *([_thoughts] if facts.thoughts is not None else []),
        *(_lengths, _versioned, _baseline),
    ]
    return [judge(facts) for judge in checks]


def summary(items: Sequence[Item]) -> str:
    """For the status, e.g. ``8 passed, 1 warning (balance), 0 failed``."""
    names = {state: tuple(item.name for item in items if item.state is state) for state in State}
    return str(Readiness(len(names[State.PASS]), names[State.WARN], names[State.FAIL]))


def verdict(items: Sequence[Item]) -> State:
    """The worst state of any item."""
    states = {item.state for item in items}
    return next((state for state in (State.FAIL, State.WARN) if state in states), State.PASS)


def _examples(facts: Facts) -> Item:
    total, train = facts.rows.distinct, facts.rows.parts.get(Part.TRAIN, 0)
    evidence = f"{count_of(total, 'example')}, {train:,} of them for training."
    if facts.rows.outside_pilot:
        evidence += f" This is a pilot: {count_of(facts.rows.outside_pilot, 'more training example')} not used."
    if facts.canaries:
        evidence += f" {count_of(facts.canaries, 'canary', 'canaries')} are added for training."
    remedy = (
        f"Collect {count_of(MIN_EXAMPLES - total, 'more good example')}, or let a teacher write them (distillation)."
    )
    if train < MIN_TRAIN:
        remedy = remedy if total < MIN_EXAMPLES else "Give training a larger share, or the pilot a larger sample."
        return Item("examples", State.FAIL, f"{evidence} Fewer than {MIN_TRAIN} have little effect.", remedy)
    if total < MIN_EXAMPLES:
        return Item("examples", State.WARN, f"{evidence} At least {MIN_EXAMPLES} are recommended.", remedy)
    return Item("examples", State.PASS, evidence)


def _structured(facts: Facts) -> Item:
    item, replay = _structured_sources(facts), facts.replay
    if replay is None or not replay.wrong:
        return item
    evidence = f"{item.evidence} General data: {_left_out(replay)}."
    if item.state is not State.PASS:
        return Item(item.name, item.state, evidence, item.remedy)
    return Item(item.name, State.WARN, evidence, f"Fix the file of spec.dataset.replay; {_NAMED}.")


def _left_out(beside: Beside) -> str:
    wrong = f"{beside.wrong:,} of {count_of(beside.read, 'row')} ({percent(beside.wrong, beside.read)})"
    return f"{wrong} invalid, dropped: {_kinds(beside.invalid)}"


def _structured_sources(facts: Facts) -> Item:
    read, invalid = facts.rows.read, sum(facts.rows.invalid.values())
    if not read:
        return Item("structured", State.FAIL, "The sources contain no rows.", "Check spec.dataset.sources.")
    if not invalid:
        return Item("structured", State.PASS, "Every row is valid.")
    evidence = f"{invalid:,} of {count_of(read, 'row')} ({percent(invalid, read)}) invalid, dropped: "
    evidence += f"{_kinds(facts.rows.invalid)}."
    remedy = "Fix the source; the end of the page lists file, line and field of the first faults."
    if invalid >= read:
        return Item("structured", State.FAIL, evidence, remedy)
    if invalid > read * MAX_INVALID:
        return Item("structured", State.WARN, evidence, remedy)
    return Item("structured", State.PASS, evidence)


def _cleaned(facts: Facts) -> Item:
    valid, dropped = facts.rows.read - sum(facts.rows.invalid.values()), sum(facts.rows.dropped.values())
    evidence = "Unicode, white space and control characters of every text are normalised"
    if facts.escaped:
        evidence += f", control tokens of the base model escaped ({_kinds(facts.escaped)})"
    if not dropped:
        return Item("cleaned", State.PASS, f"{evidence}; no example was dropped by a rule.")
    evidence += f"; rules dropped {dropped:,} of {count_of(valid, 'example')} ({percent(dropped, valid)}): "
    evidence += f"{_kinds(facts.rows.dropped)}."
    if dropped > valid * MAX_DROPPED:
        remedy = "This is an unusually large share: check the rules of spec.dataset."
        return Item("cleaned", State.WARN, evidence, remedy)
    return Item("cleaned", State.PASS, evidence)


def _duplicates(facts: Facts) -> Item:
    rows = facts.rows
    evidence = f"{count_of(rows.duplicates, 'exact duplicate')} dropped."
    if rows.near_duplicates is None:
        remedy = "Set spec.dataset.duplicates.near: Group."
        return Item("duplicates", State.WARN, f"{evidence} Near duplicates were not checked.", remedy)
    stay = rows.near_duplicates - rows.near_dropped
    evidence += f" {count_of(rows.near_duplicates, 'near duplicate')} found"
    if rows.near_duplicates:
        evidence += f": {rows.near_dropped:,} dropped, {stay:,} kept in the same part as the text they resemble"
    if stay > rows.distinct * MAX_NEAR:
        evidence += f"; {percent(stay, rows.distinct)} of the examples nearly repeat another one"
        remedy = "Set spec.dataset.duplicates.near: Drop, or collect more varied examples."
        return Item("duplicates", State.WARN, f"{evidence}.", remedy)
    return Item("duplicates", State.PASS, f"{evidence}.")


def _anonymised(facts: Facts) -> Item:
    item = _searched("anonymised", "personal data", "spec.dataset.pii.mode", facts.pii)
    if facts.placeholders:
        test = count_of(facts.rows.parts.get(Part.TEST, 0), "test example")
        evidence = f"{item.evidence} {facts.placeholders:,} of {test} contain placeholders, but the model will be asked"
        item = replace(item, evidence=f"{evidence} about real values: the evaluation scores them separately.")
    if facts.masked_answers and facts.task == TaskType.EXTRACTION:
        evidence = f"{item.evidence} {count_of(facts.masked_answers, 'record')} to extract contain placeholders."
        remedy = "The model learns to answer with them: set spec.dataset.pii.mode to Report, or name in "
        remedy += "spec.dataset.pii.entities only what no record needs."
        return Item(item.name, State.FAIL if item.state is State.FAIL else State.WARN, evidence, remedy)
    if item.state is State.PASS and not facts.pii.names:
        evidence = f"{item.evidence} Names and addresses were not checked: patterns cannot find them."
        remedy = "Set spec.dataset.pii.ner, or check a sample by hand."
        return Item(item.name, State.WARN, evidence, remedy)
    return item


def _secrets(facts: Facts) -> Item:
    return _searched("secrets", "keys, tokens and passwords", "spec.dataset.cleaning.secrets", facts.secrets)


def _searched(name: str, what: str, where: str, findings: Findings) -> Item:
    """What a search with a mode came to."""
    if findings.mode is OnFinding.OFF:
        return Item(name, State.WARN, f"No search for {what}.", f"Set {where}: Mask.")
    if findings.only:
        what += f" (only {', '.join(findings.only[:_SHOWN])}{' …' if findings.only[_SHOWN:] else ''})"
    found = sum(findings.counts.values())
    if not found:
        return Item(name, State.PASS, f"A search for {what} found none.")
    evidence = f"A search for {what} found {count_of(found, 'place')}: {_kinds(findings.counts)}."
    match findings.mode:
        case OnFinding.REPORT:
            remedy = f"Set {where}: Mask or Drop. A model may reveal what it was trained on."
            return Item(name, State.FAIL, f"{evidence} They remain in the examples.", remedy)
        case OnFinding.DROP:
            return Item(name, State.PASS, f"{evidence} Examples that contain any were dropped.")
        case _:
            return Item(name, State.PASS, f"{evidence} All were replaced by placeholders.")


def _split(facts: Facts) -> Item:
    sizes = {part: facts.rows.parts.get(part, 0) for part in Part}
    whole = sum(sizes.values())
    shares = ", ".join(f"{count:,} for {part} ({percent(count, whole)})" for part, count in sizes.items())
    how = "provided by the sources" if facts.split_provided else f"split by hash with seed {facts.seed}"
    evidence = f"{shares}; {how}."
    if small := [part for part, count in sizes.items() if count < MIN_PART]:
        remedy = f"Each part needs {MIN_PART} examples: add examples or change spec.dataset.split."
        return Item("split", State.FAIL, f"{evidence} Too few for {' and '.join(small)}.", remedy)
    test = sizes[Part.TEST]
    low, high = wilson(round(0.8 * test), test)
    evidence += (
        f" With {test:,} test examples, 80 % accuracy has a 95 % interval of {low * 100:.1f} to {high * 100:.1f} %."
    )
    if test < SOUND_TEST:
        remedy = f"Use at least {SOUND_TEST} test examples: add examples or raise spec.dataset.split.testPercent."
        return Item("split", State.WARN, evidence, remedy)
    return Item("split", State.PASS, evidence)


def _leakage(facts: Facts) -> Item:
    if facts.leaks is None:
        remedy = "Set spec.dataset.duplicates.near: Group: the leakage check uses the same comparison."
        return Item("leakage", State.WARN, "Test and training examples were not compared.", remedy)
    if facts.leaks:
        evidence = f"{count_of(facts.leaks, 'pair')} of a test and a training example are near duplicates."
        remedy = "This inflates scores: move or remove one of each pair, or let the operator split the examples."
        return Item("leakage", State.FAIL, evidence, remedy)
    evidence = "No test example is a near duplicate of a training example."
    if facts.across:
        evidence += f" {count_of(facts.across, 'row')} for training (nearly) repeat your own test: dropped."
    if facts.contaminated is None:
        return Item("leakage", State.PASS, f"{evidence} No benchmark was provided for comparison.")
    return _contamination(facts, facts.contaminated, evidence)


def _contamination(facts: Facts, left_out: int, evidence: str) -> Item:
    """The item ``leakage`` where benchmarks are given and the parts hold nothing of each other."""
    remedies = []
    if left_out:
        evidence += f" {count_of(left_out, 'example')} share 13 consecutive words with the benchmark: dropped."
        remedies.append("Check their source before you report a score on that benchmark: paraphrases are not detected.")
    else:
        evidence += " No example shares 13 consecutive words with the benchmark."
    if facts.tests_in_benchmark:
        evidence += f" {count_of(facts.tests_in_benchmark, 'example')} of your own test do; they stay in the test part."
    if facts.benchmarks and facts.benchmarks.wrong:
        evidence += f" Benchmark: {_left_out(facts.benchmarks)}; their texts were not compared."
        remedies.append(f"Fix the files of spec.dataset.benchmarks; {_NAMED}.")
    return Item("leakage", State.WARN if remedies else State.PASS, evidence, " ".join(remedies))


def _balance(facts: Facts) -> Item:
    totals = {label: sum(counts.values()) for label, counts in facts.labels.items()}
    smallest, largest = min(totals.values()), max(totals.values())
    ratio = largest / max(1, smallest)
    evidence = f"{count_of(len(totals), 'class', 'classes')}; the largest has "
    evidence += f"{count_of(largest, 'example')}, the smallest {smallest:,} ({ratio:.1f} : 1)."
    untrained = _labels_without(facts, Part.TRAIN)
    if untrained or len(totals) < 2:
        problem = f"No training example: {_some(untrained)}." if untrained else "A single class cannot be learned."
        remedy = "Give every class training examples, or remove it from the sources."
        return Item("balance", State.FAIL, f"{evidence} {problem}", remedy)
    problems = []
    if rare := sorted(label for label, count in totals.items() if count < MIN_CLASS):
        problems.append(f"Fewer than {MIN_CLASS} examples: {_some(rare)}.")
    if ratio > MAX_IMBALANCE:
        problems.append(f"More than {MAX_IMBALANCE:.0f} : 1 hides errors on small classes: check macro F1.")
    if untested := _labels_without(facts, Part.TEST):
        problems.append(f"No test example: {_some(untested)}.")
    if problems:
        remedy = "Collect more examples of the small classes, or merge classes that need no distinction."
        return Item("balance", State.WARN, " ".join([evidence, *problems]), remedy)
    return Item("balance", State.PASS, evidence)


def _thoughts(facts: Facts) -> Item:
    having, lacking = sum((facts.thoughts or {}).values()), facts.without_thoughts
    evidence = f"The model learns to think before it answers: {count_of(having, 'example')} have thoughts"
    if not lacking:
        return Item("thoughts", State.PASS, f"{evidence}, all of them.")
    evidence += f", {lacking:,} have none and teach it to answer at once."
    remedy = "Add reasoning_content to the other rows, or leave them out, unless easy questions need no thoughts."
    return Item("thoughts", State.WARN, evidence, remedy)


def _lengths(facts: Facts) -> Item:
    lengths, histogram = facts.lengths, facts.lengths.histogram()
    if not histogram:
        return Item("lengths", State.WARN, "Tokens were not counted.", "Provide the base model's tokenizer to prepare.")
    evidence = (
        f"Half of the examples have at most {quantile(histogram, 0.5):,} tokens, 95 % at most "
        f"{quantile(histogram, 0.95):,}; the longest had {max(lengths.longest, *histogram):,}, maxLength is "
        f"{lengths.max_length:,}."
    )
    if not lengths.over:
        return Item("lengths", State.PASS, evidence)
    whole = histogram.total() + (lengths.over if lengths.rule is TooLong.DROP else 0)
    fate = {
        TooLong.FAIL: "cannot be trained",
        TooLong.DROP: "were dropped",
        TooLong.TRUNCATE: "were truncated",
        TooLong.SPLIT: "were split",
    }[lengths.rule]
    evidence += f" {count_of(lengths.over, 'longer example')} ({percent(lengths.over, whole)}) {fate}."
    remedy = f"Set spec.training.maxLength to {lengths.longest} (this needs more memory), or shorten those examples."
    match lengths.rule:
        case TooLong.FAIL:
            return Item("lengths", State.FAIL, evidence, remedy)
        case TooLong.TRUNCATE:
            return Item("lengths", State.WARN, f"{evidence} Truncated texts teach the model to stop early.", remedy)
        case TooLong.SPLIT if lengths.left_out:
            lost = count_of(lengths.left_out, "exchange")
            return Item("lengths", State.WARN, f"{evidence} Too long, and left out of those: {lost}.", remedy)
        case TooLong.DROP if lengths.over > whole * MAX_OVER_LENGTH:
            return Item("lengths", State.WARN, evidence, remedy)
        case _:
            return Item("lengths", State.PASS, evidence)


def _versioned(facts: Facts) -> Item:
    if not facts.source_digest or not facts.dataset_digest:
        evidence = "The digest of the sources or of the examples is unknown."
        return Item("versioned", State.WARN, evidence, "Start the run with stage resolve, which computes it.")
    evidence = (
        f"Sources {facts.source_digest[:12]} gave examples {facts.dataset_digest[:12]}; the same sources and settings "
        "reproduce them."
    )
    return Item("versioned", State.PASS, evidence)


def _baseline(facts: Facts) -> Item:
    trivial = _trivial_baseline(facts)
    if facts.baseline is None:
        evidence = f"{trivial}The base model's score is not known yet."
        return Item(BASELINE, State.WARN, evidence, "No action: stage evaluate measures it after training.")
    known = facts.baseline
    evidence = f"{trivial}The base model scores {known.measure} {_score(known, known.value)}"
    if known.interval:
        low, high = (_score(known, end) for end in known.interval)
        evidence += f" (95 % interval {low} to {high})"
    evidence += f" on {count_of(known.samples, 'test example')}."
    if known.share and known.value >= EASY_BASELINE:
        remedy = "Consider whether fine-tuning is worth it, or use harder examples."
        return Item(BASELINE, State.WARN, f"{evidence} There is little room for improvement.", remedy)
    return Item(BASELINE, State.PASS, evidence)


def _score(baseline: Baseline, value: float) -> str:
    return f"{value * 100:.1f} %" if baseline.share else f"{value:.3g}"


def _trivial_baseline(facts: Facts) -> str:
    """What a program that always gives the most frequent label would score: the least that a model must beat."""
    counts = [count for label in facts.labels.values() if (count := label.get(Part.TEST, 0))]
    return f"Always answering the most frequent label: accuracy {percent(max(counts), sum(counts))}. " if counts else ""


def _labels_without(facts: Facts, part: Part) -> list[str]:
    return sorted(label for label, counts in facts.labels.items() if not counts.get(part, 0))


def _some(labels: list[str]) -> str:
    shown = ", ".join(repr(shorten(label)) for label in labels[:_SHOWN])
    return f"{shown} and {len(labels) - _SHOWN:,} more" if len(labels) > _SHOWN else shown


def _kinds(counts: Mapping[str, int]) -> str:
    """The most frequent kinds with their numbers."""
    ordered = sorted(((kind, count) for kind, count in counts.items() if count), key=lambda pair: (-pair[1], pair[0]))
    shown = ", ".join(f"{shorten(kind)} {count:,}" for kind, count in ordered[:_SHOWN])
    return f"{shown} and {count_of(len(ordered) - _SHOWN, 'more kind')}" if len(ordered) > _SHOWN else shown


def count_of(number: int, one: str, many: str = "") -> str:
    """A number with its noun, e.g. ``1 row``, ``1,200 rows``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def percent(part: int, whole: int) -> str:
    """A share as text; a small one is never rounded to 0 %, nor a large one to 100 %."""
    share = part / whole if whole else 0.0
    if 0 < share < 0.001:
        return "< 0.1 %"
    return "> 99.9 %" if 0.999 < share < 1 else f"{share * 100:.1f} %"
