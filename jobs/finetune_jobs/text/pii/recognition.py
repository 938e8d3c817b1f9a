"""Which recognisers look at a text, and what they find together."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from finetune_api.dataset import OnFinding, Pii
from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.base.wording import did_you_mean
from finetune_jobs.text.pii import ner as names
from finetune_jobs.text.pii import presidio
from finetune_jobs.text.pii.cards import CARDS
from finetune_jobs.text.pii.findings import Finding, NearbyWords, Recognizer, Trigger, without_overlaps
from finetune_jobs.text.pii.identifiers import IDENTIFIERS
from finetune_jobs.text.pii.internet import EMAILS, IPS, URLS
from finetune_jobs.text.pii.phones import PHONES
from finetune_jobs.text.pii.text import Text

DEFAULT: Final = (CARDS, EMAILS, IPS, PHONES, URLS, *IDENTIFIERS, *presidio.DEFAULT)
ON_REQUEST: Final = presidio.ON_REQUEST


class Recognition:
    """Finds personal data as the spec requires, without network or state, and identically in every process."""

    def __init__(self, config: Pii, ner: Path | None = None) -> None:
        """``ner`` is the folder of a spaCy pipeline that finds names and places.

        Raises StageError (SpecInvalid) for an entity that nothing here finds, or for a pipeline that cannot be used.
        """
        self._least = config.min_score_percent / 100
        self._by_trigger: dict[Trigger, list[Recognizer]] = defaultdict(list)
        if config.mode is not OnFinding.OFF:
            for recognizer in _chosen(config.entities, ner):
                self._by_trigger[recognizer.trigger].append(recognizer)

    def find(self, text: str, before: str = "") -> list[Finding]:
        """What is personal in a text, by place, without overlaps.

        ``before`` is what was said just before (the end of the last message, the key of a value): its words may tell
        what a number is, but nothing is looked for in it.
        """
        whole = Text(text, _context(before))
        recognizers = [r for trigger, group in self._by_trigger.items() if trigger(whole) for r in group]
        return self._found_by(recognizers, whole) if recognizers else []

    def find_unfiltered(self, text: str, before: str = "") -> list[Finding]:
        """As ``find``, but every recogniser looks at every text: slower, with the same result."""
        recognizers = [r for group in self._by_trigger.values() for r in group]
        return self._found_by(recognizers, Text(text, _context(before)))

    def _found_by(self, recognizers: Iterable[Recognizer], whole: Text) -> list[Finding]:
        begin = whole.begin
        found = [finding for recognizer in recognizers for finding in recognizer.find(whole)]
        sure = [finding for finding in found if finding.score >= self._least and finding.start >= begin]
        shifted = [Finding(f.start - begin, f.end - begin, f.entity, f.score) for f in sure] if begin else sure
        return without_overlaps(shifted)


def _context(before: str) -> str:
    return f"{before[-NearbyWords.BEFORE :]}\n" if before else ""


def _chosen(entities: Sequence[str], ner: Path | None) -> list[Recognizer]:
    """The recognisers of the named entities; without names the default ones."""
    by_default, on_request = names.recognizers(ner) if ner else ([], [])
    if not entities:
        return [*DEFAULT, *by_default]
    known = {recognizer.entity: recognizer for recognizer in (*DEFAULT, *ON_REQUEST, *by_default, *on_request)}
    for entity in entities:
        if entity not in known:
            raise StageError(Reason.SPEC_INVALID, _unknown(entity, known))
    return [recognizer for entity, recognizer in known.items() if entity in entities]


def _unknown(entity: str, known: Iterable[str]) -> str:
    problem = f"spec.dataset.pii.entities: no recogniser for {entity!r}."
    if entity in names.ENTITIES:
        return f"{problem} Names and places need a spaCy pipeline: set spec.dataset.pii.ner."
    return f"{problem}{did_you_mean(entity, known)} Supported: {', '.join(sorted(known))}."
