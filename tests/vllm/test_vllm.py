"""The real vLLM, built for CPUs, as the operator starts it and as the verification sees it (`make test-vllm`).

The artifact is SmolLM2-135M itself in INT8, so that nothing has to be trained; what it is to be told from, its "base
model", is the same without some of its layers.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from finetune_api.dataset import TaskType
from finetune_api.reasons import Reason
from finetune_api.serving_status import CheckOutcome, VerificationCheck
from finetune_api.training import Method
from finetune_jobs.artifacts.artifact import Answer, ReferenceText
from finetune_jobs.artifacts.calls import CallFormat
from finetune_jobs.base.errors import StageError
from finetune_jobs.evaluation.disturbance import disturbed
from finetune_jobs.evaluation.passages import log_probs, longest_text, make_passages
from finetune_jobs.evaluation.reference import make_references, to_record
from finetune_jobs.exporting.adapter import write_adapter, write_base
from finetune_jobs.exporting.offload import load_artifact
from finetune_jobs.modelling import chat
from finetune_jobs.modelling.loading import load_checkpoint
from finetune_jobs.modelling.tokenizer import load_tokenizer, stop_token
from finetune_jobs.modelling.tuning import Tuning
from finetune_jobs.verification.checks import base_check, make_checks
from finetune_jobs.verification.engine import (
    ANSWERED,
    FAILED,
    FIRST_TOKEN_SECONDS,
    REQUEST_SECONDS,
    Limits,
    RefusedForm,
    Reply,
)
from finetune_jobs.verification.observation import Promise, observe
from finetune_jobs.verification.tolerance import tolerance
from finetune_jobs.verification.vllm import VllmAdapters, VllmServer
from finetune_operator.runtimes.plan import ServedAdapter, ServedModel
from finetune_operator.runtimes.vllm import NEEDS_PROXY
from hack.benchmarks.transactions import transactions
from hack.cluster.layout import REPOSITORY, cache_directory
from hack.models import ensure_smollm2
from tests.support.planted import LOST_LAYER, Plant, prove, weights_only, write_artifact
from tests.support.sentences import assert_says
from tests.support.server_process import ServerProcess
from tests.support.vllm_process import NAME, vllm

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]

CHART_FILES = REPOSITORY / "charts" / "finetune-operator" / "files"
LOST = range(8, 12)
"""Layers that the base model lacks."""
SHORT = 2
"""Short conversations whose probabilities are recorded, beside a long one."""

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "refund",
            "description": "Pay back.",
            "parameters": {
                "type": "object",
                "properties": {"sum": {"type": "integer"}, "to": {"type": "string"}},
                "required": ["sum", "to"],
            },
        },
    }
]
HERMES = CallFormat(begin="<tool_call>", name_key="name", arguments_key="arguments")
WHO = '{"type": "object", "properties": {"sum": {"type": "integer"}, "to": {"type": "string"}}, "required": ["sum"]}'
IMPOSSIBLE = '{"type": "object", "properties": {"sum": {"type": "of no kind"}}}'
ROLES = ("user", "assistant")
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Recorded:
    """An artifact, and what an evaluation would have recorded of it and of its base model."""

    model: Path
    weights: Mapping[str, torch.Tensor]
    base_weights: Mapping[str, torch.Tensor]
    artifact: Path
    promise: Promise


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vllm")


@pytest.fixture(scope="module")
def recorded(work: Path) -> Recorded:
    model = ensure_smollm2(cache_directory())
    weights = load_file(model / "model.safetensors")
    lost = tuple(f"model.layers.{layer}.mlp.down_proj." for layer in LOST)
    without = {name: torch.zeros_like(each) if name.startswith(lost) else each for name, each in weights.items()}
    artifact = write_artifact(work / "good", model, weights)
    base = write_artifact(work / "base", model, without)
    tokenizer = load_tokenizer(model)
    made = make_passages(tokenizer, transactions(work, 800), stop_token(model, tokenizer), longest_text(model))
    passages = [*made[:SHORT], next(passage for passage in made if passage.long)]
    before = [log_probs(found, each) for found in [load_checkpoint(base)] for each in passages]
    found = load_checkpoint(artifact)
    after = [log_probs(found, each) for each in passages]
    changed = {number: disturbed(found, passages[number]) for number in to_record(passages, before, after)}
    references = make_references(passages, before, after, changed)
    return Recorded(model, weights, without, artifact, weights_only(references, TaskType.TEXT))


@pytest.fixture(scope="module")
def served(recorded: Recorded, work: Path) -> Iterator[ServerProcess]:
    with vllm(recorded.artifact, work) as server:
        yield server


def copied(form: str) -> list[dict[str, object]]:
    """A conversation whose last question a model answers by copying the form of the answers before."""
    people = (("Ann", 3), ("Bob", 5), ("Eve", 8))
    said = [(f"Refund {each} to {name}.", form % (each, name)) for name, each in people]
    messages: list[dict[str, object]] = [
        {"role": role, "content": text} for pair in said for role, text in zip(ROLES, pair, strict=True)
    ]
    return [*messages, {"role": "user", "content": "Refund 4 to Tom."}]


def streamed(url: str, body: dict[str, object]) -> http.client.HTTPResponse:
    """The answer to a completion that is asked for as a stream."""
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=120)
    return response


def outcomes(checks: list[VerificationCheck]) -> dict[str, str]:
    for check in checks:
        print(f"{check.name}: {check.outcome} ({check.seen})", flush=True)
    return {check.name: check.outcome.value for check in checks}


def test_it_names_its_path_and_its_limit_and_opens_when_it_is_ready(served: ServerProcess, recorded: Recorded) -> None:
    found = VllmServer(served.url).served()
    assert (found.model, found.limits) == (str(recorded.artifact), Limits(total=2048))
    assert set(served.seen) == {"refused", 200}


def test_it_logs_json_lines(served: ServerProcess) -> None:
    """Its own and uvicorn's, and no bars. What is no JSON comes from libraries in C++, or before arguments are read."""
    lines = served.log.read_text(encoding="utf-8", errors="replace").splitlines()
    logged = [json.loads(line) for line in lines if line.startswith("{")]
    assert {each["name"].split(".")[0] for each in logged} >= {"vllm", "uvicorn"}
    assert {each["levelname"] for each in logged} <= {"INFO", "WARNING"}
    text = [
        line for line in lines if re.match(r"(\(\w+ pid=\d+\) )?(DEBUG|INFO|WARNING|ERROR)\b", line) or "%|" in line
    ]
    assert text == []


