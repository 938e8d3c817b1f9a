"""Calls of tools and answers to a JSON schema, as clients ask for them: what is asked, and what the answers prove."""

import json
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import pytest

from finetune_api.dataset import TaskType
from finetune_api.reasons import Reason
from finetune_api.serving_status import CheckOutcome, VerificationCheck
from finetune_jobs.artifacts.artifact import Answer, Marks
from finetune_jobs.artifacts.calls import CallFormat
from finetune_jobs.base.errors import StageError
from finetune_jobs.verification.checks import make_checks
from finetune_jobs.verification.engine import RefusedForm, Reply, Streamed
from finetune_jobs.verification.forms import PROBE, FormChoice, Formed, choose_calls, choose_held, form_checks
from finetune_jobs.verification.observation import Promise, observe
from finetune_jobs.verification.tgi import TgiServer
from finetune_jobs.verification.vllm import VllmServer
from tests.support.sentences import assert_says
from tests.support.vllm_server import VllmContract, running

pytestmark = pytest.mark.unit

ROOT: Final = "/models/" + "a" * 64 + "/model"
HERMES: Final = CallFormat(begin="<tool_call>", name_key="name", arguments_key="arguments")
LLAMA: Final = CallFormat(name_key="name", arguments_key="parameters")
TOOLS: Final = [{"type": "function", "function": {"name": "refund", "parameters": {"type": "object"}}}]
CALL: Final = '<tool_call>{"name": "refund", "arguments": {"sum": 1, "to": "Ann"}}'
REFUND: Final = ("refund", {"to": "Ann", "sum": 1})
SCHEMA: Final = json.dumps(
    {
        "type": "object",
        "properties": {"number": {"type": "string"}, "lines": {"items": {"properties": {"a": {}, "b": {}}}}},
        "required": ["number"],
    }
)
RECORD: Final = '{"number": "7", "lines": [{"a": 1, "b": 2}]}'


def asked(number: int, artifact: str, label: str = "", **fields: Any) -> Answer:
    messages = [{"role": "user", "content": f"question {number}"}]
    texts = {"label": label or artifact, "base": "b", "tuned": artifact, "artifact": artifact}
    return Answer(messages=messages, **texts, prompt_tokens=30, **{"stopped": True, **fields})


def calling(number: int, artifact: str = CALL, **fields: Any) -> Answer:
    prompt = f"<|im_start|>question {number}"
    return asked(number, artifact, **{"tools": TOOLS, "calls": HERMES, "prompt": prompt, **fields})


def numbers(choice: FormChoice | None) -> list[int]:
    assert choice
    assert not choice.why_none
    return list(choice.numbers)


def test_chats_are_those_in_which_the_artifact_called_a_tool() -> None:
    answers = [asked(0, "x"), calling(1, "no call"), calling(2), calling(3), calling(2), *map(calling, range(4, 9))]
    assert numbers(choose_calls(answers)) == [2, 3, 5, 6]


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ([calling(0, "no call")], "no recorded answer calls a tool"),
        ([calling(0, calls=None)], "how the chat template writes calls is not known"),
    ],
)
def test_why_no_chat_is_asked_with_tools(answers: Sequence[Answer], why: str) -> None:
    found = choose_calls(answers)
    assert found
    assert (list(found.numbers), found.why_none) == ([], why)
    [check] = form_checks(Formed(why_not=why), None, TaskType.TEXT, 75)
    assert (check.name, check.outcome, check.seen) == ("toolCalls", CheckOutcome.SKIPPED, why)


def test_data_without_tools_or_schema_are_asked_for_neither() -> None:
    assert choose_calls([asked(0, RECORD)]) is None
    assert choose_held([asked(0, RECORD)], "", TaskType.EXTRACTION) is None
    assert form_checks(None, None, TaskType.TEXT, 75) == []


