"""Reasoning models: chat templates that open a block of thoughts before every answer.

An answer that is trained inside of the block is a thought: a server's reasoning parser takes it away and returns
nothing. So the block is closed as the template itself does it without thinking.
"""

from collections.abc import Callable
from typing import Final

from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError

SWITCHES: Final = ("enable_thinking", "thinking")
"""Variables that templates look at: Qwen, GLM and SmolLM; DeepSeek and Granite."""
_MARKS: Final = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
)


def closing_switch(prompt: Callable[..., str]) -> str:
    """The variable that is false where the template closes its block of thoughts; empty: it opens none.

    ``prompt`` renders a prompt without any thoughts in it, with such variables. Raises StageError (ModelUnsupported) if
    the block stays open.
    """
    mark = _opened(prompt())
    if not mark:
        return ""
    for switch in SWITCHES:
        if not _opened(prompt(**{switch: False})):
            return switch
    raise StageError(
        Reason.MODEL_UNSUPPORTED,
        f"The base model's chat template opens a block of thoughts ({mark}) before every answer and cannot close it: "
        "the answers would be trained as thoughts, and a server would return nothing. Use its instruct version, or a "
        f"chat template that closes the block where {SWITCHES[0]} is false.",
    )


def without_thoughts(template: str, switch: str) -> str:
    """The template with its switch turned off: whoever renders it needs to know of none."""
    return f"{{% set {switch} = false %}}{template}"


def _opened(prompt: str) -> str:
    """The mark of a block that a prompt leaves open; empty: there is none."""
    return next((begin for begin, end in _MARKS if prompt.rfind(begin) > prompt.rfind(end)), "")
