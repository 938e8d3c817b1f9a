"""Will it fit, how long, what will it cost: shapes against transformers, memory by properties, admission by tables."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_api.budget import (
    HardwareFacts,
    dollars,
    most_tokens,
    remaining_seconds,
    trained_tokens,
)
from finetune_api.reasons import Reason
from finetune_api.training import AdapterKind, Method, Quantization, Training
from finetune_jobs.base.errors import StageError
from finetune_jobs.fit.admission import admit, fits, smallest_change
from finetune_jobs.fit.cost import forecast
from finetune_jobs.fit.duration import flops_per_token, tokens_per_second
from finetune_jobs.fit.memory import (
    BF16,
    GIB,
    NF4,
    ON_CPU,
    ON_GPU,
    USABLE,
    Head,
    Step,
    floor_memory,
    loading_memory,
    peak_memory,
    trained_parameters,
)
from finetune_jobs.fit.shapes import FAMILIES, Shape, UnknownShapeError, read_shape
from tests.support.sentences import assert_says

pytestmark = pytest.mark.unit

SMALL: dict[str, Any] = {
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 224,
    "vocab_size": 500,
    "pad_token_id": 0,
}
SPECIAL: dict[str, dict[str, Any]] = {
    "gpt_neox": {"num_key_value_heads": None},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
}
LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
}
MIXTRAL = LLAMA_8B | {"model_type": "mixtral", "vocab_size": 32000, "num_local_experts": 8, "num_experts_per_tok": 2}
SMOLLM = {
    "model_type": "llama",
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
L4 = HardwareFacts(
    profile="gpu-l4", name="NVIDIA L4", count=1, memory_gib=22, peak_tflops=121, usd_per_hour=0.8, cpus=8
)
A100 = HardwareFacts(
    profile="gpu-a100-40", name="NVIDIA A100 40GB", count=1, memory_gib=39, peak_tflops=312, usd_per_hour=2.1
)
CPU = HardwareFacts(profile="cpu-small", memory_gib=8, cpus=2)


def small(family: str) -> dict[str, Any]:
    """A config.json of the family, as small as it gets."""
    config = {"model_type": family} | SMALL | SPECIAL.get(family, {})
    return {name: value for name, value in config.items() if value is not None}


def shape_of(config: dict[str, Any]) -> Shape:
    """Its shape."""
    return read_shape(config)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_shape_is_that_of_the_model_in_transformers(family: str) -> None:
    """Same parameters, and the same linear layers but the output layer, for both ways to write a config.json."""
    import torch
    from torch import nn
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {name: value for name, value in small(family).items() if name != "model_type"}
    config = AutoConfig.for_model(family, **fields)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    linear = {
        name.rpartition(".")[2]: (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if type(module) is nn.Linear and module is not model.get_output_embeddings()
    }
    for written in (config.to_dict(), config.to_diff_dict()):
        shape = read_shape(written)
        assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
        assert {matrix.name: (matrix.inputs, matrix.outputs) for matrix in shape.matrices} == linear


@pytest.mark.slow
@pytest.mark.parametrize(
    ("training", "adapted"),
    [
        (Training(rank=4), "all-linear"),
        (Training(rank=4, adapter=AdapterKind.DORA), "all-linear"),
        (Training(rank=8, target_modules=["q_proj", "mlp.down_proj"]), ["q_proj", "down_proj"]),
    ],
    ids=["all", "dora", "two"],
)
def test_adapters_are_those_of_peft(training: Training, adapted: str | list[str]) -> None:
    """The trained parameters are as many as PEFT's adapter has."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {name: value for name, value in small("llama").items() if name != "model_type"}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **fields))
    dora = training.adapter is AdapterKind.DORA
    adapter = LoraConfig(r=training.rank, use_dora=dora, target_modules=adapted, task_type="CAUSAL_LM")
    with torch.no_grad():
        adapted_model = get_peft_model(model, adapter)
    expected = sum(parameter.numel() for parameter in adapted_model.parameters() if parameter.requires_grad)
    assert trained_parameters(shape_of(small("llama")), training) == expected


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba' is not one of"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": "4096; rm"}, "hidden_size"),
        ({"num_hidden_layers": -1}, "num_hidden_layers"),
        ({"num_hidden_layers": 10**30}, "num_hidden_layers"),
        ({"quantization_config": {"quant_method": "gptq"}}, "already quantised"),
        ({"model_type": "mixtral"}, "how many experts"),
        ({"model_type": "qwen3_moe", "num_experts": 4, "mlp_only_layers": [1]}, "differ"),
        ({"model_type": "phi", "qk_layernorm": True}, "differ"),
    ],
)
def test_unknown_is_said_and_not_refused(change: dict[str, Any], why: str) -> None:
    """What cannot be told is told so; the run goes on."""
    config = LLAMA_8B | change
    with pytest.raises(UnknownShapeError, match=why):
        read_shape(config)
    admission = admit(config, Training(), L4)
    assert admission.memory is None
    assert admission.forecast is None
    assert why in admission.message