def test_an_answer_is_held_to_a_schema_that_it_matches_and_first_where_fields_can_be_compared() -> None:
    turned = '{"lines": [], "number": "7"}'
    nested = '{"number": "7", "lines": [{"b": 2, "a": 1}]}'
    answers = [
        asked(0, "no JSON"),
        asked(1, '{"lines": []}'),
        asked(2, turned),
        asked(3, nested),
        asked(4, '{"number": "7", "more": 1}'),
        asked(5, RECORD, label='{"number": "8"}'),
        asked(6, RECORD, stopped=False),
        asked(7, RECORD),
        asked(8, '{"number": "8"}'),
    ]
    assert numbers(choose_held(answers, SCHEMA, TaskType.EXTRACTION)) == [7, 8, 2, 3]


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ([asked(0, "no JSON"), calling(1)], "no recorded answer matches the schema"),
        ([asked(0, RECORD, thoughts=Marks(end="</think>"))], "the model thinks before it answers"),
    ],
)
def test_why_no_answer_is_held_to_the_schema(answers: Sequence[Answer], why: str) -> None:
    found = choose_held(answers, SCHEMA, TaskType.EXTRACTION)
    assert found
    assert not found.numbers
    assert why in found.why_none


def called(*replies: Reply, plain: str = CALL) -> VerificationCheck:
    formed = Formed([calling(n) for n in range(len(replies))], [Reply(plain, True, 30)] * len(replies), replies)
    [check] = form_checks(formed, None, TaskType.TEXT, 75)
    assert check.name == "toolCalls"
    return check


RIGHT: Final = Reply("", True, 30, [REFUND])
OTHER: Final = ("refund", {"to": "Ann", "sum": 2})


@pytest.mark.parametrize(
    ("replies", "plain", "outcome", "seen"),
    [
        ([RIGHT] * 4, CALL, CheckOutcome.PASSED, "4 of 4"),
        ([RIGHT] * 3 + [Reply("", True, 30, [OTHER])], CALL, CheckOutcome.PASSED, "3 of 4"),
        ([RIGHT] * 2 + [Reply("", True, 30, [OTHER])] * 2, CALL, CheckOutcome.FAILED, "2 of 4"),
        # This engine breaks a tie otherwise: it calls as it does in plain text.
        ([Reply("", True, 30, [OTHER])] * 4, CALL.replace("1", "2"), CheckOutcome.PASSED, "4 of 4"),
        ([Reply("", True, 30, [("refund", {"to": "Ann", "sum": True})])], CALL, CheckOutcome.FAILED, "0 of 1"),
        ([Reply("", True, 30, [REFUND, REFUND])], CALL, CheckOutcome.FAILED, "0 of 1"),
        (
            [Reply(CALL, True, 30)] * 4,
            CALL,
            CheckOutcome.FAILED,
            "0 of 4; 4 came as text that the server's parser did not read",
        ),
        # What the model wrote is no call, whatever it looks like to this check.
        ([Reply(json.dumps({"tool_calls": [{"name": "refund", "arguments": REFUND[1]}]}))], CALL,
         CheckOutcome.FAILED, "0 of 1; 1 came as text that the server's parser did not read"),
        ([Reply("I cannot", True, 90)] * 2, CALL, CheckOutcome.FAILED,
         "0 of 2; 2 prompts have other tokens than recorded"),
    ],
)  # fmt: skip
def test_what_chats_with_tools_prove(replies: list[Reply], plain: str, outcome: CheckOutcome, seen: str) -> None:
    check = called(*replies, plain=plain)
    assert (check.outcome, check.seen) == (outcome, seen)
    assert_says(check.expected, f"75 % of {len(replies)} chats with tools", "recorded calls")


def held(*replies: str, probe: str = '{"held": "yes"}', artifact: str = RECORD, plain: str = "") -> VerificationCheck:
    answers = [asked(n, artifact) for n in range(len(replies))]
    formed = Formed(
        answers, [Reply(plain or artifact)] * len(replies), [Reply(each) for each in replies], "", SCHEMA, probe
    )
    [check] = form_checks(None, formed, TaskType.EXTRACTION, 75)
    assert check.name == "answerSchema"
    return check


SPACED: Final = '{"number" : "7",\n"lines": [{"a": 1, "b": 2}]}'
EIGHT: Final = '{"number": "8"}'


