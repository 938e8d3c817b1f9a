"""Invoices as plain text, each with its record: README.md says what a record is.

    python3 examples/extraction/generate.py --rows 1200 --seed 7 --out build/invoices.jsonl

The same rows and seed give the same bytes on every machine and Python version: all randomness comes from
``random.Random.random``, the one method whose sequence Python guarantees. Suppliers, people and goods do not exist;
phone numbers come from ranges reserved for fiction, bank accounts are published examples of valid ones.
"""

import argparse
import json
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Final, TypeVar

T = TypeVar("T")
Record = dict[str, str | None]

FIELDS: Final = ("supplier", "number", "date", "due", "order", "currency", "total")
"""Keys of every record, in this order; finetunejob.yaml explains them to the model."""
REPEATED_PER_MILLE: Final = 20
"""Rows per thousand that repeat another one: some invoices are sent twice."""


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

    def happens(self, percent: int) -> bool:
        """True in this percentage of cases."""
        return self._random() * 100 < percent

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """``items``, shuffled."""
        return [item for _, item in sorted(((self._random(), item) for item in items), key=lambda pair: pair[0])]


# Countries: how suppliers there write dates, amounts and labels

# fmt: off
MONTHS: Final = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
    "November", "December",
)
# fmt: on


def _british(day: date) -> str:
    return f"{day.day} {MONTHS[day.month - 1]} {day.year}"


def _american(day: date) -> str:
    return f"{MONTHS[day.month - 1][:3]} {day.day}, {day.year}"


def _german(day: date) -> str:
    return f"{day.day:02}.{day.month:02}.{day.year}"


def _english_amount(cents: int) -> str:
    return f"{cents // 100:,}.{cents % 100:02}"


def _german_amount(cents: int) -> str:
    return f"{cents // 100:,}".replace(",", ".") + f",{cents % 100:02}"


@dataclass(frozen=True)
class Words:
    """The labels of a language."""

    invoice: str
    number: str
    date: str
    due: str
    order: str
    customer: str
    net: str
    tax: str
    total: str
    contact: str
    phone: str
    account: str
    page: str
    received: str
    goods: Sequence[str]
    opening: str
    """The first sentence of a letter, with {number}, {date} and {total}."""
    pay_by: str
    """Its sentence about the due date, with {due}."""
    your_order: str
    """Its sentence about the order, with {order}."""


@dataclass(frozen=True)
class Home:
    """A country and its conventions."""

    form: str
    """What follows the name of a company."""
    currency: str
    """ISO 4217."""
    sign: str
    tax_percent: int
    day: Callable[[date], str]
    amount: Callable[[int], str]
    words: Words
    phones: Sequence[str]
    accounts: Sequence[str]
    people: Sequence[str]