def test_the_artifact_proves_its_weights(served: ServerProcess, recorded: Recorded) -> None:
    found = outcomes(prove(VllmServer(served.url), recorded.promise))
    weights = ("modelName", "promptTokens", "differsFromBase", "logProbabilities", "longPrompts")
    assert {name: found[name] for name in weights} == dict.fromkeys(weights, CheckOutcome.PASSED.value)
    assert found["positions"] != CheckOutcome.FAILED.value
    assert tolerance(VllmServer.engine, recorded.promise.format) < 1


def test_an_answer_that_was_cut_says_so_and_how_long_its_prompt_was(served: ServerProcess, recorded: Recorded) -> None:
    client, messages = VllmServer(served.url), [{"role": "user", "content": "What is the capital of France?"}]
    client.served()
    asked = Answer(messages=messages, label="", base="", tuned="", artifact="", max_tokens=2)
    reply = client.answer(asked)
    assert (bool(reply.text), reply.stopped) == (True, False)
    streamed = client.stream(asked)
    assert (streamed.text, streamed.fault) == (reply.text, "")
    assert reply.prompt_tokens == len(chat.prompt_ids(load_tokenizer(recorded.model), messages))


def test_what_is_too_long_is_told_from_what_failed(served: ServerProcess) -> None:
    client = VllmServer(served.url)
    client.served()
    words = "account " * 4000
    asked = Answer(messages=[{"role": "user", "content": words}], label="", base="", tuned="", artifact="")
    text = ReferenceText(text=words, ids=[1], base=[], artifact=[])
    for ask in (lambda: client.answer(asked), lambda: client.log_probs(text)):
        with pytest.raises(StageError) as error:
            ask()
        assert error.value.reason is Reason.PROMPTS_TOO_LONG
        assert_says(error.value.message, "too long", "answered 400", "2048 for prompt and answer together")


