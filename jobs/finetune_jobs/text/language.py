"""Which languages stay: a classifier of words' letters, as far as a text says anything about its language."""

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any, Final

from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError

_CERTAIN: Final = 20
"""Fewest letters (Unicode category L) for a verdict: names, labels and numbers have no language."""
_SURE: Final = 0.5
"""A text goes when the classifier gives another language at least this probability: in doubt, it stays."""
_READ: Final = 600
"""Characters that are classified: more take longer and rarely change the answer."""
_NO_LANGUAGE: Final = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]+`|https?://\S+|\S+@\S+|<[A-Z_]+_\d+>|[^\W\d_]*[\d_][\w]*", re.DOTALL
)
"""Code, addresses, pseudonyms, and words with digits."""
_LETTER: Final = re.compile(r"[^\W\d_]")
_SAME: Final = {
    "no": ("no", "nb", "nn"),
    "nb": ("nb", "no"),
    "nn": ("nn", "no"),
    "ar": ("ar", "ary", "arz"),
    "zh": ("zh", "yue", "wuu"),
    "ku": ("ku", "sdh"),
    "uz": ("uz", "uzs"),
}
"""Codes whose language the classifier knows by several."""
_NONE: Final = "zxx"
"""Its answer for text that is not a language."""


UNKNOWN: Final = "und"
"""The code of a language that is not known (ISO 639-2)."""


class LanguageFilter:
    """Keeps texts in the languages that the spec names."""

    def __init__(self, codes: Sequence[str]) -> None:
        """``codes`` are ISO 639-1; none at all allows everything. Raises StageError (SpecInvalid) for unknown ones."""
        self._codes = frozenset(same for code in codes for same in _SAME.get(code, (code,)))
        self.seen: Counter[str] = Counter()
        """Texts that were looked at, by code; ``UNKNOWN`` where too little or too mixed a text says nothing."""
        if not codes:
            return
        known = set(_identifier().labels)
        if unknown := sorted({code for code in codes if known.isdisjoint(_SAME.get(code, (code,)))}):
            raise StageError(
                Reason.SPEC_INVALID,
                f"spec.dataset.cleaning.languages: {', '.join(map(repr, unknown))} is not a supported language code. "
                f"Supported: {', '.join(sorted(code for code in known if len(code) == 2))}.",
            )

    def allows(self, text: str) -> bool:
        """Whether a text stays: it is in one of the languages, or too short or too mixed to say."""
        if not self._codes:
            return True
        language = _language(text)
        self.seen[language] += 1
        return language == UNKNOWN or language in self._codes


def _language(text: str) -> str:
    """The classifier's code of a text's language, as far as it is sure."""
    words = _NO_LANGUAGE.sub(" ", text[:_READ])
    if len(_LETTER.findall(words)) < _CERTAIN:
        return UNKNOWN
    language, probability = _identifier().classify(words)
    return UNKNOWN if language == _NONE or probability < _SURE else str(language)


@cache
def _identifier() -> Any:
    """py3langid's classifier with its own model, which is in the package (NumPy arrays, no pickle)."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
