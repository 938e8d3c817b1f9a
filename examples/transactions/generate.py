"""Bank transactions of Tarnwell Outfitters, a company that does not exist, booked by the rules in RULES.md.

    python3 examples/transactions/generate.py --rows 1500 --seed 7 --out build/transactions.csv

The same rows and seed give the same bytes on every machine and Python version: all randomness comes from
``random.Random.random``, the one method whose sequence Python guarantees. A fixed share of the rows is dirty, as real
data are (``DIRT``).
"""

import argparse
import csv
import json
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

T = TypeVar("T")

CATEGORIES: Final = (
    "Customer-IN",
    "Share-CO",
    "Bank-FI",
    "Cloud-CO",
    "Software-OP",
    "Market-SM",
    "Office-GA",
    "Machine-FA",
    "Travel-HR",
    "Return-CR",
)
"""Tarnwell's chart of accounts; RULES.md says what is booked where."""
COLUMNS: Final = ("transaction_id", "description", "category")
CAPITALISED_FROM: Final = 1_000_00
"""From this amount in cents, goods are fixed assets instead of office expenses."""

PROCESSORS: Final = ("STRIPE", "STRIPE TRANSFER", "ADYEN", "PAYPAL", "MOLLIE")
HOSTING: Final = ("AWS EMEA", "Amazon Web Services", "Google Cloud", "Hetzner")
SOFTWARE: Final = ("Google Workspace", "Slack", "Notion", "GitHub", "Zoom")
ADVERTISING: Final = ("Google Ads", "Amazon Ads", "LinkedIn Ads", "Meta Ads")
GOODS: Final = ("Amazon Marketplace", "Apple Store", "IKEA", "Dell")
TRAVEL: Final = ("Uber Trip", "Lufthansa", "Booking.com", "Deutsche Bahn")
FOOD: Final = ("Uber Eats", "REWE")
SELLER: Final = ("ACCT", "PAYOUT ACCT", "SELLER")
"""Memos of money passed on to sellers on Tarnwell's marketplace."""
CLIENT: Final = "CLIENT"
"""Memo of money spent on a client."""


@dataclass(frozen=True)
class Transaction:
    """One line of a bank statement."""

    merchant: str
    memo: str
    reference: int | None
    cents: int
    """Negative if money leaves the company."""

    @property
    def description(self) -> str:
        """The text that the model is given."""
        euros, cents = divmod(abs(self.cents), 100)
        amount = f"{'-' if self.cents < 0 else '+'}{euros:,}.{cents:02}"
        words = (self.merchant, self.memo, str(self.reference or ""), amount, "EUR")
        return " ".join(word for word in words if word)


def category(transaction: Transaction) -> str:
    """The account to which RULES.md books a transaction: the first rule that matches decides."""
    merchant, memo, received = transaction.merchant, transaction.memo, transaction.cents > 0
    if merchant in PROCESSORS:
        if received:
            return "Customer-IN"
        return "Share-CO" if memo in SELLER else "Bank-FI"
    if received:
        return "Return-CR"
    if merchant in ADVERTISING or memo == CLIENT:
        return "Market-SM"
    if merchant in HOSTING:
        return "Cloud-CO"
    if merchant in SOFTWARE:
        return "Software-OP"
    if merchant in TRAVEL:
        return "Travel-HR"
    return "Machine-FA" if merchant in GOODS and -transaction.cents >= CAPITALISED_FROM else "Office-GA"


@dataclass(frozen=True)
class Scenario:
    """Transactions of one kind. Their account is not stated here: ``category`` decides."""

    weight: int
    merchants: Sequence[str]
    memos: Sequence[str]
    cents: tuple[int, int]
    """Smallest and largest amount, with its sign."""


SUPPLIER: Final = ("", "CARD", "INV")
SCENARIOS: Final = (
    Scenario(10, PROCESSORS, ("PAYOUT", "PAYOUT ACCT", "SETTLEMENT"), (150_00, 9_500_00)),
    Scenario(10, PROCESSORS, SELLER, (-3_500_00, -20_00)),
    Scenario(10, PROCESSORS, ("FEE", "PAYOUT FEE", "BILLING", "DISPUTE"), (-950_00, -2_00)),
    Scenario(10, HOSTING, SUPPLIER, (-4_200_00, -9_00)),
    Scenario(10, SOFTWARE, SUPPLIER, (-1_900_00, -8_00)),
    Scenario(6, ADVERTISING, SUPPLIER, (-2_800_00, -25_00)),
    Scenario(4, TRAVEL + FOOD, (CLIENT,), (-1_300_00, -12_00)),
    Scenario(7, GOODS, SUPPLIER, (-CAPITALISED_FROM + 1, -5_00)),
    Scenario(3, FOOD, ("", "CARD", "TEAM"), (-450_00, -9_00)),
    Scenario(10, GOODS, SUPPLIER, (-4_800_00, -CAPITALISED_FROM)),
    Scenario(10, TRAVEL, ("", "CARD", "TEAM"), (-1_600_00, -8_00)),
    Scenario(10, HOSTING + SOFTWARE + ADVERTISING + GOODS + TRAVEL, ("", "REFUND", "INV"), (5_00, 1_800_00)),
)


@dataclass(frozen=True)
class Row:
    """One row of the file."""

    transaction_id: str
    description: str
    category: str


