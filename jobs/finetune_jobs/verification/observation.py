"""Asking a server everything that an artifact promises an answer to."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import repeat
from typing import Final, TypeVar

from finetune_api.dataset import TaskType
from finetune_api.endpoint_stages import LatencyObjectives, long_answer_seconds
from finetune_api.reasons import Reason
from finetune_jobs.artifacts.artifact import Answer, ReferenceText
from finetune_jobs.base.errors import StageError
from finetune_jobs.verification.checks import Observed
from finetune_jobs.verification.engine import Limits, ModelServer, RefusedForm, Streamed
from finetune_jobs.verification.forms import PROBE, PROBE_TOKENS, FormChoice, Formed, choose_calls, choose_held
from finetune_jobs.verification.pace import SILENT_SECONDS
from finetune_jobs.verification.power import SampleSize
from finetune_jobs.verification.tolerance import measured_tolerance, tolerance

A = TypeVar("A")
B = TypeVar("B")
Before = Callable[[int, int], None]
"""Called before each request (of several at once, again and again while its answer is waited for), with the number of
those before it and of all; it may raise to end them."""

CLIENTS: Final = 4
"""So many ask for streams at once."""
STREAMS: Final = 8
"""So many streams are asked for: each costs as much as a test example."""
MEASURED: Final = 20
"""So many where an objective is set: one of them may be late at the 95th percentile."""
_POLL_SECONDS: Final = 1.0


@dataclass(frozen=True)
class Promise:
    """What a published artifact says of itself."""

    golden: Sequence[Answer]
    sample: Sequence[Answer]
    references: Sequence[ReferenceText]
    """None of an artifact that an earlier version published."""
    task: TaskType
    format: str
    max_distance: float | None = None
    """How far a server may be from the evaluation; None: as measured of the artifact, or else as its engine and this
    format usually allow."""
    size: SampleSize | None = None
    """Why the sample has so many examples; None: nobody asked."""
    objectives: LatencyObjectives = field(default_factory=LatencyObjectives)
    answer_schema: str = ""
    """JSON Schema that answers are to match; empty: there is none."""
    as_clients: bool = True
    """Whether some answers are also asked for in other ways in which clients ask: at once, as streams, in a form."""

    @property
    def streams(self) -> Sequence[Answer]:
        """Those that are asked for as streams."""
        most = (MEASURED if self.objectives.are_set else STREAMS) if self.as_clients else 0
        return self.answers[:most]

    @property
    def answers(self) -> Sequence[Answer]:
        """Those that are asked for in plain text."""
        return [*self.golden, *self.sample]

    @property
    def calling(self) -> FormChoice | None:
        """Those of them that are asked for with tools; None: there are no tools."""
        return choose_calls(self.answers) if self.as_clients else None

    @property
    def held(self) -> FormChoice | None:
        """Those of them that are held to the schema; None: there is none."""
        return choose_held(self.answers, self.answer_schema, self.task) if self.as_clients else None

    @property
    def long_answer_seconds(self) -> float:
        """What its long answers may take, beside the time that each gets."""
        forms = (self.calling, self.calling, self.held)  # calls are asked for as streams, too
        formed = [self.answers[number] for each in forms if each for number in each.numbers]
        return sum(long_answer_seconds(each.max_tokens) for each in [*self.streams, *self.answers, *formed])


def require_room(asked: Sequence[Answer], limits: Limits) -> None:
    """Raises StageError (PromptsTooLong) if the server would reject one of the prompts because of its length."""
    long = [answer for answer in asked if not limits.take(answer)]
    if long:
        longest = max(long, key=lambda answer: answer.prompt_tokens)
        raise StageError(
            Reason.PROMPTS_TOO_LONG,
            f"{len(long)} of {len(asked)} golden prompts and test examples are too long for the server. The longest "
            f"has {longest.prompt_tokens} tokens, and its answer may have {longest.max_tokens}; {limits}.",
        )


def observe(server: ModelServer, promise: Promise, limits: Limits, before: Before) -> Observed:
    """What the server does with the promise. A text that it has no room for is left out, and counted.

    Raises StageError as ModelServer, and what ``before`` raises.
    """
    references = [each for each in promise.references if limits.have_room(len(each.ids), 1)]
    streams, calling, held = promise.streams, promise.calling, promise.held
    in_form = sum(len(choice.numbers) for choice in (calling, calling, held) if choice) + bool(held and held.numbers)
    total = len(references) + len(streams) + len(promise.answers) + in_form
    numbers = iter(range(total))

    def ask(question: Callable[[A], B], asked: Sequence[A]) -> Iterator[B]:
        for each in asked:
            number = next(numbers)
            before(number, total)
            yield from ask_at_once(question, [each], repeat(number))

    def ask_at_once(question: Callable[[A], B], asked: Sequence[A], numbers: Iterator[int]) -> Iterator[B]:
        clients = ThreadPoolExecutor(CLIENTS)
        try:
            for answer in [clients.submit(question, each) for each in asked]:
                number = next(numbers)
                before(number, total)
                while not wait([answer], _POLL_SECONDS).done:
                    before(number, total)
                    _require_progress(server)
                yield answer.result()
        finally:
            # What is wrong is said at once. What is still being answered ends with the process, or at its own limit.
            clients.shutdown(wait=False, cancel_futures=True)

    def stream_all() -> list[Streamed]:
        """A stream with a fault is asked for once more, together with the others that have one: a fault that does not
        come again was a moment's, and what takes one client only fails again."""
        came = list(ask_at_once(server.stream, streams, numbers))
        faulty = [number for number, each in enumerate(came) if each.fault]
        again = ask_at_once(server.stream, [streams[number] for number in faulty], repeat(len(references) + len(came)))
        for number, streamed in zip(faulty, again, strict=True):
            came[number] = streamed
        _require_answers(came)
        return came

    def stream_calls(asked: Answer) -> Streamed | RefusedForm:
        """One with a fault is asked for once more, here too."""
        came = server.stream_calls(asked)
        came = server.stream_calls(asked) if isinstance(came, Streamed) and came.fault else came
        _require_answers([came] if isinstance(came, Streamed) else [])
        return came

    def ask_in_form(question: Callable[[A], B | RefusedForm], asked: Sequence[A]) -> tuple[list[B], str]:
        """The replies; or none, and the words of a server that refuses one."""
        replies: list[B] = []
        for each in ask(question, asked):
            if isinstance(each, RefusedForm):
                return [], each.why
            replies.append(each)
        return replies, ""

    def call_all(choice: FormChoice) -> Formed:
        asked = [promise.answers[number] for number in choice.numbers]
        made, refused = ask_in_form(server.call_tools, asked)
        came, _ = ask_in_form(stream_calls, asked if made else [])
        plain = [replies[number] for number in choice.numbers]
        return Formed(asked, plain, made, choice.why_none or refused, streams=came)

    def hold_all(choice: FormChoice) -> Formed:
        """First to a schema that says whether the server holds its answers to any."""
        asked = [promise.answers[number] for number in choice.numbers]
        probes = [(each.model_copy(update={"max_tokens": PROBE_TOKENS}), PROBE) for each in asked[:1]]
        pairs = [*probes, *((each, promise.answer_schema) for each in asked)]
        made, refused = ask_in_form(lambda pair: server.hold_to(*pair), pairs)
        plain = [replies[number] for number in choice.numbers]
        probe = made[0].text if made else ""
        return Formed(asked, plain, made[1:], choice.why_none or refused, promise.answer_schema, probe)

    usual, asked_for = tolerance(server.engine, promise.format), promise.max_distance
    forced = list(ask(server.log_probs, references))
    streamed = stream_all()  # before their prompts are asked alone, which the server would remember
    replies = list(ask(server.answer, promise.answers))
    return Observed(
        forced=forced,
        streams=streamed,
        golden_replies=replies[: len(promise.golden)],
        sample_replies=replies[len(promise.golden) :],
        calls=call_all(calling) if calling else None,
        held=hold_all(held) if held else None,
        golden=promise.golden,
        sample=promise.sample,
        references=references,
        task=promise.task,
        tolerance=measured_tolerance(promise.references, usual) if asked_for is None else asked_for,
        usual_tolerance=usual if asked_for is None else min(usual, asked_for),
        too_long=len(promise.references) - len(references),
        refuses_other_names=server.refuses_other_names(),
        size=promise.size,
        objectives=promise.objectives,
    )


def _require_progress(server: ModelServer) -> None:
    """Raises StageError (CandidateFailed, retriable) if all streams of a server hang. None of them need wait for the
    end of its own time then."""
    if server.silent_seconds() > SILENT_SECONDS:
        said = f"The server hangs: for {SILENT_SECONDS:.0f} s it has sent nothing to any client that reads a stream."
        raise StageError(Reason.CANDIDATE_FAILED, said, retriable=True)


def _require_answers(streams: Iterable[Streamed]) -> None:
    """Raises StageError (CandidateFailed, retriable) if the server failed in one of them, as for a plain request."""
    failed = next((each for each in streams if each.failed), None)
    if failed is not None:
        said = f"The server failed to stream an answer, also on a second attempt: {failed.fault}."
        raise StageError(Reason.CANDIDATE_FAILED, said, retriable=True)
