"""vLLM's rendering: arguments, environment, probes and drain."""

import pytest
from pydantic import ValidationError

from finetune_jobs.fit.families import known
from finetune_operator.runtimes import ENGINES, serving_plan
from finetune_operator.runtimes.plan import ServedAdapter, ServedModel, ServingPlan
from finetune_operator.settings import Engine, Runtime

pytestmark = pytest.mark.unit

CTRL = {"Wq", "Wk", "Wv", "0", "2"}
"""Layers of a family that vLLM does not know."""

MODEL = ServedModel("/models/" + "a" * 64 + "/model", "demo")


def runtime(**fields: object) -> Runtime:
    return Runtime.model_validate({"engine": Engine.VLLM, "image": "vllm:0.32.0", **fields})


def plan(**fields: object) -> ServingPlan:
    return serving_plan(runtime(**fields), MODEL)


def test_the_server_is_told_what_it_serves_and_under_which_name() -> None:
    args = plan(max_total_tokens=512, num_shard=2).args
    assert f"--model={MODEL.path}" in args
    assert {"--served-model-name=demo", "--port=8080", "--max-model-len=512", "--tensor-parallel-size=2"} <= {*args}
    assert all(argument.startswith("--") for argument in args), "each stands for itself"


def test_it_logs_json_lines_only() -> None:
    made = plan()
    assert {"--logging-config.formatter=json", "--no-use-tqdm-on-load"} <= {*made.args}
    assert (made.env["TQDM_DISABLE"], made.env["PYTHONWARNINGS"]) == ("1", "ignore")


def test_an_admin_may_want_lines_for_people() -> None:
    made = plan(args=["--logging-config.formatter=text"], env={"PYTHONWARNINGS": "default"})
    assert [each for each in made.args if each.startswith("--logging-config")] == ["--logging-config.formatter=text"]
    assert made.env["PYTHONWARNINGS"] == "default"


@pytest.mark.parametrize(
    ("ranks", "given", "room"),
    [
        ([16, 8], [], "16"),
        ([4], [], "8"),
        ([65], [], "128"),
        ([512], [], "512"),
        ([16, 8], ["--max-lora-rank=64"], "64"),
    ],
)
def test_adapters_get_no_more_room_than_they_need(ranks: list[int], given: list[str], room: str) -> None:
    adapters = tuple(ServedAdapter(f"/models/{number}/model", f"demo:{number}") for number in range(len(ranks)))
    made = serving_plan(runtime(args=given), ServedModel(MODEL.path, "demo", adapters=adapters, rank=max(ranks)))
    assert {"--enable-lora", f"--max-loras={len(ranks) + 1}", "--served-model-name=demo"} <= {*made.args}
    assert [each for each in made.args if each.startswith("--max-lora-rank")] == [f"--max-lora-rank={room}"]


def test_on_a_cpu_adapters_may_change_all_layers_but_the_output_layer() -> None:
    """Those that training adapts, in every family. Routers of experts have names that mean something else elsewhere."""
    adapters = (ServedAdapter("/models/0/model", "demo:0"),)
    model = ServedModel(MODEL.path, "demo", adapters=adapters, rank=8)
    made = serving_plan(runtime(), model)
    first = made.args.index("--lora-target-modules") + 1
    layers = {*made.args[first:]}
    adapted = {layer.name for family in known().families.values() for kind in family.kinds for layer in kind.linear}
    assert adapted - layers == {"gate", "wg", *CTRL}
    assert not {"lm_head", "embed_tokens", "embed_out"} & layers


@pytest.mark.parametrize(
    ("given", "adapters", "shown"),
    [
        ({"pod": {"limits": {"nvidia.com/gpu": "1"}}}, 1, []),
        ({"args": ["--lora-target-modules=q_proj"]}, 1, ["--lora-target-modules=q_proj"]),
        ({}, 0, []),
    ],
)
def test_elsewhere_they_may_change_what_the_admin_allows(
    given: dict[str, object], adapters: int, shown: list[str]
) -> None:
    served = tuple(ServedAdapter(f"/models/{number}/model", f"demo:{number}") for number in range(adapters))
    made = serving_plan(runtime(**given), ServedModel(MODEL.path, "demo", adapters=served, rank=8))
    assert [each for each in made.args if each.startswith("--lora-target-modules")] == shown


def test_adapters_that_come_while_it_runs_are_no_arguments_and_nothing_else_brings_any() -> None:
    """One place more than they are now, for the one that proves itself; the resolvers' variables are emptied."""
    adapters = (ServedAdapter("/models/0/model", "demo:0"),)
    model = ServedModel(MODEL.path, "demo", behind_proxy=True, adapters=adapters, rank=9)
    made = serving_plan(runtime(env={"VLLM_LORA_RESOLVER_CACHE_DIR": "/adapters"}), model)
    assert {"--host=127.0.0.1", "--max-loras=2", "--max-cpu-loras=9", "--max-lora-rank=16"} <= {*made.args}
    assert "--lora-modules" not in made.args
    allowed = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"
    assert (made.env[allowed], plan().env[allowed]) == ("1", "0")
    assert made.env["VLLM_LORA_RESOLVER_CACHE_DIR"] == made.env["VLLM_LORA_RESOLVER_HF_REPO_LIST"] == ""
    assert not [path for path in (*made.read_paths, *made.write_paths) if "adapter" in path]


def test_a_running_server_takes_what_its_room_holds() -> None:
    given: list[tuple[list[str], int]] = [([], 9), ([], 64), (["--max-lora-rank=32"], 9)]
    assert [ENGINES[Engine.VLLM].run_time_rank(runtime(args=args), rank) for args, rank in given] == [16, 64, 32]
    assert ENGINES[Engine.TGI].run_time_rank(Runtime(engine=Engine.TGI, image="tgi:1"), 9) == 0


