"""Reasoning models: chat templates that write a block of thoughts before an answer.

Where no row has thoughts to learn, the block is closed as the template itself does it without thinking: an answer that
is trained inside of it is a thought, and a server's reasoning parser takes it away. Where rows have some
(``reasoning_content``), the block is trained as the template writes it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from finetune_api.reasons import Reason
from finetune_jobs.artifacts.artifact import Marks
from finetune_jobs.base.errors import StageError

REASONING: Final = "reasoning_content"
"""Key of an assistant's message with its thoughts, as most templates and servers call it."""
SWITCHES: Final = ("enable_thinking", "thinking")
"""Variables that templates look at: Qwen, GLM and SmolLM; DeepSeek and Granite."""
MARKS: Final = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
)
_QUESTION: Final = "a question"
_THOUGHT: Final = "a thought"
_ANSWER: Final = "an answer"


class Render(Protocol):
    """A chat template."""

    def __call__(self, messages: list[dict[str, Any]], *, generation: bool, **variables: bool) -> str:
        """Messages as text; with ``generation``, up to where the model goes on."""


@dataclass(frozen=True)
class Rendering:
    """How a template is rendered."""

    variables: Mapping[str, bool]
    """Those that are set."""
    marks: Marks | None = None
    """What stands around the thoughts that the model writes; None: it writes none."""
    closed: bool = False
    """Whether a prompt ends with a block of thoughts that is closed already."""

    def fixed_in(self, template: str) -> str:
        """The template with the variables set: whoever renders it needs to know of none."""
        return "".join(f"{{% set {name} = {str(on).lower()} %}}" for name, on in self.variables.items()) + template


def without_thoughts(render: Render) -> Rendering:
    """How a prompt is rendered after which the model answers at once.

    Raises StageError (ModelUnsupported) if the template opens a block of thoughts and cannot close it.
    """
    plain = _end_of_prompt(render)
    opened = _opened(plain)
    if _closed(plain):
        return Rendering({}, closed=True)
    for switch in SWITCHES:
        end = _end_of_prompt(render, **{switch: False})
        if _closed(end) or (opened and not _opened(end)):
            return Rendering({switch: False}, closed=True)
    if not opened:
        return Rendering({})
    raise StageError(
        Reason.MODEL_UNSUPPORTED,
        f"The base model's chat template opens a block of thoughts ({opened}) before every answer and cannot close it: "
        "the answers would be trained as thoughts, and a server would return nothing. Use its instruct version, or a "
        f"chat template that closes the block where {SWITCHES[0]} is false. Or give the answers their thoughts "
        f"({REASONING}), if the template writes them.",
    )


def with_thoughts(render: Render) -> Rendering:
    """How prompts and answers with thoughts are rendered: the answer goes on where the prompt ends.

    Raises StageError (ModelUnsupported) if the template does not write them.
    """
    for variables in ({}, *({switch: True} for switch in SWITCHES)):
        if marks := _marks(render, variables):
            return Rendering(variables, marks)
    raise StageError(
        Reason.MODEL_UNSUPPORTED,
        f"The base model's chat template drops {REASONING}, or writes it elsewhere than after the prompt that a server "
        f"gives the model: the thoughts would be lost. Remove {REASONING} from the rows, or use a model (Qwen3, GLM) "
        "or a chat template that writes it.",
    )


def require_visible(marks: Marks, as_served: str) -> None:
    """Raises StageError (ModelUnsupported) if the end of the thoughts is not in ``as_served``: what servers return of
    it."""
    if marks.end not in as_served:
        raise StageError(
            Reason.MODEL_UNSUPPORTED,
            f"The base model's thoughts end with {marks.end}, a special token, which servers leave out of what they "
            "return: nobody could tell thoughts and answer apart. Set special to false for it in "
            f"tokenizer_config.json, or remove {REASONING} from the rows.",
        )


def unwritten(message: Mapping[str, Any]) -> StageError:
    """The error for an answer that the template does not write as it is, where thoughts are trained."""
    if message.get(REASONING):
        problem = f"The base model's chat template changes {REASONING} or the answer after it: they could not be told "
        problem += f"apart. Remove markup and marks of thoughts from them, or remove {REASONING} from all rows."
    else:
        problem = f"The base model's chat template cannot write an answer without thoughts. Add {REASONING} to it, or "
        problem += "remove it from all rows."
    return StageError(Reason.MODEL_UNSUPPORTED, problem)


def _marks(render: Render, variables: Mapping[str, bool]) -> Marks | None:
    """What the template writes around thoughts; None if it drops them, or not where the prompt ends."""
    question = {"role": "user", "content": _QUESTION}
    answer = {"role": "assistant", "content": _ANSWER, REASONING: _THOUGHT}
    before = render([question], generation=True, **variables)
    whole = render([question, answer], generation=False, **variables)
    if not whole.startswith(before):
        return None
    begin, thought, rest = whole.removeprefix(before).partition(_THOUGHT)
    end, said, _ = rest.partition(_ANSWER)
    return Marks(begin=begin.strip(), end=end.strip()) if thought and said and end.strip() else None


def _end_of_prompt(render: Render, **variables: bool) -> str:
    prompt = render([{"role": "user", "content": _QUESTION}], generation=True, **variables)
    return prompt.rpartition(_QUESTION)[2]


def _opened(end: str) -> str:
    """The mark of a block that the end of a prompt leaves open; empty: there is none."""
    return next((begin for begin, closing in MARKS if end.rfind(begin) > end.rfind(closing)), "")


def _closed(end: str) -> bool:
    """Whether the end of a prompt holds a block and closes it."""
    return any(end.rfind(closing) > end.rfind(begin) for begin, closing in MARKS)
