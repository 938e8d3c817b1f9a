"""TGI's Prometheus metrics: its names, labels and buckets.

``prometheus-client`` cannot be used: it appends ``_total`` to counters, which TGI's exporter does not. As in TGI, a
series exists only once a value was recorded, and a histogram without configured buckets becomes a summary.
"""

import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

Labels = tuple[tuple[str, str], ...]


@dataclass(slots=True)
class _Distribution:
    bounds: Sequence[float]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Metrics:
    """A registry that both the event loop and the engine's thread write to."""

    def __init__(self, *, max_input_tokens: int, max_total_tokens: int) -> None:
        """Lengths in tokens: the length histograms have a hundred equal buckets up to them."""
        self._lock = threading.Lock()
        self._counters: dict[str, dict[Labels, float]] = defaultdict(lambda: defaultdict(float))
        self._gauges: dict[str, float] = {}
        self._distributions: dict[str, dict[Labels, _Distribution]] = defaultdict(dict)
        self._bounds: dict[str, Sequence[float]] = {
            "tgi_request_input_length": _even_steps(max_input_tokens),
            "tgi_request_generated_tokens": _even_steps(max_total_tokens),
            "tgi_request_max_new_tokens": _even_steps(max_total_tokens),
            "tgi_batch_next_size": [float(size) for size in range(1, 1025)],
        }

    def increment(self, name: str, **labels: str) -> None:
        """Add one to a counter."""
        with self._lock:
            self._counters[name][tuple(labels.items())] += 1

    def set(self, name: str, value: float) -> None:
        """Set a gauge."""
        with self._lock:
            self._gauges[name] = value

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Record a value in a histogram (seconds for names ending in ``duration``)."""
        key = tuple(labels.items())
        with self._lock:
            series = self._distributions[name]
            if key not in series:
                series[key] = _Distribution(self._bounds_of(name))
            series[key].observe(value)

    def render(self) -> str:
        """The text exposition format (version 0.0.4)."""
        with self._lock:
            lines: list[str] = []
            for name, counters in self._counters.items():
                lines.append(f"# TYPE {name} counter")
                lines += [f"{name}{_braces(labels)} {value:g}" for labels, value in counters.items()]
            for name, value in self._gauges.items():
                lines += [f"# TYPE {name} gauge", f"{name} {value:g}"]
            for name, series in self._distributions.items():
                lines.append(f"# TYPE {name} {'histogram' if self._bounds_of(name) else 'summary'}")
                for labels, distribution in series.items():
                    lines += _render_distribution(name, labels, distribution)
            return "\n".join([*lines, ""])

    def _bounds_of(self, name: str) -> Sequence[float]:
        if name.endswith("duration"):
            return _DURATION_BOUNDS
        return self._bounds.get(name, ())


_DURATION_BOUNDS = [0.0001 * 1.5**step for step in range(1, 36)]


def _even_steps(maximum: int) -> list[float]:
    return [maximum / 100 * step for step in range(1, 101)]


def _render_distribution(name: str, labels: Labels, distribution: _Distribution) -> list[str]:
    lines = []
    count = 0
    for bound, in_bucket in zip(distribution.bounds, distribution.counts, strict=False):
        count += in_bucket
        lines.append(f"{name}_bucket{_braces((*labels, ('le', f'{bound:g}')))} {count}")
    count = sum(distribution.counts)
    if distribution.bounds:
        lines.append(f"{name}_bucket{_braces((*labels, ('le', '+Inf')))} {count}")
    return [*lines, f"{name}_sum{_braces(labels)} {distribution.total:.9g}", f"{name}_count{_braces(labels)} {count}"]


def _braces(labels: Labels) -> str:
    return "{" + ",".join(f'{key}="{value}"' for key, value in labels) + "}" if labels else ""
