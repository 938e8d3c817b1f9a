"""What clients get who ask for more than text: calls of tools, and answers that are held to a JSON schema. Pure.

A server that refuses such a request tells its clients so, and no wrong answer reaches them. So a refusal fails no
check: the check is skipped, and says what is not proved. A server that answers otherwise than it was asked to fails.

The answer may be the recorded one, or what the same server answers in plain text: the same weights on another engine
may break a tie in a long answer and go on differently, and what is proved here is the form.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from finetune_api.dataset import TaskType
from finetune_api.hashing import canonical_json
from finetune_api.serving_status import VerificationCheck
from finetune_jobs.artifacts import artifact, calls
from finetune_jobs.artifacts.artifact import Answer
from finetune_jobs.artifacts.calls import Call
from finetune_jobs.base.strict_json import json_value
from finetune_jobs.evaluation.tasks import right_for, same_calls
from finetune_jobs.text.schemas import schema_check
from finetune_jobs.verification.engine import Reply, Streamed
from finetune_jobs.verification.outcomes import judged, skipped

TOOL_CALLS: Final = "toolCalls"
ANSWER_SCHEMA: Final = "answerSchema"
MOST: Final = 4
"""So many chats are asked for in each form: each costs as much as a test example."""
PROBE: Final = (
    '{"type": "object", "properties": {"held": {"enum": ["yes"]}}, "required": ["held"], "additionalProperties": false}'
)
"""A schema that no model meets by itself: one that was trained to answer in JSON meets its own without being held."""
PROBE_TOKENS: Final = 32
_HELD: Final = '{"held":"yes"}'


@dataclass(frozen=True)
class FormChoice:
    """Which of the artifact's answers are asked for in a form."""

    numbers: Sequence[int] = ()
    why_none: str = ""


@dataclass(frozen=True)
class Formed:
    """Chats that were asked for in a form. The lists are of equal length, but for replies and streams where there are
    none."""

    asked: Sequence[Answer] = ()
    plain: Sequence[Reply] = ()
    """What the server answered to them in plain text."""
    replies: Sequence[Reply] = ()
    why_not: str = ""
    """Why there are no replies: nothing to ask for, or the server's words; empty: there are."""
    schema: str = ""
    """What the answers were held to; empty: to none."""
    probe: str = ""
    """What it answered when it was held to PROBE."""
    streams: Sequence[Streamed] = ()
    """The replies as streams; none if they were not asked for, or the server refuses them."""


def choose_calls(answers: Sequence[Answer]) -> FormChoice | None:
    """Those in which the artifact called a tool; None: the data have no tools."""
    allowed = [number for number in _distinct(answers) if answers[number].tools]
    if not allowed:
        return None
    if not any(answers[number].calls for number in allowed):
        return FormChoice(why_none="how the chat template writes calls is not known")
    calling = [number for number in allowed if _recorded_calls(answers[number])]
    return FormChoice(calling[:MOST], "" if calling else "no recorded answer calls a tool")


def choose_held(answers: Sequence[Answer], schema: str, task: TaskType) -> FormChoice | None:
    """Those in which the artifact's own answer matches a schema, first those whose fields can be compared; None: there
    is no schema."""
    if not schema:
        return None
    plain = [number for number in _distinct(answers) if not answers[number].tools]
    if plain and all(answers[number].thoughts for number in plain):
        return FormChoice(why_none="the model thinks before it answers, which a schema forbids")
    problem_of = schema_check(schema, artifact.SCHEMA)
    ended = [number for number in plain if answers[number].stopped and not answers[number].thoughts]
    matching = [number for number in ended if not _problem(answers[number].artifact, problem_of)]
    matching.sort(key=lambda number: not _comparable(answers[number], schema, task))
    return FormChoice(matching[:MOST], "" if matching else "no recorded answer matches the schema")


def form_checks(
    calling: Formed | None, held: Formed | None, task: TaskType, min_percent: int
) -> list[VerificationCheck]:
    """Those for which there are data."""
    made = [_tool_calls(calling, min_percent)] if calling else []
    return [*made, _answer_schema(held, task, min_percent)] if held else made


