"""Names and places, which no pattern knows: an optional spaCy pipeline, from a folder or an installed package.

A pipeline is a folder with config.cfg, weights in msgpack and tables; spaCy builds from it only what is registered in
the program. Only components that find entities are loaded, and only kinds whose files hold no pickled objects.
"""

import re
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.text.pii.findings import Finding, Recognizer, matches
from finetune_jobs.text.pii.text import Text

_LABELS: Final = {
    **dict.fromkeys(("PERSON", "PER"), "PERSON"),
    **dict.fromkeys(("GPE", "LOC", "FAC", "LOCATION"), "LOCATION"),
    **dict.fromkeys(("NORP", "NRP"), "NRP"),
    **dict.fromkeys(("ORG", "ORGANIZATION"), "ORGANIZATION"),
    **dict.fromkeys(("DATE", "TIME"), "DATE_TIME"),
}
ENTITIES: Final = tuple(sorted(set(_LABELS.values())))
"""What a pipeline may find: people, places, nationalities and religions (NRP), organisations, dates."""
_BY_DEFAULT: Final = ("LOCATION", "NRP", "PERSON")
"""Organisations and dates are seldom personal, and often what the model must learn."""
_SCORE: Final = 0.85
"""spaCy gives no score of its own; this is Presidio's for it."""

_FINDERS: Final = frozenset({"ner", "beam_ner", "entity_ruler", "span_ruler"})
_LOADED: Final = _FINDERS | {"tok2vec"}
"""Kinds of components that are loaded: their files are msgpack, JSON lines and NumPy arrays without objects."""
_PIECE: Final = 50_000
"""Characters that the pipeline sees at once: its memory grows with them."""
_WORD: Final = re.compile(r"[^\W\d_]")
_PSEUDONYM: Final = re.compile(r"<[A-Z_]+_\d+>")


def package_folder(package: str) -> Path:
    """The folder of a pipeline that is installed as a Python package. Raises StageError (SpecInvalid)."""
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise _unusable(package, "the package is not installed in the prepare image")
    return Path(spec.submodule_search_locations[0])


def recognizers(folder: Path) -> tuple[list[Recognizer], list[Recognizer]]:
    """Recognisers of what the pipeline finds: those that are on by default, and those that are named on request.

    Raises StageError (SpecInvalid) for a folder without a pipeline, and for one that finds no entities by itself.
    """
    pipeline = _Pipeline(folder)
    has_word = matches(_WORD.pattern)
    made = {entity: Recognizer(entity, has_word, partial(pipeline.find, entity)) for entity in ENTITIES}
    return (
        [recognizer for entity, recognizer in made.items() if entity in _BY_DEFAULT],
        [recognizer for entity, recognizer in made.items() if entity not in _BY_DEFAULT],
    )


class _Pipeline:
    """spaCy's pipeline, run once for all recognisers that ask about the same text."""

    def __init__(self, folder: Path) -> None:
        self._nlp = _load(folder)
        self._last: tuple[str, list[Finding]] = ("", [])

    def find(self, entity: str, text: Text) -> Iterator[Finding]:
        if text.whole != self._last[0]:
            self._last = (text.whole, list(self._entities(text.whole)))
        return (finding for finding in self._last[1] if finding.entity == entity)

    def _entities(self, text: str) -> Iterator[Finding]:
        pseudonyms = {place for match in _PSEUDONYM.finditer(text) for place in range(*match.span())}
        for offset, piece in _pieces(text):
            for span in self._nlp(piece).ents:
                start, end = offset + span.start_char, offset + span.end_char
                if span.label_ in _LABELS and _WORD.search(span.text) and pseudonyms.isdisjoint(range(start, end)):
                    yield Finding(start, end, _LABELS[span.label_], _SCORE)


def _pieces(text: str) -> Iterator[tuple[int, str]]:
    """The text in pieces that end at white space, each with its place."""
    start = 0
    while start < len(text):
        end = min(start + _PIECE, len(text))
        if end < len(text):
            end = max(text.rfind("\n", start, end), text.rfind(" ", start, end)) + 1 or end
        yield start, text[start:end]
        start = end


def _load(folder: Path) -> Any:
    import spacy

    place = _with_config(folder)
    try:
        config = spacy.util.load_config(place / "config.cfg", interpolate=False)
        factories = {name: config["components"][name]["factory"] for name in config["nlp"]["pipeline"]}
    except (KeyError, TypeError, ValueError) as error:
        raise _unusable(folder.name, f"config.cfg is not a valid spaCy pipeline ({type(error).__name__})") from None
    if not _FINDERS & set(factories.values()):
        have = ", ".join(sorted(set(factories.values()))) or "no component"
        raise _unusable(
            folder.name, f"it cannot find entities: it has {have}, but needs one of {', '.join(sorted(_FINDERS))}"
        )
    try:
        return spacy.load(place, exclude=[name for name, factory in factories.items() if factory not in _LOADED])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unusable(folder.name, f"spaCy cannot load it ({type(error).__name__})") from None


def _with_config(folder: Path) -> Path:
    """The folder that holds config.cfg: a package has it one level below."""
    found = [path.parent for path in (folder / "config.cfg", *sorted(folder.glob("*/config.cfg"))) if path.is_file()]
    if not found:
        raise _unusable(folder.name, "the folder has no config.cfg")
    return found[0]


def _unusable(name: str, problem: str) -> StageError:
    return StageError(
        Reason.SPEC_INVALID,
        f"spec.dataset.pii.ner: pipeline {name!r}: {problem}. Use a spaCy 3 pipeline with an ner component.",
    )
