"""The HTTP contract of Text Generation Inference 3.3 that this project builds on, checked on the CPU stand-in.

The same tests check a real TGI, started with MAX_CONCURRENT_REQUESTS=4, ENABLE_PREFILL_LOGPROBS=true, one LoRA adapter,
an API key and a model with a chat template: set ``TGI_URL`` (http://host:port), ``TGI_MODEL_ID`` (its MODEL_ID),
``TGI_ADAPTER`` (the adapter's id) and ``TGI_API_KEY``. Tests that stop, break or misconfigure a server do that to a
stand-in in any case.
"""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError, ValidationError

from finetune_jobs.artifacts.artifact import Answer
from finetune_jobs.verification import tgi as tgi_client
from finetune_jobs.verification.engine import RefusedForm
from finetune_jobs.verification.forms import PROBE
from tests.support.server_process import ServerProcess
from tests.support.tgi_client import TgiServer, eventually, long_answer, parse_event
from tests.support.tgi_process import tgi_cpu
from tests.support.tiny_model import VOCABULARY, build_tiny_int8, build_tiny_llama, build_tiny_lora, edit_json

pytestmark = [pytest.mark.unit, pytest.mark.slow]

PROMPT = "the quick brown"
ADAPTER = "pirate.v1"
API_KEY = "Secret"
GREEDY_CHAT: dict[str, Any] = {"max_tokens": 8, "temperature": 0.0}
MESSAGES: list[Any] = [{"role": "user", "content": "who is there"}]


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
    broken = {**added[-1], "id": VOCABULARY, "content": "<|broken|>"}
    edit_json(int8 / "tokenizer.json", added_tokens=[*added, broken])
    return folder


@pytest.fixture(scope="module")
def processes(folder: Path) -> Iterator[dict[str, ServerProcess]]:
    """Both stand-ins. One of them by a Python that makes its imports first, which may take as long as the other one's
    start: that one comes last, and is asked from its beginning."""
    with ExitStack() as stack:
        env = {"API_KEY": API_KEY, "MAX_CONCURRENT_REQUESTS": "4", "ENABLE_PREFILL_LOGPROBS": "true"}
        adapters = {ADAPTER: folder / "adapter"}
        started = {
            "base": stack.enter_context(tgi_cpu(folder / "base", folder, adapters=adapters, env=env, fresh=False)),
            "int8": stack.enter_context(tgi_cpu(folder / "int8", folder)),
        }
        for name in reversed(started):
            started[name].wait_until_ready()
        yield started
        for process in started.values():
            process.terminate()  # all of them, before the first is waited for


@pytest.fixture(scope="module")
def base(processes: dict[str, ServerProcess], folder: Path) -> TgiServer:
    """A stand-in for ``base`` with its adapter, behind an API key, for four requests at a time."""
    return TgiServer(processes["base"].url, str(folder / "base"), ADAPTER, API_KEY)


@pytest.fixture(scope="module")
def int8(processes: dict[str, ServerProcess], folder: Path) -> TgiServer:
    """A stand-in for ``int8``, without a key."""
    return TgiServer(processes["int8"].url, str(folder / "int8"), "", None)


@pytest.fixture(scope="module")
def tgi(base: TgiServer) -> TgiServer:
    """The server under test: the stand-in, or the TGI that the environment names."""
    if url := os.environ.get("TGI_URL"):
        return TgiServer(url, os.environ["TGI_MODEL_ID"], os.environ["TGI_ADAPTER"], os.environ["TGI_API_KEY"])
    return base


# The rules this project builds on; how a server ends is the last test of the file.


def test_port_is_closed_until_the_model_is_loaded(processes: dict[str, ServerProcess]) -> None:
    seen = processes["int8"].seen
    assert set(seen[:-1]) == {"refused"}
    assert seen[-1] == 200


def test_info_names_the_mounted_path(tgi: TgiServer) -> None:
    info = tgi.call("/info").json
    assert info["model_id"] == tgi.model_id
    assert info["model_sha"] is None
    assert info["version"].startswith("3.3")
    assert info["max_input_tokens"] < info["max_total_tokens"]
    assert [model["id"] for model in tgi.call("/v1/models").json["data"]] == [tgi.model_id]


def test_generate_with_details(tgi: TgiServer) -> None:
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


def test_probabilities_of_a_prompt_are_left_out_unless_the_launcher_enables_them(int8: TgiServer) -> None:
    parameters = {"max_new_tokens": 1, "details": True, "decoder_input_details": True}
    details = int8.call("/generate", {"inputs": PROMPT, "parameters": parameters}).json["details"]
    assert (details["prefill"], details["generated_tokens"]) == ([], 1)


def test_stream_counts_up_and_ends_with_the_text(tgi: TgiServer) -> None:
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 8, "details": True}}
    *events, last = tgi.events("/generate_stream", body)
    assert [event["index"] for event in [*events, last]] == list(range(1, 9))
    assert {event["generated_text"] for event in events} == {None}
    assert last["generated_text"] == tgi.generate(PROMPT)
    assert last["details"]["finish_reason"] == "length"
    assert last["details"]["generated_tokens"] == 8
    assert last["details"]["input_length"] > 0