class Draw:
    """Random choices, from ``random.Random.random`` alone."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random  # noqa: S311 # no secrets here

    def between(self, low: int, high: int) -> int:
        """An integer, both ends included."""
        return low + int(self._random() * (high - low + 1))

    def pick(self, items: Sequence[T]) -> T:
        """One of ``items``."""
        return items[self.between(0, len(items) - 1)]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """``items``, shuffled."""
        return [item for _, item in sorted(((self._random(), item) for item in items), key=lambda pair: pair[0])]


def transactions(draw: Draw, count: int) -> list[Transaction]:
    """``count`` transactions whose descriptions all differ."""
    weighted = [scenario for scenario in SCENARIOS for _ in range(scenario.weight)]
    made: dict[str, Transaction] = {}
    while len(made) < count:
        scenario = draw.pick(weighted)
        merchant, memo = draw.pick(scenario.merchants), draw.pick(scenario.memos)
        referenced = merchant in PROCESSORS or memo == "INV"
        reference = draw.between(1000, 9999) if referenced else None
        transaction = Transaction(merchant, memo, reference, draw.between(*scenario.cents))
        made.setdefault(transaction.description, transaction)
    return list(made.values())


EMAILS: Final = ("ana.kovac@example.com", "b.lindt@example.org", "billing@example.net", "chidi@example.com")
CARDS: Final = ("4111 1111 1111 1111", "5555 5555 5555 4444", "4012 8888 8888 1881", "5105 1051 0510 5100")
"""Test numbers of the card networks: a valid check digit (Luhn), but no account behind them."""


def _respelt(draw: Draw, row: Row) -> Row:
    text = row.description
    return replace(row, description=draw.pick((text.lower(), text.replace(" ", "  "))))


def _renumbered(draw: Draw, row: Row) -> Row:
    words = row.description.split()
    other = 1000 + (int(words[-3]) - 1000 + draw.between(1, 8999)) % 9000
    return replace(row, description=" ".join([*words[:-3], str(other), *words[-2:]]))


def _has_reference(row: Row) -> bool:
    return row.description.split()[-3].isdecimal()


def _with(draw: Draw, row: Row, extras: Sequence[str]) -> Row:
    words = row.description.split()
    return replace(row, description=" ".join([*words[:-2], draw.pick(extras), *words[-2:]]))


@dataclass(frozen=True)
class Dirt:
    """A defect that some rows have."""

    name: str
    per_mille: int
    """Rows per thousand that have it."""
    make: Callable[[Draw, Row], Row]
    """Turns a clean row into a dirty one."""
    copies: bool = False
    """Whether the clean row is kept too."""
    suits: Callable[[Row], bool] = lambda _: True
    """Whether a clean row can be made dirty this way."""


DIRT: Final = (
    Dirt("exactDuplicates", 20, lambda _, row: row, copies=True),
    Dirt("respeltDuplicates", 15, _respelt, copies=True),
    Dirt("renumberedDuplicates", 10, _renumbered, copies=True, suits=_has_reference),
    Dirt("emailAddresses", 15, lambda draw, row: _with(draw, row, EMAILS)),
    Dirt("cardNumbers", 10, lambda draw, row: _with(draw, row, CARDS)),
    Dirt("missingLabels", 7, lambda _, row: replace(row, category="")),
    Dirt("emptyDescriptions", 5, lambda draw, row: replace(row, description=draw.pick(("", "   ")))),
    Dirt("misspeltLabels", 8, lambda _, row: replace(row, category=row.category[:-1])),
)


def generate(rows: int, seed: int) -> tuple[list[Row], dict[str, int]]:
    """Exactly ``rows`` rows in random order, and how many of them have each kind of dirt."""
    draw = Draw(seed)
    counts = {dirt.name: rows * dirt.per_mille // 1000 for dirt in DIRT}
    copied = sum(counts[dirt.name] for dirt in DIRT if dirt.copies)
    clean = [
        Row(f"T{number:06}", transaction.description, category(transaction))
        for number, transaction in enumerate(transactions(draw, rows - copied), start=1)
    ]
    dirty: list[Row] = []
    for dirt in DIRT:
        for _ in range(counts[dirt.name]):
            row = clean.pop(next(i for i in reversed(range(len(clean))) if dirt.suits(clean[i])))
            dirty += [dirt.make(draw, row), row] if dirt.copies else [dirt.make(draw, row)]
    return draw.shuffled(clean + dirty), counts


def write(rows: Sequence[Row], path: Path) -> None:
    """Write the rows as CSV (RFC 4180, but with LF) in UTF-8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows((row.transaction_id, row.description, row.category) for row in rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Make bank transactions and their accounts as CSV.")
    parser.add_argument("--rows", type=int, default=1500, help="rows in the file, dirty ones included (default: 1500)")
    parser.add_argument("--seed", type=int, default=7, help="another seed gives other rows (default: 7)")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--dirt-report", action="store_true", help="print how many rows are dirty, and how, as JSON")
    given = parser.parse_args(arguments)
    if given.rows < 1:
        parser.error(f"--rows {given.rows}: must be 1 or more")
    rows, dirt = generate(given.rows, given.seed)
    write(rows, given.out)
    if given.dirt_report:
        clean = given.rows - sum(dirt.values())
        json.dump({"rows": given.rows, "clean": clean, "dirt": dirt}, sys.stdout, indent=2)
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