ENGLISH: Final = Words(
    invoice="Invoice",
    number="Invoice no.",
    date="Date",
    due="Due date",
    order="Your order",
    customer="Customer no.",
    net="Net",
    tax="Tax",
    total="Total",
    contact="Contact",
    phone="Phone",
    account="Account",
    page="Page 1 of 1",
    received="RECEIVED",
    goods=("Copper pipe", "Ball valve", "Cable duct", "Hex bolts", "Work gloves", "Pump seal", "LED panel", "Epoxy"),
    opening="please find our invoice {number} of {date} for {total}.",
    pay_by="Kindly pay by {due}.",
    your_order="It covers your order {order}.",
)
GERMAN: Final = Words(
    invoice="Rechnung",
    number="Rechnungs-Nr.",
    date="Datum",
    due="Zahlbar bis",
    order="Ihre Bestellung",
    customer="Kunden-Nr.",
    net="Netto",
    tax="MwSt.",
    total="Gesamtbetrag",
    contact="Ansprechpartner",
    phone="Telefon",
    account="Konto",
    page="Seite 1 von 1",
    received="EINGEGANGEN",
    goods=("Kupferrohr", "Kugelhahn", "Kabelkanal", "Schrauben", "Handschuhe", "Dichtung", "LED-Panel", "Harz"),
    opening="anbei unsere Rechnung {number} vom {date} über {total}.",
    pay_by="Bitte zahlen Sie bis zum {due}.",
    your_order="Sie betrifft Ihre Bestellung {order}.",
)
HOMES: Final = (
    Home(
        form="Ltd",
        currency="GBP",
        sign="£",
        tax_percent=20,
        day=_british,
        amount=_english_amount,
        words=ENGLISH,
        phones=("+44 20 7946 0123", "020 7946 0871", "+44 161 496 0456"),
        accounts=("GB82 WEST 1234 5698 7654 32", "GB29NWBK60161331926819"),
        people=("Ada Okafor", "Tom Breen", "Priya Nair"),
    ),
    Home(
        form="Inc.",
        currency="USD",
        sign="$",
        tax_percent=8,
        day=_american,
        amount=_english_amount,
        words=ENGLISH,
        phones=("(212) 555-0147", "+1 415-555-0112", "312-555-0199"),
        accounts=(),
        people=("Luis Ortega", "Mae Sutton", "Ken Arai"),
    ),
    Home(
        form="GmbH",
        currency="EUR",
        sign="€",
        tax_percent=19,
        day=_german,
        amount=_german_amount,
        words=GERMAN,
        phones=("+49 30 23125 014", "089 99998 207", "+49 (0)40 66969 123"),
        accounts=("DE89 3704 0044 0532 0130 00", "DE75512108001245126199"),
        people=("Jana Brandt", "Uwe Kranz", "Elif Demir"),
    ),
)


@dataclass(frozen=True)
class Supplier:
    """A sender of invoices: always from one country and in one layout."""

    name: str
    home: Home
    layout: "Layout"


@dataclass(frozen=True)
class Invoice:
    """One invoice: the record, and what surrounds it on the page."""

    supplier: Supplier
    number: str
    date: date
    due: date | None
    order: str | None
    has_currency: bool
    signed: bool
    """Whether the currency is written as a symbol rather than a code."""
    items: Sequence[tuple[str, int]]
    """Goods and their prices in cents."""
    customer: int
    person: str
    phone: str | None
    account: str | None

    @property
    def net(self) -> int:
        """Cents before tax."""
        return sum(cents for _, cents in self.items)

    @property
    def total(self) -> int:
        """Cents to pay; half a cent is rounded up."""
        return (self.net * (100 + self.supplier.home.tax_percent) + 50) // 100

    @property
    def record(self) -> Record:
        """The answer; null for what the text does not state."""
        values = (
            self.supplier.name,
            self.number,
            self.date.isoformat(),
            self.due.isoformat() if self.due else None,
            self.order,
            self.supplier.home.currency if self.has_currency else None,
            f"{self.total // 100}.{self.total % 100:02}",
        )
        return dict(zip(FIELDS, values, strict=True))

    def money(self, cents: int) -> str:
        """An amount as it is written on this invoice."""
        home, text = self.supplier.home, self.supplier.home.amount(cents)
        if not self.has_currency:
            return text
        if self.signed:
            return f"{home.sign}{text}" if home.amount is _english_amount else f"{text} {home.sign}"
        return f"{text} {home.currency}"

    @property
    def email(self) -> str:
        """The contact's e-mail address."""
        first, last = self.person.lower().split()
        company = self.supplier.name.split()[0].lower()
        return f"{first}.{last}@{company}.example"


Layout = Callable[[Invoice], list[str]]


# Layouts: the lines of an invoice, as suppliers arrange them


