"""Answers that outlive the pod: every paid answer is saved in the store, so that none is requested twice.

The store holds them as chunks (``store.chunks``), a local file holds all of them, and memory a hash and a position of
each (about 150 bytes).
"""

import json
import logging
import tempfile
import threading

from pydantic import ValidationError

from finetune_api.base import Digest, WireModel
from finetune_api.layout import run_folder
from finetune_api.stages import RunRef
from finetune_jobs.chat_api.answers import ModelAnswer
from finetune_jobs.chat_api.money import Tokens
from finetune_jobs.store.chunks import Chunks
from finetune_jobs.store.s3 import Store

log = logging.getLogger(__name__)


class JournalEntry(WireModel):
    """A line of a chunk."""

    id: Digest
    """Identity of the question."""
    answer: str | None = None
    """None: the request failed, but may have cost this."""
    finish: str = ""
    input_tokens: int
    output_tokens: int
    estimated_tokens: int = 0

    @property
    def tokens(self) -> Tokens:
        """What the request used."""
        return Tokens(self.input_tokens, self.output_tokens, self.estimated_tokens)


class Journal:
    """The answers to the questions of one recipe. ``flush`` may be called from another thread."""

    def __init__(self, store: Store) -> None:
        self._chunks = Chunks(store)
        self._lock = threading.Lock()
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 # lives as long as the journal
        self._positions: dict[bytes, int] = {}
        self.spent = Tokens()
        """All that the requests of this journal used."""
        self.requests = 0
        """Requests that were answered, or may be charged."""
        self._load()
        self.found = len(self._positions)
        """Answers found at the start."""

    @classmethod
    def of(cls, store: Store, run: RunRef, purpose: str, recipe: str) -> "Journal":
        """The journal of a FineTuneJob for a purpose, e.g. ``distillation``, below its output URI; ``recipe``: as
        ``Terms.recipe``. Raises StageError as Store."""
        return cls(store.below(f"{run_folder(run)}/{purpose}/{recipe}"))

    def __contains__(self, identity: str) -> bool:
        return bytes.fromhex(identity) in self._positions

    def find(self, identity: str) -> ModelAnswer | None:
        """The answer to a question, or None."""
        position = self._positions.get(bytes.fromhex(identity))
        if position is None:
            return None
        with self._lock:
            self._file.seek(position)
            entry = JournalEntry.model_validate_json(self._file.readline())
        return ModelAnswer(entry.answer or "", entry.finish, entry.tokens)

    def add(self, identity: str, answer: ModelAnswer) -> None:
        """Note an answer. It is safe after the next ``flush``."""
        self._note(identity, answer.text, answer.finish, answer.tokens)

    def add_lost(self, identity: str, tokens: Tokens) -> None:
        """Note what a request without an answer may have cost."""
        self._note(identity, None, "", tokens)

    def flush(self) -> None:
        """Write what is new to the store. Raises StageError as Store; what was not written stays for the next time."""
        self._chunks.flush()

    def _note(self, identity: str, text: str | None, finish: str, tokens: Tokens) -> None:
        entry = JournalEntry(
            id=identity,
            answer=text,
            finish=finish,
            input_tokens=tokens.input,
            output_tokens=tokens.output,
            estimated_tokens=tokens.estimated,
        )
        line = json.dumps(entry.model_dump(by_alias=True), ensure_ascii=False).encode() + b"\n"
        self._chunks.add(line)
        with self._lock:
            self._keep(entry, line)

    def _keep(self, entry: JournalEntry, line: bytes) -> None:
        self.spent += entry.tokens
        self.requests += 1
        if entry.answer is not None:
            position = self._file.seek(0, 2)
            self._file.write(line)
            self._positions.setdefault(bytes.fromhex(entry.id), position)

    def _load(self) -> None:
        for chunk in self._chunks.read():
            damaged = 0
            for line in chunk.lines:
                try:
                    self._keep(JournalEntry.model_validate_json(line), line)
                except ValidationError:
                    damaged += 1
            if damaged:
                log.warning("%s: %s damaged lines dropped; their prompts will be asked again", chunk.uri, damaged)
