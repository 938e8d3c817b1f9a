"""The HTTP contract of Text Generation Inference 3.3 that this project builds on, checked on the CPU stand-in.

The same tests check a real TGI, started with MAX_CONCURRENT_REQUESTS=4, one LoRA adapter, an API key and a model with
a chat template: set ``TGI_URL`` (http://host:port), ``TGI_MODEL_ID`` (its MODEL_ID), ``TGI_ADAPTER`` (the adapter's id)
and ``TGI_API_KEY``. Tests that stop, break or misconfigure a server do that to a stand-in in any case.
"""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import openai
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError, ValidationError

from tests.support.tgi_process import TgiProcess, tgi_cpu
from tests.support.tiny_model import VOCABULARY, build_tiny_int8, build_tiny_llama, build_tiny_lora, edit_json
from tgi_cpu.args import parse_args
from tgi_cpu.dialect import CheckpointFiles

pytestmark = pytest.mark.unit

PROMPT = "the quick brown"
ADAPTER = "pirate.v1"
API_KEY = "Secret"
BROKEN_TOKEN = "<|broken|>"
GREEDY_CHAT: dict[str, Any] = {"max_tokens": 8, "temperature": 0.0}
MESSAGES: list[Any] = [{"role": "user", "content": "who is there"}]


