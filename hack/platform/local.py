"""The platform on the local cluster: the operator, the object store, and namespaces for jobs."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from hack.cluster import toolchain
from hack.cluster.console import step
from hack.cluster.images import build_images
from hack.cluster.layout import REPOSITORY
from hack.cluster.provider import provider
from hack.platform import object_store
from hack.platform.helm import OPERATION_SECONDS, forget_killed, helm
from hack.platform.kubectl import Kubectl

RELEASE = "finetune-operator"
NAMESPACE = "finetune-system"
RUNNER = "finetune-runner"
CHART = REPOSITORY / "charts" / "finetune-operator"
VALUES = REPOSITORY / "hack" / "platform" / "values.yaml"
VLLM_VALUES = REPOSITORY / "hack" / "platform" / "vllm-cpu.yaml"
LM_EVAL_VALUES = REPOSITORY / "hack" / "platform" / "lm-eval.yaml"
METRIC_PROGRAM = REPOSITORY / "examples" / "metric-container" / "brevity.py"
RELEASE_IMAGES = ("operator", "data", "prepare", "jobs", "quantize", "proxy")


def kubectl() -> Kubectl:
    """kubectl for the local cluster, as administrator."""
    return Kubectl(toolchain.program("kubectl"), provider().kubeconfig)


@cache
def images() -> dict[str, str]:
    """Full names of all images with the checkout's current content; missing ones are built first."""
    return build_images(provider().images())


def install_platform(kubectl: Kubectl) -> None:
    """Install or update the operator and the object store, from the cluster's images."""
    install_operator(kubectl)
    object_store.install(kubectl, images()["seaweedfs"])


def install_vllm_runtime(kubectl: Kubectl) -> None:
    """Give the installed operator the runtime ``vllm-cpu``. Its image is built first: 6 GB, ten minutes the first
    time."""
    # Emulated, bfloat16 takes several times as long: two tokens a second of a model of 135M parameters.
    precision = () if _computes_in_bf16() else ("runtimes.vllm-cpu.args[2]=--dtype=float32",)
    _install_with(kubectl, "runtimes", "vllm-cpu", VLLM_VALUES, precision)


def install_lm_eval(kubectl: Kubectl) -> None:
    """Give the installed operator the metric container ``lm-eval``. Its image is built first: 250 MB, a few minutes."""
    _install_with(kubectl, "metricContainers", "lm-eval", LM_EVAL_VALUES)


def _computes_in_bf16() -> bool:
    """Whether this machine's CPU, which is the node's, has instructions for bfloat16; assumed where it is no x86."""
    cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    return "flags" not in cpu or not {"avx512_bf16", "amx_bf16"}.isdisjoint(cpu)


def _install_with(kubectl: Kubectl, kind: str, name: str, values: Path, settings: tuple[str, ...] = ()) -> None:
    """The operator with one more thing to offer, whose image is not among those that are always built."""
    image = build_images(provider().images(), [name])[name]
    tag = f"{kind}.{name}.image.tag={image.rsplit(':', 1)[1]}"
    install_operator(kubectl, (tag, *settings), (VALUES, values))


def install_operator(kubectl: Kubectl, values: tuple[str, ...] = (), files: tuple[Path, ...] = (VALUES,)) -> None:
    """Install or upgrade the operator from the chart with these files of values; ``values`` are further ``--set``
    arguments."""
    kubectl.apply(object_store.restricted_namespace(NAMESPACE))
    settings = [f"images.{name}.tag={_tag(name)}" for name in RELEASE_IMAGES]
    settings += [f"runtimes.tgi-cpu.image.tag={_tag('tgi-cpu')}", f"metricContainers.brevity.image.tag={_tag('data')}"]
    forget_killed(kubectl.within(NAMESPACE), RELEASE)
    with step(f"install the operator with Helm in namespace {NAMESPACE}"):
        helm(
            *("upgrade", "--install", RELEASE, str(CHART), "--namespace", NAMESPACE),
            *(argument for file in files for argument in ("--values", str(file))),
            *(argument for setting in (*settings, *values) for argument in ("--set-string", setting)),
            *("--set-file", f"metricContainers.brevity.command[2]={METRIC_PROGRAM}"),
            *("--wait", "--timeout", f"{OPERATION_SECONDS}s"),
            kubeconfig=kubectl.kubeconfig,
        )


def prepare_namespace(kubectl: Kubectl, name: str, key: object_store.Key = object_store.OWNER) -> None:
    """Do what an admin does for a team: create a restricted namespace, the runner ServiceAccount and a Secret for
    S3."""
    kubectl = kubectl.within(name)
    kubectl.apply(
        object_store.restricted_namespace(name),
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": RUNNER}},
        key.secret("s3-credentials"),
    )


def _tag(name: str) -> str:
    return images()[name].rsplit(":", 1)[1]
