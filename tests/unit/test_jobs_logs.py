"""Logs of a stage: their form, what is blacked out, and the end that is kept in the store."""

import json
import logging
import socket
import time
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from finetune_api.json_lines import JsonLines
from finetune_api.storage import Storage
from finetune_jobs.runtime.logs import KeptLog, PlainLines, PrintedLines, Redaction, Tail, log_object, set_up
from finetune_jobs.store.s3 import Store
from tests.support.closed_port import closed_port
from tests.support.seaweedfs import SeaweedFS
from tests.support.stages import RUN

pytestmark = pytest.mark.unit

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "wJalr/XUtn+FEMI=",
    "MLFLOW_TRACKING_PASSWORD": "wJalr/XUtn+FEMI=2",
    "WANDB_API_KEY": "0123456789abcdef\n",
    "FINETUNE_SECRET.signing_key": "-----KEY-----\nMIGHAgEA\n",
    "HF_TOKEN": "short",
    "AWS_WEB_IDENTITY_TOKEN_FILE": "/var/run/token",
    "HOME": "/scratch",
}


def record(message: str, *arguments: object) -> logging.LogRecord:
    return logging.LogRecord("finetune_jobs.train", logging.INFO, __file__, 1, message, arguments, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("key AKIAEXAMPLE refused", "key *** refused"),
        ("wJalr/XUtn+FEMI=2 and wJalr/XUtn+FEMI=", "*** and ***"),
        ("key 0123456789abcdef, made from a file", "key ***, made from a file"),
        ("a key of two lines: -----KEY-----\nMIGHAgEA\n", "a key of two lines: ***\n"),
        (r"as Python shows it: '-----KEY-----\nMIGHAgEA\n'", r"as Python shows it: '***\n'"),
        ("in short: /var/run/token, /scratch", "in short: /var/run/token, /scratch"),
        ("GET https://user:pa55@host:80/x?y=1", "GET https://***@host:80/x?y=1"),
        (
            "https://h/o?X-Amz-Credential=AK&X-Amz-Signature=ab12&x=1",
            "https://h/o?X-Amz-Credential=AK&X-Amz-Signature=***&x=1",
        ),
        ("https://h/o?AWSAccessKeyId=AK&Signature=ab%2F12", "https://h/o?AWSAccessKeyId=AK&Signature=***"),
        ("X-Amz-Security-Token=IQoJ 'rest'", "X-Amz-Security-Token=*** 'rest'"),
        ("PUT https://r/v2/a/blobs/uploads/1?_state=tok%3D&x=1", "PUT https://r/v2/a/blobs/uploads/1?_state=***&x=1"),
        (
            "https://a.blob.core.windows.net/c?sv=1&sig=ab%2F1&se=2",
            "https://a.blob.core.windows.net/c?sv=1&sig=***&se=2",
        ),
        ("random_state=7, sig=5", "random_state=7, sig=5"),
        ("hf://org/name@0a1b, a@example.org", "hf://org/name@0a1b, a@example.org"),
    ],
)
def test_secrets_are_blacked_out(text: str, expected: str) -> None:
    assert Redaction(ENVIRONMENT)(text) == expected


@given(st.text())
def test_without_secrets_nothing_changes(text: str) -> None:
    assume("://" not in text and "=" not in text)
    assert Redaction({"HOME": "/scratch"})(text) == text


def test_no_form_of_a_log_shows_a_secret() -> None:
    redaction = Redaction(ENVIRONMENT)
    try:
        raise ValueError("refused AKIAEXAMPLE")
    except ValueError as error:
        broken = record("for %s", "AKIAEXAMPLE")
        broken.exc_info = (type(error), error, error.__traceback__)
    for form in (JsonLines({"stage": "train"}, redaction), PlainLines(redaction)):
        text = form.format(broken)
        assert "refused ***" in text
        assert "AKIAEXAMPLE" not in text


@given(st.lists(st.text(max_size=80), max_size=40), st.integers(1, 2000))
def test_a_tail_holds_the_newest_whole_lines_that_fit(messages: list[str], limit: int) -> None:
    lines = JsonLines({"stage": "train"}, Redaction({}))
    tail = Tail(lines, limit)
    for message in messages:
        tail.handle(record(message.replace("%", "")))

    content, written = tail.content()

    assert written == len(messages)
    assert len(content) <= limit
    kept = [json.loads(line)["message"] for line in content.splitlines()]
    every = [message.replace("%", "") for message in messages]
    assert kept == every[len(every) - len(kept) :]
    if len(kept) < len(every):
        next_line = (lines.format(record(every[-len(kept) - 1])) + "\n").encode(errors="replace")
        assert len(content) + len(next_line) > limit


