"""TGI's rendering: what the launcher is told, checked by the stand-in's own reading of TGI's flags."""

import math

import pytest
from pydantic import ValidationError

from finetune_operator.runtimes import serving_plan
from finetune_operator.runtimes.plan import ServedModel
from finetune_operator.settings import Engine, Runtime
from tgi_cpu.args import parse_args

pytestmark = pytest.mark.unit

MODEL = ServedModel("/models/" + "a" * 64 + "/model", "demo")


def runtime(**fields: object) -> Runtime:
    return Runtime.model_validate({"engine": Engine.TGI, "image": "tgi:3.3.7", **fields})


def test_the_launcher_takes_the_environment() -> None:
    plan = serving_plan(runtime(max_input_tokens=256, max_total_tokens=320), MODEL)
    args = parse_args(list(plan.args), plan.env)
    assert (args.model_id, args.port) == (MODEL.path, 8080)
    assert (args.max_input_tokens, args.max_total_tokens) == (256, 320)


def test_limits_that_leave_no_room_for_an_answer_are_refused() -> None:
    """The server would not start; its pods would crash again and again."""
    with pytest.raises(ValidationError, match="maxInputTokens 2048 leaves no room for an answer"):
        runtime(max_input_tokens=2048)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MODEL_ID", "somebody/else"),
        ("PORT", "80"),
        ("HF_HUB_OFFLINE", "0"),
        ("USAGE_STATS", "on"),
        ("ENABLE_PREFILL_LOGPROBS", "false"),
        ("NUM_SHARD", "8"),
        ("GRACEFUL_TERMINATION_TIMEOUT", "3600"),
        ("HOME", "/root"),
    ],
)
def test_the_admins_settings_cannot_change_what_the_operator_relies_on(name: str, value: str) -> None:
    plain, changed = serving_plan(runtime(), MODEL), serving_plan(runtime(env={name: value}), MODEL)
    assert changed.env[name] == plain.env[name] != value


@pytest.mark.parametrize(("name", "value"), [("CUDA_GRAPHS", "0"), ("JSON_OUTPUT", "false"), ("MAX_BATCH_SIZE", "4")])
def test_other_settings_go_through(name: str, value: str) -> None:
    assert serving_plan(runtime(env={name: value}), MODEL).env[name] == value


def test_a_revision_of_the_hub_is_never_named() -> None:
    assert "REVISION" not in serving_plan(runtime(), MODEL).env


@pytest.mark.parametrize("seconds", [1, 60, 61, 1800])
def test_the_startup_probe_gives_the_whole_time_and_not_much_more(seconds: int) -> None:
    probe = serving_plan(runtime(startup_timeout_seconds=seconds), MODEL).startup
    assert seconds <= probe["periodSeconds"] * probe["failureThreshold"] < seconds + probe["periodSeconds"]
    assert probe["failureThreshold"] == math.ceil(seconds / probe["periodSeconds"])


def test_a_slow_answer_takes_a_pod_out_long_before_it_is_restarted() -> None:
    plan = serving_plan(runtime(), MODEL)
    out, restart = (probe["periodSeconds"] * probe["failureThreshold"] for probe in (plan.readiness, plan.liveness))
    assert out * 10 <= restart


def test_drain_and_grace_come_from_the_runtime() -> None:
    plan = serving_plan(runtime(drain_seconds=7, termination_grace_seconds=99), MODEL)
    assert (plan.drain_seconds, plan.grace_seconds) == (7, 99)


@pytest.mark.parametrize(
    ("drain", "grace", "timeout"), [(15, 225, 90), (5, 225, 95), (15, 600, 277), (15, 60, 7), (15, 30, 1), (15, 15, 1)]
)
def test_router_and_shards_end_within_the_grace_period(drain: int, grace: int, timeout: int) -> None:
    """The launcher waits for the one, and then for the others; the kubelet counts from the start of the drain."""
    plan = serving_plan(runtime(drain_seconds=drain, termination_grace_seconds=grace), MODEL)
    assert plan.env["GRACEFUL_TERMINATION_TIMEOUT"] == str(timeout)
    assert drain + 2 * timeout <= grace or timeout == 1
    assert parse_args([], plan.env).graceful_termination_timeout == timeout


def test_arguments_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"args is not for engine tgi, which takes .* use env"):
        runtime(args=["--max-batch-size=4"])


@pytest.mark.parametrize(("shards", "size"), [(1, ""), (2, "1Gi")])
def test_shards_share_memory(shards: int, size: str) -> None:
    plan = serving_plan(runtime(num_shard=shards), MODEL)
    assert (plan.shared_memory, plan.env["NUM_SHARD"]) == (size, str(shards))


def test_the_images_own_folder_is_not_covered() -> None:
    """TGI's virtual environment is in its working directory: a volume over all of it would hide the server."""
    assert serving_plan(runtime(), MODEL).writable == ("/usr/src/out",)
