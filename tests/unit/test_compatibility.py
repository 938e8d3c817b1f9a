"""The table of what serves what: its verdicts, its sources, and where the platform's runtimes stand in it."""

import string
from dataclasses import fields
from typing import Any, Final

import pytest

from finetune_api.cards import Generation
from finetune_api.compatibility import QUANTIZED, ROWS, TITLES, Level, Row
from finetune_api.export import ExportFormat
from finetune_api.suitability import Case, ServingFacts, artifact_verdict, serving_verdict, verdict
from finetune_jobs.fit.families import known
from finetune_jobs.fit.shapes import families
from finetune_operator.runtimes.facts import offered_facts, serving_facts
from finetune_operator.settings import Engine, PodShape, Runtime
from tests.support.sentences import assert_says
from tests.support.serving_specs import SETTINGS

pytestmark = pytest.mark.unit

FINE, CAVEAT, UNKNOWN, REFUSED = Level.FINE, Level.CAVEAT, Level.UNKNOWN, Level.REFUSED
DENSE: Final = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "gpt_neox")
FLOAT16: Final = "llama in float16 … bfloat16 … answers may differ"


def on(engine: str, architecture: str, card: str = "", dtype: str = "", export_format: str = "INT8") -> Any:
    """The verdict on an artifact on a runtime with a GPU."""
    runtime = ServingFacts(name="here", engine=engine, gpu=True, card=card, dtype=dtype)
    return serving_verdict(runtime, architecture, export_format)


@pytest.mark.parametrize(
    ("engine", "architecture", "card", "dtype", "level", "says"),
    [
        ("tgi", "llama", "", "", CAVEAT, FLOAT16),
        ("tgi", "llama", "NVIDIA L4", "", CAVEAT, FLOAT16),
        ("tgi", "llama", "Tesla T4", "", CAVEAT, FLOAT16),
        ("tgi", "mistral", "NVIDIA-A100-SXM4-80GB", "", CAVEAT, "mistral in float16"),
        ("tgi", "qwen2", "", "", CAVEAT, "qwen2 in float16"),
        ("tgi", "gemma2", "NVIDIA L4", "", FINE, ""),
        ("tgi", "gemma2", "Tesla T4", "", REFUSED, "gemma2 in bfloat16 … Turing GPUs lack … Choose a runtime … Ampere"),
        ("tgi", "qwen3", "", "", REFUSED, "no qwen3 … INT8 … Choose a runtime with another engine"),
        ("tgi", "gpt_neox", "", "", REFUSED, "gpt_neox … answers are wrong … Choose a runtime with another engine"),
        ("tgi", "llama", "NVIDIA B200", "", REFUSED, "no INT8 kernel for Blackwell … Choose a runtime … Hopper"),
        ("tgi", "", "nvidia-b200", "", REFUSED, "no INT8 kernel for Blackwell"),
        ("tgi", "llama", "", "bfloat16", REFUSED, "DTYPE (bfloat16) … Remove DTYPE from env"),
        ("tgi", "olmo2", "", "", UNKNOWN, "Whether Text Generation Inference serves olmo2 in INT8 … not known … pin"),
        ("tgi", "olmo2", "NVIDIA B200", "", REFUSED, "no INT8 kernel for Blackwell"),
        ("tgi", "", "", "", FINE, ""),
        ("vllm", "llama", "NVIDIA L4", "", FINE, ""),
        ("vllm", "qwen3", "", "", FINE, ""),
        ("vllm", "llama", "NVIDIA RTX PRO 6000 Blackwell", "", REFUSED, "vLLM has no INT8 kernel for Blackwell"),
        ("vllm", "llama", "Tesla T4", "", CAVEAT, "float16 on Turing"),
        ("vllm", "llama", "Tesla T4", "bfloat16", REFUSED, "Turing GPUs lack bfloat16 … Choose a runtime"),
        ("vllm", "gemma3_text", "Tesla T4", "", REFUSED, "gemma3_text in INT8 with bfloat16 only … Turing"),
        ("vllm", "llama", "Tesla V100-SXM2-16GB", "", REFUSED, "no INT8 kernel for Volta"),
        ("vllm", "llama", "", "float16", CAVEAT, "told to compute in float16 … some answers may differ"),
        ("vllm", "gemma2", "", "float16", REFUSED, "does not start gemma2 in float16 … Remove --dtype from args"),
        ("vllm", "glm4", "Tesla T4", "", REFUSED, "glm4 in INT8 with bfloat16 only … Turing"),
        ("vllm", "qwen3", "", "float32", REFUSED, "INT8 kernels … not in float32 … Remove --dtype"),
        ("vllm", "olmo2", "NVIDIA L4", "", CAVEAT, "no olmo2 of its own … transformers"),
        ("vllm", "gpt_oss", "", "", UNKNOWN, "Whether vLLM serves gpt_oss … Choose a runtime … spec.source.artifact"),
        ("of a newer operator", "llama", "NVIDIA B200", "", FINE, ""),
    ],
)
def test_an_artifact_on_a_runtime(
    engine: str, architecture: str, card: str, dtype: str, level: Level, says: str
) -> None:
    found = on(engine, architecture, card, dtype)
    assert (found.level, found.refused) == (level, level is REFUSED)
    assert found.starts is (level in (FINE, CAVEAT))
    if says:
        assert_says(found.message, *says.split(" … "))
    else:
        assert found.message == ""


