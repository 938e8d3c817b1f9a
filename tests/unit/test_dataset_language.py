"""The language filter."""

import pytest

from finetune_jobs.text.language import UNKNOWN, LanguageFilter

pytestmark = pytest.mark.unit

SENTENCES = {
    "en": ["My parcel has not arrived yet, can you help me?", "Please reset my password and send me a new link."],
    "de": ["Mein Paket ist noch nicht angekommen, was tun?", "Die Rechnung zeigt einen falschen Betrag an."],
    "fr": ["Mon colis n'est pas encore arrivé, que faire ?", "La facture indique un montant qui est incorrect."],
    "es": ["Mi paquete todavía no ha llegado, ¿qué hago?", "La factura muestra un importe incorrecto este mes."],
    "pl": ["Moja paczka jeszcze nie dotarła, co mam zrobić?", "Faktura pokazuje błędną kwotę za zeszły miesiąc."],
    "tr": ["Paketim henüz gelmedi, bana yardım edin.", "Fatura geçen ay için yanlış tutarı gösteriyor."],
    "ru": ["Моя посылка ещё не пришла, вы можете помочь?", "В счёте указана неверная сумма за прошлый месяц."],
    "zh": ["我的包裹还没有到,你们能帮我查一下现在到哪里了吗?谢谢你们的帮助"],
}


@pytest.mark.parametrize("language", SENTENCES)
def test_texts_of_the_language_stay_and_others_go(language: str) -> None:
    only = LanguageFilter([language])
    for other, texts in SENTENCES.items():
        assert {only.allows(text) for text in texts} == {other == language}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Spotify AB Stockholm",
        "REWE SAGT DANKE 4711 0815",
        "4111 1111 1111 1111",
        "```python\nfor parcel in parcels: parcel.deliver(where=address)\n```",
        "https://example.com/mon-colis-nest-pas-arrive jane@example.com <EMAIL_ADDRESS_1>",
    ],
)
def test_what_has_no_language_stays(text: str) -> None:
    assert LanguageFilter(["de"]).allows(text)


def test_several_languages_and_none() -> None:
    both = LanguageFilter(["en", "de"])
    assert both.allows(SENTENCES["en"][0])
    assert both.allows(SENTENCES["de"][0])
    assert not both.allows(SENTENCES["fr"][0])
    assert LanguageFilter([]).allows(SENTENCES["fr"][0])


def test_code_around_prose_does_not_hide_its_language() -> None:
    assert not LanguageFilter(["de"]).allows("```\nwenn und aber nicht oder doch\n```\n" + SENTENCES["en"][0])


def test_what_was_looked_at_is_counted_by_language() -> None:
    both = LanguageFilter(["en", "de"])
    for text in (*SENTENCES["en"], *SENTENCES["de"], SENTENCES["fr"][0], "4711", "https://example.com/mon-colis"):
        both.allows(text)
    assert both.seen == {"en": 2, "de": 2, "fr": 1, UNKNOWN: 2}
    everything = LanguageFilter([])
    everything.allows(SENTENCES["fr"][0])
    assert not everything.seen


def test_norwegian_has_two_codes() -> None:
    text = "Pakken min har ikke kommet fram ennå, hva skal jeg gjøre nå?"
    assert LanguageFilter(["nb"]).allows(text)
    assert LanguageFilter(["no"]).allows(text)
