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

from finetune_jobs.dataset.pii.findings import SEVEN_DIGITS, Context, Finding, Recognizer


@cache
def _recognizer(name: str) -> Any:
    logging.getLogger("presidio-analyzer").setLevel(logging.CRITICAL)  # one of its errors quotes the text
    return getattr(import_module("presidio_analyzer.predefined_recognizers"), name)()


def _find(entity: str, name: str, context: Context | None, text: str) -> Iterator[Finding]:
    if context is not None and not context.within(text):
        return
    for result in _recognizer(name).analyze(text, [entity], None):
        start, end = result.start, result.end
        is_part = (start > 0 and text[start - 1].isalnum()) or (end < len(text) and text[end].isalnum())
        if not is_part and (context is None or context.near(text, start, end)):
            yield Finding(start, end, entity, result.score)


def _presidio(entity: str, name: str, trigger: str | re.Pattern[str], context: Context | None = None) -> Recognizer:
    return Recognizer(entity, re.compile(trigger), partial(_find, entity, name, context))


DEFAULT: Final = (
    _presidio("IBAN_CODE", "IbanRecognizer", r"[A-Z]{2}\d{2}[ -]?[A-Z\d]{4}"),
    _presidio("CRYPTO", "CryptoRecognizer", r"[13]\w{25}"),
    _presidio("MAC_ADDRESS", "MacAddressRecognizer", r"[:-]\w\w[:-]\w\w[:-]|\.\w{4}\.\w{4}"),
    # a check digit alone lets every tenth order number pass
    _presidio(
        "MEDICAL_LICENSE",
        "MedicalLicenseRecognizer",
        SEVEN_DIGITS,
        Context(
            "dea", "medical", "prescri(?:ber|bed|ption|bing)", "physicians?", "doctors?", "dr", "certificate", "license"
        ),
    ),
    _presidio(
        "UK_NHS",
        "NhsRecognizer",
        SEVEN_DIGITS,
        Context("nhs", "national health", "health (?:service|authority|number)", "patients?", "gp"),
    ),
)
"""Looked for unless others are named."""

ON_REQUEST: Final = (
    _presidio("DATE_TIME", "DateRecognizer", r"\d"),
    _presidio("UUID", "UuidRecognizer", r"\w{8}-\w{4}-"),
    _presidio("AU_MEDICARE", "AuMedicareRecognizer", r"\d"),
    _presidio("AU_TFN", "AuTfnRecognizer", r"\d"),
    _presidio("CA_SIN", "CaSinRecognizer", r"\d"),
    _presidio("DE_ID_CARD", "DeIdCardRecognizer", r"\d"),
    _presidio("DE_SOCIAL_SECURITY", "DeSocialSecurityRecognizer", r"\d"),
    _presidio("DE_TAX_ID", "DeTaxIdRecognizer", r"\d"),
    _presidio("ES_NIE", "EsNieRecognizer", r"\d"),
    _presidio("ES_NIF", "EsNifRecognizer", r"\d"),
    _presidio("FI_PERSONAL_IDENTITY_CODE", "FiPersonalIdentityCodeRecognizer", r"\d"),
    _presidio("IN_AADHAAR", "InAadhaarRecognizer", r"\d"),
    _presidio("IT_FISCAL_CODE", "ItFiscalCodeRecognizer", r"\w{6}"),
    _presidio("PL_PESEL", "PlPeselRecognizer", r"\d"),
    _presidio("SE_PERSONNUMMER", "SePersonnummerRecognizer", r"\d"),
    _presidio("SG_NRIC_FIN", "SgFinRecognizer", r"\d"),
    _presidio("UK_DRIVING_LICENCE", "UkDrivingLicenceRecognizer", r"\d"),
    _presidio("UK_NINO", "UkNinoRecognizer", r"\d"),
)
"""Looked for only where Pii.entities names them: most dates are not personal, most numbers of another country."""