@pytest.mark.parametrize(
    ("engine", "architecture", "card", "export_format", "level", "says"),
    [
        ("tgi", "gemma2", "NVIDIA A10", "W8A16", FINE, ""),
        ("tgi", "gemma2", "NVIDIA A10", "INT4", FINE, ""),
        ("tgi", "gemma2", "NVIDIA A10", "FP8", CAVEAT, "does not round activations on Ampere GPUs (FP8)"),
        ("tgi", "gemma2", "NVIDIA L4", "FP8", CAVEAT, "does not round activations on Ada"),
        ("tgi", "gemma2", "NVIDIA H100 80GB HBM3", "FP8", FINE, ""),
        ("tgi", "gemma2", "NVIDIA B200", "INT4", FINE, ""),
        ("tgi", "gemma2", "NVIDIA A10", "FP8Static", CAVEAT, "does not round activations on Ampere GPUs (FP8Static)"),
        ("tgi", "gemma2", "NVIDIA H100 80GB HBM3", "FP8Static", FINE, ""),
        ("tgi", "llama", "Tesla T4", "FP8Static", REFUSED, "no FP8Static kernel for Turing"),
        ("tgi", "llama", "Tesla T4", "INT4AWQ", REFUSED, "no INT4AWQ kernel for Turing"),
        ("tgi", "llama", "NVIDIA A10", "INT4AWQ", CAVEAT, FLOAT16),
        ("tgi", "gemma2", "NVIDIA A10", "INT4AWQ", REFUSED, "AWQ (INT4AWQ) rounds the norms of a gemma2 … Choose INT4"),
        ("tgi", "llama", "Tesla T4", "INT4", REFUSED, "no INT4 kernel for Turing … newer generation"),
        ("tgi", "llama", "Tesla T4", "FP8", REFUSED, "no FP8 kernel for Turing"),
        ("tgi", "llama", "Tesla T4", "Merged", CAVEAT, FLOAT16),
        ("tgi", "qwen3", "", "FP8", REFUSED, "no qwen3 … FP8"),
        ("tgi", "gpt_neox", "", "W8A16", REFUSED, "mixes up the attention weights"),
        ("tgi", "gpt_neox", "", "Merged", UNKNOWN, "Whether Text Generation Inference serves gpt_neox … not known"),
        ("vllm", "llama", "NVIDIA B200", "FP8", FINE, ""),
        ("vllm", "llama", "NVIDIA L4", "FP8", FINE, ""),
        ("vllm", "llama", "NVIDIA A10", "FP8", CAVEAT, "vLLM does not round activations on Ampere GPUs (FP8)"),
        ("vllm", "llama", "NVIDIA B200", "W8A16", FINE, ""),
        ("vllm", "llama", "NVIDIA L4", "FP8Static", FINE, ""),
        ("vllm", "llama", "NVIDIA A10", "FP8Static", CAVEAT, "does not round activations on Ampere GPUs (FP8Static)"),
        ("vllm", "qwen3", "NVIDIA B200", "INT4AWQ", FINE, ""),
        ("vllm", "llama", "Tesla V100-SXM2-16GB", "INT4AWQ", REFUSED, "no INT4AWQ kernel for Volta"),
        ("vllm", "olmo2", "NVIDIA L4", "INT4AWQ", REFUSED, "AWQ (INT4AWQ) does not calibrate all layers of a olmo2"),
        ("vllm", "llama", "Tesla V100-SXM2-16GB", "INT4", REFUSED, "no INT4 kernel for Volta … newer generation"),
        ("vllm", "llama", "NVIDIA B200", "Merged", FINE, ""),
        ("vllm", "llama", "Tesla T4", "Adapter", CAVEAT, "float16 on Turing"),
        ("vllm", "gemma", "Tesla T4", "INT4", CAVEAT, "float16 on Turing"),
        ("vllm", "gemma2", "Tesla T4", "Merged", FINE, ""),
        ("vllm", "gemma2", "Tesla T4", "Adapter", REFUSED, "gemma2 in Adapter with bfloat16 only … Turing"),
        ("vllm", "gemma3_text", "Tesla T4", "W8A16", REFUSED, "gemma3_text in W8A16 with bfloat16 only … Turing"),
        ("vllm", "gemma3_text", "Tesla T4", "FP8", REFUSED, "gemma3_text in FP8 with bfloat16 only … Turing"),
        ("vllm", "glm4", "Tesla T4", "INT4", REFUSED, "glm4 in INT4 with bfloat16 only … Choose a runtime"),
        ("vllm", "glm4", "NVIDIA A10", "INT4", FINE, ""),
    ],
)
def test_an_artifact_in_another_format(
    engine: str, architecture: str, card: str, export_format: str, level: Level, says: str
) -> None:
    found = on(engine, architecture, card, export_format=export_format)
    assert found.level is level, found.message
    assert bool(found.message) is bool(says)
    if says:
        assert_says(found.message, *says.split(" … "))


