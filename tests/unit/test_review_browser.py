"""The review page in a real browser: Debian's Chromium, without a network, wide and as narrow as a phone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from playwright.sync_api import Browser, Page

from finetune_jobs.evaluation.review.page import render_review
from finetune_jobs.evaluation.review.votes import read_votes, tally
from finetune_jobs.reports.page import Fact
from tests.support.reviewing import choice_for, sheet_of

pytestmark = [pytest.mark.unit, pytest.mark.slow]

LONG: Final = (
    "The refund for a parcel that never arrived is paid within five working days, once the carrier confirms it. "
)
HOSTILE: Final = "</bdi><img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"
SHEET: Final = sheet_of(
    [LONG * 3, "yes", HOSTILE, "same", ""],
    [LONG * 2 + "Ask us.", "no", "It is text.", "same", "an answer"],
    prompts=[
        [
            {"role": "system", "content": "You answer questions of customers."},
            {"role": "user", "content": f"{n}: {LONG}"},
        ]
        for n in range(5)
    ],
)
WIDE: Final = {"width": 1280, "height": 900}
PHONE: Final = {"width": 390, "height": 844}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The page, as a reviewer has it on disk."""
    path = tmp_path / "review.html"
    path.write_text(render_review(SHEET, [Fact("Job", ["team-a/transactions"])]), encoding="utf-8")
    return path


@pytest.fixture(params=[WIDE, PHONE], ids=["wide", "phone"])
def page(request: pytest.FixtureRequest, browser: Browser, file: Path) -> Iterator[Page]:
    """The page, open; it asks for nothing else, and nothing goes wrong in it."""
    context = browser.new_context(viewport=request.param, offline=True, accept_downloads=True)
    opened, wanted, wrong = context.new_page(), list[str](), list[str]()
    opened.on("request", lambda asked: wanted.append(asked.url))
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", lambda said: wrong.append(said.text))
    opened.goto(file.as_uri())
    yield opened
    assert {url for url in wanted if not url.startswith("blob:")} == {file.as_uri()}
    assert wrong == []
    assert opened.title() == "Human review"
    context.close()


KEYBOARD: Final = pytest.mark.parametrize("page", [WIDE], ids=["wide"], indirect=True)
"""A phone has none, and its width changes nothing but the style."""


def visible(page: Page) -> list[str]:
    """The pairs that are seen."""
    return [str(each.get_attribute("data-id")) for each in page.locator(".pair:visible").all()]


def open_options(page: Page) -> None:
    page.get_by_text("Filters and keys").click()


def text(page: Page, place: str) -> str:
    return page.locator(place).inner_text()


def saved(page: Page) -> bytes:
    """The file that the page saves."""
    with page.expect_download() as download:
        page.get_by_role("button", name="Save my votes").click()
    path = download.value.path()
    return Path(path).read_bytes()


@KEYBOARD
def test_a_review_with_keys_alone(page: Page) -> None:
    """Pair by pair to the end; the file is what the command takes, and counts for the right side."""
    for pair in SHEET.votable[:-1]:
        assert visible(page) == [pair.id]
        page.keyboard.press("l" if choice_for(pair, artifact=True) == "left" else "2")
    assert visible(page) == [SHEET.votable[-1].id]
    page.keyboard.press("t")
    assert "No pairs are left in this view" in text(page, "#said")
    assert "4 of 4 pairs" in text(page, "#count")

    page.keyboard.press("n")
    assert visible(page) == [SHEET.votable[0].id]
    page.keyboard.press("p")
    page.keyboard.press("t")
    assert "vote removed" in text(page, "#said")
    page.keyboard.press("b")
    page.locator("#reviewer").focus()
    page.keyboard.type("ana")
    assert "4 of 4 pairs" in text(page, "#count"), "letters of a name are no votes"
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "save":
            break
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    assert download.value.suggested_filename == f"votes-ana-{SHEET.address[:8]}.json"
    content = Path(download.value.path()).read_bytes()
    found = tally(SHEET, [read_votes(content, "votes", SHEET)])
    assert (found.votes, found.wins, found.losses, found.ties, found.both_bad) == (4, 3, 0, 0, 1)
    assert page.locator("#file").input_value() == content.decode()


@KEYBOARD
def test_a_key_that_is_held_down_votes_once(page: Page) -> None:
    """A browser repeats it many times a second, each time with the next pair on the screen."""
    for _ in range(3):
        page.keyboard.down("l")  # from the second time on as a repetition
    page.keyboard.up("l")
    assert "1 of 4 pairs" in text(page, "#count")
    assert visible(page) == [SHEET.votable[1].id]
    page.keyboard.press("l")
    assert "2 of 4 pairs" in text(page, "#count")


