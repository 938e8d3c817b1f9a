"""The verification's side of vLLM: identity, names, counts, probabilities and errors."""

from typing import Any

import pytest

from finetune_api.dataset import TaskType
from finetune_api.reasons import Reason
from finetune_api.serving_status import CheckOutcome
from finetune_jobs.artifacts.artifact import Answer, ReferenceText
from finetune_jobs.artifacts.calls import CallFormat
from finetune_jobs.base.errors import StageError
from finetune_jobs.verification.checks import Counts, count, make_checks
from finetune_jobs.verification.engine import Limits
from finetune_jobs.verification.observation import Promise, observe
from finetune_jobs.verification.vllm import VllmServer
from tests.support.sentences import assert_says
from tests.support.vllm_server import VllmContract, running, seen_paths

pytestmark = [pytest.mark.unit, pytest.mark.slow]

ROOT = "/models/" + "a" * 64 + "/model"
ANSWERS = [
    Answer(
        messages=[{"role": "user", "content": f"question {n}"}],
        label="a",
        base="b",
        tuned="a",
        artifact="a",
        prompt_tokens=30,
        stopped=n < 2,
    )
    for n in range(3)
]
TEXT = ReferenceText(text="<|im_start|>text", ids=[1, 5, 6], base=[-3.0, -4.0], artifact=[-1.0, -0.25])
TOO_LONG = (
    "This model's maximum context length is 64 tokens. However, your prompt contains at least 65 input tokens, which "
    "exceeds this limit even without any output tokens. Please reduce the length of the input prompt."
)


def client(contract: VllmContract) -> VllmServer:
    made = VllmServer(contract.url)
    made.served()
    return made


def contract(**fields: Any) -> VllmContract:
    return VllmContract(ROOT, answers=ANSWERS, references=[TEXT], **fields)


@pytest.mark.parametrize("adapters", [(), ("one", "two")])
def test_the_model_is_named_by_its_path_whatever_adapters_there_are(adapters: tuple[str, ...]) -> None:
    with running(contract(adapters=adapters)) as server:
        served = VllmServer(server.url).served()
    assert served.model == ROOT
    assert served.limits == Limits(total=2048)
    assert_says(str(served.limits), "2048 for prompt and answer together", "maxTotalTokens")


def test_an_answer_comes_with_its_end_and_the_length_of_its_prompt() -> None:
    with running(contract()) as server:
        replies = [client(server).answer(asked) for asked in ANSWERS]
    assert [(reply.text, reply.stopped, reply.prompt_tokens) for reply in replies] == [
        ("a", True, 30),
        ("a", True, 30),
        ("a", False, 30),
    ]
    assert all((each["model"], each["temperature"], each["max_tokens"]) == ("demo", 0.0, 64) for each in server.seen)


def test_probabilities_are_those_of_the_texts_own_tokens() -> None:
    with running(contract()) as server:
        forced = client(server).log_probs(TEXT)
    assert (forced.ids, forced.log_probs) == (TEXT.ids, TEXT.artifact)
    [asked] = server.seen
    assert asked == {
        "path": "/v1/completions",
        "model": "demo",
        "prompt": TEXT.text,
        "max_tokens": 1,
        "temperature": 0,
        "prompt_logprobs": 0,
        "return_token_ids": True,
    }


def test_a_server_that_gives_no_probabilities_has_none() -> None:
    with running(contract(without="prompt_logprobs")) as server:
        assert client(server).log_probs(TEXT).log_probs == []
    with running(contract(without="prompt_token_ids")) as server, pytest.raises(StageError) as error:
        client(server).log_probs(TEXT)
    assert error.value.reason is Reason.CANDIDATE_FAILED
    assert_says(error.value.message, f"{server.url}/v1/completions", "no details of a prompt", "KeyError")


@pytest.mark.parametrize(("any_name", "refuses"), [(False, True), (True, False)])
def test_a_name_of_no_model_is_refused(any_name: bool, refuses: bool) -> None:
    with running(contract(any_name=any_name)) as server:
        assert client(server).refuses_other_names() is refuses
    assert server.seen[-1]["model"] != "demo"