def _labelled(invoice: Invoice) -> list[str]:
    """A form: a label and a value on each line."""
    words, day = invoice.supplier.home.words, invoice.supplier.home.day
    pairs = [(words.number, invoice.number), (words.date, day(invoice.date))]
    pairs += [(words.customer, str(invoice.customer))]
    pairs += [(words.order, invoice.order)] if invoice.order else []
    pairs += [(words.net, invoice.money(invoice.net)), (words.tax, invoice.money(invoice.total - invoice.net))]
    pairs += [(words.total, invoice.money(invoice.total))]
    pairs += [(words.due, day(invoice.due))] if invoice.due else []
    return [invoice.supplier.name, *(f"{label}: {value}" for label, value in pairs), *_asides(invoice)]


def _table(invoice: Invoice) -> list[str]:
    """Items with their prices between bars, the total in the last row."""
    words, day = invoice.supplier.home.words, invoice.supplier.home.day
    head = [f"{words.invoice.upper()} | {invoice.number} | {day(invoice.date)}"]
    head += [f"{words.order} | {invoice.order}"] if invoice.order else []
    rows = [f"{goods} | {invoice.money(cents)}" for goods, cents in invoice.items]
    rows += [f"{words.tax} | {invoice.money(invoice.total - invoice.net)}"]
    rows += [f"{words.total.upper()} | {invoice.money(invoice.total)}"]
    foot = [f"{words.due} | {day(invoice.due)}"] if invoice.due else []
    return [*head, *rows, *foot, *_asides(invoice), invoice.supplier.name]


def _letter(invoice: Invoice) -> list[str]:
    """A letter, all in sentences."""
    words, day = invoice.supplier.home.words, invoice.supplier.home.day
    total = invoice.money(invoice.total)
    text = [words.opening.format(number=invoice.number, date=day(invoice.date), total=total)]
    text += [words.your_order.format(order=invoice.order)] if invoice.order else []
    text += [words.pay_by.format(due=day(invoice.due))] if invoice.due else []
    return [" ".join([text[0][0].upper() + text[0][1:], *text[1:]]), *_asides(invoice), invoice.supplier.name]


def _slip(invoice: Invoice) -> list[str]:
    """A slip with few lines, several values on each."""
    words, day = invoice.supplier.home.words, invoice.supplier.home.day
    first = f"{invoice.supplier.name} / {day(invoice.date)} / {invoice.number}"
    second = [f"{words.customer} {invoice.customer}"] + ([f"{words.order} {invoice.order}"] if invoice.order else [])
    third = [f"{words.net} {invoice.money(invoice.net)}", f"{words.total} {invoice.money(invoice.total)}"]
    third += [f"{words.due} {day(invoice.due)}"] if invoice.due else []
    return [first, " / ".join(second), " / ".join(third), *_asides(invoice)]


def _asides(invoice: Invoice) -> list[str]:
    """What is on the page but not in the record, mostly personal data."""
    words = invoice.supplier.home.words
    lines = [f"{words.contact}: {invoice.person}, {invoice.email}"] if invoice.customer % 2 else []
    lines += [f"{words.phone}: {invoice.phone}"] if invoice.phone else []
    return lines + ([f"{words.account}: {invoice.account}"] if invoice.account else [])


LAYOUTS: Final = (_labelled, _table, _letter, _slip)
# fmt: off
STEMS: Final = (
    "Alder", "Brookfield", "Calder", "Dunmore", "Eastwick", "Fairhurst", "Garrick", "Halden", "Ibsley",
    "Jarrow", "Kestrel", "Lindmark", "Marlow", "Norbeck", "Orford", "Penrose",
)
# fmt: on
TRADES: Final = ("Tools", "Supply", "Metals", "Electric", "Plastics")
SUPPLIERS: Final = tuple(
    Supplier(
        f"{stem} {TRADES[(3 * place + number) % len(TRADES)]} {home.form}",
        home,
        LAYOUTS[(place + number) % len(LAYOUTS)],
    )
    for number, home in enumerate(HOMES)
    for place, stem in enumerate(STEMS)
)
FIRST_DAY: Final = date(2025, 1, 1)


