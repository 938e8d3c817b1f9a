"""The list of mutants still names lines of the product, and what judges them can be believed."""

from __future__ import annotations

import ast
import signal
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from hack.cluster.layout import REPOSITORY
from hack.mutants import (
    Mutant,
    Outcome,
    Verdict,
    copy_tree,
    exit_code,
    judge,
    line,
    main,
    mutants,
    run,
    run_tests,
    summary,
)

pytestmark = pytest.mark.unit

MUTANTS = mutants()


@pytest.mark.slow
def test_every_mutant_names_one_place_and_tests_that_there_are() -> None:
    """If one does not: quote the line as it is now, in ``tests/mutants``; if what it got wrong is gone, replace it."""
    assert [mutant.name for mutant in MUTANTS if mutant.places(REPOSITORY) != 1] == []
    for mutant in MUTANTS:
        right = (REPOSITORY / mutant.file).read_text(encoding="utf-8")
        wrong = right.replace(mutant.text, mutant.becomes)
        assert wrong != right, mutant.name
        ast.parse(wrong, mutant.name)
    tests = {test.partition("::")[0] for mutant in MUTANTS for test in mutant.tests}
    assert [test for test in tests if not (REPOSITORY / test).is_file()] == []


def test_every_package_has_mutants_of_its_own() -> None:
    packages = Counter(mutant.file.partition("/")[0] for mutant in MUTANTS)
    assert packages["operator"] >= 20
    assert packages["jobs"] >= 20
    assert packages["crds"] > 0
    assert [name for name, count in Counter(mutant.name for mutant in MUTANTS).items() if count > 1] == []


