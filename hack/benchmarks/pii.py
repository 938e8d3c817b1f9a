"""Recall and false alarms of the recognisers of personal data, compared with Presidio's default no-op engine.

The data are labelled synthetic sentences that the recognisers were not developed on (``pii/dev.jsonl``, see
hack/data.py), one per line: {"full_text", "spans": [{"entity_type", "start_position", "end_position"}]}. A labelled
span is found if a finding overlaps it, and covered if findings cover all of it; a false alarm is a finding that
overlaps no labelled span. If FINETUNE_PII_NER is set to the folder of a spaCy pipeline, all labelled types are measured
too.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_api.dataset import Pii
from finetune_jobs.text.pii import Finding, Recognition
from finetune_jobs.text.pii.ner import ENTITIES as NAMES
from finetune_jobs.text.pii.recognition import DEFAULT
from hack.benchmarks.result import Result
from hack.cluster.console import ClusterError, say
from hack.data import data_file, missing

DATA = "pii/dev.jsonl"
TYPES = (
    *("CREDIT_CARD", "EMAIL_ADDRESS", "IBAN_CODE", "IP_ADDRESS", "PHONE_NUMBER", "US_SSN", "US_DRIVER_LICENSE"),
    "DOMAIN_NAME",
)
"""The types that patterns can find; the goal is for these."""
LEAST = 0.35
"""Minimum score of a finding, for both sides: the default of Pii.min_score_percent."""
ROUNDS = 3

Find = Callable[[str], list[Finding]]


@dataclass(frozen=True)
class Labelled:
    """A text and the positions of personal data in it."""

    text: str
    spans: list[Finding]


@dataclass
class Tally:
    """Results of one engine for all texts."""

    labelled: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    covered: Counter[str] = field(default_factory=Counter)
    false_alarms: Counter[str] = field(default_factory=Counter)
    texts_per_cpu_second: float = 0.0

    def recall(self, types: tuple[str, ...]) -> float:
        """Percentage of the labelled spans of these types that are found."""
        return 100 * sum(self.found[t] for t in types) / sum(self.labelled[t] for t in types)

    def summary(self, types: tuple[str, ...]) -> dict[str, Any]:
        """The figures for the report: counts, never values."""
        return {
            "recallPercent": round(self.recall(types), 1),
            "foundCoveredLabelled": {t: [self.found[t], self.covered[t], self.labelled[t]] for t in types},
            "falseAlarms": dict(self.false_alarms),
            "textsPerCpuSecond": round(self.texts_per_cpu_second),
        }


def run() -> Result:
    """Measure both sides; the value is our recall in percent, over the types that patterns can find."""
    if not data_file(DATA).is_file():
        raise ClusterError(missing(DATA))
    texts = read(data_file(DATA))
    ours, theirs = tally(texts, Recognition(Pii()).find), tally(texts, presidio())
    details = {
        "ours": ours.summary(TYPES),
        "presidioNoOp": theirs.summary(TYPES),
        "texts": len(texts),
        "ner": with_names(texts),
    }
    return Result(
        name="pii",
        value=round(ours.recall(TYPES), 1),
        unit="%",
        baseline=round(theirs.recall(TYPES), 1),
        goal="≥ 92 %; details.ours.falseAlarms empty",
        details=details,
    )


def read(path: Path) -> list[Labelled]:
    """The labelled texts of a file."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        Labelled(
            row["full_text"],
            [Finding(s["start_position"], s["end_position"], s["entity_type"]) for s in row["spans"]],
        )
        for row in rows
    ]


def tally(texts: list[Labelled], find: Find) -> Tally:
    """Count the findings, and measure the median time of a few more rounds."""
    result = Tally()
    for each in texts:
        count(result, each.spans, find(each.text))
    seconds = []
    for _ in range(ROUNDS):
        begin = time.process_time()
        for each in texts:
            find(each.text)
        seconds.append(time.process_time() - begin)
    result.texts_per_cpu_second = len(texts) / statistics.median(seconds)
    return result


def count(result: Tally, spans: list[Finding], findings: list[Finding]) -> None:
    """Add one text to a tally."""
    for span in spans:
        touching = [f for f in findings if f.start < span.end and span.start < f.end]
        hidden = {place for f in touching for place in range(f.start, f.end)}
        result.labelled[span.entity] += 1
        result.found[span.entity] += bool(touching)
        result.covered[span.entity] += hidden >= set(range(span.start, span.end))
    for finding in findings:
        if not any(finding.start < span.end and span.start < finding.end for span in spans):
            result.false_alarms[finding.entity] += 1


def presidio() -> Find:
    """Presidio's engine with its no-op language engine and all predefined recognisers; offline."""
    import tldextract
    from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
    from presidio_analyzer.nlp_engine import NlpEngineProvider

    # otherwise the first e-mail address downloads the list of public suffixes
    tldextract.tldextract.TLD_EXTRACTOR = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)
    model = {"nlp_engine_name": "no_op", "models": [{"lang_code": "en", "model_name": "no_op"}]}
    engine = NlpEngineProvider(nlp_configuration=model).create_engine()
    registry = RecognizerRegistry(supported_languages=["en"])
    registry.load_predefined_recognizers(languages=["en"], nlp_engine=engine)
    analyzer = AnalyzerEngine(nlp_engine=engine, registry=registry, supported_languages=["en"])

    def find(text: str) -> list[Finding]:
        results = analyzer.analyze(text, language="en", score_threshold=LEAST)
        return [Finding(r.start, r.end, r.entity_type, r.score) for r in results]

    return find


def with_names(texts: list[Labelled]) -> dict[str, Any]:
    """Figures for all labelled types, if a spaCy pipeline for names is given."""
    folder = os.environ.get("FINETUNE_PII_NER")
    if not folder:
        say("  names are not measured: set FINETUNE_PII_NER to the folder of a spaCy pipeline")
        return {"note": "not measured: FINETUNE_PII_NER is not set to a spaCy pipeline"}
    entities = sorted({recognizer.entity for recognizer in DEFAULT} | set(NAMES))
    measured = tally(texts, Recognition(Pii(entities=entities), ner=Path(folder)).find)
    return measured.summary(tuple(sorted(measured.labelled)))