@pytest.mark.parametrize(
    ("failure", "reason", "retriable", "parts"),
    [
        (
            (400, TOO_LONG),
            Reason.PROMPTS_TOO_LONG,
            False,
            "too long … answered 400 … maximum context length is 64 … 2048 for prompt and answer … maxTotalTokens",
        ),
        ((400, "unknown role"), Reason.CANDIDATE_FAILED, False, "answered 400 (unknown role)"),
        ((500, "cannot schedule new futures after shutdown"), Reason.CANDIDATE_FAILED, True, "answered 500 to"),
        ((404, "no such model"), Reason.CANDIDATE_FAILED, True, "answered 404 to"),
    ],
)
def test_why_it_does_not_answer(failure: tuple[int, str], reason: Reason, retriable: bool, parts: str) -> None:
    with running(contract(failure=failure)) as server:
        for ask in (
            lambda: client(server).answer(ANSWERS[0]),
            lambda: client(server).stream(ANSWERS[0]),
            lambda: client(server).log_probs(TEXT),
        ):
            with pytest.raises(StageError) as error:
                ask()
            assert (error.value.reason, error.value.retriable) == (reason, retriable)
            assert_says(error.value.message, *parts.split(" … "))
            assert server.url in error.value.message


def test_a_server_that_is_busy_says_nothing_of_names() -> None:
    with running(contract(any_name=True, failure=(503, "overloaded"))) as server:
        with pytest.raises(StageError, match=r"answered 503 to the name of no model") as error:
            client(server).refuses_other_names()
        assert error.value.retriable


def test_a_server_that_names_no_model_is_no_candidate() -> None:
    message = r"/v1/models does not name its model \(StopIteration\)"
    with running(VllmContract("")) as server, pytest.raises(StageError, match=message) as error:
        VllmServer(server.url).served()
    assert error.value.reason is Reason.CANDIDATE_FAILED


class Unwell(VllmContract):
    """Answers what its models are with a status."""

    status = 503

    def get(self, path: str) -> tuple[int, Any]:
        return self.status, super().get(path)[1]


def test_a_server_that_does_not_say_what_it_serves_is_asked_again() -> None:
    """Only a document that names no model is final: a moment without a connection proves nothing."""
    with running(Unwell(ROOT)) as server, pytest.raises(StageError, match="answered 503 to GET /v1/models") as error:
        VllmServer(server.url).served()
    assert error.value.retriable
    with pytest.raises(StageError, match=r"did not answer \(ConnectError: .*refused\) to GET /v1/models") as error:
        VllmServer(server.url).served()
    assert error.value.retriable


@pytest.mark.parametrize(
    ("status", "key", "retriable"),
    [
        *((status, "", status not in (401, 404)) for status in (401, 404, 408, 425, 429, 500)),
        # The key was replaced while adapter after adapter was verified. The next attempt reads the newest one.
        (401, "replaced-0123456789abc", True),
        (404, "replaced-0123456789abc", False),
    ],
)
def test_a_server_that_says_that_it_never_will_is_no_candidate(status: int, key: str, retriable: bool) -> None:
    unwell = Unwell(ROOT)
    unwell.status = status
    with running(unwell) as server, pytest.raises(StageError, match=f"answered {status} to GET") as error:
        VllmServer(server.url, key=key).served()
    assert (error.value.reason, error.value.retriable) == (Reason.CANDIDATE_FAILED, retriable)


def test_a_right_server_passes_every_check_that_its_record_allows() -> None:
    promise = Promise(ANSWERS, ANSWERS, [TEXT], TaskType.CLASSIFICATION, "INT8")
    with running(contract()) as server:
        server_side = client(server)
        observed = observe(server_side, promise, server_side.served().limits, lambda *_: None)
    checks = {check.name: check.outcome for check in make_checks(observed, 75)}
    skipped = {name for name, outcome in checks.items() if outcome is CheckOutcome.SKIPPED}
    assert skipped == {"longPrompts", "positions", "timeToFirstToken", "timePerOutputToken"}
    assert CheckOutcome.FAILED not in checks.values()
    assert checks["modelName"] is CheckOutcome.PASSED
    assert checks["concurrentStreams"] is CheckOutcome.PASSED
    assert seen_paths(server) == {"/v1/chat/completions": 12, "/v1/completions": 2}
    streams = [each for each in server.seen if each.get("stream")]
    assert [each["model"] for each in streams] == ["demo"] * 6
    assert server.at_once > 1


