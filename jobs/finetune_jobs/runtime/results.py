"""A stage's result as others read it: with the remedy in the log line, with the log's address in the message, and short
enough for a termination message."""

import logging
import sys
from pathlib import Path
from typing import Final

from finetune_api.reasons import Reason, remedy, with_remedy
from finetune_api.stages import MAX_RESULT_BYTES, Outcome, Stage, StageResult, kind_of
from finetune_jobs.runtime.logs import without_secrets

log = logging.getLogger(__name__)

MAX_MESSAGE: Final = 1024
"""Longest message of a StageResult, in characters."""


def failure(stage: Stage, reason: Reason, message: str) -> StageResult:
    """The result of a stage that failed, whose message may quote anything: secrets are removed, because it becomes a
    condition and an event. The operator appends the reason's remedy, and the log line shows it."""
    said = without_secrets(message)[:MAX_MESSAGE]
    return StageResult(stage=stage, outcome=Outcome.FAILED, reason=reason, message=said)


def advised(result: StageResult) -> str:
    """The message as the log shows it: a failure with what to do next, also outside Kubernetes."""
    if result.outcome is Outcome.SUCCEEDED:
        return result.message
    return with_remedy(result.reason, result.message, kind_of(result.stage))


def naming_log(result: StageResult, uri: str) -> StageResult:
    """A failure names its log, if there is room for it beside the stage and the remedy, which the operator adds: it
    would cut the URI."""
    message = f"{result.message} Log: {uri}"
    shown = f"{result.stage}: {message} {remedy(result.reason, kind_of(result.stage))}"
    if not uri or result.outcome is Outcome.SUCCEEDED or len(shown) > MAX_MESSAGE:
        return result
    return result.model_copy(update={"message": message})


def write_result(path: str, result: StageResult) -> None:
    """Write the result, cut to the size of a termination message: first the message is shortened, then scalars are left
    out, the longest first. A reader takes one that is missing for unknown, but JSON that was cut for no result."""
    text = result.model_dump_json(by_alias=True)
    while len(text.encode()) > MAX_RESULT_BYTES and (shorter := _shorter(result)):
        result = shorter
        text = result.model_dump_json(by_alias=True)
    if path == "-":
        sys.stdout.write(text + "\n")
        return
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        log.warning("the result cannot be written to %s (%s): %s", path, error.strerror, text)


def _shorter(result: StageResult) -> StageResult | None:
    """The result with less in it; None if there is nothing that can be left out."""
    if result.message:
        return result.model_copy(update={"message": result.message[: len(result.message) // 2]})
    result = result.model_copy(deep=True)
    told = [(each, name) for each in (result.scalars, *(entry.scalars for entry in result.found)) for name in each]
    if not told:
        return None
    scalars, name = max(told, key=lambda each: len(each[0][each[1]]))
    log.warning("scalar %s is left out: the result would be longer than %d bytes", name, MAX_RESULT_BYTES)
    del scalars[name]
    return result