def invoice_of(draw: Draw, supplier: Supplier) -> Invoice:
    """One invoice of a supplier."""
    home, day = supplier.home, FIRST_DAY + timedelta(days=draw.between(0, 729))
    number = draw.pick(("INV-{0}", "{1}-{0}", "R{0}", "{0}")).format(draw.between(10000, 99999), day.year)
    order = draw.pick(("PO-{}", "B{}", "45{}")).format(draw.between(10000, 99999))
    return Invoice(
        supplier=supplier,
        number=number,
        date=day,
        due=day + timedelta(days=draw.pick((10, 14, 30, 45))) if draw.happens(70) else None,
        order=order if draw.happens(60) else None,
        has_currency=draw.happens(95),
        signed=draw.happens(50),
        items=[
            (goods, draw.between(4_00, 2_400_00)) for goods in draw.shuffled(home.words.goods)[: draw.between(1, 3)]
        ],
        customer=draw.between(1000, 9999),
        person=draw.pick(home.people),
        phone=draw.pick(home.phones) if draw.happens(30) else None,
        account=draw.pick(home.accounts) if home.accounts and draw.happens(40) else None,
    )


# Noise: what happens to a page between printer and text file


def _unchanged(_draw: Draw, _invoice: Invoice, lines: list[str]) -> list[str]:
    return lines


def _stamped(draw: Draw, invoice: Invoice, lines: list[str]) -> list[str]:
    """A stamp of arrival, with a date that is not in the record."""
    home = invoice.supplier.home
    stamp = f"{home.words.received} {home.day(invoice.date + timedelta(days=draw.between(2, 9)))}"
    place = draw.between(0, len(lines))
    return [*lines[:place], stamp, *lines[place:]]


def _spaced(draw: Draw, _invoice: Invoice, lines: list[str]) -> list[str]:
    """Columns that turned into gaps."""
    return [line.replace(": ", f":{' ' * draw.between(2, 6)}").replace(" | ", "   |  ") for line in lines]


def _ruled(_draw: Draw, invoice: Invoice, lines: list[str]) -> list[str]:
    """Lines, and the page number."""
    return [lines[0], "-" * 24, *lines[1:], "-" * 24, invoice.supplier.home.words.page]


NOISE: Final = (_unchanged, _unchanged, _stamped, _spaced, _ruled)


@dataclass(frozen=True)
class Row:
    """One row of the file."""

    supplier: str
    """The group: invoices of one supplier look alike, so training and test must not share them."""
    text: str
    record: str
    """JSON."""


def row(draw: Draw, supplier: Supplier) -> Row:
    """One invoice as a row."""
    invoice = invoice_of(draw, supplier)
    lines = draw.pick(NOISE)(draw, invoice, supplier.layout(invoice))
    return Row(supplier.name, "\n".join(lines), json.dumps(invoice.record, ensure_ascii=False))


def generate(rows: int, seed: int) -> list[Row]:
    """Exactly ``rows`` rows in random order, about as many per supplier; a few repeat another."""
    draw, made = Draw(seed), dict[str, Row]()
    repeated = rows * REPEATED_PER_MILLE // 1000
    while len(made) < rows - repeated:
        new = row(draw, SUPPLIERS[len(made) % len(SUPPLIERS)])
        made.setdefault(new.text, new)
    different = list(made.values())
    return draw.shuffled([*different, *(draw.pick(different) for _ in range(repeated))])


def write(rows: Sequence[Row], path: Path) -> None:
    """Write the rows as JSON lines in UTF-8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for each in rows:
            fields = {"supplier": each.supplier, "text": each.text, "record": each.record}
            file.write(json.dumps(fields, ensure_ascii=False) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Make invoices and their records as JSONL.")
    parser.add_argument("--rows", type=int, default=1200, help="rows in the file (default: 1200)")
    parser.add_argument("--seed", type=int, default=7, help="another seed gives other rows (default: 7)")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    given = parser.parse_args(arguments)
    if given.rows < 1:
        parser.error(f"--rows {given.rows}: must be 1 or more")
    write(generate(given.rows, given.seed), given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
