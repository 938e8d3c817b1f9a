"""vLLM answers, as it will serve: base and adapter in one engine, other models each in one.

What it has answered is kept answer by answer (``findings.look_up_each``): vLLM decides by itself what shares a batch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from pydantic import TypeAdapter

from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.evaluation.batches import Answered
from finetune_jobs.evaluation.behaviour.likelihood import Given
from finetune_jobs.evaluation.disturbance import Disturbed, disturbed
from finetune_jobs.evaluation.findings import FindingKind, KeptFindings, keep_findings, look_up, look_up_each
from finetune_jobs.evaluation.generate import Generated, Questions, Written
from finetune_jobs.evaluation.generators.on_transformers import LoadArtifact
from finetune_jobs.evaluation.generators.protocol import Exported
from finetune_jobs.evaluation.generators.stepwise import TokenStep, likeliest
from finetune_jobs.evaluation.generators.vllm_process import REMEDY, Loaded, VllmProcess
from finetune_jobs.evaluation.passages import Passage
from finetune_jobs.modelling import chat
from finetune_jobs.modelling.loading import make_room
from finetune_jobs.modelling.tokenizer import load_tokenizer, stop_tokens
from finetune_jobs.modelling.tuning import Tuning, adapter_config, beyond_lora

CHUNK: Final = 256
"""Prompts in a request: more than vLLM computes at once, few enough that progress shows."""

T = TypeVar("T")
_WRITTEN: Final = TypeAdapter(Written)
_NUMBER: Final = TypeAdapter(int)
_LOSS: Final = TypeAdapter(float)
_LIKELY: Final = TypeAdapter(list[float])

WriteBase = Callable[[Path, Path, Tuning], Any]
"""Writes the model that an adapter was trained on, in 16 bits: from the base's folder to another."""