def test_experts_take_memory_all_and_time_only_when_active() -> None:
    """Mixtral 8x7B: 46.7 billion parameters of which a token passes 12.9 (Jiang et al. 2024, arXiv 2401.04088)."""
    shape = shape_of(MIXTRAL)
    assert shape.parameters / 1e9 == pytest.approx(46.7, abs=0.05)
    assert shape.active_parameters / 1e9 == pytest.approx(12.9, abs=0.05)
    nf4 = peak_memory(shape, Training(), ON_GPU).weights
    assert nf4 > 2 * shape.expert_parameters  # transformers 5 holds experts as one tensor, which nf4 leaves alone


@pytest.mark.parametrize(
    ("training", "bytes_per_linear_weight"),
    [
        (Training(), NF4),
        (Training(quantization=Quantization.INT8), 1),
        (Training(method=Method.LORA), 2),
        (Training(method=Method.FULL), 4),
    ],
)
def test_weights(training: Training, bytes_per_linear_weight: float) -> None:
    """Linear layers as the method loads them; embeddings are never rounded."""
    shape = shape_of(LLAMA_8B)
    rest = (4 if training.method is Method.FULL else 2) * (shape.parameters - shape.linear_parameters)
    expected = shape.linear_parameters * bytes_per_linear_weight + rest
    assert peak_memory(shape, training, ON_GPU).weights == pytest.approx(expected)


TRAININGS = st.builds(
    Training,
    method=st.sampled_from(Method),
    quantization=st.sampled_from(Quantization),
    batch_size=st.sampled_from([1, 2, 4, 8, 64]),
    max_length=st.sampled_from([16, 512, 2048, 8192]),
    rank=st.sampled_from([1, 16, 256]),
    dropout=st.sampled_from(["0", "0.05"]),
    adapter=st.sampled_from(AdapterKind),
)
CONFIGS = st.sampled_from([LLAMA_8B, MIXTRAL, SMOLLM, small("gpt_neox"), small("gemma3_text")])
STEPS = st.sampled_from([ON_GPU, ON_CPU, Step(checkpointing=False, head=Head.FUSED, on_gpu=True)])


@settings(max_examples=60, deadline=None)
@given(config=CONFIGS, training=TRAININGS, step=STEPS)
def test_memory_grows_with_what_it_has_to_hold(config: dict[str, Any], training: Training, step: Step) -> None:
    """A larger batch, longer examples or more rank never take less; all parts are there, and none is negative."""
    shape = shape_of(config)
    memory = peak_memory(shape, training, step)
    assert min(memory.weights, memory.state, memory.activations, memory.overhead) > 0
    assert memory.total >= memory.tensors >= floor_memory(shape, training, step).tensors
    for more in ({"batch_size": training.batch_size * 2}, {"max_length": training.max_length * 2}):
        assert peak_memory(shape, training.model_copy(update=more), step).tensors >= memory.tensors
    if training.method is not Method.FULL:
        assert peak_memory(shape, training.model_copy(update={"rank": 512}), step).tensors >= memory.tensors


@settings(max_examples=60, deadline=None)
@given(config=CONFIGS, training=TRAININGS, step=STEPS, processes=st.integers(2, 64))
def test_processes_divide_a_whole_model_and_no_other(
    config: dict[str, Any], training: Training, step: Step, processes: int
) -> None:
    """Weights, gradients and Adam's moments, 16 bytes a parameter, are divided evenly; adapters' bases are not."""
    shape = shape_of(config)
    alone, one = peak_memory(shape, training, step), peak_memory(shape, training, step, processes)
    if training.method is Method.FULL:
        assert one.weights + one.state == pytest.approx(16 * shape.parameters / processes)
        assert one.workspace == peak_memory(shape, training, step, 2 * processes).workspace > 0
    else:
        assert one == alone


