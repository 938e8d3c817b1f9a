"""The pages of the documentation, and what stands in them: prose, links, headings, blocks of code, commands."""

import re
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Final

from hack.cluster.layout import REPOSITORY

FENCE: Final = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<body>.*?)^ *```$", re.DOTALL | re.MULTILINE)
CODE: Final = re.compile(r"`([^`\n]+)`")
LINK: Final = re.compile(r"(?<!!)\[[^\]]*\]\((?P<target>[^)\s]+)\)")
HEADING: Final = re.compile(r"^#+ (.+)$", re.MULTILINE)


def pages() -> list[Path]:
    """Every Markdown file of the repository, as git knows it or would take it."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    names = subprocess.run(listed, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
    return [REPOSITORY / name for name in sorted(names.split()) if (REPOSITORY / name).exists()]


PAGES: Final = pages()


def identify(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


def every_page(test: Callable[[Path], None]) -> Callable[[], None]:
    """A test of a page, made of all pages one after the other: pytest takes longer for a test than for most pages.
    Every page that fails is named."""

    def test_of_all() -> None:
        failures: list[Exception] = []
        for page in PAGES:
            try:
                test(page)
            except Exception as error:  # noqa: BLE001 - all of them are raised below
                error.add_note(f"in {identify(page)}")
                failures.append(error)
        if failures:
            raise ExceptionGroup(f"{len(failures)} of {len(PAGES)} pages", failures)

    test_of_all.__name__, test_of_all.__doc__ = test.__name__, test.__doc__
    return test_of_all


@cache
def prose(page: Path) -> str:
    """A page without its code blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


@cache
def anchors(page: Path) -> frozenset[str]:
    """The anchors of a page's headings, as GitHub makes them: lower case, signs away, gaps as hyphens."""
    headings = (LINK.sub(lambda link: link[0].partition("](")[0][1:], text) for text in HEADING.findall(prose(page)))
    return frozenset(re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-") for text in headings)


def blocks(page: Path, *languages: str) -> list[str]:
    """The code blocks of a page in some languages, without their indentation."""
    found = FENCE.finditer(page.read_text(encoding="utf-8"))
    return [
        re.sub(rf"^{match['indent']}", "", match["body"], flags=re.MULTILINE)
        for match in found
        if match["language"] in languages
    ]


def links(page: Path) -> Iterator[re.Match[str]]:
    """The links of a page; what stands in code is none."""
    return LINK.finditer(CODE.sub("code", prose(page)))


def commands(page: Path) -> list[str]:
    """The commands of a page in the order in which somebody types them, each on one line."""
    text = "\n".join(blocks(page, "console", "sh")).replace("\\\n", " ")
    return [" ".join(line.partition("  #")[0].split()) for line in text.splitlines() if line.strip()]
