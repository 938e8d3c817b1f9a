"""Adapters that come and go on a server while it runs, each proved before its name answers. It asks through what it is
given.

```
wanted ──▶ fetched, every hash ──▶ loaded under a name that nobody knows ──▶ proved ──▶ loaded under its own name
   │               │                              │                            │
   │               └──────────────────────────────┴────────────────────────────┴──▶ Failed: its own name never answers
   └── no longer: its name is taken away, requests that have begun go on, and its files are deleted later
```
"""

import logging
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from finetune_api.artifact_source import adapter_model
from finetune_api.endpoint_stages import AdapterReport, AdapterReports, SelfCheckLimits, WantedAdapter, WantedAdapters
from finetune_api.reasons import Reason
from finetune_api.serving_status import AdapterState, VerificationCheck
from finetune_api.verification import WithdrawnPolicy
from finetune_jobs.artifacts.gates import require_gates
from finetune_jobs.artifacts.withdrawal import require_standing
from finetune_jobs.base.errors import StageError
from finetune_jobs.runtime.adapters import Adapter
from finetune_jobs.verification.engine import AdapterHost, ModelServer
from finetune_jobs.verification.proof import Proof
from finetune_jobs.verification.watch import QualityWatch

log = logging.getLogger(__name__)

AGAIN_SECONDS: Final = 30.0
"""After a failure that may pass."""
LINGER_SECONDS: Final = 900.0
"""For how long the files of a removed adapter stay: requests that have begun may need them."""
_PROVING: Final = "proving-"
"""How the names begin under which adapters prove themselves; the rest is random."""


@dataclass
class _Served:
    """An adapter whose name answers."""

    wanted: WantedAdapter
    watch: QualityWatch


