"""Progress of a stage: Prometheus metrics for the operator, lines or a bar for people.

Progress is fail-open: a taken port or a closed terminal costs the display, never the work.
"""

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from finetune_api import telemetry

log = logging.getLogger(__name__)

Report = Callable[[int, int], None]
"""Called with how much is done, and of how much."""


_GAUGES: Final[Mapping[str, str]] = {
    "step": telemetry.STEP,
    "planned_steps": telemetry.PLANNED_STEPS,
    "loss": telemetry.STEP_LOSS,
    "validation_loss": telemetry.EVAL_LOSS,
    "learning_rate": telemetry.LEARNING_RATE,
    "gradient_norm": telemetry.GRADIENT_NORM,
    "tokens_per_second": telemetry.TOKENS_PER_SECOND,
    "gpu_memory_bytes": telemetry.GPU_MEMORY,
}
"""The metric of each field of Measurement; the tokens are a counter."""


@dataclass(frozen=True)
class Measurement:
    """What a training shows after an optimiser step, or (``validation_loss``) after a validation. None: not known."""

    step: int
    """Optimiser steps that are done, those before a restart included."""
    planned_steps: int
    loss: float | None = None
    validation_loss: float | None = None
    learning_rate: float | None = None
    gradient_norm: float | None = None
    """Before clipping."""
    tokens: int | None = None
    """All that were trained on so far, without padding."""
    tokens_per_second: float | None = None
    """Over the last steps, without validation and saving."""
    gpu_memory_bytes: int | None = None
    """Most that tensors held at a time so far."""


class Follower(Protocol):
    """Receives measurements."""

    def measured(self, measurement: Measurement) -> None:
        """Called in the training's thread: must return at once, and must not raise."""


class Progress(Collector):
    """Share done, time left and a sentence; thread-safe. A value that is not known yet is not shown."""

    def __init__(
        self, stage: str, *, show: bool = False, quiet: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``show`` a bar rather than lines; ``quiet``: neither."""
        self._stage, self._show, self._quiet, self._clock = stage, show, quiet, clock
        self._lock = threading.Lock()
        self._started: tuple[float, float] | None = None
        self._ratio = 0.0
        self._eta: float | None = None
        self._message = ""
        self._gauges: dict[str, float] = {}
        self._tokens: int | None = None
        self._shown = -1
        self._followers: list[Follower] = []

    def follow(self, follower: Follower) -> None:
        """Report every further measurement to this listener too."""
        self._followers.append(follower)

    def record(self, measurement: Measurement) -> None:
        """Show the newest values, and pass them on to the followers."""
        with self._lock:
            for field, name in _GAUGES.items():
                if (value := getattr(measurement, field)) is not None:
                    self._gauges[name] = value
            if measurement.tokens is not None:
                self._tokens = measurement.tokens
        for follower in self._followers:
            follower.measured(measurement)

    def begin(self, ratio: float, message: str = "") -> None:
        """As ``report``, of work that others have brought so far, or that is unlike the work before: from now on its
        own speed alone says how much time is left."""
        with self._lock:
            self._started = None
        self.report(ratio, message)

    def report(self, ratio: float, message: str = "") -> None:
        """``ratio``: share of the work done, 0 to 1. The time left follows from the speed since the first call, or
        since ``begin``."""
        with self._lock:
            now = self._clock()
            self._ratio = min(1.0, max(0.0, ratio))
            self._message = message or self._message
            if self._started is None:
                self._started = (now, self._ratio)
            since, first = self._started
            done = self._ratio - first
            self._eta = (now - since) * (1 - self._ratio) / done if done > 0 else None
        self._display()

    def go_on(self, message: str) -> None:
        """All that was reported so far had been done before: from now on the speed says how much time is left."""
        with self._lock:
            ratio = self._ratio
        self.begin(ratio, message)

    def part(self, begin: float, end: float, message: str) -> Report:
        """A callback (done, total) for a piece of work that takes the share from ``begin`` to ``end``."""

        def report(done: int, total: int) -> None:
            self.report(begin + (end - begin) * (done / total if total else 1.0), message)

        return report

    def within(self, begin: float, end: float, prefix: str = "") -> "Progress":
        """A Progress for a piece of the work, which takes the share from ``begin`` to ``end``.

        ``prefix`` goes before its messages.
        """
        return _Piece(self, begin, end, prefix)

    @property
    def eta_seconds(self) -> float | None:
        """Seconds left, or None while unknown."""
        return self._eta

    def collect(self) -> Iterator[Metric]:
        """The metrics of ``finetune_api.telemetry`` (called by prometheus_client for each scrape)."""
        with self._lock:
            yield GaugeMetricFamily(telemetry.PROGRESS_RATIO, telemetry.HELP[telemetry.PROGRESS_RATIO], self._ratio)
            if self._eta is not None:
                yield GaugeMetricFamily(telemetry.ETA_SECONDS, telemetry.HELP[telemetry.ETA_SECONDS], self._eta)
            info = GaugeMetricFamily(telemetry.INFO, telemetry.HELP[telemetry.INFO], labels=["stage", "message"])
            info.add_metric([self._stage, self._message], 1)
            yield info
            for name, value in self._gauges.items():
                yield GaugeMetricFamily(name, telemetry.HELP[name], value)
            if self._tokens is not None:
                yield CounterMetricFamily(telemetry.TOKENS, telemetry.HELP[telemetry.TOKENS], self._tokens)

    def serve(self, port: int) -> None:
        """Show the metrics on a port of this pod."""
        registry = CollectorRegistry()
        registry.register(self)
        try:
            start_http_server(port, registry=registry)
        except OSError as error:
            log.warning("no progress metrics: port %s: %s", port, error.strerror)

    def _display(self) -> None:
        percent = int(self._ratio * 100)
        step = percent if self._show else percent // 10
        if self._quiet or step == self._shown:
            return
        self._shown = step
        if self._show:
            bar = ("#" * (percent // 5)).ljust(20, ".")
            left = f" {self._eta:.0f} s left" if self._eta else ""
            end = "\n" if percent == 100 else ""
            sys.stderr.write(f"\r\x1b[K{self._stage} [{bar}] {percent:3d} %{left}  {self._message}{end}")
            sys.stderr.flush()
        else:
            log.info("%s %% %s", percent, self._message)


class _Piece(Progress):
    """A piece of the work: what it reports, the whole shows in its proportion."""

    def __init__(self, whole: Progress, begin: float, end: float, prefix: str) -> None:
        super().__init__(whole._stage)
        self._whole, self._begin, self._end, self._prefix = whole, begin, end, prefix

    def begin(self, ratio: float, message: str = "") -> None:
        self._whole.begin(self._of_whole(ratio), self._prefixed(message))

    def go_on(self, message: str) -> None:
        self._whole.go_on(self._prefixed(message))

    def report(self, ratio: float, message: str = "") -> None:
        self._whole.report(self._of_whole(ratio), self._prefixed(message))

    def _of_whole(self, ratio: float) -> float:
        return self._begin + (self._end - self._begin) * min(1.0, max(0.0, ratio))

    def _prefixed(self, message: str) -> str:
        return f"{self._prefix}{message}" if message else ""

    def record(self, measurement: Measurement) -> None:
        self._whole.record(measurement)
