"""Texts with and without personal data, and what the recognisers find in a text."""

from __future__ import annotations

from hypothesis import strategies as st

from finetune_api.dataset import Pii
from finetune_jobs.text.pii import Recognition

DEFAULTS = Recognition(Pii())


def found(text: str, recognition: Recognition = DEFAULTS, before: str = "") -> list[tuple[str, str]]:
    return [(finding.entity, text[finding.start : finding.end]) for finding in recognition.find(text, before)]


FRAGMENTS = st.one_of(
    st.sampled_from(
        [
            *("4111 1111 1111 1111", "+1 212-555-0188", "07700 900123", "212.555.0188", "jane@example.com", "(at)"),
            *("DE89 3704 0044 0532 0130 00", "GB29NWBK60161331926819", "203.0.113.7", "2001:db8::1", "536-90-4399"),
            *(
                "passport",
                "call",
                "driver license",
                "A1234567",
                "born",
                "12/03/1980",
                "account number",
                "00:1A:2B:3C:4D:5E",
            ),
            *(
                "bc1qar0srrr7xfkvy5l643lydnw9re59gtzzwf5mdq",
                "BB1388568",
                "DEA",
                "943 476 5919",
                "NHS",
                "www.example.org",
            ),
            *("123e4567-e89b-12d3-a456-426614174000", "2024-03-01T10:00:00Z", "RSSMRA85T10A562S", "QQ123456C", "x.com"),
        ]
    ),
    st.text(st.sampled_from("0123456789 -./()+@:xXaeé٣,;#\n"), max_size=24),
    st.text(max_size=6),
)
TEXTS = st.lists(st.tuples(FRAGMENTS, st.sampled_from(["", " ", ", ", "\n"])), max_size=6).map(
    lambda parts: "".join(part + glue for part, glue in parts)
)
