"""vLLM answers, as it will serve: base and adapter in one engine, other models each in one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.evaluation.batches import Answered
from finetune_jobs.evaluation.behaviour.likelihood import Given
from finetune_jobs.evaluation.generate import Generated, Questions, Written
from finetune_jobs.evaluation.generators.on_transformers import LoadArtifact
from finetune_jobs.evaluation.generators.protocol import Exported
from finetune_jobs.evaluation.generators.stepwise import TokenStep, likeliest
from finetune_jobs.evaluation.generators.vllm_process import REMEDY, Loaded, VllmProcess
from finetune_jobs.evaluation.reference import Passage, turned_log_probs
from finetune_jobs.modelling import chat
from finetune_jobs.modelling.loading import make_room
from finetune_jobs.modelling.tokenizer import load_tokenizer, stop_tokens
from finetune_jobs.modelling.tuning import Tuning, adapter_config, beyond_lora

CHUNK: Final = 256
"""Prompts in a request: more than vLLM computes at once, few enough that progress shows."""

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
            found = likeliest(len(prompts), answers, partial(self._ask, prompts))
            chosen += [labels[number] for number in found]
            answered(len(written), len(encoded))
        return written, chosen

    def losses(self, given: Sequence[Given], done: Answered) -> list[float]:
        """From the log-probabilities of all tokens, prompts included."""
        found: list[float] = []
        for start in range(0, len(given), CHUNK):
            part = given[start : start + CHUNK]
            read = self._read([[*each.prompt, *each.answer] for each in part])
            found += [-sum(row[-len(each.answer) :]) / len(each.answer) for row, each in zip(read, part, strict=True)]
            done(len(found), len(given))
        return found

    def weigh(self, prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> list[float]:
        """vLLM reads the prompt before each."""
        read = self._read([[*prompt, *answer] for answer in answers])
        return [sum(row[-len(answer) :]) for row, answer in zip(read, answers, strict=True)]

    def log_probs(self, passage: Passage) -> list[float]:
        """As vLLM returns them with ``prompt_logprobs``, by which a served model is verified."""
        [found] = self._read([passage.ids])
        return [round(value, 4) for value in found]

    def _write(
        self, questions: Questions, encoded: Sequence[Sequence[int]], answered: Answered, *, weighed: bool
    ) -> list[Generated]:
        written: list[Written] = []
        for start in range(0, len(encoded), CHUNK):
            part = encoded[start : start + CHUNK]
            wanted = {"limit": questions.limit, "stops": sorted(self.stops), "weighed": weighed}
            written += [Written(*each) for each in self.process.ask("write", part, adapted=self.adapted, **wanted)]
            answered(len(written), len(encoded))
        return Generated.read(self.tokenizer, questions, written)

    def _ask(self, prompts: Sequence[Sequence[int]], steps: Sequence[TokenStep]) -> list[tuple[int, float]]:
        asked = [[*prompts[step.prompt], *step.taken] for step in steps]
        allowed = [list(step.allowed) for step in steps]
        return [
            (token, found) for token, found in self.process.ask("step", asked, adapted=self.adapted, allowed=allowed)
        ]

    def _read(self, texts: Sequence[Sequence[int]]) -> list[list[float]]:
        return self.process.ask("read", texts, adapted=self.adapted)


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
        return self._load("the base model", model, self.base_folder, adapter)

    def tuned(self) -> VllmGenerator:
        """The adapter in the engine of its base."""
        if not self.tuning.is_adapter:
            return self._load("the tuned model", self.tuned_folder, self.base_folder)
        if self._process is None:
            raise RuntimeError("the base is asked before the adapter")
        tokenizer = load_tokenizer(self.base_folder)
        return VllmGenerator(self._process, tokenizer, stop_tokens(self.base_folder, tokenizer), adapted=True)

    def exported(self, exported: Exported) -> VllmGenerator:
        """With the tokenizer that was exported with it."""
        model, adapter = exported.checkpoint, exported.folder if exported.base else None
        loaded = self._load("the exported model", model, model, adapter, adapted=adapter is not None)
        self._exported = exported
        return loaded

    def turned(self, passages: Sequence[Passage]) -> list[tuple[list[float], list[float]]]:
        """vLLM cannot change positions: it ends, and transformers reads the long passages, which are two."""
        if self._exported is None or not any(passage.long for passage in passages):
            return [([], [])] * len(passages)
        asked = self._exported
        self._end()
        try:
            model = self.load_artifact(asked.folder, asked.base)
            return [turned_log_probs(model, passage) for passage in passages]
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
        self, name: str, model: Path, tokens: Path, adapter: Path | None = None, *, adapted: bool = False
    ) -> VllmGenerator:
        """``tokens``: where its tokenizer is."""
        self._end()
        make_room()
        self._process = VllmProcess(Loaded(name, model, self.longest, adapter), self.work)
        self.program = f"vLLM {self._process.version}"
        tokenizer = load_tokenizer(tokens)
        return VllmGenerator(self._process, tokenizer, stop_tokens(model, tokenizer), adapted)

    def _end(self) -> None:
        self._exported = None
        if self._process is not None:
            self._process.close()
            self._process = None