@pytest.mark.parametrize(
    ("check", "outcome", "seen"),
    [
        (held(RECORD, SPACED, SPACED, EIGHT), CheckOutcome.PASSED, "4 of 4 match; 3 of 4 with the same fields"),
        (held(RECORD, EIGHT), CheckOutcome.FAILED, "2 of 2 match; 1 of 2 with the same fields"),
        (held(EIGHT, EIGHT, plain=EIGHT), CheckOutcome.PASSED, "2 of 2 match; 2 of 2 with the same fields"),
        (held(RECORD, probe='{"held":\n\n\n'), CheckOutcome.PASSED, "1 of 1 match; 1 of 1 with the same fields"),
        (held(RECORD, probe=RECORD), CheckOutcome.FAILED, "the server ignores the schema of a request"),
        (held(RECORD, probe=""), CheckOutcome.FAILED, "the server ignores the schema of a request"),
        (held(RECORD, '{"number": '), CheckOutcome.FAILED, "1 of 2 match: not JSON"),
        (held(RECORD, '{"lines": []}'), CheckOutcome.FAILED, "1 of 2 match: required"),
        # Engines let no model write fields in another order: nothing says what it answers then.
        (held(EIGHT, artifact='{"lines": [], "number": "7"}'), CheckOutcome.PASSED, "1 of 1 match"),
    ],
)
def test_what_answers_to_a_schema_prove(check: VerificationCheck, outcome: CheckOutcome, seen: str) -> None:
    assert check.outcome is outcome
    assert check.seen.startswith(seen), check.seen


def seen_by(server: VllmContract, promise: Promise) -> dict[str, VerificationCheck]:
    with running(server):
        client = VllmServer(server.url)
        observed = observe(client, promise, client.served().limits, lambda *_: None)
    return {check.name: check for check in make_checks(observed, 75)}


CALLING: Final = [calling(number) for number in range(3)]
PROMISED_CALLS: Final = Promise(CALLING[:2], CALLING, [], TaskType.TEXT, "INT8")


@pytest.mark.slow
def test_a_chat_is_sent_with_its_tools_as_clients_send_it() -> None:
    server = VllmContract(ROOT, answers=CALLING, parser=HERMES)
    check = seen_by(server, PROMISED_CALLS)["toolCalls"]
    assert (check.outcome, check.seen) == (CheckOutcome.PASSED, "3 of 3, as streams 3")
    chats = [each for each in server.seen if each["path"] == "/v1/chat/completions"]
    assert [each["messages"] for each in chats] == 2 * [each.messages for each in CALLING]
    assert [bool(each.get("stream")) for each in chats] == 3 * [False] + 3 * [True]
    assert all((each["model"], each["tools"], each["tool_choice"]) == ("demo", TOOLS, "auto") for each in chats)
    assert all((each["temperature"], each["max_tokens"]) == (0.0, 64) for each in chats)


@pytest.mark.slow
def test_a_parser_that_breaks_calls_in_streams_only_is_found() -> None:
    check = seen_by(VllmContract(ROOT, answers=CALLING, parser=HERMES, loses_end=True), PROMISED_CALLS)["toolCalls"]
    assert (check.outcome, check.seen) == (CheckOutcome.FAILED, "3 of 3, as streams 0")
    assert_says(check.expected, "75 % of 3 chats with tools", "recorded calls", "streamed too")


def streamed(*calls: Any, fault: str = "") -> Streamed:
    return Streamed("", fault, calls=calls)


@pytest.mark.parametrize(
    ("streams", "outcome", "seen"),
    [
        ([streamed(REFUND)] * 4, CheckOutcome.PASSED, "4 of 4, as streams 4"),
        ([streamed(REFUND)] * 3 + [streamed(OTHER)], CheckOutcome.PASSED, "4 of 4, as streams 3"),
        ([streamed(REFUND)] * 2 + [streamed(REFUND, REFUND), streamed()], CheckOutcome.FAILED, "4 of 4, as streams 2"),
        (
            [streamed(REFUND)] * 3 + [streamed(REFUND, fault="a stream ends without [DONE]")],
            CheckOutcome.FAILED,
            "4 of 4, as streams 4: a stream ends without [DONE]",
        ),
        # A server may refuse streams with tools: its clients know.
        ([], CheckOutcome.PASSED, "4 of 4"),
    ],
)
def test_what_streams_of_calls_prove(streams: list[Streamed], outcome: CheckOutcome, seen: str) -> None:
    formed = Formed([calling(n) for n in range(4)], [Reply(CALL, True, 30)] * 4, [RIGHT] * 4, streams=streams)
    [check] = form_checks(formed, None, TaskType.TEXT, 75)
    assert (check.outcome, check.seen) == (outcome, seen)