@dataclass(frozen=True, slots=True)
class Reply:
    """A response that was read to its end."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.text)


@dataclass(frozen=True, slots=True)
class Server:
    """A server under test, reached as an ordinary client would."""

    url: str
    model_id: str
    adapter: str
    api_key: str | None

    def open(self, path: str, body: Any = None, *, content_type: str = "application/json") -> HTTPResponse:
        """POST a body (GET without one). The caller reads the response."""
        data = body.encode() if isinstance(body, str) else None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data)
        if data is not None:
            request.add_header("content-type", content_type)
        if self.api_key is not None:
            request.add_header("authorization", f"Bearer {self.api_key}")
        response: HTTPResponse = urllib.request.urlopen(request, timeout=120)
        return response

    def call(self, path: str, body: Any = None, *, content_type: str = "application/json") -> Reply:
        """Request and read everything, an error status too."""
        try:
            with self.open(path, body, content_type=content_type) as response:
                return Reply(response.status, _lower(response.headers.items()), response.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                return Reply(error.code, _lower(error.headers.items()), error.read().decode())

    def generate(self, inputs: str = PROMPT, **parameters: Any) -> str:
        """A greedy answer's text."""
        reply = self.call("/generate", {"inputs": inputs, "parameters": {"max_new_tokens": 8, **parameters}})
        assert reply.status == 200, reply.text
        return str(reply.json["generated_text"])

    def events(self, path: str, body: Any) -> list[Any]:
        """Every event of a stream; "[DONE]" stays text."""
        reply = self.call(path, body)
        assert (reply.status, reply.headers["content-type"].split(";")[0]) == (200, "text/event-stream")
        return [_event(line) for line in reply.text.splitlines() if line.startswith("data:")]

    def metric(self, series: str) -> float:
        """The value of a series in ``/metrics``; 0 while nothing was recorded in it."""
        values = dict(
            line.rsplit(" ", 1) for line in self.call("/metrics").text.splitlines() if line[:1] not in ("", "#")
        )
        return float(values.get(series, 0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints ``base`` and ``int8`` with an adapter; ``int8`` is also what TGI cannot chat with (its template is
    only in chat_template.jinja), and has a token that the model has no embedding for."""
    folder = tmp_path_factory.mktemp("tgi-cpu")
    base = build_tiny_llama(folder / "base")
    build_tiny_lora(folder / "adapter", base)
    int8 = build_tiny_int8(folder / "int8", base)
    edit_json(int8 / "tokenizer_config.json", chat_template=None)
    (int8 / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    added = json.loads((int8 / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    broken = {**added[-1], "id": VOCABULARY, "content": BROKEN_TOKEN}
    edit_json(int8 / "tokenizer.json", added_tokens=[*added, broken])
    return folder


@pytest.fixture(scope="module")
def processes(folder: Path) -> Iterator[dict[str, TgiProcess]]:
    """Both stand-ins, started together: their starts are mostly imports."""
    with ExitStack() as stack:
        env = {"API_KEY": API_KEY, "MAX_CONCURRENT_REQUESTS": "4"}
        started = {
            "int8": stack.enter_context(tgi_cpu(folder / "int8", folder)),
            "base": stack.enter_context(
                tgi_cpu(folder / "base", folder, adapters={ADAPTER: folder / "adapter"}, env=env)
            ),
        }
        for process in started.values():
            process.wait_until_ready()
        yield started
        for process in started.values():
            process.terminate()  # all of them, before the first is waited for


@pytest.fixture(scope="module")
def base(processes: dict[str, TgiProcess], folder: Path) -> Server:
    """A stand-in for ``base`` with its adapter, behind an API key, for four requests at a time."""
    return Server(processes["base"].url, str(folder / "base"), ADAPTER, API_KEY)


@pytest.fixture(scope="module")
def int8(processes: dict[str, TgiProcess], folder: Path) -> Server:
    """A stand-in for ``int8``, without a key."""
    return Server(processes["int8"].url, str(folder / "int8"), "", None)


@pytest.fixture(scope="module")
def tgi(base: Server) -> Server:
    """The server under test: the stand-in, or the TGI that the environment names."""
    if url := os.environ.get("TGI_URL"):
        return Server(url, os.environ["TGI_MODEL_ID"], os.environ["TGI_ADAPTER"], os.environ["TGI_API_KEY"])
    return base


# The rules this project builds on; how a server ends is the last test of the file.


def test_port_is_closed_until_the_model_is_loaded(processes: dict[str, TgiProcess]) -> None:
    seen = processes["int8"].seen
    assert set(seen[:-1]) == {"refused"}
    assert seen[-1] == 200


def test_info_names_the_mounted_path(tgi: Server) -> None:
    info = tgi.call("/info").json
    assert info["model_id"] == tgi.model_id
    assert info["model_sha"] is None
    assert info["version"].startswith("3.3")
    assert info["max_input_tokens"] < info["max_total_tokens"]
    assert [model["id"] for model in tgi.call("/v1/models").json["data"]] == [tgi.model_id]


def test_generate_with_details(tgi: Server) -> None:
    parameters = {"max_new_tokens": 5, "details": True, "decoder_input_details": True}
    reply = tgi.call("/generate", {"inputs": PROMPT, "parameters": parameters})
    details = reply.json["details"]
    assert set(details) == {"finish_reason", "generated_tokens", "seed", "prefill", "tokens"}
    assert (details["finish_reason"], details["generated_tokens"], details["seed"]) == ("length", 5, None)
    assert [set(token) for token in details["tokens"]] == [{"id", "text", "logprob", "special"}] * 5
    assert all(token["logprob"] <= 0 for token in details["tokens"])
    assert details["prefill"][0]["logprob"] is None
    assert all(token["logprob"] < 0 for token in details["prefill"][1:])
    assert reply.headers["x-generated-tokens"] == "5"
    assert reply.headers["x-prompt-tokens"] == str(len(details["prefill"]))
    assert {"x-total-time", "x-queue-time", "x-inference-time", "x-time-per-token"} < set(reply.headers)


def test_stream_counts_up_and_ends_with_the_text(tgi: Server) -> None:
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 8, "details": True}}
    *events, last = tgi.events("/generate_stream", body)
    assert [event["index"] for event in [*events, last]] == list(range(1, 9))
    assert {event["generated_text"] for event in events} == {None}
    assert last["generated_text"] == tgi.generate()
    assert last["details"]["finish_reason"] == "length"
    assert last["details"]["generated_tokens"] == 8
    assert last["details"]["input_length"] > 0


def test_adapter_id_selects_an_adapter_and_an_unknown_one_is_the_base(tgi: Server) -> None:
    base = tgi.generate()
    assert tgi.generate(adapter_id=tgi.adapter) != base
    assert tgi.generate(adapter_id="no-such-adapter") == base


def test_model_selects_an_adapter_and_an_unknown_one_is_the_base(tgi: Server) -> None:
    def answer(model: str | None) -> tuple[str, str]:
        body = tgi.call("/v1/chat/completions", {"model": model, "messages": MESSAGES, **GREEDY_CHAT}).json
        return body["model"], body["choices"][0]["message"]["content"]

    named_base, base = answer("tgi")
    assert named_base == tgi.model_id
    assert answer(None) == (tgi.model_id, base)
    named_adapter, adapted = answer(tgi.adapter)
    assert named_adapter == tgi.adapter
    assert adapted != base
    assert answer("no-such-adapter") == ("no-such-adapter", base)


def test_too_long_an_input_is_422_and_an_event_inside_a_200_stream(tgi: Server) -> None:
    longest = tgi.call("/info").json["max_input_tokens"]
    body = {"inputs": "the " * (longest + 2), "parameters": {"max_new_tokens": 1}}
    reply = tgi.call("/generate", body)
    assert reply.status == 422
    assert reply.json["error_type"] == "validation"
    assert reply.json["error"].startswith("Input validation error: `inputs` ")
    assert tgi.events("/generate_stream", body) == [reply.json]


def test_one_request_too_many_is_429_and_an_event_inside_a_200_stream(tgi: Server) -> None:
    overloaded = {"error": "Model is overloaded", "error_type": "overloaded"}
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 8}}
    with _full(tgi):
        reply = tgi.call("/generate", body)
        assert (reply.status, reply.json) == (429, overloaded)
        assert tgi.events("/generate_stream", body) == [overloaded]
    # A client that goes away gives its place back.
    assert _eventually(lambda: tgi.call("/generate", body).status == 200)


def test_only_generate_routes_need_the_key(tgi: Server) -> None:
    stranger = replace(tgi, api_key=None)
    generate = {"inputs": PROMPT, "parameters": {"max_new_tokens": 1}}
    chat = {"messages": MESSAGES, "max_tokens": 1}
    guarded = {
        "/": generate,
        "/generate": generate,
        "/generate_stream": generate,
        "/tokenize": generate,
        "/v1/chat/completions": chat,
        "/v1/completions": {"prompt": PROMPT, "max_tokens": 1},
    }
    public = dict.fromkeys(("/", "/health", "/ping", "/info", "/metrics", "/v1/models"))
    for path, body in guarded.items():
        refused = stranger.call(path, body)
        assert (path, refused.status, refused.text) == (path, 401, "")
        assert (path, tgi.call(path, body).status) == (path, 200)
    for path, body in {**public, "/chat_tokenize": chat}.items():
        assert (path, stranger.call(path, body).status) == (path, 200)
    assert tgi.api_key is not None
    assert replace(tgi, api_key=tgi.api_key.upper()).call("/generate", generate).status == 200


def test_metrics_count_requests_and_name_failures(tgi: Server) -> None:
    series = (
        "tgi_request_count",
        "tgi_request_success",
        'tgi_request_failure{err="validation"}',
        "tgi_request_duration_count",
    )
    before = [tgi.metric(name) for name in series]
    tgi.generate()
    tgi.events("/generate_stream", {"inputs": "", "parameters": {}})
    after = [tgi.metric(name) for name in series]
    assert [now - then for now, then in zip(after, before, strict=True)] == [2, 1, 1, 1]
    text = tgi.call("/metrics").text
    for name, kind in (
        ("tgi_request_count", "counter"),
        ("tgi_queue_size", "gauge"),
        ("tgi_batch_current_size", "gauge"),
        ("tgi_request_queue_duration", "histogram"),
        ("tgi_batch_inference_duration", "histogram"),
    ):
        assert f"# TYPE {name} {kind}\n" in text


# What clients do with it.


def test_inference_client_generates(tgi: Server) -> None:
    client = InferenceClient(tgi.url, token=tgi.api_key, timeout=120)
    base = client.text_generation(PROMPT, max_new_tokens=8, return_full_text=False)
    assert base == tgi.generate()
    assert client.text_generation(PROMPT, max_new_tokens=8) == PROMPT + base  # POST / returns the prompt as well
    adapted = client.text_generation(PROMPT, max_new_tokens=8, return_full_text=False, adapter_id=tgi.adapter)
    assert adapted == tgi.generate(adapter_id=tgi.adapter)
    *_, last = client.text_generation(PROMPT, max_new_tokens=8, return_full_text=False, stream=True, details=True)
    assert last.generated_text == base
    with pytest.raises(ValidationError):
        client.text_generation("")


def test_inference_client_chats(tgi: Server) -> None:
    client = InferenceClient(tgi.url, token=tgi.api_key, timeout=120)
    answer = client.chat_completion(MESSAGES, **GREEDY_CHAT).choices[0].message.content
    chunks = client.chat_completion(MESSAGES, **GREEDY_CHAT, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer
    adapted = InferenceClient(base_url=tgi.url, api_key=tgi.api_key, timeout=120)
    assert adapted.chat_completion(MESSAGES, model=tgi.adapter, **GREEDY_CHAT).choices[0].message.content != answer
    with pytest.raises(HfHubHTTPError) as refused:
        client.chat_completion(MESSAGES, top_p=1.5)
    assert refused.value.response.status_code == 422


def test_openai_client_chats_completes_and_lists(tgi: Server) -> None:
    client = openai.OpenAI(base_url=f"{tgi.url}/v1", api_key=tgi.api_key, timeout=120, max_retries=0)
    whole = client.chat.completions.create(model="tgi", messages=MESSAGES, **GREEDY_CHAT)
    answer = whole.choices[0].message.content
    assert (whole.choices[0].finish_reason, whole.usage and whole.usage.completion_tokens) == ("length", 8)
    options: Any = {"include_usage": True}
    *chunks, usage = client.chat.completions.create(
        model="tgi", messages=MESSAGES, stream=True, stream_options=options, **GREEDY_CHAT
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer
    assert (usage.choices, usage.usage) == ([], whole.usage)
    adapted = client.chat.completions.create(model=tgi.adapter, messages=MESSAGES, **GREEDY_CHAT)
    assert adapted.choices[0].message.content != answer
    completion = client.completions.create(model="tgi", prompt=[PROMPT, "refund"], **GREEDY_CHAT)
    assert [choice.text for choice in completion.choices] == [tgi.generate(), tgi.generate("refund")]
    assert [model.id for model in client.models.list()] == [tgi.model_id]
    with pytest.raises(openai.UnprocessableEntityError):
        client.chat.completions.create(model="tgi", messages=MESSAGES, top_p=1.5)


# Requests that are refused.


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"temperature": 0.0}, "`temperature` must be strictly positive"),
        ({"top_p": 1.0}, "`top_p` must be > 0.0 and < 1.0"),
        ({"top_k": 0}, "`top_k` must be strictly positive"),
        ({"typical_p": 0.0}, "`typical_p` must be > 0.0 and < 1.0"),
        ({"repetition_penalty": 0.0}, "`repetition_penalty` must be strictly positive"),
        ({"frequency_penalty": 2.5}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
        ({"max_new_tokens": 0}, "`max_new_tokens` must be strictly positive"),
        ({"stop": list("abcde")}, "`stop` supports up to 4 stop sequences. Given: 5"),
        ({"top_n_tokens": 6}, "`top_n_tokens` must be >= 0 and <= 5. Given: 6"),
        ({"best_of": 2}, "you must use sampling when `best_of` is > 1"),
        ({"best_of": 2, "do_sample": True, "seed": 1}, "`seed` must not be set when `best_of` > 1"),
        ({"best_of": 3, "do_sample": True}, "`best_of` must be > 0 and <= 2. Given: 3"),
        ({"truncate": 0}, "`truncate` must be strictly positive and less than"),
    ],
)
def test_a_value_against_the_rules_is_422(tgi: Server, parameters: dict[str, Any], message: str) -> None:
    reply = tgi.call("/generate", {"inputs": PROMPT, "parameters": parameters})
    assert (reply.status, reply.json["error_type"]) == (422, "validation")
    assert reply.json["error"].startswith(f"Input validation error: {message}")


@pytest.mark.parametrize(
    ("path", "body", "content_type", "status", "text"),
    [
        ("/generate", "{", "application/json", 400, "Failed to parse the request body as JSON"),
        ("/generate", "{}", "text/plain", 415, "Expected request with `Content-Type: application/json`"),
        ("/generate", "{}", "application/json", 422, "Failed to deserialize the JSON body into the target type"),
        ("/generate_stream", '{"inputs": 1}', "application/json", 422, "Failed to deserialize the JSON body"),
        ("/v1/chat/completions", "{}", "application/json", 422, "Failed to deserialize the JSON body"),
        ("/generate", json.dumps({"inputs": "x" * 2_000_001}), "application/json", 413, "Failed to buffer the request"),
    ],
)  # fmt: skip
def test_a_body_that_cannot_be_read_is_plain_text(
    tgi: Server, path: str, body: str, content_type: str, status: int, text: str
) -> None:
    reply = tgi.call(path, body, content_type=content_type)
    assert (reply.status, reply.headers["content-type"].split(";")[0]) == (status, "text/plain")
    assert reply.text.startswith(text)


def test_a_chat_template_that_only_transformers_5_reads_is_422(int8: Server) -> None:
    expected = {"error": "Template error: template not found", "error_type": "template_error"}
    for path in ("/v1/chat/completions", "/chat_tokenize"):
        reply = int8.call(path, {"messages": MESSAGES, "stream": True})
        assert (reply.status, reply.json) == (422, expected)


def test_a_failure_in_the_model_is_424_and_the_server_goes_on(int8: Server) -> None:
    body = {"inputs": f"{PROMPT}{BROKEN_TOKEN}", "parameters": {"max_new_tokens": 1}}
    reply = int8.call("/generate", body)
    assert (reply.status, reply.json["error_type"]) == (424, "generation")
    assert int8.events("/generate_stream", body) == [reply.json]
    assert int8.metric('tgi_request_failure{err="generation"}') == 2
    assert int8.call("/health").status == 200
    assert int8.generate()


# Answers.


def test_an_int8_checkpoint_answers_almost_as_its_base(base: Server, int8: Server) -> None:
    def first_logprobs(server: Server) -> dict[int, float]:
        parameters = {"max_new_tokens": 1, "details": True, "top_n_tokens": 5}
        reply = server.call("/generate", {"inputs": PROMPT, "parameters": parameters}).json
        return {token["id"]: token["logprob"] for token in reply["details"]["top_tokens"][0]}

    exact, quantized = first_logprobs(base), first_logprobs(int8)
    shared = exact.keys() & quantized.keys()
    assert len(shared) >= 3
    assert max(abs(exact[token] - quantized[token]) for token in shared) < 0.2
    assert exact != quantized


def test_answers_in_a_batch_are_the_answers_alone(int8: Server) -> None:
    """Prompts of different lengths share a padded batch; the padding must not be seen."""
    prompts = ["a", "the quick brown fox jumps over the lazy dog", "refund my order", "what is the capital of France"]
    alone = [int8.generate(prompt, max_new_tokens=30) for prompt in prompts]
    with ThreadPoolExecutor(len(prompts)) as pool:
        together = list(pool.map(lambda prompt: int8.generate(prompt, max_new_tokens=30), prompts))
    assert together == alone


def test_sampling_follows_its_seed_and_no_parameters_means_sampling(int8: Server) -> None:
    def answer(**parameters: Any) -> str:
        return int8.generate(max_new_tokens=20, temperature=2.0, **parameters)

    assert answer(seed=1) == answer(seed=1)
    assert answer(seed=1) != answer(seed=2)
    assert answer(seed=3, top_k=1) == int8.generate(max_new_tokens=20)  # one candidate is greedy
    details = int8.call("/generate", {"inputs": PROMPT, "parameters": {"details": True, "max_new_tokens": 1}}).json
    assert details["details"]["seed"] is None
    penalised = int8.generate(max_new_tokens=40, repetition_penalty=2.0, frequency_penalty=1.5)
    assert penalised != int8.generate(max_new_tokens=40)


def test_a_stop_sequence_ends_the_answer_and_stays_in_it(tgi: Server) -> None:
    whole = tgi.generate(max_new_tokens=12)
    stop = whole[4:6]
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 12, "stop": [stop], "details": True}}
    reply = tgi.call("/generate", body).json
    assert reply["details"]["finish_reason"] == "stop_sequence"
    assert reply["generated_text"].endswith(stop)
    assert whole.startswith(reply["generated_text"])


def test_an_assistant_message_at_the_end_is_continued(tgi: Server) -> None:
    begun = [*MESSAGES, {"role": "assistant", "content": "It is I, and"}]
    templated = tgi.call("/chat_tokenize", {"messages": begun}).json["templated_text"]
    assert templated.endswith("It is I, and")
    tokens = tgi.call("/tokenize", {"inputs": "thé quick"}).json
    assert [token["stop"] for token in tokens][-1] == len("thé quick".encode())


# Starts that fail: status 1 and a reason, before anything slow happens.


@pytest.mark.parametrize(
    ("env", "status", "reason"),
    [
        ({"MAX_INPUT_TOKENS": "8", "MAX_TOTAL_TOKENS": "8"}, 1, "`max_input_tokens`(8) must be < `max_total_tokens`"),
        ({"MAX_TOTAL_TOKENS": "9", "MAX_BATCH_TOTAL_TOKENS": "8"}, 1, "must be <= `max_batch_total_tokens`"),
        ({"LORA_ADAPTERS": "a=/b=c"}, 1, "Invalid LoRA adapter format: a=/b=c"),
        ({"LORA_ADAPTERS": "a=/no/such/adapter"}, 1, "/no/such/adapter/adapter_config.json is missing"),
        ({"MODEL_ID": "org/model"}, 1, "org/model is no folder"),
        ({"REVISION": "main"}, 1, "REVISION=main"),
        ({"QUANTIZE": "bitsandbytes-nf4"}, 1, "quantization is not available on CPU"),
        ({"TRUST_REMOTE_CODE": "true"}, 1, "TRUST_REMOTE_CODE is not supported"),
        ({"QUANTIZE": "nf4"}, 2, "invalid value 'nf4'"),
        ({"MASTER_PORT": "tcp://10.0.0.1:80"}, 2, "--master-port"),
    ],
)  # fmt: skip
def test_launcher_refuses(folder: Path, env: dict[str, str], status: int, reason: str) -> None:
    start = _start({"MODEL_ID": str(folder / "base"), **env})
    assert (start.returncode, reason in start.stderr) == (status, True), start.stderr


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        ("tokenizer_config.json", {"tokenizer_class": "TokenizersBackend"}, "Tokenizer class TokenizersBackend does"),
        ("tokenizer_config.json", {"extra_special_tokens": ["<x>"]}, "'list' object has no attribute 'keys'"),
        ("config.json", {"quantization_config": {"quant_method": "gptq"}}, "quantization gptq"),
    ],
)  # fmt: skip
def test_a_checkpoint_that_tgi_cannot_read_is_refused(
    tmp_path: Path, file: str, change: dict[str, Any], reason: str
) -> None:
    model = build_tiny_llama(tmp_path)
    edit_json(model / file, **change)
    start = _start({"MODEL_ID": str(model)})
    assert (start.returncode, reason in start.stderr) == (1, True), start.stderr


@pytest.mark.parametrize(
    ("config", "theta"),
    [
        ({"rope_theta": 500000.0}, None),
        ({"rope_theta": 500000.0, "rope_parameters": {"rope_theta": 500000.0}}, None),
        ({"rope_parameters": {"rope_theta": 500000.0}}, 10000.0),  # what TGI silently reads
        ({}, None),
    ],
)
def test_the_rotary_base_is_read_as_transformers_4_reads_it(config: dict[str, Any], theta: float | None) -> None:
    override = CheckpointFiles(Path(), config, None).rope_override
    assert (None if override is None else override["rope_theta"]) == theta


@pytest.mark.parametrize(("hostname", "bound"), [("127.0.0.1", "127.0.0.1"), ("::", "::"), ("tgi-6f5b-x2x", "0.0.0.0")])
def test_a_pod_name_in_hostname_means_every_interface(hostname: str, bound: str) -> None:
    assert parse_args([], {"HOSTNAME": hostname}).hostname == bound


def test_sigterm_closes_the_port_finishes_the_stream_and_exits_0(
    int8: Server, processes: dict[str, TgiProcess]
) -> None:
    """The last test, because it is the end of the server for ``int8``."""
    process = processes["int8"]
    with int8.open("/generate_stream", _long_answer(400)) as response:
        first = _event(response.readline())
        process.terminate()
        assert _eventually(lambda: _refused(int8))
        assert process.process.poll() is None  # still at work on the stream
        rest = [_event(line) for line in response.read().decode().splitlines() if line.startswith("data:")]
    assert [event["index"] for event in [first, *rest]] == list(range(1, 401))
    assert rest[-1]["generated_text"] is not None
    assert process.process.wait(timeout=60) == 0


@contextmanager
def _full(server: Server) -> Iterator[None]:
    """Fill every place with a long stream, and leave them all unread."""
    with ExitStack() as stack:
        for _ in range(server.call("/info").json["max_concurrent_requests"]):
            stream = stack.enter_context(server.open("/generate_stream", _long_answer(1000)))
            assert "token" in _event(stream.readline())
        yield


def _long_answer(tokens: int) -> dict[str, Any]:
    return {"inputs": PROMPT, "parameters": {"max_new_tokens": tokens}}


def _event(line: str | bytes) -> Any:
    data = (line.decode() if isinstance(line, bytes) else line).removeprefix("data:").strip()
    return data if data in ("", "[DONE]") else json.loads(data)


def _lower(headers: list[tuple[str, str]]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers}


def _refused(server: Server) -> bool:
    try:
        server.call("/health")
    except urllib.error.URLError as error:
        return isinstance(error.reason, ConnectionRefusedError)
    return False


def _eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def _start(env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tgi_cpu"],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