def _tool_calls(formed: Formed, min_percent: int) -> VerificationCheck:
    """A client that sends tools gets calls of them, by the server's own rendering and parser. From the parts of a
    stream, which other code makes, it joins the same ones."""
    if formed.why_not:
        return skipped(TOOL_CALLS, formed.why_not)
    triples = list(zip(formed.asked, formed.plain, formed.replies, strict=True))
    known = [[a.read(text) for text in (a.artifact, p.text)] for a, p, _ in triples]
    same = sum(_calls_one_of(texts, reply.calls) for texts, reply in zip(known, formed.replies, strict=True))
    unread = sum(not r.calls and calls.read(a.read(r.text)) is not None for a, _, r in triples)
    others = sum(0 < a.prompt_tokens != r.prompt_tokens > 0 for a, _, r in triples)
    expected = f"{min_percent} % of {len(triples)} chats with tools get the recorded calls"
    seen = f"{same} of {len(triples)}"
    if unread:
        seen += f"; {unread} came as text that the server's parser did not read"
    elif others:
        seen += f"; {others} prompts have other tokens than recorded"
    enough = 100 * same >= min_percent * len(triples)
    if not enough or not formed.streams:
        return judged(TOOL_CALLS, enough, expected, seen)
    whole = [[*texts, calls.written(list(r.calls))] for texts, (*_, r) in zip(known, triples, strict=True)]
    joined = sum(_calls_one_of(texts, each.calls) for texts, each in zip(whole, formed.streams, strict=True))
    fault = next((f": {each.fault}" for each in formed.streams if each.fault), "")
    enough = not fault and 100 * joined >= min_percent * len(triples)
    seen = f"{same} of {len(triples)}, as streams {joined}{fault}"
    return judged(TOOL_CALLS, enough, f"{expected}, streamed too", seen)


def _answer_schema(formed: Formed, task: TaskType, min_percent: int) -> VerificationCheck:
    """A client that sends the schema gets answers that match it and say the same as without it."""
    if formed.why_not:
        return skipped(ANSWER_SCHEMA, formed.why_not)
    triples, right = list(zip(formed.asked, formed.plain, formed.replies, strict=True)), right_for(task)
    compared = [each for each in triples if _comparable(each[0], formed.schema, task)]
    same = sum(any(right(text, r.text) for text in (a.artifact, p.text)) for a, p, r in compared)
    problem_of = schema_check(formed.schema, artifact.SCHEMA)
    problems = [problem for *_, reply in triples if (problem := _problem(reply.text, problem_of))]
    expected = f"{len(triples)} answers match the schema"
    if compared:
        expected += f", {min_percent} % of {len(compared)} with the recorded fields"
    seen = f"{len(triples) - len(problems)} of {len(triples)} match"
    if not _is_held(formed.probe):
        seen = "the server ignores the schema of a request"
    elif problems:
        seen += f": {problems[0]}"
    elif compared:
        seen += f"; {same} of {len(compared)} with the same fields"
    enough = 100 * same >= min_percent * len(compared)
    return judged(ANSWER_SCHEMA, _is_held(formed.probe) and not problems and enough, expected, seen)


def _distinct(answers: Sequence[Answer]) -> list[int]:
    """The numbers of different chats: golden prompts are test examples, too."""
    found: dict[bytes, int] = {}
    for number, each in enumerate(answers):
        found.setdefault(canonical_json(each.messages), number)
    return list(found.values())


def _recorded_calls(asked: Answer) -> bool:
    return calls.read(asked.read(asked.artifact)) is not None


def _calls_one_of(texts: Sequence[str], given: Sequence[Call]) -> bool:
    """Whether the calls that a client was given are those of one of these texts."""
    return bool(given) and any(same_calls(text, calls.written(list(given))) for text in texts)


def _is_held(answer: str) -> bool:
    """Whether an answer is what PROBE allows, or the beginning of it with much white space."""
    compact = "".join(answer.split())
    return bool(compact) and _HELD.startswith(compact)


def _problem(text: str, problem_of: Callable[[Any], str]) -> str:
    """Why an answer does not match a schema; empty if it does."""
    try:
        return problem_of(json_value(text))
    except ValueError:
        return "not JSON"


def _comparable(asked: Answer, schema: str, task: TaskType) -> bool:
    """Whether an engine that holds the model to the schema lets it answer as recorded, and that was right."""
    return right_for(task)(asked.label, asked.artifact) and _in_order(json_value(schema), json_value(asked.artifact))


def _in_order(schema: Any, value: Any) -> bool:
    """Whether a schema names all fields of a value, and in this order: engines let a model write no other, so that one
    that learnt another order has to answer in a way that it did not learn."""
    known = schema if isinstance(schema, dict) else {}
    if isinstance(value, list):
        return all(_in_order(known.get("items"), each) for each in value)
    if not isinstance(value, dict):
        return True
    fields = known.get("properties", {})
    if [name for name in fields if name in value] != list(value):
        return False
    return all(_in_order(fields[name], each) for name, each in value.items())