def test_it_reports_under_the_names_that_rules_and_dashboards_read(served: ServerProcess) -> None:
    """And canaries' analysis reads a client's requests from it, with those that were refused."""
    client = VllmServer(served.url)
    client.served()
    before = client.counts()
    client.answer(Answer(messages=[{"role": "user", "content": "Hello"}], label="", base="", tuned="", artifact=""))
    with pytest.raises(StageError):
        client.log_probs(ReferenceText(text="account " * 4000, ids=[1], base=[], artifact=[]))
    with urllib.request.urlopen(f"{served.url}/metrics", timeout=60) as answer:
        told = answer.read().decode()
    there = {re.split(r"[{ ]", line)[0] for line in told.splitlines() if not line.startswith("#")}
    files = [CHART_FILES / "endpoints.yaml", *sorted((CHART_FILES / "dashboards").glob("*.json"))]
    read = {name for file in files for name in re.findall(r"\b(?:vllm:\w+|http_requests_total)", file.read_text())}
    assert len(read) >= 8
    assert read - there == set()
    statuses = set(re.findall(r'http_requests_total{[^}]*status="(\w+)"', told))
    assert {"2xx", "4xx"} <= statuses
    after = client.counts()
    one_more = {(ANSWERED, ""): 1, (REQUEST_SECONDS, "+Inf"): 1, (FIRST_TOKEN_SECONDS, "+Inf"): 1}
    assert {each: after[each] - before[each] for each in one_more} == one_more
    assert after[FAILED, "http"] == before[FAILED, "http"]


def test_tools_are_refused_where_no_parser_is_set(served: ServerProcess) -> None:
    """vLLM's words for it, from which the reason of the skipped check follows."""
    client = VllmServer(served.url)
    client.served()
    asked = Answer(
        messages=[{"role": "user", "content": "Refund 4 to Tom."}],
        tools=TOOLS,
        label="",
        base="",
        tuned="",
        artifact="",
    )
    refused = client.call_tools(asked)
    assert isinstance(refused, RefusedForm)
    assert_says(refused.why, "args lack --tool-call-parser")


def test_an_open_stream_ends_after_sigterm_and_nobody_is_told_to_leave(served: ServerProcess) -> None:
    """The pod's last seconds: what was asked before is answered to its end. Clients that keep their connection hear
    status 500 meanwhile: why its pods have a proxy. The last test of this server."""
    body = {"model": NAME, "prompt": "Once", "max_tokens": 300, "temperature": 0, "ignore_eos": True, "stream": True}
    kept = http.client.HTTPConnection("127.0.0.1", urlsplit(served.url).port, timeout=60)

    def ask() -> int:
        """The status of an answer after which the connection stays."""
        kept.request("POST", "/v1/completions", json.dumps({"model": NAME, "prompt": "Once", "max_tokens": 1}), JSON)
        answer = kept.getresponse()
        answer.read()
        assert answer.headers["Connection"] is None
        return answer.status

    assert ask() == 200
    with streamed(served.url, body) as response:
        events = [response.readline()]
        served.process.terminate()
        status = ask()
        while status == 200:
            status = ask()
        events += response.readlines()
    said = [line for line in events if line.startswith(b"data: ")]
    assert said[-1] == b"data: [DONE]\n"
    assert len(said) > 150
    assert (status, NEEDS_PROXY) == (500, True)
    assert served.process.wait(timeout=80) == 0