@pytest.mark.parametrize("export_format", ExportFormat)
@pytest.mark.parametrize("card", ["Tesla T4", "NVIDIA A10", "NVIDIA H100 80GB HBM3"])
def test_vllm_computes_in_float32_nothing_but_whole_models(card: str, export_format: ExportFormat) -> None:
    found = on("vllm", "llama", card, "float32", export_format.value)
    if export_format is ExportFormat.MERGED:
        assert (found.level, found.message) == (FINE, "")
    else:
        assert found.refused
        assert_says(found.message, f"{export_format.value} kernels", "not in float32", "Remove --dtype")


def test_mixtures_of_experts_cannot_be_exported() -> None:
    for architecture in ("mixtral", "qwen3_moe"):
        for export_format in QUANTIZED:
            found = artifact_verdict(architecture, export_format)
            assert found.refused
            parts = (f"{export_format} export", f"({architecture})", "evaluation", "Train a model without experts")
            assert_says(found.message, *parts)
        assert not artifact_verdict(architecture, "Merged").refused
    assert [artifact_verdict(name, "INT8") for name in DENSE] == [verdict(Case("", "", ""))] * len(DENSE)


def test_layers_that_nothing_rounds_are_refused_before_the_training() -> None:
    for architecture in ("gpt2", "openai-gpt"):
        for export_format in QUANTIZED:
            found = artifact_verdict(architecture, export_format)
            assert found.refused
            assert_says(found.message, f"No layer of a {architecture}", export_format, "Conv1D", "Choose Merged")
        assert not artifact_verdict(architecture, "Merged").refused


def test_what_awq_cannot_rescale_is_refused_before_the_training() -> None:
    for architecture in ("gemma", "gemma2", "gemma3_text"):
        said = artifact_verdict(architecture, "INT4AWQ").message
        assert_says(said, "AWQ (INT4AWQ) rounds the norms", f"of a {architecture}", "Choose INT4")
    for architecture in ("glm4", "gpt_neox", "olmo", "olmo2", "olmo3", "phi", "starcoder2"):
        said = artifact_verdict(architecture, "INT4AWQ").message
        assert_says(said, "AWQ (INT4AWQ) does not calibrate all", f"of a {architecture}", "Choose INT4")
        assert not artifact_verdict(architecture, "INT4").refused
    for architecture in ("llama", "mistral", "ministral3", "qwen2", "qwen3", "phi3", "granite", "cohere2", "smollm3"):
        assert not artifact_verdict(architecture, "INT4AWQ").refused