def test_a_whole_model_that_fits_no_gpu_fits_eight_together() -> None:
    """Llama-3-8B has 120 GiB of weights, gradients and moments: 15 of them on each of eight."""
    training = Training(method=Method.FULL, batch_size=8, max_length=1024)
    eight = A100.model_copy(update={"profile": "gpu-a100-40x8", "count": 8})
    with pytest.raises(StageError, match=r"Unchanged, .* profile gpu-a100-40x8\."):
        admit(LLAMA_8B, training, A100, [eight])

    admission = admit(LLAMA_8B, training, eight)

    assert admission.memory is not None
    assert_says(admission.message, "39 GiB", "each NVIDIA A100 40GB (8")
    assert admission.memory.weights + admission.memory.state == pytest.approx(15 * GIB, rel=0.01)


@settings(max_examples=60, deadline=None)
@given(config=CONFIGS, training=TRAININGS)
def test_checkpointing_and_rounding_save_memory(config: dict[str, Any], training: Training) -> None:
    """Checkpointing saves activations; nf4 saves weights over int8, int8 over 16 bits."""
    shape = shape_of(config)
    plain = Step(checkpointing=False, head=Head.FUSED, on_gpu=True)
    if shape.layers > 3:
        assert peak_memory(shape, training, ON_GPU).activations <= peak_memory(shape, training, plain).activations
    weights = [
        peak_memory(shape, training.model_copy(update=how), ON_GPU).weights
        for how in (
            {"method": Method.QLORA, "quantization": Quantization.NF4},
            {"method": Method.QLORA, "quantization": Quantization.INT8},
            {"method": Method.LORA},
            {"method": Method.FULL},
        )
    ]
    assert weights == sorted(weights)


def test_admitted() -> None:
    """An 8B model with QLoRA fits an L4, and the message has the numbers."""
    admission = admit(LLAMA_8B, Training(batch_size=1, max_length=2048), L4, [A100])
    assert admission.memory is not None
    assert admission.memory.gib < USABLE * L4.memory_gib
    assert_says(admission.message, "Needs", f"{admission.memory.gib:.1f} GiB", "22 GiB", "NVIDIA L4.")


REFUSED = {
    "smaller passes": (
        {"batch_size": 32, "max_length": 2048, "gradient_accumulation": 1},
        LLAMA_8B,
        ["batchSize: ", "gradientAccumulation: "],
        ["method", "maxLength: "],
    ),
    "a rounded base": (
        {"method": "LoRA", "batch_size": 1, "max_length": 8192},
        LLAMA_8B,
        ["method: QLoRA, quantization: NF4"],
        ["batchSize: ", "maxLength: "],
    ),
    "nf4 instead of int8": (
        {"quantization": "INT8", "batch_size": 1, "max_length": 16384},
        LLAMA_8B,
        ["quantization: NF4"],
        ["method: ", "maxLength: "],
    ),
    "shorter examples": (
        {"batch_size": 1, "max_length": 65536},
        LLAMA_8B,
        ["maxLength: "],
        ["batchSize: ", "method: "],
    ),
    "nothing": ({"batch_size": 1}, MIXTRAL, ["No smaller setting and no other profile"], ["It fits"]),
}