@dataclass(frozen=True)
class VllmGenerator:
    """A model in a process. Satisfies ``Generator``."""

    process: VllmProcess
    tokenizer: Any
    stops: frozenset[int]
    """The tokens that end an answer."""
    adapted: bool = False
    """Whether it is the process's model with its adapter."""

    def write(self, questions: Questions, answered: Answered, *, weighed: bool = False) -> list[Generated]:
        """In any order: vLLM puts into a batch what there is room for."""
        return self._write(questions, questions.encoded(self.tokenizer), answered, weighed=weighed)

    def write_and_choose(
        self, questions: Questions, labels: Sequence[str], stop: int, answered: Answered
    ) -> tuple[list[Generated], list[str]]:
        """First one, then the other; the prompts are in vLLM's cache by then."""
        encoded = questions.encoded(self.tokenizer)
        answers = [[*chat.answer_ids(self.tokenizer, label), stop] for label in labels]
        written: list[Generated] = []
        chosen: list[str] = []
        for start in range(0, len(encoded), CHUNK):
            prompts = encoded[start : start + CHUNK]
            written += self._write(questions, prompts, lambda _done, _total: None, weighed=False)
            chosen += [labels[number] for number in self._chosen(prompts, answers)]
            answered(len(written), len(encoded))
        return written, chosen

    def losses(self, given: Sequence[Given], done: Answered) -> list[float]:
        """From the log-probabilities of all tokens, prompts included."""
        found: list[float] = []
        for start in range(0, len(given), CHUNK):
            found += self._losses(given[start : start + CHUNK])
            done(len(found), len(given))
        return found

    def weigh(self, prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> list[float]:
        """vLLM reads the prompt before each."""

        def read() -> list[float]:
            texts = self._read([[*prompt, *answer] for answer in answers])
            return [sum(row[-len(answer) :]) for row, answer in zip(texts, answers, strict=True)]

        return look_up(self.process, self._kind("codes", _LIKELY, answers), prompt, read)

    def log_probs(self, passage: Passage) -> list[float]:
        """As vLLM returns them with ``prompt_logprobs``, by which a served model is verified."""

        def read() -> list[float]:
            [found] = self._read([passage.ids])
            return [round(value, 4) for value in found]

        return look_up(self.process, self._kind("passage", _LIKELY), passage.ids, read)

    def _write(
        self, questions: Questions, encoded: Sequence[Sequence[int]], answered: Answered, *, weighed: bool
    ) -> list[Generated]:
        wanted = {"limit": questions.limit, "stops": sorted(self.stops), "weighed": weighed}
        written: list[Written] = []
        for start in range(0, len(encoded), CHUNK):
            written += self._written(encoded[start : start + CHUNK], wanted)
            answered(len(written), len(encoded))
        return Generated.read(self.tokenizer, questions, written)

    def _written(self, prompts: Sequence[Sequence[int]], wanted: Mapping[str, Any]) -> list[Written]:
        def ask(left: Sequence[int]) -> list[Written]:
            asked = [prompts[number] for number in left]
            return [Written(*each) for each in self.process.ask("write", asked, adapted=self.adapted, **wanted)]

        return look_up_each(self.process, self._kind("answer", _WRITTEN, wanted, answers=True), prompts, ask)

    def _chosen(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> list[int]:
        def choose(left: Sequence[int]) -> list[int]:
            return likeliest(len(left), answers, partial(self._step, [prompts[number] for number in left]))

        return look_up_each(self.process, self._kind("choice", _NUMBER, answers), prompts, choose)

    def _losses(self, given: Sequence[Given]) -> list[float]:
        def read(left: Sequence[int]) -> list[float]:
            part = [given[number] for number in left]
            texts = self._read([[*each.prompt, *each.answer] for each in part])
            return [-sum(row[-len(each.answer) :]) / len(each.answer) for row, each in zip(texts, part, strict=True)]

        return look_up_each(self.process, self._kind("loss", _LOSS), [[e.prompt, e.answer] for e in given], read)

    def _step(self, prompts: Sequence[Sequence[int]], steps: Sequence[TokenStep]) -> list[tuple[int, float]]:
        asked = [[*prompts[step.prompt], *step.taken] for step in steps]
        allowed = [list(step.allowed) for step in steps]
        return [
            (token, found) for token, found in self.process.ask("step", asked, adapted=self.adapted, allowed=allowed)
        ]

    def _read(self, texts: Sequence[Sequence[int]]) -> list[list[float]]:
        return self.process.ask("read", texts, adapted=self.adapted)

    def _kind(
        self, name: str, form: TypeAdapter[T], decided_by: Any = None, *, answers: bool = False
    ) -> FindingKind[T]:
        return FindingKind(name, form, [self.adapted, decided_by], answers=answers)


@dataclass
class VllmGenerators:
    """Satisfies ``Generators``."""

    base_folder: Path
    tuned_folder: Path
    """train's output."""
    tuning: Tuning
    longest: int
    """Tokens of the longest prompt with its answer."""
    work: Path
    """For what vLLM writes, and the base model in 16 bits if it was rounded."""
    write_base: WriteBase
    load_artifact: LoadArtifact
    """By transformers, which changes positions."""
    findings: KeptFindings | None = None
    """Where what the models say outlives the pod; None: nowhere."""
    program: str = "vLLM"
    """With its version, once it runs."""
    _process: VllmProcess | None = field(default=None, init=False)
    _exported: Exported | None = field(default=None, init=False)

    def base(self) -> VllmGenerator:
        """A rounded base as the 16-bit numbers that it stands for. With the adapter, for which there must be room from
        the start."""
        if self.tuning.is_adapter and (odd := beyond_lora(adapter_config(self.tuned_folder))):
            raise StageError(
                Reason.MODEL_UNSUPPORTED,
                f"spec.evaluation.generator is VLLM, and the adapter has {odd}, which vLLM does not load. {REMEDY}.",
            )
        model = self.base_folder
        if self.tuning.quantization is not None:
            model = self.work / "base"
            self.write_base(self.base_folder, model, self.tuning)
            make_room()
        adapter = self.tuned_folder if self.tuning.is_adapter else None
        identity = ["base", self.tuning.quantization, bool(adapter)]
        return self._load("the base model", identity, model, self.base_folder, adapter)

    def tuned(self) -> VllmGenerator:
        """The adapter in the engine of its base."""
        if not self.tuning.is_adapter:
            return self._load("the tuned model", ["tuned"], self.tuned_folder, self.base_folder)
        if self._process is None:
            raise RuntimeError("the base is asked before the adapter")
        tokenizer = load_tokenizer(self.base_folder)
        return VllmGenerator(self._process, tokenizer, stop_tokens(self.base_folder, tokenizer), adapted=True)

    def exported(self, exported: Exported) -> VllmGenerator:
        """With the tokenizer that was exported with it."""
        model, adapter = exported.checkpoint, exported.folder if exported.base else None
        identity = ["artifact", exported.digest]
        loaded = self._load("the exported model", identity, model, model, adapter, adapted=adapter is not None)
        self._exported = exported
        return loaded

    def disturbed(self, passages: Sequence[Passage], noisy: int) -> list[Disturbed]:
        """vLLM's layers cannot be changed: it ends, and transformers reads these passages, which are few."""
        if self._exported is None or not passages:
            return []
        asked = self._exported
        self._end()
        try:
            model = self.load_artifact(asked.folder, asked.base)
            keep_findings(model, self.findings, ["artifact", asked.digest])
            return [disturbed(model, each, noisy=number < noisy) for number, each in enumerate(passages)]
        finally:
            model = None
            make_room()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _load(
        self,
        name: str,
        identity: Sequence[Any],
        model: Path,
        tokens: Path,
        adapter: Path | None = None,
        *,
        adapted: bool = False,
    ) -> VllmGenerator:
        """``identity``: as ``keep_findings``; ``tokens``: where its tokenizer is."""
        self._end()
        make_room()
        self._process = VllmProcess(Loaded(name, model, self.longest, adapter), self.work)
        self.program = f"vLLM {self._process.version}"
        keep_findings(self._process, self.findings, [self.program, *identity])
        tokenizer = load_tokenizer(tokens)
        return VllmGenerator(self._process, tokenizer, stop_tokens(model, tokenizer), adapted)

    def _end(self) -> None:
        self._exported = None
        if self._process is not None:
            self._process.close()
            self._process = None
