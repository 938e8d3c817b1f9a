"""The splits as tokens and labels, refused where a model could not learn from them what was meant.

Kept apart from ``modelling.chat``, which says what one prompt and one answer are.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from finetune_api.reasons import Reason
from finetune_api.training import Loss
from finetune_jobs.errors import StageError
from finetune_jobs.modelling import chat
from finetune_jobs.modelling.examples import Example, read_split

_PROBE: Final = " (and something else)"


def encode_split(
    tokenizer: Any, dataset: Path, split: str, stop: int, max_length: int, loss: Loss = Loss.ANSWER
) -> list[chat.Encoded]:
    """A split as tokens, in the order of its rows.

    Raises StageError: DatasetTooSmall when empty, DatasetInvalid when an example is too long, ModelUnsupported when
    the chat template drops the system message.
    """
    examples = read_split(dataset, split)
    if not examples:
        raise StageError(Reason.DATASET_TOO_SMALL, f"The {split} split has no examples.")
    if with_system := next((e for e in examples if e.messages[0]["role"] == "system"), None):
        require_system_message(tokenizer, with_system.messages)
    encoded = [encode_conversation(tokenizer, example, stop, loss) for example in examples]
    _require_short(encoded, split, max_length)
    return [part for parts in encoded for part in parts]


def encode_conversation(tokenizer: Any, example: Example, stop: int, loss: Loss) -> list[chat.Encoded]:
    """A conversation as one example, or as several where only that is exact.

    With AllAnswers each answer must follow the very tokens that a server puts before it. Most templates render a
    conversation as the beginning of its continuation, so one example can teach every answer; where one does not (a
    reasoning model's drops earlier thoughts, say), the answers so far stay an example of their own.
    """
    if loss is Loss.ANSWER:
        return [chat.encode(tokenizer, example.messages, stop, example.tools)]
    parts: list[chat.Encoded] = []
    for turn, message in enumerate(example.messages):
        if message["role"] != "assistant":
            continue
        answer = chat.encode(tokenizer, example.messages[: turn + 1], stop, example.tools)
        if parts and answer.input_ids[: len(parts[-1].input_ids)] == parts[-1].input_ids:
            learnt = parts.pop().labels
            answer = chat.Encoded(answer.input_ids, learnt + answer.labels[len(learnt) :])
        parts.append(answer)
    return parts


def require_system_message(tokenizer: Any, messages: Sequence[chat.Message]) -> None:
    """Raises StageError (ModelUnsupported) when another system message would give the model the same prompt."""
    system, *rest = messages[:-1]
    other = {**system, "content": system["content"] + _PROBE}
    if chat.prompt_ids(tokenizer, [system, *rest]) == chat.prompt_ids(tokenizer, [other, *rest]):
        raise StageError(
            Reason.MODEL_UNSUPPORTED,
            "The base model's chat template drops the system message, so the model would never see the instruction: "
            "put it into the user's messages (without spec.dataset.instruction), or use a model whose template has a "
            "system role.",
        )


def _require_short(encoded: list[list[chat.Encoded]], split: str, max_length: int) -> None:
    lengths = [max(len(part.input_ids) for part in parts) for parts in encoded]
    too_long = [(row, tokens) for row, tokens in enumerate(lengths, start=1) if tokens > max_length]
    if too_long:
        rows = ", ".join(f"row {row} has {tokens}" for row, tokens in too_long[:5])
        raise StageError(
            Reason.DATASET_INVALID,
            f"{len(too_long)} of {len(encoded)} examples of the {split} split are longer than spec.training.maxLength "
            f"{max_length} tokens ({rows}): shorten them, or set maxLength to {max(lengths)}.",
        )
