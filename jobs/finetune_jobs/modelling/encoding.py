"""Conversations as tokens and labels; those from which a model could not learn what was meant are rejected.

Kept apart from ``modelling.chat``, which says what one prompt and one answer are.
"""

from collections.abc import Sequence
from typing import Any, Final

from finetune_api.reasons import Reason
from finetune_api.training import Loss
from finetune_jobs.base.errors import StageError
from finetune_jobs.modelling import chat
from finetune_jobs.modelling.token_files import Conversation

_PROBE: Final = " (and something else)"


def encode_conversation(
    tokenizer: Any, example: Conversation, stop: int, loss: Loss, *, thoughts: bool = False
) -> list[chat.Encoded]:
    """A conversation as one example, or as several where only that is exact.

    With AllAnswers each answer must follow the very tokens that a server puts before it. Most templates render a
    conversation as the beginning of its continuation, so one example can teach every answer; where one does not (a
    reasoning model's drops earlier thoughts, say), the answers so far stay an example of their own.
    """
    if loss is Loss.ANSWER:
        return [chat.encode(tokenizer, example.messages, stop, example.tools, thoughts=thoughts)]
    parts: list[chat.Encoded] = []
    for turn, message in enumerate(example.messages):
        if message["role"] != "assistant":
            continue
        answer = chat.encode(tokenizer, example.messages[: turn + 1], stop, example.tools, thoughts=thoughts)
        if parts and answer.input_ids[: len(parts[-1].input_ids)] == parts[-1].input_ids:
            learnt = parts.pop().labels
            answer = chat.Encoded(answer.input_ids, learnt + answer.labels[len(learnt) :])
        parts.append(answer)
    return parts


def require_system_message(tokenizer: Any, messages: Sequence[chat.Message], *, thoughts: bool = False) -> None:
    """Raises StageError (ModelUnsupported) if a different system message gives the same prompt."""
    system, *rest = messages[:-1]
    other = {**system, "content": system["content"] + _PROBE}
    same, changed = (chat.prompt_ids(tokenizer, [first, *rest], thoughts=thoughts) for first in (system, other))
    if same == changed:
        raise StageError(
            Reason.MODEL_UNSUPPORTED,
            "The base model's chat template drops the system message, so the model would never see the instruction: "
            "move it to the user messages (without spec.dataset.instruction), or use a model whose template has a "
            "system role.",
        )
