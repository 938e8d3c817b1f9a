"""From the chart's values to the operator's settings: defaults, the guides' examples, and what the schema refuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from pydantic.alias_generators import to_camel

from finetune_api.custom_metrics import FigureRule
from finetune_api.verification import GatesPolicy, Objectives
from finetune_operator.settings import Gpu, ModelCache, Proxy, ServingAccess
from finetune_operator.tenancy.floor import VerificationFloor
from finetune_operator.tenancy.rules import Tenancy, TenancyRule
from hack.cluster.layout import IMAGE_PREFIX, REPOSITORY
from tests.support.chart import CHART, Object, helm, of_kind, render, settings
from tests.support.pages import blocks
from tests.support.vllm_process import RUNTIME

pytestmark = [pytest.mark.unit, pytest.mark.slow]


@pytest.mark.parametrize(
    ("values", "data", "tgi"),
    [
        ((), "localhost/finetune-operator/data:0.1.0", "localhost/finetune-operator/tgi:3.3.7"),
        (
            ("images.tag=dev",),
            "localhost/finetune-operator/data:dev",
            "localhost/finetune-operator/tgi:3.3.7",
        ),
        (
            ("images.registry=r.example:5000/ml", "images.data.tag=v2", "runtimes.tgi.image.registry=mirror.example"),
            "r.example:5000/ml/data:v2",
            "mirror.example/tgi:3.3.7",
        ),
        (
            (f"images.data.digest=sha256:{'a' * 64}", f"runtimes.tgi.image.digest=sha256:{'b' * 64}"),
            f"localhost/finetune-operator/data@sha256:{'a' * 64}",
            f"localhost/finetune-operator/tgi@sha256:{'b' * 64}",
        ),
    ],
)
def test_images_come_from_registry_tag_or_digest(values: tuple[str, ...], data: str, tgi: str) -> None:
    rendered = settings(render(*(part for value in values for part in ("--set", value))))
    assert rendered.images.data == data
    assert rendered.runtimes["tgi"].image == tgi


@pytest.mark.parametrize(
    ("values", "image"),
    [
        ((), ""),
        (("images.tag=v2",), ""),
        (
            ("images.tag=v2", "images.evaluateVllm.repository=evaluate-vllm"),
            "localhost/finetune-operator/evaluate-vllm:v2",
        ),
    ],
)
def test_models_run_in_vllm_only_where_the_admin_offers_it(values: tuple[str, ...], image: str) -> None:
    rendered = settings(render(*(part for value in values for part in ("--set", value))))
    assert rendered.images.evaluate_vllm == image


def test_default_profiles_and_runtimes_are_complete() -> None:
    rendered = settings(render())
    assert rendered.profiles.keys() == {
        "cpu-small",
        *(f"gpu-{gpu}" for gpu in ("l4", "a10g", "a100-40", "a100-80", "a100-80x8", "h100-80")),
    }
    assert rendered.runtimes.keys() == {"tgi-cpu", "tgi", "vllm"}
    for name, profile in rendered.profiles.items():
        asked = profile.accelerator.limits.get("nvidia.com/gpu")
        assert asked == (str(profile.gpu.count) if profile.gpu else None), name
        assert (profile.gpu is None) == name.startswith("cpu-"), name
        assert profile.service_account_name == "finetune-runner"
        assert profile.description


def test_settings_pass_through_unchanged(tmp_path: Path) -> None:
    values = {
        "watchNamespaces": ["team-a"],
        "images": {"pullPolicy": "Never", "pullSecrets": ["registry"]},
        "profiles": {
            "gpu-l4": None,
            "mine": {
                "description": "x",
                "retries": 0,
                "deadlineSeconds": 100000000,
                "accelerator": {"limits": {"example.com/npu": "2"}, "tolerations": [{"operator": "Exists"}]},
                "gpu": {"name": "NPU", "count": 2, "memoryGib": 0.5, "peakTflops": 1e3, "usdPerHour": 0},
                "modelCache": {"claimName": "base-models"},
            },
        },
        "runtimes": {
            "tgi": None,
            "tgi-cpu": {"env": {"CUDA_GRAPHS": "0"}, "numShard": 2},
            "vllm": {"args": ["--max-num-seqs=8"]},
        },
        "metricContainers": {
            "brevity": {
                "image": {"repository": "metrics/brevity", "digest": f"sha256:{'c' * 64}"},
                "figures": {"brief": {"minimum": 0, "maximum": 1}, "words": {"higherIsBetter": False}},
                "timeoutSeconds": 60,
            },
        },
        "proxy": {"httpsProxy": "http://proxy.corp:3128", "noProxy": ".svc"},
        "tenancy": {"rules": [{"namespaces": ["team-*"], "outputs": ["s3://models/{namespace}"], "maxUsdPerRun": 1e8}]},
        "serving": {
            "ingressFrom": [{"namespaceSelector": {"matchLabels": {"gateway": "true"}}}],
            "metricsFrom": [{"namespaceSelector": {"matchLabels": {"gateway": "true"}}}],
            "longestWatchInterval": "15m",
        },
        "operator": {
            "workers": 3,
            "resyncSeconds": 60,
            "keepEndedSeconds": 1000000,
            "progressSeconds": 5,
            "maxConcurrentRollouts": 2,
            "disruptionBudgets": False,
            "policySeconds": 7,
        },
        "metrics": {"podMonitor": {"interval": "1m"}},
    }
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
    rendered = settings(render("--values", str(tmp_path / "values.yaml")))
    mine, runtime = rendered.profiles["mine"], rendered.runtimes["tgi-cpu"]
    assert (rendered.workers, rendered.resync_seconds, rendered.keep_ended_seconds) == (3, 60, 1000000)
    assert (rendered.progress_seconds, rendered.policy_seconds, rendered.max_concurrent_rollouts) == (5, 7, 2)
    assert not rendered.disruption_budgets
    assert (rendered.images.pull_policy, rendered.images.pull_secrets) == ("Never", ["registry"])
    assert rendered.proxy == Proxy(https_proxy="http://proxy.corp:3128", no_proxy=".svc")
    team = TenancyRule(namespaces=["team-*"], outputs=["s3://models/{namespace}"], max_usd_per_run=1e8)
    assert rendered.tenancy.rules == [team]
    peer = {"namespaceSelector": {"matchLabels": {"gateway": "true"}}}
    assert rendered.serving == ServingAccess(ingress_from=[peer], metrics_from=[peer], longest_watch_interval="15m")
    assert "gpu-l4" not in rendered.profiles
    assert rendered.runtimes.keys() == {"tgi-cpu", "vllm"}
    assert rendered.runtimes["vllm"].args == ["--max-num-seqs=8"]
    assert (runtime.env, runtime.num_shard) == ({"CUDA_GRAPHS": "0"}, 2)
    brevity = rendered.metric_containers["brevity"]
    assert brevity.image.endswith(f"/metrics/brevity@sha256:{'c' * 64}")
    rules = {"brief": FigureRule(minimum=0, maximum=1), "words": FigureRule(higher_is_better=False)}
    assert (brevity.figures, brevity.timeout_seconds) == (rules, 60)
    assert (mine.retries, mine.deadline_seconds) == (0, 100000000)
    assert mine.accelerator.limits == {"example.com/npu": "2"}
    assert mine.accelerator.tolerations == [{"operator": "Exists"}]
    gpu = Gpu(name="NPU", count=2, memory_gib=0.5, peak_tflops=1000, usd_per_hour=0)
    assert mine.gpu == gpu
    assert mine.model_cache == ModelCache(claim_name="base-models")
    assert rendered.profiles["cpu-small"].model_cache is None


def test_null_allows_any_number_of_rollouts() -> None:
    assert settings(render("--set", "operator.maxConcurrentRollouts=null")).max_concurrent_rollouts is None


def test_profiles_and_runtimes_use_the_runners_account_unless_they_name_another(tmp_path: Path) -> None:
    """Whatever its name: the chart makes the account under it."""
    special: Object = {"serviceAccountName": "special"}
    values: Object = {"runner": {"namespaces": ["team-a"], "serviceAccountName": "worker"}}
    values |= {"profiles": {"gpu-l4": special}, "runtimes": {"tgi": special}}
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
    objects = render("--values", str(tmp_path / "values.yaml"))
    made = {each["metadata"]["name"] for each in of_kind(objects, "ServiceAccount")}
    found = settings(objects)
    assert "worker" in made
    for name, kind in (found.profiles | found.runtimes).items():
        assert kind.service_account_name == ("special" if name in ("gpu-l4", "tgi") else "worker"), name


def test_the_example_of_the_installation_guide(tmp_path: Path) -> None:
    guide = (REPOSITORY / "docs" / "how-to" / "install.md").read_text()
    example = guide.partition("```yaml\n")[2].partition("```")[0]
    (tmp_path / "values.yaml").write_text(example)
    given = settings(render("--values", str(tmp_path / "values.yaml")))
    assert given.profiles["gpu-l4"].accelerator.node_selector == {"cloud.google.com/gke-accelerator": "nvidia-l4"}
    assert "gpu-h100-80" not in given.profiles
    assert re.fullmatch(r"registry\.example\.com/finetune-operator/data:[0-9a-f]{7}", given.images.data)


def test_the_claim_of_the_guides_example_is_the_one_that_it_makes(tmp_path: Path) -> None:
    guide = REPOSITORY / "docs" / "how-to" / "operate.md"
    values, claim = (block for block in blocks(guide, "yaml") if "base-models" in block)
    (tmp_path / "values.yaml").write_text(values)
    given = settings(render("--values", str(tmp_path / "values.yaml")))
    made = yaml.safe_load(claim)
    for cache in (given.profiles["gpu-l4"].model_cache, given.runtimes["vllm"].model_cache):
        assert cache == ModelCache(claim_name="base-models", size_limit="180Gi")
        assert (made["kind"], made["metadata"]["name"]) == ("PersistentVolumeClaim", cache.claim_name)


def test_the_examples_of_the_guide_to_clouds(tmp_path: Path) -> None:
    guide = REPOSITORY / "docs" / "how-to" / "install-on-eks-and-gke.md"
    examples = [block for block in blocks(guide, "yaml") if block.startswith("# values.yaml")]
    rendered = []
    for number, example in enumerate(examples):
        path = tmp_path / f"{number}.yaml"
        path.write_text(example)
        rendered.append(settings(render("--values", str(path))))
    eks, gke = rendered
    assert eks.profiles["gpu-l4"].accelerator.node_selector == {"node.kubernetes.io/instance-type": "g6.2xlarge"}
    assert eks.runtimes["vllm"].pod.node_selector == {"node.kubernetes.io/instance-type": "g6.2xlarge"}
    assert gke.profiles["gpu-l4"].accelerator.node_selector == {"cloud.google.com/gke-accelerator": "nvidia-l4"}


def test_vllm_for_cpus_can_be_added_to_the_local_cluster() -> None:
    """With the image that `make images-vllm` makes, and what the real one is tested with."""
    runtime = settings(render("--values", str(REPOSITORY / "hack" / "platform" / "vllm-cpu.yaml"))).runtimes["vllm-cpu"]
    assert runtime.image == f"{IMAGE_PREFIX}/vllm-cpu:dev"
    assert (runtime.args, runtime.env) == (RUNTIME.args, RUNTIME.env)


def test_the_example_of_the_guide_to_sharing(tmp_path: Path) -> None:
    guide = (REPOSITORY / "docs" / "how-to" / "share-a-cluster.md").read_text()
    example = guide.partition("```yaml\n")[2].partition("```")[0]
    (tmp_path / "values.yaml").write_text(example)
    rules = settings(render("--values", str(tmp_path / "values.yaml"))).tenancy.rules
    assert [rule.max_usd_per_run for rule in rules] == [50, 2000]
    rules_part, _, floors_part = guide.partition("## Minimum verification")
    assert _in_table(rules_part) == [to_camel(name) for name in TenancyRule.model_fields]
    assert ["namespaces", *_in_table(floors_part)] == [to_camel(name) for name in VerificationFloor.model_fields]


def test_the_example_of_floors_is_one(tmp_path: Path) -> None:
    guide = REPOSITORY / "docs" / "how-to" / "share-a-cluster.md"
    [example] = [block for block in blocks(guide, "yaml") if "verificationFloors:" in block]
    (tmp_path / "values.yaml").write_text(example.replace("…", "MCowBQYDK2VwAyEA"))
    everybody, production = settings(render("--values", str(tmp_path / "values.yaml"))).serving.verification_floors
    assert (everybody.namespaces, everybody.max_distance, everybody.gates) == (["*"], "0.8", GatesPolicy.ANY)
    assert everybody.require_probabilities
    assert (production.namespaces, production.required_gates) == (["prod-*"], ["recall", "leaks"])
    assert production.objectives == Objectives(time_to_first_token="2s", time_per_output_token="100ms")


def _in_table(guide: str) -> list[str]:
    """The fields that a table explains; of one with a value, such as ``signed: true``, the name."""
    return re.findall(r"^\| `(\w+)[^`]*` \|", guide, re.MULTILINE)


def test_the_defaults_of_the_chart_are_the_operators() -> None:
    rendered = settings(render())
    assert (rendered.tenancy, rendered.serving) == (Tenancy(), ServingAccess())
    assert rendered.free_profiles == ["cpu-small"]


@pytest.mark.parametrize(
    ("value", "place", "complaint"),
    [
        ("profiles.gpu-l4.deadlineSeconds=soon", "/profiles/gpu-l4/deadlineSeconds", "got string, want integer"),
        ("profiles.gpu-l4.deadlineSeconds=1", "/profiles/gpu-l4/deadlineSeconds", "minimum: got 1, want 60"),
        ("profiles.gpu-l4.retries=11", "/profiles/gpu-l4/retries", "maximum: got 11, want 10"),
        ("profiles.gpu-l4.gpus=2", "/profiles/gpu-l4", "additional properties 'gpus' not allowed"),
        (
            "profiles.gpu-l4.accelerator.limits.cpu=8",
            "/profiles/gpu-l4/accelerator/limits/cpu",
            "got number, want string",
        ),
        ("profiles.mine.gpu.name=X", "/profiles/mine/gpu", "missing properties"),
        ("profiles.Mine.description=x", "/profiles", "additional properties 'Mine' not allowed"),
        (f"profiles.{'m' * 41}.description=x", "/profiles", "not allowed"),
        ("profiles=null", "", "missing property 'profiles'"),
        ("operator.maxConcurrentRollouts=0", "/operator/maxConcurrentRollouts", "minimum: got 0, want 1"),
        ("runtimes.tgi.engine=sglang", "/runtimes/tgi/engine", "value must be one of 'tgi', 'vllm'"),
        ("runtimes.vllm.args={-tp=2}", "/runtimes/vllm/args/0", "does not match pattern"),
        ("runtimes.vllm.maxInputTokens=512", "/runtimes/vllm/maxInputTokens", "false schema"),
        ("runtimes.tgi.args={--x}", "/runtimes/tgi/args", "false schema"),
        ("runtimes.mine.engine=tgi", "/runtimes/mine", "missing property 'image'"),
        ("runtimes.tgi.image=tgi:3", "/runtimes/tgi/image", "got string, want object"),
        ("runtimes.tgi.startupTimeoutSeconds=0", "/runtimes/tgi/startupTimeoutSeconds", "minimum: got 0, want 1"),
        ("runtimes.tgi.drainSeconds=-1", "/runtimes/tgi/drainSeconds", "minimum: got -1, want 0"),
        ("runtimes.vllm.terminationGraceSeconds=0", "/runtimes/vllm/terminationGraceSeconds", "minimum: got 0, want 1"),
        ("runtimes.vllm.maxTotalTokens=-1", "/runtimes/vllm/maxTotalTokens", "minimum: got -1, want 2"),
        ("runtimes.vllm.numShard=0", "/runtimes/vllm/numShard", "minimum: got 0, want 1"),
        ("profiles.gpu-l4.gpu.usdPerHour=-1", "/profiles/gpu-l4/gpu/usdPerHour", "minimum: got -1, want 0"),
        ("profiles.gpu-l4.gpu.memoryGib=0", "/profiles/gpu-l4/gpu/memoryGib", "exclusiveMinimum: got 0, want 0"),
        ("profiles.gpu-l4.gpu.peakTflops=0", "/profiles/gpu-l4/gpu/peakTflops", "exclusiveMinimum: got 0, want 0"),
        ("images.data.digest=abc", "/images/data/digest", "does not match pattern"),
        ("images.pullPolicy=Sometimes", "/images/pullPolicy", "value must be one of"),
        ("operator.workers=0", "/operator/workers", "minimum: got 0, want 1"),
        ("operator.logFormat=xml", "/operator/logFormat", "value must be one of 'plain', 'json'"),
        ("watchNamespaces={Team}", "/watchNamespaces/0", "does not match pattern"),
        ("runner.namespaces={a,a}", "/runner/namespaces", "items at 0 and 1 are equal"),
        ("runner.networkPolicy.metricsFrom[0].pod.x=y", "/runner/networkPolicy/metricsFrom/0", "'pod' not allowed"),
        ("tenancy.rules[0].profiles={gpu-l4}", "/tenancy/rules/0", "missing property 'namespaces'"),
        ("tenancy.rules[0].namespaces={Team}", "/tenancy/rules/0/namespaces/0", "does not match pattern"),
        ("tenancy.rules[0].hosts={https://a.example}", "/tenancy/rules/0/hosts/0", "does not match pattern"),
        ("serving.longestWatchInterval=5s", "/serving/longestWatchInterval", "does not match pattern"),
        ("serving.formerRoutes=delete", "/serving/formerRoutes", "value must be one of 'Delete', 'Keep'"),
        ("serving.ingressFrom[0].pods=all", "/serving/ingressFrom/0", "'pods' not allowed"),
        ("serving.metricsFrom[0].pods=all", "/serving/metricsFrom/0", "'pods' not allowed"),
        ("networkPolicy.apiServerPorts={0}", "/networkPolicy/apiServerPorts/0", "minimum: got 0, want 1"),
        ("operator.replicas=0", "/operator/replicas", "minimum: got 0, want 1"),
        ("replicas=2", "", "additional properties 'replicas' not allowed"),
    ],
)
def test_the_schema_refuses(value: str, place: str, complaint: str) -> None:
    done = helm("template", "finetune-operator", str(CHART), "--set", value)
    assert done.returncode != 0
    assert f"at '{place}'" in done.stderr
    assert complaint in done.stderr
