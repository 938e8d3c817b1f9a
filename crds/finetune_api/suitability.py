"""What the table of ``compatibility.py`` says of an artifact, and of an artifact on a runtime."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from finetune_api.base import WireModel
from finetune_api.cards import Generation, generation_of
from finetune_api.compatibility import ROWS, TGI, TITLES, Level, Row

_SPOKEN: Final = (Level.REFUSED, Level.CAVEAT)
_TRY: Final = (
    "Choose a runtime with another engine; or pin the published artifact (spec.source.artifact of the "
    "AdapterDeployment), of which the verification alone decides."
)


@dataclass(frozen=True)
class Case:
    """An artifact on a runtime, as far as both are known."""

    engine: str
    architecture: str
    format: str
    generation: Generation | None = None
    dtype: str = ""


@dataclass(frozen=True)
class Suitability:
    """What the table says of a case."""

    level: Level = Level.FINE
    says: tuple[str, ...] = ()
    """Sentences of that level."""

    @property
    def refused(self) -> bool:
        """Whether it cannot work."""
        return self.level is Level.REFUSED

    @property
    def starts(self) -> bool:
        """Whether pods are started for it."""
        return self.level not in (Level.UNKNOWN, Level.REFUSED)

    @property
    def message(self) -> str:
        """All of them."""
        return " ".join(self.says)


class ServingFacts(WireModel):
    """A runtime as the table sees it."""

    name: str
    """Name of the runtime."""
    engine: str
    """API of its server, e.g. tgi."""
    gpu: bool = False
    """Whether its pods have a GPU."""
    card: str = ""
    """Product name of that GPU, as far as the runtime's node selector says; empty: unknown."""
    dtype: str = ""
    """What its environment forces the server to compute in; empty: the server decides."""

    @property
    def stands_in(self) -> bool:
        """Whether it is the stand-in for TGI on CPUs, for trials: TGI itself needs a GPU."""
        return self.engine == TGI and not self.gpu


def verdict(case: Case) -> Suitability:
    """What the table says of a case: of the rows that apply, those of the gravest level."""
    rows = [row for row in ROWS if _applies(row, case)]
    refused, caveats = (tuple(_sentence(row, case) for row in rows if row.level is level) for level in _SPOKEN)
    if refused:
        return Suitability(Level.REFUSED, refused)
    if case.engine in TITLES and not _known(rows, case):
        what = f"{case.architecture} in {case.format}" if case.architecture else case.format
        unknown = f"Whether {TITLES[case.engine]} serves {what} is not known here. {_TRY}"
        return Suitability(Level.UNKNOWN, (unknown,))
    return Suitability(Level.CAVEAT, caveats) if caveats else Suitability()


def artifact_verdict(architecture: str, format_: str) -> Suitability:
    """What the table says of an artifact, whatever serves it."""
    return verdict(Case("", architecture, format_))


def serving_verdict(runtime: ServingFacts, architecture: str, format_: str) -> Suitability:
    """What the table says of an artifact on a runtime; an ``architecture`` that is not known is empty."""
    if not runtime.gpu:
        return Suitability()
    return verdict(Case(runtime.engine, architecture, format_, generation_of(runtime.card), runtime.dtype))


def _known(rows: Sequence[Row], case: Case) -> bool:
    """Whether rows of the engine speak of the architecture and of the format, as far as the case names them."""
    own = [row for row in rows if row.engine == case.engine]
    architecture = not case.architecture or any(row.architectures for row in own)
    return architecture and (not case.format or any(row.formats for row in own))


def _applies(row: Row, case: Case) -> bool:
    pairs = (
        (row.architectures, case.architecture),
        (row.formats, case.format),
        (row.generations, case.generation),
        (row.dtypes, case.dtype),
    )
    if row.engine is not None and row.engine != case.engine:
        return False
    return all(wanted is None or given in wanted for wanted, given in pairs)


def _sentence(row: Row, case: Case) -> str:
    return row.says.format(
        architecture=case.architecture, format=case.format, generation=case.generation, dtype=case.dtype
    )