@dataclass
class Loader:
    """The adapters of one server."""

    host: AdapterHost
    """The server, as what loads adapters."""
    fetch: Callable[[WantedAdapter], Adapter]
    """Has an adapter in ``models``, verified. Raises StageError."""
    client: Callable[[str], ModelServer]
    """The server, as what answers under a name."""
    require: Callable[[Sequence[VerificationCheck], str], None]
    """Raises StageError if one of the checks of somebody failed."""
    models: Path
    """Where the server reads adapters."""
    model: str
    """Name of the base; clients' names of adapters begin with it."""
    tell: Callable[[AdapterReports], None]
    """Says where each stands, whenever that changes."""
    clock: Callable[[], float] = time.monotonic
    """Seconds."""

    def __post_init__(self) -> None:
        self._served: dict[str, _Served] = {}
        self._reports: dict[tuple[str, str], AdapterReport] = {}
        self._again: dict[tuple[str, str], float] = {}
        self._passing: set[str] = set()
        self._answers: set[str] = set()
        self._left: dict[str, float] = {}
        self._base = ""

    def begin(self, wanted: WantedAdapters, limits: SelfCheckLimits) -> None:
        """Load what is wanted on a server of which nothing is known, before the pod is ready. Raises StageError for an
        adapter that is required, and if the server has started again meanwhile; any other that fails is reported.

        Where an earlier self-check of this server has ended, what it had proved answers still, and goes on doing so:
        clients may be connected.
        """
        required = {self._name(each): self._path(each) for each in wanted.adapters if each.required}
        for name, path in self.host.loaded().items():
            if required.get(name) == path:
                self._answers.add(name)
            else:
                self.host.unload(name)
        known = {each.digest for each in wanted.adapters}
        self._left = {each.parent.name: self.clock() for each in self.models.glob("*/artifact")}
        self._left = {digest: since for digest, since in self._left.items() if digest not in known}
        for each in sorted(wanted.adapters, key=lambda each: not each.required):
            if each.required:
                self._bring(each, wanted, limits)
            else:
                self._try(each, wanted, limits)
        self._require_answers()

    def settle(self, wanted: WantedAdapters, limits: SelfCheckLimits) -> None:
        """Make a server whose pod is ready serve what is wanted by now. Whatever goes wrong with an adapter is
        reported, and changes nothing for the others.

        Raises StageError for one that is required by now and not served. The pod became ready without it just after the
        others had been asked, and is to be ready no longer: its clients would be told that there is no such name. So
        they would if the server has started again, which nobody has seen while something was fetched.
        """
        asked = {(each.name, each.digest) for each in wanted.adapters}
        for name in [name for name, it in self._served.items() if (name, it.wanted.digest) not in asked]:
            self._remove(name)
        self._forget_passing()
        new = [each for each in wanted.adapters if (each.name, each.digest) not in self._reports]
        for each in new:  # before anything is fetched: what a pod says nothing of, it has not got
            self._report(each, AdapterState.LOADING, Reason.WAITING, "")
        for name, digest in self._reports.keys() - asked:
            if self._may_answer(name, digest):
                continue
            del self._reports[name, digest]
            self.tell(self.reports())
            self._left.setdefault(digest, self.clock())
        for each in wanted.adapters:
            report = self._reports[each.name, each.digest]
            if each.required and each not in new and report.state is not AdapterState.LOADED:
                self._bring(each, wanted, limits)
                self._require_answers()
            elif self._is_held(each):
                continue  # the former one of the name could not be removed yet
            elif each in new or self._is_due(each, report):
                self._try(each, wanted, limits)
                self._require_answers()
            elif report.attempt != each.attempt:
                self._report(each, report.state, report.reason, report.message)
        self._delete_files({each.digest for each in wanted.adapters})

    def reports(self) -> AdapterReports:
        """Where each of those stands that are wanted, or that may answer still."""
        return AdapterReports(adapters=list(self._reports.values()))

    def watches(self) -> list[tuple[str, QualityWatch]]:
        """What has to stay as it was proved, by what messages call it."""
        return [(self._who(name), served.watch) for name, served in self._served.items()]

    def _is_held(self, each: WantedAdapter) -> bool:
        """Whether its name answers with another artifact."""
        served = self._served.get(each.name)
        return served is not None and served.wanted.digest != each.digest

    def _may_answer(self, name: str, digest: str) -> bool:
        """Whether clients may get answers under a name: it could not be removed, or the server has not said whether it
        has loaded it."""
        served = self._served.get(name)
        return adapter_model(self.model, name) in self._passing or (
            served is not None and served.wanted.digest == digest
        )

    def _is_due(self, each: WantedAdapter, report: AdapterReport) -> bool:
        """Whether an adapter is to be tried again: one that has failed, if the spec asks anew, and one that waits after
        a while. The pod need not have seen a set without it in between."""
        match report.state:
            case AdapterState.FAILED:
                return report.attempt != each.attempt
            case AdapterState.LOADING:
                return self.clock() >= self._again.get((each.name, each.digest), 0.0)
        return False

    def _name(self, each: WantedAdapter) -> str:
        """What clients call it."""
        return adapter_model(self.model, each.name)

    def _path(self, each: WantedAdapter) -> str:
        """Where the server reads it; the path holds the digest."""
        return str(self.models / each.digest / "model")

    def _who(self, name: str) -> str:
        return f"Its adapter {adapter_model(self.model, name)!r}"

    def _try(self, each: WantedAdapter, wanted: WantedAdapters, limits: SelfCheckLimits) -> None:
        """What fails is reported. What lacks the room of removed adapters waits until their files are gone."""
        try:
            self._bring(each, wanted, limits)
        except StageError as error:
            log.warning("adapter %s is not loaded: %s", each.name, error.message)
            passes = error.retriable or (error.reason is Reason.SCRATCH_FULL and bool(self._left))
            state = AdapterState.LOADING if passes else AdapterState.FAILED
            self._report(each, state, error.reason, error.message)
        except Exception as error:  # whatever it is made of, the others go on
            log.exception("loading adapter %s crashed", each.name)
            said = f"Loading it crashed ({type(error).__name__})."
            self._report(each, AdapterState.FAILED, Reason.INTERNAL_ERROR, said)

    def _bring(self, each: WantedAdapter, wanted: WantedAdapters, limits: SelfCheckLimits) -> None:
        """From the store to clients. Raises StageError."""
        self._left.pop(each.digest, None)
        adapter = self._fetched(each, {it.digest for it in wanted.adapters})
        if not each.required:
            if wanted.withdrawn is WithdrawnPolicy.REFUSE:
                require_standing(adapter.store, each.digest)
            require_gates(adapter.store, each.digest, wanted.gates, wanted.required_gates)
        if self._base and adapter.base.digest != self._base:
            raise StageError(
                Reason.ADAPTERS_UNSUITABLE,
                f"Adapter {each.name!r} was trained on another base model ({adapter.base.digest[:12]}) than those that "
                f"are served ({self._base[:12]}).",
            )
        name = self._name(each)
        proof = self._proved(each, name if name in self._answers else "", limits)
        if name not in self._answers:
            self._passing.add(name)  # a server whose answer does not come may have loaded it all the same
            self.host.load(name, self._path(each))
            self._passing.discard(name)
        self._answers.add(name)
        self._base = self._base or adapter.base.digest
        self._served[each.name] = _Served(each, QualityWatch(proof.under(self.client(name))))
        self._report(each, AdapterState.LOADED, Reason.VERIFIED, "")
        log.info("adapter %s has proved itself and answers as %s", each.name, name)

    def _fetched(self, each: WantedAdapter, wanted: set[str]) -> Adapter:
        """For one without which the pod cannot be ready, removed ones make room at once: the self-check would end here,
        and the next one wait for their files from then on, again and again."""
        try:
            return self.fetch(each)
        except StageError as error:
            removed = self._left.keys() - wanted
            if not (each.required and error.reason is Reason.SCRATCH_FULL and removed):
                raise
            log.warning("the files of removed adapters make room: %s", error.message)
        for digest in removed:
            shutil.rmtree(self.models / digest, ignore_errors=True)
            del self._left[digest]
        return self.fetch(each)

    def _proved(self, each: WantedAdapter, known: str, limits: SelfCheckLimits) -> Proof:
        """The proof of an adapter, made under a name that answers already, or else under one that nobody knows and that
        is gone afterwards."""
        name = known or f"{_PROVING}{secrets.token_hex(16)}"
        try:
            if not known:
                self._passing.add(name)
                self.host.load(name, self._path(each))
            proof = Proof(self.client(name), self.models / each.digest / "artifact", each.digest)
            self.require(proof.whole(limits), self._who(each.name))
            return proof
        except StageError as error:
            raise error if error.checks else error.of(self._who(each.name)) from error
        finally:
            self._forget_passing()

    def _require_answers(self) -> None:
        """Raises StageError (CandidateFailed, retriable) if the server has not all that it was told to load under names
        of clients: it has started again, and has to be proved anew. Whether one that says nothing has ended shows at
        its port."""
        try:
            loaded = self.host.loaded()
        except StageError as error:
            log.info("what the server has loaded is not known: %s", error.message)
            return
        if lost := sorted(self._answers - loaded.keys()):
            said = f"The server has started again, and no longer has {', '.join(map(repr, lost))}."
            raise StageError(Reason.CANDIDATE_FAILED, said, retriable=True)

    def _forget_passing(self) -> None:
        """Take the names away under which adapters have proved themselves, and those whose load the server has not
        answered. One that stays for now is no harm: what it stands for was proved, or nobody knows it."""
        for name in list(self._passing):
            try:
                self.host.unload(name)
                self._passing.discard(name)
            except StageError as error:
                log.warning("a name for proving stays for now: %s", error.message)

    def _remove(self, name: str) -> None:
        try:
            self.host.unload(adapter_model(self.model, name))
            self._answers.discard(adapter_model(self.model, name))
        except StageError as error:
            log.warning("adapter %s stays for now: %s", name, error.message)
            return
        removed = self._served.pop(name)
        self._left[removed.wanted.digest] = self.clock()
        log.info("adapter %s is removed: its name answers no longer", name)

    def _delete_files(self, wanted: set[str]) -> None:
        for digest, since in list(self._left.items()):
            if digest in wanted:
                del self._left[digest]
            elif self.clock() - since >= LINGER_SECONDS:
                shutil.rmtree(self.models / digest, ignore_errors=True)
                del self._left[digest]

    def _report(self, each: WantedAdapter, state: AdapterState, reason: Reason, message: str) -> None:
        key = (each.name, each.digest)
        self._again[key] = self.clock() + AGAIN_SECONDS
        self._reports[key] = AdapterReport(
            name=each.name, digest=each.digest, state=state, reason=reason, message=message, attempt=each.attempt
        )
        self.tell(self.reports())
