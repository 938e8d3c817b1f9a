"""Every page that a run writes, in a real browser without a network: on a desk and on a phone, light and dark."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Final

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Error, Page, Request, ViewportSize

from tests.support.run_pages import every_page

pytestmark = [pytest.mark.unit, pytest.mark.slow]

DESK: Final[ViewportSize] = {"width": 1280, "height": 900}
PHONE: Final[ViewportSize] = {"width": 390, "height": 844}
_UNNAMED: Final = """() => [...document.querySelectorAll("svg, img, canvas, [role=img]")]
  .filter(each => !each.closest("[aria-hidden=true]") && !each.parentElement.closest("svg"))
  .filter(each => !(each.getAttribute("aria-label") || each.getAttribute("alt") || "").trim())
  .map(each => each.outerHTML.slice(0, 120))"""
_OUTSIDE: Final = """() => [...document.body.querySelectorAll("h1, h2, h3, p, li, dd, dt, th, td, figure, button, a")]
  .map(each => [each, each.getBoundingClientRect()])
  .filter(([_, box]) => box.width && (box.right > innerWidth + 1 || box.left < -1))
  .map(([each]) => `${each.tagName} ${each.textContent.slice(0, 60)}`)"""
"""What a reader could not see, or only by moving the page sideways."""
_HEADINGS: Final = "() => [...document.querySelectorAll('h2')].map(each => each.textContent)"


@cache
def pages() -> Mapping[str, str]:
    """All of them are made once."""
    return every_page()


@pytest.fixture(params=[DESK, PHONE], ids=["desk", "phone"])
def opened(request: pytest.FixtureRequest, browser: Browser) -> Iterator[Page]:
    """An empty window of this size that reaches nothing."""
    context = browser.new_context(viewport=request.param, offline=True)
    yield context.new_page()
    context.close()


def test_every_page_fits_asks_for_nothing_and_names_its_charts(opened: Page, tmp_path: Path) -> None:
    """In both colour schemes. A page that fails is named, and the others are looked at all the same."""
    faults: list[str] = []
    for name, html in pages().items():
        file = tmp_path / f"{name}.html"
        file.write_text(html, encoding="utf-8")
        for scheme in ("light", "dark"):
            opened.emulate_media(color_scheme=scheme)
            faults += [f"{name}, {scheme}: {fault}" for fault in faults_of(opened, file.as_uri())]
    assert faults == []


def test_a_page_that_is_too_wide_loads_speaks_or_hides_is_caught(opened: Page, tmp_path: Path) -> None:
    """So that the test of the pages can fail for each of its reasons."""
    file = tmp_path / "bad.html"
    file.write_text(
        "<title>x</title><h2>wide</h2><p style='width:3000px'>wide</p><img src='http://elsewhere.example/a.png'>"
        "<svg><path/></svg><script>console.error('wrong')</script>"
    )
    found = " ".join(faults_of(opened, file.as_uri()))
    for fault in ("scrolls sideways", "P wide", "http://elsewhere.example/a.png", "wrong", "<img", "<svg"):
        assert fault in found


def test_the_page_of_a_run_has_all_parts_in_order(opened: Page, tmp_path: Path) -> None:
    """Goals first, then data, curves, ledger, confusion, mistakes, safety, side by side, cost."""
    file = tmp_path / "report.html"
    file.write_text(pages()["run-Classification"], encoding="utf-8")
    opened.goto(file.as_uri())
    headings = opened.evaluate(_HEADINGS)
    expected = [
        "Goals",
        "Data",
        "Training",
        "Verdict",
        "Scores",
        "Answers that need no human review",
        "Labels (artifact)",
    ]
    expected += ["Most frequent mistakes (artifact)", "Worst answers", "Examples in the base model's few-shot prompt"]
    expected += ["General ability", "Safety", "Side by side", "Time, money and energy", "The other pages of this run"]
    assert headings == [*expected, "Origin"]
    assert opened.get_by_role("img", name="Training and validation loss over the steps").count() == 1
    assert opened.get_by_role("table", name="What each step changed").count() == 1


def faults_of(page: Page, address: str) -> list[str]:
    """What is wrong with a page, opened in this window."""
    wanted, said = list[str](), list[str]()

    def on_request(asked: Request) -> None:
        wanted.append(asked.url)

    def on_error(error: Error) -> None:
        said.append(str(error))

    def on_console(message: ConsoleMessage) -> None:
        said.append(message.text)

    page.on("request", on_request)
    page.on("pageerror", on_error)
    page.on("console", on_console)
    page.goto(address)
    faults = [f"asks for {url}" for url in wanted if url != address] + [f"says {text}" for text in said]
    width, room = page.evaluate("() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    if width > room:
        faults.append(f"scrolls sideways: {width} of {room} pixels")
    faults += [f"is outside the window: {what}" for what in page.evaluate(_OUTSIDE)]
    faults += [f"has no name: {what}" for what in page.evaluate(_UNNAMED)]
    page.remove_listener("request", on_request)
    page.remove_listener("pageerror", on_error)
    page.remove_listener("console", on_console)
    return faults