def test_adapter_id_selects_an_adapter_and_an_unknown_one_is_the_base(tgi: TgiServer) -> None:
    base = tgi.generate(PROMPT)
    assert tgi.generate(PROMPT, adapter_id=tgi.adapter) != base
    assert tgi.generate(PROMPT, adapter_id="no-such-adapter") == base


def test_model_selects_an_adapter_and_an_unknown_one_is_the_base(tgi: TgiServer) -> None:
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


def test_too_long_an_input_is_422_and_an_event_inside_a_200_stream(tgi: TgiServer) -> None:
    longest = tgi.call("/info").json["max_input_tokens"]
    body = {"inputs": "the " * (longest + 2), "parameters": {"max_new_tokens": 1}}
    reply = tgi.call("/generate", body)
    assert reply.status == 422
    assert reply.json["error_type"] == "validation"
    assert reply.json["error"].startswith("Input validation error: `inputs` ")
    assert tgi.events("/generate_stream", body) == [reply.json]


def test_one_request_too_many_is_429_and_an_event_inside_a_200_stream(tgi: TgiServer) -> None:
    overloaded = {"error": "Model is overloaded", "error_type": "overloaded"}
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 8}}
    with tgi.occupied():
        reply = tgi.call("/generate", body)
        assert (reply.status, reply.json) == (429, overloaded)
        assert tgi.events("/generate_stream", body) == [overloaded]
    # A client that goes away gives its place back.
    assert eventually(lambda: tgi.call("/generate", body).status == 200)


def test_only_generate_routes_need_the_key(tgi: TgiServer) -> None:
    without_key = replace(tgi, api_key=None)
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
        refused = without_key.call(path, body)
        assert (path, refused.status, refused.text) == (path, 401, "")
        assert (path, tgi.call(path, body).status) == (path, 200)
    for path, body in {**public, "/chat_tokenize": chat}.items():
        assert (path, without_key.call(path, body).status) == (path, 200)
    assert tgi.api_key is not None
    assert replace(tgi, api_key=tgi.api_key.upper()).call("/generate", generate).status == 200


def test_metrics_count_requests_and_name_failures(tgi: TgiServer) -> None:
    series = (
        "tgi_request_count",
        "tgi_request_success",
        'tgi_request_failure{err="validation"}',
        "tgi_request_duration_count",
    )
    before = [tgi.metric(name) for name in series]
    tgi.generate(PROMPT)
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


def test_inference_client_generates(tgi: TgiServer) -> None:
    client = InferenceClient(tgi.url, token=tgi.api_key, timeout=120)
    base = client.text_generation(PROMPT, max_new_tokens=8, return_full_text=False)
    assert base == tgi.generate(PROMPT)
    assert client.text_generation(PROMPT, max_new_tokens=8) == PROMPT + base  # POST / returns the prompt as well
    adapted = client.text_generation(PROMPT, max_new_tokens=8, return_full_text=False, adapter_id=tgi.adapter)
    assert adapted == tgi.generate(PROMPT, adapter_id=tgi.adapter)
    *_, last = client.text_generation(PROMPT, max_new_tokens=8, return_full_text=False, stream=True, details=True)
    assert last.generated_text == base
    with pytest.raises(ValidationError):
        client.text_generation("")


def test_inference_client_chats(tgi: TgiServer) -> None:
    client = InferenceClient(tgi.url, token=tgi.api_key, timeout=120)
    answer = client.chat_completion(MESSAGES, **GREEDY_CHAT).choices[0].message.content
    chunks = client.chat_completion(MESSAGES, **GREEDY_CHAT, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer
    adapted = InferenceClient(base_url=tgi.url, api_key=tgi.api_key, timeout=120)
    assert adapted.chat_completion(MESSAGES, model=tgi.adapter, **GREEDY_CHAT).choices[0].message.content != answer
    with pytest.raises(HfHubHTTPError) as refused:
        client.chat_completion(MESSAGES, top_p=1.5)
    assert refused.value.response.status_code == 422


def test_openai_client_chats_completes_and_lists(tgi: TgiServer) -> None:
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
    assert [choice.text for choice in completion.choices] == [tgi.generate(PROMPT), tgi.generate("refund")]
    assert [model.id for model in client.models.list()] == [tgi.model_id]
    with pytest.raises(openai.UnprocessableEntityError):
        client.chat.completions.create(model="tgi", messages=MESSAGES, top_p=1.5)


# Requests that are refused.


def test_the_verification_is_told_that_there_are_no_grammars(base: TgiServer) -> None:
    """So the check is skipped, in TGI's own words."""
    asked = Answer(messages=MESSAGES, label="", base="", tuned="", artifact="")
    refused = tgi_client.TgiServer(base.url, key=API_KEY).hold_to(asked, PROBE)
    assert isinstance(refused, RefusedForm)
    assert "grammar is not supported" in refused.why


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
def test_a_value_against_the_rules_is_422(tgi: TgiServer, parameters: dict[str, Any], message: str) -> None:
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
    tgi: TgiServer, path: str, body: str, content_type: str, status: int, text: str
) -> None:
    reply = tgi.call(path, body, content_type=content_type)
    assert (reply.status, reply.headers["content-type"].split(";")[0]) == (status, "text/plain")
    assert reply.text.startswith(text)


