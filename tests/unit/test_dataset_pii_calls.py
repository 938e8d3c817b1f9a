"""Personal data in what a conversation holds beside its texts: names, calls of tools, what these are called with."""

import json

import pytest

from finetune_api.dataset import OnFinding, Pii, Task, TaskType
from finetune_jobs.examples.shapes import Message
from finetune_jobs.examples.validation import Dropped, Example
from finetune_jobs.reading.rows import Row
from tests.support.preparing import intake_of, params_of

pytestmark = pytest.mark.unit

PERSONAL = "jane@example.com"
CALL = {"id": "1", "type": "function", "function": {"name": "send", "arguments": {"to": "me"}}}
TOOL = {"type": "function", "function": {"name": "send", "parameters": {"$schema": "http://json-schema.org/schema#"}}}


@pytest.mark.parametrize(
    ("asker", "call", "answer", "tool"),
    [
        ({"name": PERSONAL}, {}, {}, {}),
        ({}, {"id": PERSONAL}, {"tool_call_id": PERSONAL}, {}),
        ({}, {"function": {"name": PERSONAL, "arguments": {}}}, {"name": PERSONAL}, {}),
        ({}, {"function": {"name": "send", "arguments": {PERSONAL: 1}}}, {}, {}),
        ({}, {"function": {"name": "send", "arguments": json.dumps({"a": [{"b": {"c": [PERSONAL]}}]})}}, {}, {}),
        ({}, {"function": {"name": "send", "arguments": {"card": 4111111111111111}}}, {}, {}),
        ({}, {"reasoning_content": f"They mean {PERSONAL}."}, {}, {}),
        ({}, {}, {}, {"function": {"name": "send", "description": f"Ask {PERSONAL} first."}}),
    ],
)
@pytest.mark.parametrize("mode", [OnFinding.MASK, OnFinding.DROP, OnFinding.REPORT])
@pytest.mark.parametrize("task", [TaskType.TEXT, TaskType.CLASSIFICATION])
def test_personal_data_is_found_in_every_part_of_a_conversation(
    task: TaskType, mode: OnFinding, asker: Message, call: Message, answer: Message, tool: Message
) -> None:
    intake = intake_of(params_of(task=Task(type=task), pii=Pii(mode=mode)))
    thinking = {key: said for key, said in call.items() if key == "reasoning_content"}
    called = {key: said for key, said in call.items() if key != "reasoning_content"}
    messages = [
        {"role": "user", "content": "Send it."} | asker,
        {"role": "assistant", "content": "", "tool_calls": [CALL | called | {"mail": PERSONAL}]} | thinking,
        {"role": "tool", "content": "done"} | answer,
        {"role": "assistant", "content": "Sent."},
    ]
    found = intake.take(Row(1, {"messages": messages, "tools": [TOOL | tool]}))
    assert intake.personal.total() >= 1
    if isinstance(found, Dropped):
        assert mode is OnFinding.DROP
        return
    assert isinstance(found, Example)
    written = json.dumps([found.messages, found.tools])
    assert ("_1>" in written) is (mode is OnFinding.MASK)
    assert (PERSONAL in written or "4111111111111111" in written) is (mode is OnFinding.REPORT)


def test_a_conversation_that_calls_tools_and_holds_nothing_personal_stays_as_it_is() -> None:
    intake = intake_of(params_of())
    messages = [
        {"role": "user", "content": "Send it.", "name": "ana"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "done", "tool_call_id": "1", "name": "send"},
        {"role": "assistant", "content": "Sent."},
    ]
    found = intake.take(Row(1, {"messages": messages, "tools": [TOOL]}))
    assert isinstance(found, Example)
    assert (found.messages, found.tools, intake.personal.total()) == (messages, [TOOL], 0)


@pytest.mark.parametrize("task", [TaskType.TEXT, TaskType.CLASSIFICATION])
def test_thoughts_are_cleaned_and_masked_with_the_pseudonyms_of_their_conversation(task: TaskType) -> None:
    intake = intake_of(params_of(task=Task(type=task)))
    thinking = {
        "role": "assistant",
        "content": "a",
        "reasoning_content": f"So\u00a0{PERSONAL}\u200b wrote, key ghp_" + "a1B2" * 9,
    }
    found = intake.take(Row(1, {"messages": [{"role": "user", "content": f"Who is {PERSONAL}?"}, thinking]}))
    assert isinstance(found, Example)
    assert [message["content"] for message in found.messages] == ["Who is <EMAIL_ADDRESS_1>?", "a"]
    assert found.messages[1]["reasoning_content"] == "So <EMAIL_ADDRESS_1> wrote, key <GITHUB_TOKEN_1>"
    assert (intake.personal.total(), intake.secrets.total()) == (2, 1)


@pytest.mark.parametrize(
    ("task", "answer"), [(TaskType.CLASSIFICATION, PERSONAL), (TaskType.TEXT, "<EMAIL_ADDRESS_1>")]
)
def test_a_label_is_the_users_own_word_whatever_it_looks_like(task: TaskType, answer: str) -> None:
    intake = intake_of(params_of(task=Task(type=task)))
    messages = [{"role": "user", "content": f"Who is {PERSONAL}?"}, {"role": "assistant", "content": PERSONAL}]
    found = intake.take(Row(1, {"messages": messages}))
    assert isinstance(found, Example)
    assert [message["content"] for message in found.messages] == ["Who is <EMAIL_ADDRESS_1>?", answer]


ANSWERED = {"role": "assistant", "content": "Mine is support@acme.com."}
CALLED = [
    {"role": "assistant", "content": "", "tool_calls": [CALL | {"function": {"name": "send", "arguments": "{}"}}]},
    {"role": "tool", "content": "to <EMAIL_ADDRESS_1>", "tool_call_id": "1"},
]


@pytest.mark.parametrize("between", [[], CALLED])
def test_a_prompt_that_was_masked_before_shares_no_pseudonym_with_its_answer(between: list[Message]) -> None:
    """A teacher sees masked prompts, and its answer holds values of its own. Two values would become one."""
    intake = intake_of(params_of())
    prompt = intake.text(f"Mail me at {PERSONAL}.")
    assert prompt == "Mail me at <EMAIL_ADDRESS_1>."
    found = intake.take(Row(1, {"messages": [{"role": "user", "content": prompt}, *between, ANSWERED]}))
    assert isinstance(found, Example)
    assert (found.messages[0]["content"], found.messages[-1]["content"]) == (prompt, "Mine is <EMAIL_ADDRESS_2>.")
    assert intake.personal == {"EMAIL_ADDRESS": 2}


def test_what_is_only_reported_of_a_prompt_is_counted_once_in_each_example() -> None:
    intake = intake_of(params_of(pii=Pii(mode=OnFinding.REPORT)))
    prompt = intake.text(f"Mail me at {PERSONAL}.")
    assert intake.personal == {}
    for answer in ("Yes.", "No."):
        intake.take(Row(1, {"prompt": prompt, "completion": answer}))
    assert intake.personal == {"EMAIL_ADDRESS": 2}
