"""The model's thread: it prefills waiting requests of one adapter together, and live batches take turns per token.

TGI merges a new batch into the running one. Here batches stay separate and take turns, so that a long answer does not
block a new request, without copying key-value caches. Throughput is not a goal of the stand-in.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch

from tgi_cpu.checkpoint import Checkpoint
from tgi_cpu.metrics import Metrics
from tgi_cpu.sequence import Generation, LiveSequence, Step

LOG = logging.getLogger(__name__)


class GenerationError(Exception):
    """The forward pass failed; the message is the cause."""


@dataclass(slots=True)
class Ticket:
    """A submitted request: its events arrive in order; the last one has ``ending`` or is an error."""

    sequence: LiveSequence
    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[Step | GenerationError] = field(default_factory=asyncio.Queue)
    cancelled: bool = False
    finished: bool = False

    def deliver(self, event: Step | GenerationError) -> None:
        """Pass an event to the event loop (called from the engine's thread)."""
        self.finished = isinstance(event, GenerationError) or event.ending is not None
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)

    @property
    def live(self) -> bool:
        """Whether the client still waits for another token."""
        return not self.cancelled and not self.finished


@dataclass(slots=True)
class _Batch:
    """Sequences of one adapter that share a key-value cache; rows are padded on the left."""

    adapter_id: str | None
    tickets: list[Ticket]
    attention_mask: Any
    cache: Any = None

    def keep_live(self) -> None:
        """Drop the rows of finished and abandoned sequences."""
        rows = [row for row, ticket in enumerate(self.tickets) if ticket.live]
        if len(rows) == len(self.tickets):
            return
        self.tickets = [self.tickets[row] for row in rows]
        if rows:
            index = torch.tensor(rows)
            self.attention_mask = self.attention_mask[index]
            if self.cache is not None:
                self.cache.batch_select_indices(index)


class Engine:
    """Runs the model for all requests. The event loop calls ``submit``; everything else runs in the engine's thread."""

    def __init__(
        self, checkpoint: Checkpoint, metrics: Metrics, *, max_batch_size: int, max_prefill_tokens: int
    ) -> None:
        """``max_batch_size`` limits the live sequences, ``max_prefill_tokens`` the padded tokens of one prefill."""
        self._checkpoint = checkpoint
        self._metrics = metrics
        self._max_batch_size = max_batch_size
        self._max_prefill_tokens = max_prefill_tokens
        self._waiting: deque[Ticket] = deque()
        self._batches: list[_Batch] = []
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def healthy(self) -> bool:
        """Whether the model's thread is alive."""
        return self._thread.is_alive()

    def submit(self, request: Generation) -> Ticket:
        """Queue a request."""
        ticket = Ticket(LiveSequence(request, self._checkpoint.vocabulary), asyncio.get_running_loop())
        with self._changed:
            self._waiting.append(ticket)
            self._metrics.set("tgi_queue_size", len(self._waiting))
            self._changed.notify()
        return ticket

    def stop(self) -> None:
        """Stop the thread after the current token."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping:
            batch = self._admit()
            if batch is not None:
                self._batches.append(batch)
                self._step(batch, "prefill")
            for running in self._batches:
                if running is not batch:
                    self._step(running, "decode")
            self._batches = [running for running in self._batches if running.tickets]
            self._report_batches()

    def _admit(self) -> _Batch | None:
        """The next batch to prefill; waits only if there is nothing else to do."""
        with self._changed:
            while not self._batches and not self._waiting and not self._stopping:
                self._changed.wait()
            tickets = self._take_waiting()
            self._metrics.set("tgi_queue_size", len(self._waiting))
        if not tickets:
            return None
        self._metrics.observe("tgi_batch_next_size", len(tickets))
        lengths = [len(ticket.sequence.ids) for ticket in tickets]
        mask = torch.tensor([[0] * (max(lengths) - length) + [1] * length for length in lengths])
        return _Batch(tickets[0].sequence.request.adapter_id, tickets, mask)

    def _take_waiting(self) -> list[Ticket]:
        """Waiting requests for the adapter of the oldest one, oldest first, as many as the limits allow."""
        free = self._max_batch_size - sum(len(batch.tickets) for batch in self._batches)
        taken: list[Ticket] = []
        left: deque[Ticket] = deque()
        longest = 0
        for ticket in self._waiting:
            if ticket.cancelled:
                continue
            padded = max(longest, len(ticket.sequence.ids))
            fits = len(taken) < free and (not taken or padded * (len(taken) + 1) <= self._max_prefill_tokens)
            if fits and (not taken or ticket.sequence.request.adapter_id == taken[0].sequence.request.adapter_id):
                taken.append(ticket)
                longest = padded
            else:
                left.append(ticket)
        self._waiting = left
        return taken

    def _step(self, batch: _Batch, method: str) -> None:
        """Generate one token for every sequence of a batch; a failure ends the batch's requests, not the server."""
        batch.keep_live()
        if not batch.tickets:
            return
        start = time.monotonic()
        self._metrics.increment("tgi_batch_inference_count", method=method)
        try:
            logits = self._forward(batch, start)
            self._metrics.observe("tgi_batch_forward_duration", time.monotonic() - start, method=method)
            for ticket, row in zip(batch.tickets, logits, strict=True):
                ticket.deliver(ticket.sequence.advance(row))
        except Exception as error:
            LOG.exception("generation failed")
            self._metrics.increment("tgi_batch_inference_failure", method=method)
            for ticket in batch.tickets:
                if ticket.live:
                    ticket.deliver(GenerationError(f"{type(error).__name__}: {error}"))
        else:
            self._metrics.increment("tgi_batch_inference_success", method=method)
        self._metrics.observe("tgi_batch_inference_duration", time.monotonic() - start, method=method)
        batch.keep_live()

    @torch.inference_mode()  # type: ignore[untyped-decorator] # torch has no type for it
    def _forward(self, batch: _Batch, now: float) -> Any:
        """Logits (sequences x positions x vocabulary) of the last position, or of all if prompt details are
        requested."""
        self._checkpoint.activate(batch.adapter_id)
        positions = (batch.attention_mask.cumsum(-1) - 1).clamp(min=0)
        if batch.cache is None:
            width = batch.attention_mask.shape[1]
            rows = [[0] * (width - len(t.sequence.ids)) + t.sequence.ids for t in batch.tickets]
            for ticket in batch.tickets:
                ticket.sequence.started = now
        else:
            rows = [ticket.sequence.ids[-1:] for ticket in batch.tickets]
            positions = positions[:, -1:]
        details = batch.cache is None and any(t.sequence.request.prefill_details for t in batch.tickets)
        output = self._checkpoint.model(
            input_ids=torch.tensor(rows),
            attention_mask=batch.attention_mask,
            position_ids=positions,
            cache=batch.cache,
            use_cache=True,
            logits_to_keep=0 if details else 1,
        )
        batch.cache = output.cache
        ones = torch.ones((len(batch.tickets), 1), dtype=batch.attention_mask.dtype)
        batch.attention_mask = torch.cat([batch.attention_mask, ones], dim=-1)
        return output.logits

    def _report_batches(self) -> None:
        live = [ticket.sequence for batch in self._batches for ticket in batch.tickets]
        self._metrics.set("tgi_batch_current_size", len(live))
        self._metrics.set("tgi_batch_current_max_tokens", sum(len(s.ids) + s.remaining_tokens for s in live))