def test_it_ends_without_an_error_when_its_engine_dies(recorded: Recorded, work: Path) -> None:
    """So the code of a server's end does not tell a crash."""
    with vllm(recorded.artifact, work) as server:
        pid = server.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        [engine] = [each for each in children if "EngineCore" in Path(f"/proc/{each}/cmdline").read_text()]
        os.kill(int(engine), signal.SIGKILL)
        assert server.process.wait(timeout=80) == 0


@pytest.mark.parametrize(
    ("plant", "fails"),
    [
        (LOST_LAYER, {"logProbabilities", "longPrompts"}),
        (Plant("base"), {"differsFromBase"}),
    ],
    ids=lambda value: value.name if isinstance(value, Plant) else "",
)
def test_what_is_wrong_is_refused(plant: Plant, fails: set[str], recorded: Recorded, work: Path) -> None:
    weights = recorded.base_weights if plant.name == "base" else recorded.weights
    wrong = write_artifact(work / f"planted-{plant.name.replace(' ', '-')}", recorded.model, weights, plant)
    with vllm(wrong, work) as server:
        found = outcomes(prove(VllmServer(server.url), recorded.promise))
    assert {name for name in fails if found[name] == CheckOutcome.FAILED.value}


def test_adapters_prove_themselves_under_their_own_names(work: Path) -> None:
    """Two of random values on SmolLM2-135M in 16 bits, as export writes them, large enough that probabilities tell them
    from their base. Each is told from the other, its base, and none; and the base is what it was. One is there from the
    start; the other comes while the server runs, and goes: a stream that has begun goes on, and others may be asked for
    the probabilities of a prompt meanwhile."""
    base, tuning = work / "shared", Tuning(method=Method.LORA)
    write_base(ensure_smollm2(cache_directory()), base, tuning)
    tokenizer = load_tokenizer(base)
    made = make_passages(tokenizer, transactions(work, 800), stop_token(base, tokenizer), longest_text(base))
    passages = made[:SHORT]
    before = [log_probs(model, each) for model in [load_checkpoint(base)] for each in passages]
    promises: dict[str, Promise] = {}
    served: list[ServedAdapter] = []
    for seed, (name, rank) in enumerate((("de", 8), ("fr", 16))):
        torch.manual_seed(seed)
        alpha = 5 * rank // 2
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", init_lora_weights=False)
        get_peft_model(load_checkpoint(base), config).save_pretrained(work / f"trained-{name}")
        write_adapter(work / f"trained-{name}", work / name, tuning, "a" * 64)
        model = load_artifact(work / name, base)
        after = [log_probs(model, each) for each in passages]
        changed = {
            number: replace(disturbed(model, passages[number]), straight=[], turned=[])
            for number in to_record(passages, before, after)
        }
        references = make_references(passages, before, after, changed)
        promises[name] = weights_only(references, TaskType.TEXT)
        served.append(ServedAdapter(str(work / name), f"{NAME}:{name}"))
    first = ["--lora-modules", f"{served[0].name}={served[0].path}"]
    with vllm(ServedModel(str(base), NAME, adapters=tuple(served), rank=16), work, first) as server:
        host = VllmAdapters(server.url)
        host.load("proving-1", served[1].path)
        assert (
            outcomes(prove(VllmServer(server.url, adapter="proving-1"), promises["fr"]))["logProbabilities"] == "Passed"
        )
        assert VllmServer(server.url, adapter=served[1].name).served().model == "", "its own name does not answer yet"
        host.load(served[1].name, served[1].path)
        host.unload("proving-1")
        assert host.loaded() == {each.name: each.path for each in served}
        clients = {name: VllmServer(server.url, adapter=f"{NAME}:{name}") for name in promises}
        assert [client.served().model for client in clients.values()] == [str(work / name) for name in promises]
        assert VllmServer(server.url, adapter=f"{NAME}:other").served().model == ""
        right = {name: outcomes(prove(clients[name], promise)) for name, promise in promises.items()}
        swapped = outcomes(prove(clients["de"], promises["fr"]))
        inactive = outcomes(prove(VllmServer(server.url), promises["fr"]))
        plain = VllmServer(server.url)
        plain.served()
        forced = [plain.log_probs(each) for each in promises["de"].references]
        of_base = base_check(promises["de"].references, forced, tolerance(VllmServer.engine, "Adapter"))
        with pytest.raises(StageError, match="answered 404") as refused:
            host.load("proving-2", str(base))
        alone = clients["de"].log_probs(promises["de"].references[0]).log_probs
        body = {"model": served[1].name, "prompt": "Once", "max_tokens": 120, "ignore_eos": True, "stream": True}
        with streamed(server.url, body) as response:
            response.readline()
            beside = clients["de"].log_probs(promises["de"].references[0]).log_probs
            host.unload(served[1].name)
            host.unload(served[1].name)  # it is gone already
            rest = response.read().decode()
        gone = VllmServer(server.url, adapter=served[1].name).served().model
    assert not refused.value.retriable
    assert ("[DONE]" in rest, '"error"' in rest, gone) == (True, False, "")
    assert beside == pytest.approx(alone, abs=0.1), "the stream's adapter changes nothing"
    passed = CheckOutcome.PASSED.value
    for found in right.values():
        assert (found["differsFromBase"], found["logProbabilities"], found["modelName"]) == (passed, passed, passed)
    assert swapped["logProbabilities"] == CheckOutcome.FAILED.value
    assert inactive["differsFromBase"] == CheckOutcome.FAILED.value
    assert of_base.outcome is CheckOutcome.PASSED, of_base.seen