def test_the_pod_is_part_of_the_name() -> None:
    assert log_object(RUN, "train", "transactions-train-1a2b-x7k") == (
        "runs/transactions/0b8a/logs/train-r1-transactions-train-1a2b-x7k.jsonl"
    )
    assert "/" not in log_object(RUN, "train", "a/../b").removeprefix("runs/transactions/0b8a/logs/")


def test_the_end_of_a_log_is_kept_whenever_there_is_more(s3: SeaweedFS, place: str) -> None:
    store, tail = Store.connect(s3.storage, place), Tail(JsonLines({"stage": "train"}, Redaction({})))
    kept = KeptLog(tail, pause=0.05)
    kept.begin(store, "logs/train.jsonl")
    for number in range(2):
        tail.handle(record(f"line {number}"))
        deadline = time.monotonic() + 60
        while f"line {number}".encode() not in (store.get("logs/train.jsonl") or b""):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    tail.handle(record("the end"))
    assert kept.finish(60) == store.uri("logs/train.jsonl")
    messages = [json.loads(line)["message"] for line in (store.get("logs/train.jsonl") or b"").splitlines()]
    assert messages == ["line 0", "line 1", "the end"]


def test_a_log_without_a_place_is_not_waited_for() -> None:
    began = time.monotonic()
    assert KeptLog(Tail(JsonLines({"stage": "train"}, Redaction({})))).finish(20) == ""
    assert time.monotonic() - began < 10


@pytest.fixture
def log_put_back() -> Iterator[None]:
    """After a test that sets up the log of this process."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)


@pytest.mark.usefixtures("log_put_back")
@pytest.mark.parametrize("name", ["httpx", "httpx2"])
def test_requests_are_not_logged(name: str) -> None:
    """Clients log each address, and addresses may hold what lets anybody upload."""
    own = logging.getLogger(name)
    own.setLevel(logging.NOTSET)
    tail = set_up("publish", terminal=True)
    own.info("HTTP Request: PUT https://r/upload?token=abc")
    assert tail.content() == (b"", 0)


@pytest.mark.slow
@pytest.mark.usefixtures("log_put_back")
def test_layers_in_8_bits_do_not_warn_in_each_pass() -> None:
    """bitsandbytes' product for GPUs, of inputs in bfloat16."""
    import torch
    from bitsandbytes.autograd._functions import MatMul8bitLt

    tail = set_up("train", terminal=True)
    found = MatMul8bitLt.apply(torch.ones(2, 8, dtype=torch.bfloat16), torch.ones(4, 8))
    assert found.tolist() == [[8] * 4] * 2
    assert tail.content() == (b"", 0)


@pytest.mark.slow
@pytest.mark.parametrize("answers", [False, True], ids=["closed port", "never answers"])
@pytest.mark.usefixtures("place")
def test_a_store_that_is_away_delays_the_end_by_the_given_time_only(answers: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, closed_port() as closed:
        port = silent.getsockname()[1] if answers else closed
        store = Store.connect(Storage(endpoint=f"http://127.0.0.1:{port}"), "s3://data/out")
        tail = Tail(JsonLines({"stage": "train"}, Redaction({})))
        tail.handle(record("a line"))
        kept = KeptLog(tail)
        kept.begin(store, "log.jsonl")
        began = time.monotonic()
        assert kept.finish(0.5) == ""
        assert time.monotonic() - began < 10, "not until the limits of a request"


def test_a_log_that_cannot_be_written_does_not_call_itself(capfd: pytest.CaptureFixture[str]) -> None:
    """logging prints a traceback to stderr when a handler fails, and stderr leads to the log here."""

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            print("the log is gone", file=printed)

    logger = logging.getLogger("broken")
    logger.propagate = False
    logger.addHandler(Broken())
    printed = PrintedLines(logger, logging.WARNING)
    print("one line", file=printed)
    assert capfd.readouterr().err == "the log is gone\n"


@pytest.mark.timeout(30)
def test_a_finalizer_that_prints_while_a_line_is_printed_does_not_wait_for_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Interrupted(str):
        """Stands in for the garbage collector, which may run a finalizer between any two steps."""

        def __radd__(self, begun: str) -> str:
            print("last words", file=printed)
            return begun + str(self)

    printed = PrintedLines(logging.getLogger("interrupted"), logging.WARNING)
    printed.write(Interrupted("one line\n"))
    assert caplog.messages == ["last words", "one line"]


def test_a_bar_that_is_redrawn_for_hours_takes_no_memory(caplog: pytest.LogCaptureFixture) -> None:
    printed = PrintedLines(logging.getLogger("drawn"), logging.WARNING)
    tracemalloc.start()
    try:
        for percent in range(2000):
            printed.write(f"\r{percent} " + "#" * 200)
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    printed.write("\nas in DOS\r")
    printed.write("\n")
    assert held < 100_000
    assert caplog.messages == ["1999 " + "#" * 200, "as in DOS"]
