"""What every engine must have: this is what a further one (SGLang) would need.

A module of the operator that renders its pods, one of the jobs that talks to its servers, both behind a protocol that
mypy holds them to; rows in the table of what serves what; a tolerance; the fields of a runtime that mean nothing to it;
its metrics in the chart's recording rules, which dashboards, alerts and autoscalers read.
"""

import inspect
from typing import Any

import pytest
import yaml

from finetune_api.compatibility import ROWS, TITLES, Level
from finetune_api.export import ExportFormat
from finetune_api.suitability import ServingFacts, serving_verdict
from finetune_jobs.verification.engine import AdapterHost, ModelServer
from finetune_jobs.verification.servers import HOSTS, SERVERS
from finetune_jobs.verification.tolerance import TOLERANCES
from finetune_operator.runtimes import ENGINES
from finetune_operator.runtimes.plan import EngineModule, ServedModel
from finetune_operator.settings import Engine, PodShape, Runtime
from tests.support.prometheus import ENDPOINT_RULES

pytestmark = [pytest.mark.unit, pytest.mark.parametrize("engine", Engine)]

DIGEST = "a" * 64


def runtime(engine: Engine, **fields: Any) -> Runtime:
    return Runtime.model_validate({"engine": engine, "image": "server:1", **fields})


def missing(found: object, protocol: type) -> list[str]:
    """Members of a protocol that an object lacks or takes other arguments for."""

    def parameters(owner: object, name: str) -> list[str]:
        return [each for each in inspect.signature(getattr(owner, name)).parameters if each != "self"]

    members = [name for name in {*vars(protocol), *protocol.__annotations__} if not name.startswith("_")]
    methods = [name for name in members if callable(getattr(protocol, name, None))]
    lacking = [name for name in members if not hasattr(found, name)]
    return lacking + [n for n in methods if n not in lacking and parameters(found, n) != parameters(protocol, n)]


def test_it_has_a_module_in_the_operator(engine: Engine) -> None:
    assert missing(ENGINES[engine], EngineModule) == []


def test_it_has_a_client_in_the_jobs(engine: Engine) -> None:
    client = SERVERS[engine.value]("http://candidate")
    assert missing(client, ModelServer) == []
    assert client.engine == engine.value


def test_what_its_running_servers_take_its_client_can_load(engine: Engine) -> None:
    takes = ENGINES[engine].run_time_rank(runtime(engine), 16) > 0
    assert takes == (engine.value in HOSTS)
    serves = ENGINES[engine].highest_rank(runtime(engine)) > 0
    assert takes == serves, "pods prove only adapters that come while they run"
    assert not takes or missing(HOSTS[engine.value]("http://candidate"), AdapterHost) == []
    assert not takes or ENGINES[engine].NEEDS_PROXY, "nothing else keeps clients from loading any"


def test_its_pods_name_what_they_serve_and_keep_to_the_port_and_the_time(engine: Engine) -> None:
    model = ServedModel(f"/models/{DIGEST}/model", "demo")
    plan = ENGINES[engine].render(runtime(engine, num_shard=2, drain_seconds=7, termination_grace_seconds=99), model)
    told = [*plan.args, *plan.env.values()]
    assert any(value.endswith(model.path) for value in told)
    assert any(value.endswith("8080") for value in told)
    assert (plan.drain_seconds, plan.grace_seconds) == (7, 99)
    assert plan.shared_memory, "processes of several GPUs share memory"
    assert plan.env["HF_HUB_OFFLINE"] == "1"
    assert {plan.startup["httpGet"]["path"], plan.readiness["httpGet"]["path"]} == {"/health"}, "verify waits for it"


def test_the_table_speaks_of_its_formats_and_of_architectures(engine: Engine) -> None:
    assert engine.value in TITLES
    own = [row for row in ROWS if row.engine == engine.value]
    assert {name for row in own for name in row.formats or ()} == {each.value for each in ExportFormat}
    facts = ServingFacts(name="mine", engine=engine.value, gpu=True)
    for format_ in ExportFormat:
        takes_adapters = ENGINES[engine].highest_rank(runtime(engine)) > 0
        verdict = serving_verdict(facts, "llama", format_.value)
        assert verdict.starts == (format_ is not ExportFormat.ADAPTER or takes_adapters)
        assert verdict.level is not Level.UNKNOWN
        if verdict.refused:
            continue
        assert serving_verdict(facts, "never-heard-of", format_.value).level is Level.UNKNOWN
        assert serving_verdict(facts, "llama", "of a newer version").level is Level.UNKNOWN


def test_its_distance_from_the_evaluation_is_known(engine: Engine) -> None:
    assert {name for each, name in TOLERANCES if each == engine.value} == {each.value for each in ExportFormat}


def test_its_metrics_are_in_the_vocabulary_of_all(engine: Engine) -> None:
    """What refuses requests and the time to the first part of an answer not every engine tells of."""
    rules = [each for group in yaml.safe_load(ENDPOINT_RULES)["groups"] for each in group["rules"] if "record" in each]
    own = SERVERS[engine.value]("http://candidate").metrics
    told = {(each["record"], each.get("labels", {}).get("outcome", "")) for each in rules if own in each["expr"]}
    wanted = {
        *(("requests:rate5m", outcome) for outcome in ("answered", "failed")),
        *((name, "") for name in ("running_requests", "waiting_requests", "generated_tokens:rate5m")),
        *((f"{what}_seconds_bucket:rate5m", "") for what in ("request", "queue", "token")),
    }
    assert {(f"finetune_endpoint:{name}", outcome) for name, outcome in wanted} - told == set()


def test_the_longest_prompt_leaves_room_for_an_answer(engine: Engine) -> None:
    made = runtime(engine, pod=PodShape(), max_total_tokens=2048)
    assert made.longest_prompt < made.max_total_tokens