def test_a_review_by_buttons_is_kept_until_the_page_is_opened_again(page: Page) -> None:
    page.get_by_role("button", name="Save my votes").click()
    assert "Enter your name first" in text(page, "#said")
    page.get_by_label("Your name").fill("Ana B")
    page.get_by_role("button", name="Save my votes").click()
    assert "lower-case" in text(page, "#said")
    page.get_by_label("Your name").fill("ben")
    page.get_by_role("button", name="Save my votes").click()
    assert "no votes" in text(page, "#said")
    first = SHEET.votable[0]
    page.locator(".pair:visible").get_by_role("button", name="Right").click()
    page.reload()
    assert "1 of 4 pairs" in text(page, "#count")
    assert page.get_by_label("Your name").input_value() == "ben"
    assert page.locator(".pair:visible [aria-pressed=true]").inner_text() == "Right"
    assert json.loads(saved(page))["votes"] == [{"pair": first.id, "choice": "right"}]


def test_filters_and_search(page: Page) -> None:
    def seen(show: str) -> list[str]:
        page.get_by_label("Show", exact=True).select_option(show)
        begin = visible(page)
        found = list(begin)
        for _ in range(len(SHEET.pairs)):
            page.get_by_role("button", name="Next").click()
            if visible(page) == begin:
                break
            found += visible(page)
        return found

    pairs = [pair.id for pair in SHEET.pairs]
    open_options(page)
    assert seen("all") == pairs
    assert seen("same") == pairs[4:]
    assert seen("voted") == []
    assert "No pair matches these filters." in text(page, "#pairs")
    assert seen("differ") == pairs[:4]
    page.keyboard.press("r")
    assert seen("open") == pairs[1:4]
    assert seen("voted") == pairs[:1]
    page.get_by_label("Show", exact=True).select_option("all")
    page.get_by_label("with the text").fill("2: THE REFUND")
    [wanted] = [pair.id for pair in SHEET.pairs if pair.question.startswith("2:")]
    assert visible(page) == [wanted]


def test_what_differs_and_what_was_expected_are_shown_on_demand(page: Page) -> None:
    open_options(page)
    line = "el => getComputedStyle(el).textDecorationLine"
    mark = page.locator(".pair:visible mark").first
    assert mark.evaluate(line) == "none"
    assert not page.locator(".pair:visible .expected").is_visible()
    page.keyboard.press("d")
    page.keyboard.press("e")
    assert mark.evaluate(line) == "underline"
    assert page.locator(".pair:visible .expected").is_visible()
    assert page.get_by_label("Mark differences").is_checked()


@KEYBOARD
def test_keys_can_be_switched_off(page: Page) -> None:
    """Somebody who dictates, or whose hand shakes (WCAG 2.2, 2.1.4)."""
    open_options(page)
    page.get_by_label("Keys").uncheck()
    page.keyboard.press("l")
    assert "0 of 4 pairs" in text(page, "#count")
    page.get_by_label("Keys").check()
    page.keyboard.press("Control+l")
    assert "0 of 4 pairs" in text(page, "#count")


def test_it_fits_the_screen_and_fingers(page: Page) -> None:
    open_options(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= (page.viewport_size or PHONE)["width"]
    boxes = [each.bounding_box() for each in page.locator(".pair:visible .votes button").all()]
    assert len(boxes) == 4
    assert all(box and box["height"] >= 44 and box["width"] >= 44 for box in boxes)
    answers = [each.bounding_box() for each in page.locator(".pair:visible .answer").all()]
    beside = answers[0] and answers[1] and answers[0]["y"] == answers[1]["y"]
    assert bool(beside) is ((page.viewport_size or PHONE) == WIDE)


def test_every_control_has_a_name_for_a_screen_reader(page: Page) -> None:
    open_options(page)
    tree = page.locator("body").aria_snapshot()
    assert 'group "Which answer of pair 1 is better?"' in tree
    assert 'article "Pair 1 of 5"' in tree
    for control in ("textbox", "searchbox", "combobox", "button", "checkbox"):
        nameless = [line for line in tree.splitlines() if line.strip() in (f"- {control}", f"- {control}:")]
        assert nameless == []
    assert page.locator("#said").get_attribute("role") == "status"


def test_without_scripts_the_pairs_can_be_read(browser: Browser, file: Path) -> None:
    context = browser.new_context(java_script_enabled=False, offline=True)
    page = context.new_page()
    page.goto(file.as_uri())
    assert len(visible(page)) == 5
    assert "Scripts are disabled" in page.locator("body").inner_text()
    assert not page.get_by_role("button").count()
    context.close()
