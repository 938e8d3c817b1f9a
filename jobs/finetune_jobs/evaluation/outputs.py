"""All that the models said in an evaluation, token by token: the folder ``outputs/`` beside its figures.

``prompts.jsonl.gz`` has what was asked, each once, and a file for each model has what that model said, in the order in
which it was asked. Lines are compressed as they come, and no time is written: the same answers are the same bytes.
"""

import gzip
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from pydantic import ConfigDict

from finetune_api.base import WireModel
from finetune_jobs.evaluation.behaviour.likelihood import Given
from finetune_jobs.evaluation.generate import Generated, Questions
from finetune_jobs.evaluation.passages import Passage

OUTPUTS: Final = "outputs"
"""Of evaluate's output: this folder."""
PROMPTS: Final = "prompts"
_LEVEL: Final = 6


class RawPrompt(WireModel):
    """A line of ``prompts.jsonl.gz``: something that models were asked."""

    id: str
    """The set to which it belongs, and its number or name there: ``test/17``."""
    messages: list[dict[str, Any]] = []
    """What was to be answered."""
    tools: list[dict[str, Any]] = []
    max_tokens: int = 0
    """The most tokens that an answer might have."""
    text: str = ""
    """What was to be read, nothing being answered."""


class RawOutput(WireModel):
    """A line of a model's file; what it was not asked is absent. A logarithm of zero is the text ``"-Infinity"``, and
    what is no number ``"NaN"``: JSON has neither."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    id: str
    """That of the prompt."""
    text: str | None = None
    """All that it wrote, thoughts included."""
    answer: str | None = None
    """What of it counts as the answer; absent: all of it."""
    tokens: list[int] | None = None
    """What it wrote, without the token that ends it."""
    ended: bool | None = None
    """Whether it ended the answer itself; otherwise the limit did."""
    log_probability: float | None = None
    """Of these tokens together, as a natural logarithm."""
    label: str | None = None
    """Which of the labels it finds likeliest as the whole answer."""
    loss: float | None = None
    """How unlikely it finds the right answer: nats a token, on average."""
    log_probabilities: list[float] | None = None
    """Of a text: of each of its tokens but the first. Of a canary: of each code, the canary's own first."""


class OutputFile:
    """A file that is written line by line."""

    def __init__(self, folder: Path, name: str) -> None:
        self._file = (folder / f"{name}.jsonl.gz").open("wb")
        self._packed = gzip.GzipFile(filename="", mode="wb", compresslevel=_LEVEL, fileobj=self._file, mtime=0)

    def add(self, line: WireModel) -> None:
        """Write one more."""
        self._packed.write(line.model_dump_json(by_alias=True, exclude_defaults=True).encode() + b"\n")

    def close(self) -> None:
        """It is whole."""
        self._packed.close()
        self._file.close()


class Outputs:
    """The folder. A model says nothing more once the next one has begun."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._asked = folder, set[str]()
        self._prompts = OutputFile(folder, PROMPTS)
        self._said: OutputFile | None = None
        self._texts = self._codes = 0

    def begin(self, model: str) -> None:
        """What is said from now on is this model's."""
        self._end()
        self._said = OutputFile(self._folder, model)
        self._texts = self._codes = 0

    def wrote(
        self, questions: Questions, found: Sequence[Generated], *, weighed: bool, labels: Sequence[str] = ()
    ) -> None:
        """Answers to questions, and which labels were chosen, if any were."""
        self._ask(questions)
        chosen: Sequence[str | None] = labels or [None] * len(found)
        for id_, each, label in zip(questions.ids, found, chosen, strict=True):
            said = RawOutput(
                id=id_,
                text=each.written,
                answer=None if each.text == each.written else each.text,
                tokens=list(each.tokens),
                ended=each.ended,
                log_probability=each.log_probability if weighed else None,
                label=label,
            )
            self._say(said)

    def told(self, ids: Sequence[str], texts: Sequence[str]) -> None:
        """Answers that came as texts, from elsewhere."""
        for id_, text in zip(ids, texts, strict=True):
            self._say(RawOutput(id=id_, text=text))

    def lost(self, given: Sequence[Given], losses: Sequence[float]) -> None:
        """How unlikely right answers are."""
        for each, loss in zip(given, losses, strict=True):
            self._say(RawOutput(id=each.id, loss=loss))

    def weighed(self, found: list[float]) -> None:
        """How likely the codes of the next canary are."""
        self._say(RawOutput(id=f"canaries/{self._codes}", log_probabilities=found))
        self._codes += 1

    def read(self, passage: Passage, found: list[float]) -> None:
        """How likely the tokens of the next text are."""
        id_ = f"texts/{self._texts}"
        self._texts += 1
        self._prompt(RawPrompt(id=id_, text=passage.text))
        self._say(RawOutput(id=id_, log_probabilities=found))

    def _ask(self, questions: Questions) -> None:
        tools = questions.tools or [()] * len(questions.prompts)
        for id_, messages, allowed in zip(questions.ids, questions.prompts, tools, strict=True):
            said, known = [dict(each) for each in messages], [dict(each) for each in allowed]
            self._prompt(RawPrompt(id=id_, messages=said, tools=known, max_tokens=questions.limit))

    def _prompt(self, prompt: RawPrompt) -> None:
        if prompt.id not in self._asked:
            self._asked.add(prompt.id)
            self._prompts.add(prompt)

    def _say(self, said: RawOutput) -> None:
        if self._said is None:
            raise RuntimeError("no model has begun")
        self._said.add(said)

    def _end(self) -> None:
        if self._said is not None:
            self._said.close()
            self._said = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        self._prompts.close()