@pytest.mark.parametrize(("spec", "config", "named", "unnamed"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_with_the_smallest_change(
    spec: dict[str, Any], config: dict[str, Any], named: list[str], unnamed: list[str]
) -> None:
    """The message names the change; with that change the training is admitted."""
    training = Training.model_validate(spec)
    with pytest.raises(StageError) as refusal:
        admit(config, training, L4)
    assert refusal.value.reason is Reason.FIT_REFUSED
    advice = refusal.value.message.partition("profile gpu-l4. ")[2]
    assert all(each in advice for each in named)
    assert not any(each in advice for each in unnamed)
    changed = smallest_change(shape_of(config), training, L4)
    if changed is None:
        assert "It fits" not in advice
    else:
        assert admit(config, changed, L4).memory is not None


def test_refusal_names_the_profile_that_fits() -> None:
    """The smallest GPU that holds it as it is; never one without a GPU."""
    training = Training(method=Method.LORA, batch_size=1, max_length=8192)
    with pytest.raises(StageError, match=r"Unchanged, .* profile gpu-a100-40\.$"):
        admit(LLAMA_8B, training, L4, [CPU, A100, L4])


@settings(max_examples=40, deadline=None)
@given(config=CONFIGS, training=TRAININGS, gib=st.floats(1, 80))
def test_the_proposed_change_keeps_the_optimiser_step(config: dict[str, Any], training: Training, gib: float) -> None:
    """What is proposed fits, trains the same examples per step, and is never larger than what was asked for."""
    hardware = L4.model_copy(update={"memory_gib": gib})
    changed = smallest_change(shape_of(config), training, hardware)
    if changed is None:
        return
    assert fits(peak_memory(shape_of(config), changed, ON_GPU), hardware)
    examples = [each.batch_size * each.gradient_accumulation for each in (training, changed)]
    assert examples[0] == examples[1]
    assert changed.batch_size <= training.batch_size
    assert changed.max_length <= training.max_length


def test_pods_without_a_gpu() -> None:
    """Refused only for what no data can change; longer examples are told of, not refused."""
    fine = admit(SMOLLM, Training(batch_size=1, max_length=128), CPU)
    assert fine.message.endswith("of the pod's 8 GiB.")
    told = admit(SMOLLM, Training(batch_size=64, max_length=2048), CPU)
    assert_says(told.message, "the pod's 8 GiB:", "shorter examples", "smaller batchSize.")
    sixteen = CPU.model_copy(update={"memory_gib": 16})
    with pytest.raises(StageError, match=r"at least about 1\d\.\d GiB .* the 16 GiB of a pod .* It fits with"):
        admit(LLAMA_8B, Training(method=Method.LORA), sixteen)
    small = CPU.model_copy(update={"memory_gib": 4})
    with pytest.raises(StageError, match=r"at least .* It fits profile gpu-l4 or gpu-a100-40\."):
        admit(LLAMA_8B, Training(method=Method.LORA, batch_size=1), small, [L4, A100])


LLAMA_70B = LLAMA_8B | {
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "intermediate_size": 28672,
}
QWEN3 = {"model_type": "qwen3", "num_key_value_heads": 8, "head_dim": 128, "hidden_size": 5120, "vocab_size": 151936}
QWEN3_32B = QWEN3 | {"num_hidden_layers": 64, "num_attention_heads": 64, "intermediate_size": 25600}
QWEN3_14B = QWEN3 | {"num_hidden_layers": 40, "num_attention_heads": 40, "intermediate_size": 17408}


@pytest.mark.parametrize(
    ("config", "gpu_gib", "merged_gib"),
    [(LLAMA_70B, 79, 131.4), (QWEN3_32B, 39, 61.0), (QWEN3_14B, 22, 27.5)],
    ids=["Llama-70B on an A100-80", "Qwen3-32B on an A100-40", "Qwen3-14B on an L4"],
)
def test_what_is_trained_on_4_bits_of_each_weight_is_merged_in_16(
    config: dict[str, Any], gpu_gib: float, merged_gib: float
) -> None:
    """In the memory of a pod that has it, where the GPU has not; otherwise it is refused before the training."""
    assert BF16 * shape_of(config).parameters / GIB == pytest.approx(merged_gib, abs=0.05)
    training, gpu = Training(batch_size=1), L4.model_copy(update={"memory_gib": gpu_gib})
    for pod_gib in (0, merged_gib + 1):
        assert admit(config, training, gpu.model_copy(update={"pod_memory_gib": pod_gib})).memory is not None
    tight = gpu.model_copy(update={"pod_memory_gib": merged_gib})
    roomy = tight.model_copy(update={"profile": "gpu-roomy", "pod_memory_gib": 2 * merged_gib})
    with pytest.raises(StageError, match=r"^Export needs .* Unchanged, .* profile gpu-roomy\.$"):
        admit(config, training, tight, [roomy])


def test_hardware_that_says_nothing() -> None:
    """Without a limit there is nothing to compare with, and without a speed no time."""
    admission = admit(SMOLLM, Training(), HardwareFacts(profile="mine"))
    assert admission.forecast is None
    assert "profile's memory is unknown" in admission.message


def test_duration() -> None:
    """Llama-2-7B with QLoRA on an A100: LLaMA-Factory measured 2,295 to 3,542 tokens/s (0.30 to 0.46 of the peak)."""
    llama2 = LLAMA_8B | {"num_key_value_heads": 32, "intermediate_size": 11008, "vocab_size": 32000}
    shape = shape_of(llama2)
    assert flops_per_token(shape, Training(), ON_GPU) == 6 * shape.parameters
    assert flops_per_token(shape, Training(method=Method.FULL), ON_CPU) == 6 * shape.parameters
    speed = tokens_per_second(shape, Training(), ON_GPU, A100)
    assert speed is not None
    assert 2295 < speed < 3542


@pytest.mark.parametrize(("method", "faster"), [(Method.QLORA, 7.2), (Method.LORA, 7.2), (Method.FULL, 6.4)])
def test_eight_gpus_are_not_eight_times_as_fast(method: Method, faster: float) -> None:
    """Less so where the model is divided: its layers travel too."""
    shape, training = shape_of(LLAMA_8B), Training(method=method)
    alone, together = (
        tokens_per_second(shape, training, ON_GPU, A100.model_copy(update={"count": count})) for count in (1, 8)
    )
    assert alone is not None
    assert together == pytest.approx(faster * alone)


@given(processes=st.integers(1, 8), nodes=st.integers(1, 4), method=st.sampled_from(Method))
def test_a_model_that_is_divided_is_first_loaded_whole(processes: int, nodes: int, method: Method) -> None:
    """By each process of a pod, however many pods there are; nothing else needs a pod's own memory."""
    shape, hardware = shape_of(LLAMA_8B), A100.model_copy(update={"count": processes, "nodes": nodes})
    needed = loading_memory(shape, Training(method=method), hardware)
    divided = method is Method.FULL and processes * nodes > 1
    assert needed >= processes * 4 * shape.parameters if divided else needed == 0
    assert needed <= processes * (4 * shape.parameters + GIB)


def test_cost() -> None:
    """An upper bound with maxSteps, none without. Twice the GPUs train 1.8 times as fast at twice the price; export and
    evaluation use one of them all the same. A second pod costs what the first one does, while it trains."""
    shape = shape_of(LLAMA_8B)
    open_end = forecast(shape, Training(), ON_GPU, A100, 100)
    bounded = forecast(shape, Training(max_steps=100), ON_GPU, A100, 100)
    double, pair = (
        forecast(shape, Training(max_steps=100), ON_GPU, A100.model_copy(update={field: 2}), 100)
        for field in ("count", "nodes")
    )
    assert open_end is not None
    assert open_end.most_usd is None
    assert bounded is not None
    assert bounded.most_usd is not None
    assert bounded.most_seconds is not None
    assert bounded.most_usd == pytest.approx(bounded.most_seconds * 2.1 / 3600)
    assert double is not None
    assert double.most_seconds is not None
    assert double.tokens_per_second == pytest.approx(1.8 * bounded.tokens_per_second)
    training, asking = (tokens / bounded.tokens_per_second for tokens in (100 * 16 * 512, 3 * 100 * 512))
    shared = training / 1.8 + asking / 0.9  # a share of the common speed stands for that of one GPU alone
    assert double.most_seconds == pytest.approx(bounded.most_seconds - training - asking + shared)
    assert double.most_usd == pytest.approx(2 * double.most_seconds * 2.1 / 3600)
    assert pair is not None
    assert pair.most_seconds is not None
    assert pair.most_seconds == pytest.approx(double.most_seconds + bounded.load_seconds + training / 1.8)
    assert pair.most_usd == pytest.approx(pair.most_seconds * 2.1 / 3600)


def test_tokens() -> None:
    """Epochs count, maxSteps ends them; the bound holds before the data are known."""
    assert trained_tokens(Training(epochs=3), 100, 5000) == 15000
    limited = Training(epochs=3, max_steps=5, batch_size=4, gradient_accumulation=2, max_length=512)
    assert trained_tokens(limited, 100, 5000) == 5 * 8 * 50
    assert trained_tokens(limited, 0, 0) == 0
    assert most_tokens(limited) == 5 * 8 * 512
    assert most_tokens(Training()) is None
    assert remaining_seconds(tokens=1000, samples=10, max_length=100, speed=10, load=60, stages=3) == 180 + 100 + 300


@given(amount=st.floats(0, 1e6))
def test_dollars(amount: float) -> None:
    """Two decimals, within half a cent."""
    assert abs(float(dollars(amount)) - amount) <= 0.005 + 1e-6


def test_floor_is_below_a_gigabyte_for_a_small_model() -> None:
    """SmolLM2-135M: measured 470 MB for the imports alone and 105 MB of nf4 weights."""
    floor = floor_memory(shape_of(SMOLLM), Training(), ON_CPU)
    assert 0.5 * GIB < floor.total < 1.5 * GIB


@pytest.mark.slow
@pytest.mark.parametrize("method", [Method.QLORA, Method.FULL])
def test_the_estimate_holds_against_pytorchs_memory_tracker(method: Method) -> None:
    """A step of a small model over fake tensors; hack/benchmarks/fit_estimate.py has more and larger ones."""
    from hack.benchmarks.fit_estimate import HIGHEST, LOWEST
    from hack.benchmarks.memory_tracker import tracked_peak

    config = SMALL | {"model_type": "llama", "hidden_size": 512, "num_hidden_layers": 2, "intermediate_size": 1408}
    training = Training(method=method, batch_size=8, max_length=512)
    measured = tracked_peak(config, training, checkpointing=True)
    assert LOWEST <= peak_memory(shape_of(config), training, ON_GPU).tensors / measured - 1 <= HIGHEST