@pytest.mark.slow
def test_a_parser_of_another_form_leaves_calls_in_the_text() -> None:
    check = seen_by(VllmContract(ROOT, answers=CALLING, parser=LLAMA), PROMISED_CALLS)["toolCalls"]
    assert check.outcome is CheckOutcome.FAILED
    assert_says(check.seen, "0 of 3", "3 came as text", "parser did not read")


@pytest.mark.slow
def test_a_runtime_without_a_parser_is_asked_once_and_proves_no_calls() -> None:
    server = VllmContract(ROOT, answers=CALLING)
    check = seen_by(server, PROMISED_CALLS)["toolCalls"]
    assert check.outcome is CheckOutcome.SKIPPED
    assert_says(check.seen, "args lack --tool-call-parser", "refuses requests with tools")
    assert sum(bool(each.get("tools")) for each in server.seen) == 1


@pytest.mark.slow
def test_earlier_calls_of_a_conversation_are_sent_as_the_api_has_them() -> None:
    """With an id, and the arguments as text. A template is given them as an object, as the artifact keeps them."""

    def conversation(**call: Any) -> Answer:
        turns = [{"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "done"}]
        return CALLING[0].model_copy(update={"messages": [*CALLING[0].messages, *turns]})

    arguments = {"sum": 1, "to": "Änn"}
    kept = conversation(type="function", function={"name": "refund", "arguments": arguments})
    text = json.dumps(arguments, ensure_ascii=False)
    sent = conversation(id="call00000", type="function", function={"name": "refund", "arguments": text})
    with running(VllmContract(ROOT, answers=[sent], parser=HERMES)) as server:
        client = VllmServer(server.url)
        client.served()
        reply = client.call_tools(kept)
    assert isinstance(reply, Reply)
    assert list(reply.calls) == [REFUND]
    assert server.seen[-1]["messages"] == sent.messages


class Repeats(VllmContract):
    """Its model repeats itself within a call, and its parser passes that on."""

    arguments = ""

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        call = {"id": "call00000", "type": "function", "function": {"name": "refund", "arguments": self.arguments}}
        return 200, {"choices": [{"message": {"content": None, "tool_calls": [call]}, "finish_reason": "length"}]}


@pytest.mark.slow
@pytest.mark.parametrize("arguments", ['{"to":' * 3000, f'{{"to":{"[" * 300}{"]" * 300}}}', '{"sum": NaN}'])
def test_arguments_that_no_client_should_read_are_no_call(arguments: str) -> None:
    """Nested so deep that reading them may fail, or with what JSON does not have: the check says that the call is not
    the recorded one, and the verification does not crash."""
    repeats = Repeats(ROOT)
    repeats.arguments = arguments
    with running(repeats) as server:
        client = VllmServer(server.url)
        client.served()
        reply = client.call_tools(CALLING[0])
    assert isinstance(reply, Reply)
    assert not reply.calls


HELD: Final = [asked(number, RECORD) for number in range(3)]
PROMISED_RECORDS: Final = Promise(HELD[:2], HELD, [], TaskType.EXTRACTION, "INT8", answer_schema=SCHEMA)


@pytest.mark.slow
def test_answers_are_held_to_the_schema_as_openais_api_has_it() -> None:
    server = VllmContract(ROOT, answers=HELD)
    check = seen_by(server, PROMISED_RECORDS)["answerSchema"]
    assert (check.outcome, check.seen) == (CheckOutcome.PASSED, "3 of 3 match; 3 of 3 with the same fields")
    assert_says(check.expected, "3 answers match the schema", "75 % of 3 with the recorded fields")
    formats = [each["response_format"] for each in server.seen if "response_format" in each]
    assert {each["type"] for each in formats} == {"json_schema"}
    assert [each["json_schema"]["schema"] for each in formats] == [json.loads(PROBE), *[json.loads(SCHEMA)] * 3]
    assert [list(each["json_schema"]["schema"]["properties"]) for each in formats[1:]] == [["number", "lines"]] * 3


@pytest.mark.slow
def test_a_server_that_ignores_the_schema_fails_although_the_model_meets_it() -> None:
    check = seen_by(VllmContract(ROOT, answers=HELD, holds=False), PROMISED_RECORDS)["answerSchema"]
    assert (check.outcome, check.seen) == (CheckOutcome.FAILED, "the server ignores the schema of a request")


@pytest.mark.slow
def test_a_schema_that_the_server_refuses_is_not_proved() -> None:
    said = "The provided JSON schema contains features not supported by xgrammar."
    check = seen_by(VllmContract(ROOT, answers=HELD, refuses_schema=said), PROMISED_RECORDS)["answerSchema"]
    assert (check.outcome, check.seen) == (CheckOutcome.SKIPPED, said)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("failure", "reason", "retriable"),
    [
        ((500, "grammar compilation failed"), Reason.CANDIDATE_FAILED, True),
        ((404, "no such model"), Reason.CANDIDATE_FAILED, True),
        ((400, "This model's maximum context length is 64 tokens."), Reason.PROMPTS_TOO_LONG, False),
    ],
)
def test_a_failure_is_no_refusal(failure: tuple[int, str], reason: Reason, retriable: bool) -> None:
    with running(VllmContract(ROOT, answers=[*HELD, *CALLING], parser=HERMES, failure=failure)) as server:
        client = VllmServer(server.url)
        client.served()
        asked: list[tuple[Callable[[], object], str]] = [
            (lambda: client.call_tools(CALLING[0]), "a chat with tools"),
            (lambda: client.stream_calls(CALLING[0]), "a chat with tools"),
            (lambda: client.hold_to(HELD[0], SCHEMA), "a chat that is held to a schema"),
        ]
        for ask, what in asked:
            with pytest.raises(StageError) as error:
                ask()
            assert (error.value.reason, error.value.retriable) == (reason, retriable)
            assert_says(error.value.message.lower(), what)


class Slow(VllmContract):
    """Takes its time, as one that compiles a grammar."""

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        time.sleep(0.6)
        return super().post(path, body)


@pytest.mark.slow
def test_a_server_has_time_to_compile_a_grammar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_jobs.verification.connection._seconds", lambda _asked: 0.2)
    with running(Slow(ROOT, answers=HELD)) as server:
        client = VllmServer(server.url)
        client.served()
        with pytest.raises(StageError, match=r"did not answer within 0\.2 s"):
            client.answer(HELD[0])
        assert isinstance(client.hold_to(HELD[0], SCHEMA), Reply)
        monkeypatch.setattr("finetune_jobs.verification.connection.COMPILE_SECONDS", 0.1)
        with pytest.raises(
            StageError, match=r"did not answer within 0\.3 s to a chat that is held to a schema"
        ) as error:
            client.hold_to(HELD[0], SCHEMA)
    assert (error.value.reason, error.value.retriable) == (Reason.CANDIDATE_FAILED, True)


def test_tgi_makes_calls_of_its_own() -> None:
    """It is not asked: what it would answer proves nothing of what was recorded."""
    server = TgiServer("http://127.0.0.1:1")
    for found in (server.call_tools(CALLING[0]), server.stream_calls(CALLING[0])):
        assert isinstance(found, RefusedForm)
        assert_says(found.why, "TGI makes calls in a form of its own", "vLLM")


def test_a_pod_that_starts_is_asked_for_no_form() -> None:
    """The arguments of its server are those of the pod that was verified."""
    promise = Promise(CALLING, [], [], TaskType.TEXT, "INT8", answer_schema=SCHEMA, as_clients=False)
    assert (promise.calling, promise.held) == (None, None)


def test_chats_in_a_form_get_the_time_of_long_answers() -> None:
    long = [each.model_copy(update={"max_tokens": 100}) for each in CALLING]
    plain = [each.model_copy(update={"tools": [], "prompt": ""}) for each in long]
    seconds = [Promise(each, [], [], TaskType.TEXT, "INT8").long_answer_seconds for each in (plain, long)]
    assert seconds[1] == seconds[0] * 12 / 6