@pytest.mark.parametrize("engine", TITLES)
def test_a_family_that_no_row_of_an_engine_names_is_told_to_be_unknown(engine: str) -> None:
    """Of all that preflight knows, which follow transformers, and not the engines."""
    named = {name for row in ROWS if row.engine == engine for name in row.architectures or ()}
    unknown = {family for family in families() if on(engine, family).level is UNKNOWN}
    assert unknown == {each for each in set(families()) - named if not artifact_verdict(each, "INT8").refused}
    assert {"ministral", "olmoe", "gpt_oss", "gemma3", "llama4", "llama4_text"} <= unknown


def test_rows_name_models_engines_and_formats_that_there_are() -> None:
    architectures = {name for row in ROWS for name in row.architectures or ()}
    assert architectures <= {*families(), *known().left_out, *known().images}
    assert {each.value for each in Engine} <= TITLES.keys()
    formats = {name for row in ROWS for name in row.formats or ()}
    assert formats <= {each.value for each in ExportFormat}
    assert {each.value for each in ExportFormat} - {ExportFormat.MERGED, ExportFormat.ADAPTER} == QUANTIZED


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_a_row_is_complete(row: Row) -> None:
    """It has its source, says what is wrong and what to do, and names only what the case has."""
    assert "https://" in row.source or "here" in row.source
    names = {name for _, name, _, _ in string.Formatter().parse(row.says) if name}
    assert names <= {field.name for field in fields(Case)}
    assert bool(row.says) is (row.level is not FINE)
    assert (row.level is REFUSED) is any(verb in row.says for verb in ("Choose", "Remove", "Train"))
    for name, limit in (("architecture", row.architectures), ("generation", row.generations), ("dtype", row.dtypes)):
        assert name not in names or limit or name == "architecture"


def test_a_cpu_runs_the_stand_in() -> None:
    assert serving_verdict(ServingFacts(name="tgi-cpu", engine="tgi"), "qwen3", "INT8") == verdict(Case("", "", ""))


@pytest.mark.parametrize(
    ("pod", "env", "gpu", "card", "dtype"),
    [
        (PodShape(), {}, False, "", ""),
        (PodShape(limits={"cpu": "2", "nvidia.com/gpu": "0"}), {}, False, "", ""),
        (PodShape(limits={"nvidia.com/gpu": "1"}), {"DTYPE": "float16"}, True, "", "float16"),
        (PodShape(limits={"nvidia.com/mig-1g.5gb": "1"}), {}, True, "", ""),
        *(
            (PodShape(limits={"nvidia.com/gpu": "1"}, node_selector={label: name, "zone": "a"}), {}, True, name, "")
            for label, name in (
                ("nvidia.com/gpu.product", "NVIDIA-L4"),
                ("cloud.google.com/gke-accelerator", "nvidia-l4"),
                ("karpenter.k8s.aws/instance-gpu-name", "l4"),
                ("eks.amazonaws.com/instance-gpu-name", "l4"),
            )
        ),
    ],
)
def test_what_the_values_say_of_a_runtime(pod: PodShape, env: dict[str, str], gpu: bool, card: str, dtype: str) -> None:
    runtime = Runtime(engine=Engine.TGI, image="tgi:3.3.7", pod=pod, env=env)
    expected = ServingFacts(name="mine", engine="tgi", gpu=gpu, card=card, dtype=dtype)
    assert serving_facts("mine", runtime) == expected
    assert not card or on("tgi", "llama", card) == verdict(Case("tgi", "llama", "INT8", Generation.ADA))


def test_resolve_is_told_every_runtime() -> None:
    assert [each.name for each in offered_facts(SETTINGS)] == ["tgi", "tgi-cpu"]