HERMES = CallFormat(begin="<tool_call>", name_key="name", arguments_key="arguments")
CALL, OTHER = '<tool_call>{"name": "f", "arguments": {"a": 1}}', '<tool_call>{"name": "f", "arguments": {"a": 2}}'
CALLING = [
    each.model_copy(
        update={
            "tools": [{"type": "function", "function": {"name": "f"}}],
            "prompt": f"<|im_start|>{number}",
            "calls": HERMES,
            "label": '<tool_call>\n{"arguments": {"a": 1}, "name": "f"}',
            "artifact": CALL,
        }
    )
    for number, each in enumerate(ANSWERS)
]


def test_a_prompt_with_tools_is_sent_as_text() -> None:
    """The server renders nothing, and needs no parser: it is asked for the call as the model writes it. Only one chat
    is sent with its tools, which it refuses."""
    promise = Promise(CALLING, CALLING, [TEXT], TaskType.TEXT, "INT8")
    with running(VllmContract(ROOT, answers=CALLING, references=[TEXT])) as server:
        server_side = client(server)
        observed = observe(server_side, promise, server_side.served().limits, lambda *_: None)
    assert [reply.text for reply in observed.golden_replies] == [CALL] * 3
    assert [reply.stopped for reply in observed.golden_replies] == [True, True, False]
    assert [(each.text, each.fault) for each in observed.streams] == [(CALL, "")] * 6
    assert seen_paths(server) == {"/v1/completions": 14, "/v1/chat/completions": 1}
    completions = [each for each in server.seen if each["path"] == "/v1/completions"]
    assert not any("tools" in each or "messages" in each for each in completions)
    assert count(observed) == Counts(samples=3, correct=3, expected=3, losses=0, wins=0)
    checks = {check.name: check.outcome for check in make_checks(observed, 75)}
    assert CheckOutcome.FAILED not in checks.values()
    assert checks["promptTokens"] is CheckOutcome.PASSED


def test_another_call_than_the_right_one_is_a_loss() -> None:
    wrong = [each.model_copy(update={"artifact": OTHER}) for each in CALLING]
    promise = Promise(CALLING, CALLING, [TEXT], TaskType.TEXT, "INT8")
    with running(VllmContract(ROOT, answers=wrong, references=[TEXT])) as server:
        server_side = client(server)
        observed = observe(server_side, promise, server_side.served().limits, lambda *_: None)
    assert count(observed) == Counts(samples=3, correct=0, expected=3, losses=3, wins=0)


def test_a_completion_that_cannot_be_read_is_no_answer() -> None:
    with running(VllmContract(ROOT, answers=CALLING, without="text")) as server:
        made = client(server)
        with pytest.raises(StageError, match=r"/v1/completions gives no details of a prompt \(KeyError\)"):
            made.answer(CALLING[0].model_copy(update={"prompt": "another"}))


class Wordless(VllmContract):
    """Answers every chat alike, with status 200."""

    said: Any = None

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        return 200, self.said


@pytest.mark.parametrize(
    "said",
    [{"choices": []}, {"choices": None}, {"error": "overloaded"}, [], None, {"choices": [{"message": None}]}, "a page"],
)
def test_a_chat_that_cannot_be_read_is_no_answer(said: Any) -> None:
    """Nor does it end the verification in a crash, which would not name the server."""
    wordless = Wordless(ROOT)
    wordless.said = said
    with running(wordless) as server:
        made = client(server)
        with pytest.raises(StageError, match="/v1/chat/completions gives no details of a prompt") as error:
            made.answer(ANSWERS[0])
    assert error.value.reason is Reason.CANDIDATE_FAILED