def test_the_highest_rank_is_the_engines_or_the_admins() -> None:
    """What is no number is for vLLM to refuse: the operator goes on with what it has."""
    given: list[list[str]] = [[], ["--max-lora-rank=32"], ["--max-lora-rank=many"], ["--max-lora-rank"]]
    assert [ENGINES[Engine.VLLM].highest_rank(runtime(args=args)) for args in given] == [512, 32, 512, 512]


def test_further_arguments_go_through() -> None:
    args = plan(args=["--enforce-eager", "--gpu-memory-utilization=0.85", "--hf-overrides={}"]).args
    assert {"--enforce-eager", "--gpu-memory-utilization=0.85", "--hf-overrides={}"} <= {*args}


@pytest.mark.parametrize(
    "argument",
    [
        *("--model=somebody/else", "--served-model-name=gpt", "--port=80", "--shutdown-timeout=0"),
        *("--generation-config=auto", "--tensor-parallel-size=8", "--max-model-len=99"),
    ],
)
def test_the_admins_arguments_cannot_change_what_the_operator_relies_on(argument: str) -> None:
    assert sorted(plan(args=[argument]).args) == sorted(plan().args)


@pytest.mark.parametrize("argument", ["-tp=2", "--a b", "gpu", "--", "--Model=x", "--max_model_len=8"])
def test_what_is_no_option_with_its_value_is_refused(argument: str) -> None:
    """A value apart, or another spelling, could not be told from what the operator sets."""
    with pytest.raises(ValidationError, match="args"):
        runtime(args=[argument])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("HF_HUB_OFFLINE", "0"), ("VLLM_NO_USAGE_STATS", "0"), ("DO_NOT_TRACK", "0"), ("HOME", "/root")),
        *(("VLLM_SERVER_DEV_MODE", "1"), ("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "True"), ("VLLM_CACHE_ROOT", "/root/x")),
    ],
)
def test_nor_can_the_admins_environment(name: str, value: str) -> None:
    assert plan(env={name: value}).env[name] == plan().env[name] != value
    assert plan(env={"VLLM_CPU_KVCACHE_SPACE": "1"}).env["VLLM_CPU_KVCACHE_SPACE"] == "1"


def test_all_that_is_written_goes_to_the_pods_own_volume() -> None:
    """The root file system is read-only, and the user has no home."""
    folders = [value for name, value in plan().env.items() if name.endswith(("HOME", "ROOT", "DIR"))]
    assert len(folders) >= 7
    assert all(f"{folder}/".startswith("/tmp/") for folder in folders)


@pytest.mark.parametrize(
    ("drain", "grace", "timeout"), [(15, 225, 195), (15, 60, 30), (5, 21, 1), (15, 30, 1), (15, 15, 1)]
)
def test_streams_end_within_the_grace_period_and_are_never_cut_at_once(drain: int, grace: int, timeout: int) -> None:
    """With a timeout of 0, vLLM kills its engine and leaves open streams without an end."""
    made = plan(drain_seconds=drain, termination_grace_seconds=grace)
    assert f"--shutdown-timeout={timeout}" in made.args
    assert (made.drain_seconds, made.grace_seconds) == (drain, grace)


@pytest.mark.parametrize(("gpus", "size"), [(1, "1Gi"), (2, "2Gi"), (8, "8Gi")])
def test_its_processes_share_more_memory_than_a_container_has_by_default(gpus: int, size: str) -> None:
    """The CPU build ended in 64 MiB, with one process of the engine."""
    assert plan(num_shard=gpus).shared_memory == size


def test_a_slow_answer_takes_a_pod_out_long_before_it_is_restarted() -> None:
    made = plan(startup_timeout_seconds=61)
    out, restart = (probe["periodSeconds"] * probe["failureThreshold"] for probe in (made.readiness, made.liveness))
    assert out * 10 <= restart
    assert 61 <= made.startup["periodSeconds"] * made.startup["failureThreshold"] < 61 + 5


def test_vllm_has_one_limit() -> None:
    """It would not refuse a prompt of more than maxInputTokens: that field must not look as if it did."""
    with pytest.raises(ValidationError, match=r"maxInputTokens is not for engine vllm, which has one limit"):
        runtime(max_input_tokens=100)
    small = runtime(max_total_tokens=512)
    assert (small.longest_prompt, small.limits_prompts) == (511, False)


@pytest.mark.parametrize(
    ("args", "dtype"),
    [
        ([], ""),
        (["--dtype=auto"], ""),
        (["--dtype=half"], "float16"),
        (["--dtype=float16"], "float16"),
        (["--dtype=bfloat16"], "bfloat16"),
        (["--dtype=float"], "float32"),
    ],
)
def test_the_number_format_is_read_from_the_arguments(args: list[str], dtype: str) -> None:
    assert ENGINES[Engine.VLLM].dtype(runtime(args=args, env={"DTYPE": "bfloat16"})) == dtype


def test_its_processes_talk_over_loopback() -> None:
    """They are alone in their pod; with nothing set, they take the pod's own address."""
    env = plan().env
    assert env["VLLM_HOST_IP"] == "127.0.0.1"
    assert env["GLOO_SOCKET_IFNAME"] == env["NCCL_SOCKET_IFNAME"] == "lo"
    assert plan(env={"NCCL_SOCKET_IFNAME": "eth1"}).env["NCCL_SOCKET_IFNAME"] == "eth1", "an admin may know better"
