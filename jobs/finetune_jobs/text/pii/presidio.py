"""Presidio's own recognisers, called one by one: they find what its engine without a language model (no-op) finds.

The package is imported, which takes seconds, when a text first needs it. None of the recognisers used here reads files
or the network; the ones for e-mail, URLs, cards, telephones and American numbers have better ones in this package.
"""

import logging
import re
from collections.abc import Iterator
from functools import cache, partial
from importlib import import_module
from typing import Any, Final

from finetune_jobs.text.pii.findings import Finding, NearbyWords, Recognizer, Trigger, has_long_number, matches
from finetune_jobs.text.pii.text import Text


@cache
def _recognizer(name: str) -> Any:
    logging.getLogger("presidio-analyzer").setLevel(logging.CRITICAL)  # one of its errors quotes the text
    return getattr(import_module("presidio_analyzer.predefined_recognizers"), name)()


def _find(entity: str, name: str, context: NearbyWords | None, text: Text) -> Iterator[Finding]:
    if context is not None and not context.anywhere(text):
        return
    for result in _recognizer(name).analyze(text.whole, [entity], None):
        start, end = result.start, result.end
        is_part = text.whole[max(0, start - 1) : start].isalnum() or text.whole[end : end + 1].isalnum()
        if not is_part and (context is None or context.near(text.whole, start, end)):
            yield Finding(start, end, entity, result.score)


def _presidio(entity: str, name: str, trigger: Trigger, context: NearbyWords | None = None) -> Recognizer:
    return Recognizer(entity, trigger, partial(_find, entity, name, context))


def _may_have_iban(text: Text) -> bool:
    return b"AA00" in text.outline


def _may_have_medical_license(text: Text) -> bool:
    return next(text.in_numbers(_MEDICAL_LICENSE), None) is not None


_MEDICAL_LICENSE: Final = re.compile(r"[^\W_][^\W_]\d{7}")
_has_digit: Final = matches(r"\d")


DEFAULT: Final = (
    _presidio("IBAN_CODE", "IbanRecognizer", _may_have_iban),
    _presidio("CRYPTO", "CryptoRecognizer", matches(r"[13]\w{25}")),
    _presidio("MAC_ADDRESS", "MacAddressRecognizer", matches(r":\w\w:\w\w:", r"-\w\w-\w\w-", r"\.\w{4}\.\w{4}")),
    # a check digit alone lets every tenth order number pass
    _presidio(
        "MEDICAL_LICENSE",
        "MedicalLicenseRecognizer",
        _may_have_medical_license,
        NearbyWords(
            *(
                "dea",
                "medical",
                "prescri(?:ber|bed|ption|bing)",
                "physicians?",
                "doctors?",
                "dr",
                "certificate",
                "license",
            ),
            hints=("dea", "med", "pre", "phy", "doctor", "dr", "cert", "cen"),
        ),
    ),
    _presidio(
        "UK_NHS",
        "NhsRecognizer",
        has_long_number,
        NearbyWords(
            *("nhs", "national health", "health (?:service|authority|number)", "patients?", "gp"),
            hints=("nh", "health", "pat", "gp"),
        ),
    ),
)
"""Looked for unless others are named."""

ON_REQUEST: Final = (
    _presidio("DATE_TIME", "DateRecognizer", _has_digit),
    _presidio("UUID", "UuidRecognizer", matches(r"\w{8}-\w{4}-")),
    _presidio("AU_MEDICARE", "AuMedicareRecognizer", _has_digit),
    _presidio("AU_TFN", "AuTfnRecognizer", _has_digit),
    _presidio("CA_SIN", "CaSinRecognizer", _has_digit),
    _presidio("DE_ID_CARD", "DeIdCardRecognizer", _has_digit),
    _presidio("DE_SOCIAL_SECURITY", "DeSocialSecurityRecognizer", _has_digit),
    _presidio("DE_TAX_ID", "DeTaxIdRecognizer", _has_digit),
    _presidio("ES_NIE", "EsNieRecognizer", _has_digit),
    _presidio("ES_NIF", "EsNifRecognizer", _has_digit),
    _presidio("FI_PERSONAL_IDENTITY_CODE", "FiPersonalIdentityCodeRecognizer", _has_digit),
    _presidio("IN_AADHAAR", "InAadhaarRecognizer", _has_digit),
    _presidio("IT_FISCAL_CODE", "ItFiscalCodeRecognizer", matches(r"\w{6}")),
    _presidio("PL_PESEL", "PlPeselRecognizer", _has_digit),
    _presidio("SE_PERSONNUMMER", "SePersonnummerRecognizer", _has_digit),
    _presidio("SG_NRIC_FIN", "SgFinRecognizer", _has_digit),
    _presidio("UK_DRIVING_LICENCE", "UkDrivingLicenceRecognizer", _has_digit),
    _presidio("UK_NINO", "UkNinoRecognizer", _has_digit),
)
"""Looked for only where Pii.entities names them: most dates are not personal, most numbers of another country."""