def test_a_chat_template_that_only_transformers_5_reads_is_422(int8: TgiServer) -> None:
    for path in ("/v1/chat/completions", "/chat_tokenize"):
        reply = int8.call(path, {"messages": MESSAGES, "stream": True})
        assert (reply.status, reply.json["error"]) == (422, "Template error: template not found")


def test_a_failure_in_the_model_is_424_and_the_server_goes_on(int8: TgiServer) -> None:
    body = {"inputs": f"{PROMPT}<|broken|>", "parameters": {"max_new_tokens": 1}}
    reply = int8.call("/generate", body)
    assert (reply.status, reply.json["error_type"]) == (424, "generation")
    assert int8.events("/generate_stream", body) == [reply.json]
    assert int8.metric('tgi_request_failure{err="generation"}') == 2
    assert int8.call("/health").status == 200
    assert int8.generate(PROMPT)


# Answers.


def test_an_int8_checkpoint_answers_almost_as_its_base(base: TgiServer, int8: TgiServer) -> None:
    def first_logprobs(server: TgiServer) -> dict[int, float]:
        parameters = {"max_new_tokens": 1, "details": True, "top_n_tokens": 5}
        reply = server.call("/generate", {"inputs": PROMPT, "parameters": parameters}).json
        return {token["id"]: token["logprob"] for token in reply["details"]["top_tokens"][0]}

    exact, quantized = first_logprobs(base), first_logprobs(int8)
    shared = exact.keys() & quantized.keys()
    assert len(shared) >= 3
    assert max(abs(exact[token] - quantized[token]) for token in shared) < 0.2
    assert exact != quantized


def test_answers_in_a_batch_are_the_answers_alone(int8: TgiServer) -> None:
    """Prompts of different lengths share a padded batch; the padding must not be seen."""
    prompts = ["a", "the quick brown fox jumps over the lazy dog", "refund my order", "what is the capital of France"]
    alone = [int8.generate(prompt, max_new_tokens=30) for prompt in prompts]
    with ThreadPoolExecutor(len(prompts)) as pool:
        together = list(pool.map(lambda prompt: int8.generate(prompt, max_new_tokens=30), prompts))
    assert together == alone


def test_sampling_follows_its_seed_and_no_parameters_means_sampling(int8: TgiServer) -> None:
    def answer(**parameters: Any) -> str:
        return int8.generate(PROMPT, max_new_tokens=20, temperature=2.0, **parameters)

    assert answer(seed=1) == answer(seed=1)
    assert answer(seed=1) != answer(seed=2)
    assert answer(seed=3, top_k=1) == int8.generate(PROMPT, max_new_tokens=20)  # one candidate is greedy
    details = int8.call("/generate", {"inputs": PROMPT, "parameters": {"details": True, "max_new_tokens": 1}}).json
    assert details["details"]["seed"] is None
    penalised = int8.generate(PROMPT, max_new_tokens=40, repetition_penalty=2.0, frequency_penalty=1.5)
    assert penalised != int8.generate(PROMPT, max_new_tokens=40)


def test_a_stop_sequence_ends_the_answer_and_stays_in_it(tgi: TgiServer) -> None:
    whole = tgi.generate(PROMPT, max_new_tokens=12)
    stop = whole[4:6]
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 12, "stop": [stop], "details": True}}
    reply = tgi.call("/generate", body).json
    assert reply["details"]["finish_reason"] == "stop_sequence"
    assert reply["generated_text"].endswith(stop)
    assert whole.startswith(reply["generated_text"])


def test_an_assistant_message_at_the_end_is_continued(tgi: TgiServer) -> None:
    begun = [*MESSAGES, {"role": "assistant", "content": "It is I, and"}]
    templated = tgi.call("/chat_tokenize", {"messages": begun}).json["templated_text"]
    assert templated.endswith("It is I, and")
    tokens = tgi.call("/tokenize", {"inputs": "thé quick"}).json
    assert [token["stop"] for token in tokens][-1] == len("thé quick".encode())


def test_sigterm_closes_the_port_finishes_the_stream_and_exits_0(
    int8: TgiServer, processes: dict[str, ServerProcess]
) -> None:
    """The last test, because it is the end of the server for ``int8``."""
    process = processes["int8"]
    with int8.open("/generate_stream", long_answer(400)) as response:
        first = parse_event(response.readline())
        process.terminate()
        assert eventually(int8.refuses)
        assert process.process.poll() is None  # still at work on the stream
        rest = [parse_event(line) for line in response.read().decode().splitlines() if line.startswith("data:")]
    assert [event["index"] for event in [first, *rest]] == list(range(1, 401))
    assert rest[-1]["generated_text"] is not None
    assert process.process.wait(timeout=60) == 0
