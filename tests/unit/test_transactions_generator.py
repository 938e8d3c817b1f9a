"""The generator of examples/transactions: same bytes everywhere, rules honoured, dirt as announced."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from hack.cluster.layout import REPOSITORY

pytestmark = [pytest.mark.unit, pytest.mark.slow]

EXAMPLE = REPOSITORY / "examples" / "transactions"


def load() -> ModuleType:
    """The script as a module: examples are files to copy, not a package."""
    spec = importlib.util.spec_from_file_location("transactions_generate", EXAMPLE / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


generator = load()


def run(out: Path, *arguments: str) -> tuple[list[dict[str, str]], str]:
    """The command line in a process of its own, isolated from site packages: its rows and what it printed."""
    command = [sys.executable, "-I", str(EXAMPLE / "generate.py"), "--out", str(out), *arguments]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    with out.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file)), printed


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    return run(tmp_path_factory.mktemp("data") / "transactions.csv", "--rows", "1500", "--seed", "7")[0]


def documented() -> list[tuple[str, str]]:
    """The descriptions of RULES.md and their accounts."""
    table = re.findall(r"^\| `(.+ EUR)` \| `(.+)` \|$", (EXAMPLE / "RULES.md").read_text(), re.MULTILINE)
    assert len(table) >= 10
    return table


@pytest.mark.parametrize(("description", "account"), documented())
def test_rules_as_documented(description: str, account: str) -> None:
    assert generator.category(parse(description)) == account


def parse(description: str) -> object:
    """A clean description as the transaction that it came from."""
    merchants = [m for scenario in generator.SCENARIOS for m in scenario.merchants if description.startswith(f"{m} ")]
    merchant = max(merchants, key=len)
    *words, amount, currency = description.removeprefix(merchant).split()
    assert currency == "EUR"
    reference = int(words.pop()) if words and words[-1].isdecimal() else None
    cents = int(re.sub(r"[,.]", "", amount))
    transaction = generator.Transaction(merchant, " ".join(words), reference, cents)
    assert transaction.description == description
    return transaction


def test_every_clean_row_follows_the_rules(rows: list[dict[str, str]]) -> None:
    clean = [row for row in rows if not kinds(row) and is_plain(row["description"])]
    assert len(clean) > 1300
    assert all(generator.category(parse(row["description"])) == row["category"] for row in clean)


def test_accounts_are_balanced(rows: list[dict[str, str]]) -> None:
    counts = Counter(row["category"] for row in rows if row["category"] in generator.CATEGORIES)
    assert set(counts) == set(generator.CATEGORIES)
    assert all(0.07 <= count / counts.total() <= 0.13 for count in counts.values())


@pytest.mark.parametrize(
    ("rows", "seed", "digest"),
    [
        (1500, 7, "63cc3bb2680f5ab93b1df5cd3e7843a469a9d623aa0a9e312885178fcb3e137c"),
        (40, 1, "b4bc546687d0660556738dbcaa47e584fd130ced26ecdbdaae8b0b980554187b"),
    ],
)
def test_same_bytes_on_every_machine(rows: int, seed: int, digest: str, tmp_path: Path) -> None:
    run(tmp_path / "out.csv", "--rows", str(rows), "--seed", str(seed))
    assert hashlib.sha256((tmp_path / "out.csv").read_bytes()).hexdigest() == digest


def test_dirt_is_in_the_file_as_reported(tmp_path: Path) -> None:
    rows, printed = run(tmp_path / "out.csv", "--rows", "2000", "--seed", "3", "--dirt-report")
    report = json.loads(printed)
    found = Counter(kind for row in rows for kind in kinds(row))
    lines = Counter(tuple(row.values()) for row in rows)
    texts = {(row["transaction_id"], " ".join(row["description"].split()).casefold()) for row in rows}
    found["exactDuplicates"] = len(rows) - len(lines)
    found["respeltDuplicates"] = len(lines) - len(texts)
    found["renumberedDuplicates"] = len(texts) - len({number for number, _ in texts})
    assert report["dirt"] == {dirt.name: 2 * dirt.per_mille for dirt in generator.DIRT}
    assert found == report["dirt"]
    assert report["rows"] == len(rows) == 2000
    assert report["clean"] == 2000 - found.total()


def kinds(row: dict[str, str]) -> set[str]:
    """What is wrong with a row by itself."""
    wrong = {
        "emailAddresses": "@" in row["description"],
        "cardNumbers": any(map(valid_card, re.findall(r"(?=((?:\d{4} ){4}))", row["description"]))),
        "missingLabels": not row["category"],
        "emptyDescriptions": not row["description"].strip(),
        "misspeltLabels": bool(row["category"]) and row["category"] not in generator.CATEGORIES,
    }
    return {kind for kind, is_so in wrong.items() if is_so}


def is_plain(description: str) -> bool:
    """Neither in small letters nor with wide gaps."""
    return description.endswith(" EUR") and "  " not in description


def valid_card(number: str) -> bool:
    """Luhn's check: double every second digit from the right; the digits' sum is a multiple of ten."""
    digits = [int(digit) for digit in reversed(number) if digit.isdecimal()]
    return sum(d if place % 2 == 0 else sum(divmod(2 * d, 10)) for place, d in enumerate(digits)) % 10 == 0


@pytest.mark.parametrize("rows", ["0", "-5", "many"])
def test_refuses_a_wrong_number_of_rows(rows: str, tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLE / "generate.py"), "--rows", rows, "--out", str(tmp_path / "out.csv")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert rows in done.stderr
    assert not (tmp_path / "out.csv").exists()