FILE = "package/half.py"
TESTS = "tests/test_half.py"
FIXTURE = "tests/test_fixture.py"
TEARDOWN = "tests/test_teardown.py"
HALF = Mutant(name="half", file=FILE, text="/ 2", becomes="/ 3", harm="Halves are thirds.", tests=[TESTS])
UNSEEN = HALF.model_copy(update={"name": "unseen", "text": "abs(", "becomes": "float("})
GONE = HALF.model_copy(update={"name": "gone", "text": "// 2"})
BROKEN = HALF.model_copy(update={"name": "broken", "text": "def half", "becomes": "import no_such_module\ndef half"})
UNJUDGED = HALF.model_copy(update={"name": "unjudged", "tests": ["tests/none.py"]})
IN_FIXTURE = HALF.model_copy(update={"name": "in-fixture", "tests": [FIXTURE]})
IN_TEARDOWN = HALF.model_copy(update={"name": "in-teardown", "tests": [TEARDOWN]})
FIXTURE_FAILS = "import pytest\nfrom half import half\n\n\ndef test_half(four): ...\n\n\n@pytest.fixture\ndef four():\n"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small project under git, not all of which is committed. Its tests need no library but pytest."""
    monkeypatch.setattr("hack.mutants.LIBRARIES", ("pytest",))
    files = {
        "pyproject.toml": '[tool.hatch.build]\ndev-mode-dirs = ["package"]\n[tool.pytest.ini_options]\n',
        FILE: "def half(number):\n    return abs(number) / 2\n",
        TESTS: "from half import half\n\n\ndef test_half():\n    assert half(4) == 2\n",
        FIXTURE: f"{FIXTURE_FAILS}    assert half(4) == 2\n    yield\n",
        TEARDOWN: f"{FIXTURE_FAILS}    yield\n    assert half(4) == 2\n",
        ".gitignore": "ignored\n",
        "ignored": "",
    }
    root = tmp_path / "checkout"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    subprocess.run(["git", "init", "-q", root], check=True)
    subprocess.run(["git", "add", FILE], cwd=root, check=True)
    return root


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mutant", "verdict", "said"),
    [
        (HALF, Verdict.KILLED, f"{TESTS}::test_half"),
        (UNSEEN, Verdict.SURVIVED, "Halves are thirds. Nobody noticed: write the test that fails for it"),
        (GONE, Verdict.STALE, f"its text stands 0 times in {FILE}: quote the line as it is now"),
        (BROKEN, Verdict.UNKNOWN, "pytest ended with 2, so no test judged it"),
        (UNJUDGED, Verdict.UNKNOWN, "pytest ended with 4, so no test judged it"),
        (IN_FIXTURE, Verdict.UNKNOWN, f"a fixture failed, so no test judged it: {FIXTURE}::test_half - assert"),
        (IN_TEARDOWN, Verdict.UNKNOWN, f"a fixture failed, so no test judged it: {TEARDOWN}::test_half - assert"),
    ],
    ids=lambda value: value.name if isinstance(value, Mutant) else "",
)
def test_what_becomes_of_a_mutant(mutant: Mutant, verdict: Verdict, said: str, checkout: Path) -> None:
    before = (checkout / FILE).read_text()
    outcome = judge(mutant, checkout)
    assert outcome.verdict is verdict
    assert outcome.said.startswith(said)
    assert (checkout / FILE).read_text() == before


@pytest.mark.slow
def test_each_mutant_is_seen_however_soon_it_follows_another(checkout: Path) -> None:
    """Of the same length, and within the second by which Python knows what it has compiled."""
    assert [judge(mutant, checkout).verdict for mutant in (UNSEEN, HALF, UNSEEN)] == [
        Verdict.SURVIVED,
        Verdict.KILLED,
        Verdict.SURVIVED,
    ]


@pytest.mark.slow
def test_what_endless_tests_have_started_ends_with_them(checkout: Path) -> None:
    """Also a server in a session of its own, as those of the tests are. What Ctrl-C does here, a time-out does too."""
    known = checkout / "server"
    (checkout / TESTS).write_text(
        "import pathlib, subprocess, time\n"
        "import pytest\n\n\n"
        "@pytest.fixture\n"
        "def server():\n"
        "    process = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        "    yield process.pid\n"
        "    process.kill()\n"
        "    process.wait()\n\n\n"
        "def test_half(server):\n"
        f"    pathlib.Path({str(known)!r}).write_text(f'{{server}}.')\n"
        "    time.sleep(600)\n"
    )

    def interrupt() -> None:
        while not (known.exists() and known.read_text().endswith(".")):
            time.sleep(0.05)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Thread(target=interrupt, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            run_tests(checkout, [TESTS], 500)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not Path("/proc", known.read_text().removesuffix(".")).exists()


@pytest.mark.slow
def test_the_checkout_is_only_read(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkout / FILE).chmod(0o444)
    assert run([HALF, UNSEEN], checkout, workers=2) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "mutants: 1 killed, 1 survived of 2"


@pytest.mark.slow
def test_nothing_is_judged_by_tests_that_fail_anyway(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkout / TESTS).write_text("def test_half():\n    assert False\n")
    assert run([HALF], checkout, workers=1) == 2
    assert "these tests do not pass as the tree is; mend them first" in capsys.readouterr().out


@pytest.mark.slow
def test_a_copy_has_new_files_and_none_that_git_ignores(checkout: Path, tmp_path: Path) -> None:
    copy_tree(checkout, tmp_path / "copy")
    copied = {
        path.relative_to(tmp_path / "copy").as_posix() for path in (tmp_path / "copy").rglob("*") if path.is_file()
    }
    assert copied == {"pyproject.toml", FILE, TESTS, FIXTURE, TEARDOWN, ".gitignore"}


def test_the_table_and_the_exit_code_say_what_became_of_each() -> None:
    killed, survived = Outcome(HALF, Verdict.KILLED, 1.25, TESTS), Outcome(UNSEEN, Verdict.SURVIVED, 2.0, "What now.")
    assert line(killed) == f"  ✓ half: killed in 1.2 s; by {TESTS}"
    assert line(survived) == "  ✗ unseen: survived in 2.0 s; What now."
    assert summary([killed]) == "mutants: 1 killed of 1"
    assert [exit_code(each) for each in ([killed], [killed, survived])] == [0, 1]
    assert exit_code([survived, Outcome(GONE, Verdict.STALE)]) == 2


def test_a_name_that_no_mutant_has_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["2", "no-such-mutant"]) == 2
    assert "called no-such-mutant" in capsys.readouterr().out
