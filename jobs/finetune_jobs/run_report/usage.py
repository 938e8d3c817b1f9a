"""The resources that a run's results have used, from the lineage in their manifests (pure)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finetune_api.budget import HardwareFacts
from finetune_api.layout import Lineage
from finetune_api.stages import RunRef, Stage
from finetune_api.usage import ENERGY_METHOD, Usage, together
from finetune_jobs.reports.page import Fact, Table, TableRow


@dataclass(frozen=True)
class UsageSection:
    """The section about time, money and energy."""

    table: Table
    facts: Sequence[Fact]


def usage_section(made: Mapping[Stage, Lineage], run: RunRef) -> UsageSection | None:
    """What making each result has used. None: no result says it, since an earlier version made them all."""
    used = {stage: lineage.usage for stage, lineage in made.items() if lineage.usage}
    if not used:
        return None
    rows = [
        TableRow(_name(stage, made[stage], run), _cells(used[stage]) if stage in used else ["–"] * 5) for stage in made
    ]
    rows.append(TableRow("total", _cells(together(list(used.values())))))
    head = ["stage", "time", "CPU time", "GPU time", "USD", "Wh"]
    table = Table("Resources used to make each result", head, rows, long=True)
    hardware = list(dict.fromkeys(_hardware(each.hardware) for each in used.values() if each.hardware))
    facts = [Fact("Hardware", hardware)] if hardware else []
    if any(each.energy_wh is not None for each in used.values()):
        facts.append(Fact("Energy", [ENERGY_METHOD]))
    return UsageSection(table, facts)


def _name(stage: Stage, lineage: Lineage, run: RunRef) -> str:
    """A result is reused by every run that asks for the same: then an earlier run has paid for it."""
    earlier = lineage.run is not None and (lineage.run.uid, lineage.run.id) != (run.uid, run.id)
    return f"{stage}, by an earlier run" if earlier else str(stage)


def _cells(usage: Usage) -> list[str]:
    energy = "–" if usage.energy_wh is None else f"{usage.energy_wh:,.2f}"
    gpu = _time(usage.gpu_seconds) if usage.gpu_seconds else "–"
    return [_time(usage.seconds), _time(usage.cpu_seconds), gpu, usage.cost_usd or "–", energy]


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _hardware(it: HardwareFacts) -> str:
    """A profile in words."""
    if it.has_gpu:
        pods = f" in each of {it.nodes} pods" if it.nodes > 1 else ""
        price = f", {it.usd_per_hour:g} USD an hour each" if it.usd_per_hour else ", no price set"
        return f"{it.profile}: {it.count} × {it.name or 'GPU'}{pods}{price}"
    cpus = f"{it.cpus:g} CPUs" if it.cpus else "no CPU limit"
    memory = f", {it.memory_gib:g} GiB" if it.memory_gib else ""
    return f"{it.profile}: no GPU, {cpus}{memory}"