def test_chats_with_tools_and_with_a_schema_are_proved(work: Path) -> None:
    """An untuned model copies calls, and records, from a conversation. What it answers in plain text is what an
    evaluation would have recorded; the server's own rendering, parser and grammars are to give the same."""
    model = ensure_smollm2(cache_directory())
    tokenizer = load_tokenizer(model)
    texts = {"label": "", "base": "", "tuned": "", "artifact": "", "max_tokens": 48}
    call = copied('<tool_call>\n{"name": "refund", "arguments": {"sum": %d, "to": "%s"}}\n</tool_call>')
    prompt, ids = chat.as_sent(tokenizer, chat.prompt_ids(tokenizer, call, TOOLS))
    calling = Answer(messages=call, tools=TOOLS, prompt=prompt, prompt_tokens=len(ids), calls=HERMES, **texts)
    recording = Answer(messages=copied('{"sum": %d, "to": "%s"}'), **texts)
    arguments = ["--enable-auto-tool-choice", "--tool-call-parser=hermes"]
    with vllm(model, work, arguments) as server:
        client = VllmServer(server.url)
        limits = client.served().limits
        asked = [each.model_copy(update=_answered(client.answer(each))) for each in (calling, recording)]
        of_calls = Promise(asked[:1], [], [], TaskType.TEXT, "Merged")
        of_records = Promise(asked[1:], [], [], TaskType.EXTRACTION, "Merged", answer_schema=WHO)
        checks = [
            *make_checks(observe(client, of_calls, limits, lambda *_: None), 75),
            *make_checks(observe(client, of_records, limits, lambda *_: None), 75),
        ]
        refused = client.hold_to(asked[1], IMPOSSIBLE)
    proved = {
        check.name: (check.outcome, check.seen) for check in checks if check.name in ("toolCalls", "answerSchema")
    }
    assert proved == {
        "toolCalls": (CheckOutcome.PASSED, "1 of 1, as streams 1"),
        "answerSchema": (CheckOutcome.PASSED, "1 of 1 match; 1 of 1 with the same fields"),
    }, asked
    assert isinstance(refused, RefusedForm), refused


def _answered(reply: Reply) -> dict[str, object]:
    return {"label": reply.text, "artifact": reply.text, "stopped": bool(reply.stopped)}
