"""Export: merging keeps what was trained, files of every format answer like it."""

import json
import math
import os
import shutil
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest
import torch
from compressed_tensors.quantization import disable_quantization
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from finetune_api.export import ExportFormat
from finetune_api.finetunejob import Output
from finetune_api.layout import output_folder
from finetune_api.meta import ExitCode
from finetune_api.reasons import Reason
from finetune_api.stages import ExportParams, Stage, Upstream
from finetune_api.training import Method, Training
from finetune_jobs.artifacts.artifact import BaseRef
from finetune_jobs.artifacts.folders import describe_folder, fetch_folder, publish_folder
from finetune_jobs.artifacts.formats import read_alternatives
from finetune_jobs.base.errors import StageError
from finetune_jobs.evaluation.generate import Questions, generate_answers
from finetune_jobs.exporting import offload
from finetune_jobs.exporting.adapter import require_plain, write_base
from finetune_jobs.exporting.checkpoint import complete
from finetune_jobs.exporting.merge import merge
from finetune_jobs.exporting.offload import load_artifact
from finetune_jobs.modelling import chat
from finetune_jobs.modelling.device import precision
from finetune_jobs.modelling.loading import load_adapter, load_base, load_checkpoint
from finetune_jobs.modelling.token_files import read_split
from finetune_jobs.modelling.tokenizer import load_tokenizer
from finetune_jobs.modelling.tuning import Tuning, read_tuning
from finetune_jobs.store.s3 import Store
from hack.benchmarks import exported as exported_by_benchmarks
from hack.benchmarks.export_memory import Size, measure
from tests.support import forked
from tests.support.forked import Forked
from tests.support.seaweedfs import ADMIN, SeaweedFS
from tests.support.sentences import assert_says
from tests.support.stages import Ended, pipeline_params, run_process, stage_input
from tests.support.tiny_model import build_tiny_llama
from tests.support.training import BASE, load_tuned, publish_inputs, run_training, settings, write_dataset
from tests.support.transformers4 import read_with_transformers_4

pytestmark = [pytest.mark.unit, pytest.mark.slow]

METHODS = pytest.mark.parametrize("method", list(Method))
SAME_PERPLEXITY = 1e-4
"""How much two versions of transformers may differ, relatively: both compute in float32."""


@dataclass(frozen=True)
class Tuned:
    """A base model, a data set, and an adapter of each method that knows the data by heart; also in S3."""

    folder: Path
    store: Store
    upstream: Upstream

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def dataset(self) -> Path:
        return self.folder / "dataset"

    def adapter(self, method: Method) -> Path:
        return self.folder / method / "adapter"


@pytest.fixture(scope="module")
def tuned(s3: SeaweedFS, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tuned]:
    folder = tmp_path_factory.mktemp("export")
    base, dataset = build_tiny_llama(folder / "base"), write_dataset(folder / "dataset")
    # As transformers 5 writes it, with settings that must not reach a server.
    edit(base / "config.json", rope_theta=None, rope_parameters={"rope_type": "default", "rope_theta": 12345.0})
    edit(base / "generation_config.json", do_sample=True, temperature=0.5, repetition_penalty=1.3)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ADMIN.environment().items():
            patch.setenv(name, value)
        store = Store.connect(s3.storage, "s3://data/export")
        for method, epochs in {Method.QLORA: 20, Method.LORA: 14, Method.FULL: 8}.items():
            training, place = settings(method, epochs=epochs), store.below(f"checkpoints/{method}")
            run_training(base, dataset, folder / method, training, place)
        yield Tuned(folder, store, publish_inputs(store, base, dataset))


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def log_probabilities(model: Any, tuned: Tuned) -> torch.Tensor:
    tokenizer = load_tokenizer(tuned.base)
    stop = tokenizer.eos_token_id
    examples = [chat.encode(tokenizer, e.messages, stop) for e in read_split(tuned.dataset, "test")]
    with torch.no_grad():
        logits = [model.eval()(input_ids=torch.tensor([e.input_ids])).logits[0].float() for e in examples]
    return torch.log_softmax(torch.cat(logits), -1)


def tuning_of(method: Method) -> Tuning:
    return Tuning.of(Training(method=method))


def merged_model(tuned: Tuned, adapter: Path, tuning: Tuning) -> Any:
    """The merged model, which is 16-bit, as it computes where it is loaded."""
    return merge(tuned.base, adapter, tuning).to(precision())


def divergence(trained: torch.Tensor, other: torch.Tensor) -> float:
    """Mean Kullback-Leibler divergence per token, in nats."""
    return float((trained.exp() * (trained - other)).sum(-1).mean())


Both = Callable[[Method], tuple[torch.Tensor, torch.Tensor]]
"""The log-probabilities of a method's tuned model, and those of its base model as it was loaded."""


@pytest.fixture(scope="module")
def both(tuned: Tuned) -> Both:
    """Computed once for all that is compared with them."""

    @cache
    def of(method: Method) -> tuple[torch.Tensor, torch.Tensor]:
        trained = load_tuned(tuned.base, tuned.adapter(method), method)
        untrained = load_base(tuned.base, tuning_of(method).quantization)
        return log_probabilities(trained, tuned), log_probabilities(untrained, tuned)

    return of


@METHODS
def test_merging_keeps_what_was_trained(method: Method, tuned: Tuned, both: Both) -> None:
    trained, untrained = both(method)
    merged = log_probabilities(merged_model(tuned, tuned.adapter(method), tuning_of(method)), tuned)

    assert divergence(trained, merged) < 1e-3
    assert divergence(trained, untrained) > 1


@pytest.mark.parametrize(
    "changes",
    [{"quantization": "INT8"}, {"adapter": "DoRA"}, {"method": "LoRA", "adapter": "DoRA", "scaling": "RootOfRank"}],
    ids=["int8", "qdora", "dora+rslora"],
)
def test_merging_keeps_what_every_kind_of_adapter_learnt(changes: dict[str, Any], tuned: Tuned, tmp_path: Path) -> None:
    training = settings(**changes, epochs=8)
    run_training(tuned.base, tuned.dataset, tmp_path, training, tuned.store.below(f"kinds/{tmp_path.name}"))
    adapter, tuning = tmp_path / "adapter", read_tuning(tmp_path / "adapter", Method.FULL)
    assert tuning == Tuning.of(training)

    trained = log_probabilities(load_tuned(tuned.base, adapter, training.method), tuned)
    merged = log_probabilities(merged_model(tuned, adapter, tuning), tuned)
    untrained = log_probabilities(load_base(tuned.base, tuning.quantization), tuned)

    assert divergence(trained, merged) < 2e-3
    assert divergence(trained, untrained) > 1


def test_a_tokenizer_without_settings_gets_its_special_tokens(tmp_path: Path) -> None:
    """transformers reads such a base, so it was trained; the export found no file to add the template to."""
    base, out = build_tiny_llama(tmp_path / "base"), tmp_path / "out"
    settings = json.loads((base / "tokenizer_config.json").read_text())
    tokens = {"bos_token": settings["bos_token"], "eos_token": {"content": settings["eos_token"], "lstrip": False}}
    (base / "special_tokens_map.json").write_text(json.dumps(tokens))
    (base / "chat_template.jinja").write_text(settings["chat_template"])
    (base / "tokenizer_config.json").unlink()
    out.mkdir()
    (out / "config.json").write_text((base / "config.json").read_text())
    complete(base, out, tuning_of(Method.LORA))
    written = json.loads((out / "tokenizer_config.json").read_text())
    assert {name: written[name] for name in ("bos_token", "eos_token", "chat_template")} == {
        name: settings[name] for name in ("bos_token", "eos_token", "chat_template")
    }
    assert load_tokenizer(out).eos_token == load_tokenizer(base).eos_token == settings["eos_token"]


def test_an_older_adapter_is_read_by_the_jobs_method(tmp_path: Path) -> None:
    assert read_tuning(tmp_path, Method.QLORA) == Tuning.of(Training(method=Method.QLORA))
    assert read_tuning(tmp_path, Method.LORA) == Tuning.of(Training(method=Method.LORA))


def test_the_ways_that_are_not_taken_lose_some_of_it(tuned: Tuned, both: Both) -> None:
    """Merging inside the 4-bit weights, or into the original base that the adapter has never seen."""
    adapter, (trained, _) = tuned.adapter(Method.QLORA), both(Method.QLORA)
    ours = divergence(trained, log_probabilities(merged_model(tuned, adapter, tuning_of(Method.QLORA)), tuned))

    for method in (Method.QLORA, Method.LORA):
        other = load_adapter(load_base(tuned.base, tuning_of(method).quantization), adapter).merge_and_unload()
        assert divergence(trained, log_probabilities(other, tuned)) > 20 * ours


@pytest.fixture(scope="module", params=list(Method))
def exported(
    request: pytest.FixtureRequest, tuned: Tuned, s3: SeaweedFS, quantize_python: Path, tmp_path_factory: Any
) -> tuple[Ended, Path]:
    """The stage export as its container runs it, for every method: how it ended, and its output."""
    return run_export(tuned, s3, quantize_python, tmp_path_factory.mktemp("exported"), method=request.param)


def run_export(
    tuned: Tuned, s3: SeaweedFS, python: Path, folder: Path, *, method: Method = Method.QLORA, **export: Any
) -> tuple[Ended, Path]:
    """How the stage ended for an adapter of this method and this ``spec.export``, and its output."""
    ended = end_of_export(tuned, s3, python, folder, method=method, **export)
    assert ended.code == ExitCode.OK, (ended.result, ended.log)
    out = folder / "out"
    fetch_folder(tuned.store, output_folder(Stage.EXPORT, ended.result.output_digest), out)
    return ended, out


def end_of_export(tuned: Tuned, s3: SeaweedFS, python: Path, folder: Path, *, method: Method, **export: Any) -> Ended:
    adapter = publish_folder(tuned.store, tuned.adapter(method), Stage.TRAIN)
    output = Output(uri=tuned.store.uri(), name="transactions")
    params = pipeline_params([], output).model_copy(update={"export": ExportParams(export=export, method=method)})
    chain = tuned.upstream.with_output(Stage.TRAIN, adapter)
    given = stage_input(
        Stage.EXPORT, s3.storage, output, params, chain, base_model_uri=tuned.store.uri(BASE), reuse=False
    )
    folder.mkdir(exist_ok=True)
    return run_process(given, folder, ADMIN, python=python)


SPECIAL = {"bos_token_id": 1, "eos_token_id": 3, "pad_token_id": 0}
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "head_dim": 16, "vocab_size": 320}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048}
REFUSED: dict[str, tuple[ExportFormat, dict[str, int], str]] = {
    # Conv1D where others have linear layers: the file would be that of 16 bits, called INT8
    "gpt2": (
        ExportFormat.INT8,
        {"vocab_size": 320, "n_positions": 2048, "n_embd": 32, "n_layer": 1, "n_head": 2},
        "format INT8: no layer was quantized … Conv1D … Set spec.export.format to Merged",
    ),
    # most of its layers have no other that could be divided
    "olmo": (
        ExportFormat.INT4_AWQ,
        SMALL | HEADS,
        "5 layers could not be calibrated to 4 bits … model.layers.0.self_attn.q_proj … "
        "Set spec.export.format to INT8 or FP8",
    ),
}
"""Models by their ``model_type``: a format that they have not, their shape, and what is said."""


@pytest.mark.parametrize("architecture", REFUSED)
def test_a_model_that_has_not_the_format_is_not_exported_as_if_it_had(
    architecture: str, tuned: Tuned, s3: SeaweedFS, quantize_python: Path, tmp_path: Path
) -> None:
    """Preflight knows of these; of others the export must."""
    kind, shape, said = REFUSED[architecture]
    given = untrained(architecture, shape, tuned, tmp_path)
    ended = end_of_export(given, s3, quantize_python, tmp_path / "run", method=Method.FULL, format=kind)
    assert (ended.code, ended.result.reason) == (ExitCode.FATAL, Reason.MODEL_UNSUPPORTED), ended.log
    assert_says(ended.result.message, *said.split(" … "))
    assert not ended.result.output_digest


def test_norms_that_add_one_to_their_weights_keep_every_bit(
    tuned: Tuned, s3: SeaweedFS, quantize_python: Path, tmp_path: Path
) -> None:
    """Gemma's: the sum has too few bits for both, and llm-compressor computes with the sum."""
    given = untrained("gemma", SMALL | HEADS, tuned, tmp_path)
    ended = end_of_export(given, s3, quantize_python, tmp_path / "run", method=Method.FULL, format=ExportFormat.FP8)
    assert ended.code == ExitCode.OK, (ended.result, ended.log)
    assert ended.result.scalars["comparedTensors"] == "11"


def untrained(architecture: str, shape: dict[str, int], tuned: Tuned, folder: Path) -> Tuned:
    """A tiny random model of another family in place of a tuned one, as method Full leaves it."""
    given = Tuned(folder, tuned.store.below(architecture), tuned.upstream)
    shutil.copytree(tuned.base, given.base)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(architecture, **shape, **SPECIAL), dtype=torch.bfloat16
    )
    with torch.no_grad():
        for each in model.parameters():
            if each.ndim == 1:
                each.normal_(0, 0.3)
    model.save_pretrained(given.base)
    shutil.copytree(given.base, given.adapter(Method.FULL))
    return replace(given, upstream=publish_inputs(given.store, given.base, tuned.dataset))


def test_the_exported_files_answer_like_the_trained_model(exported: tuple[Ended, Path], tuned: Tuned) -> None:
    _, out = exported
    examples = read_split(tuned.dataset, "train")
    questions = Questions([example.prompt for example in examples], limit=12, batch_size=6)
    answers = generate_answers(load_checkpoint(out), load_tokenizer(out), questions, lambda _done, _total: None)
    assert answers == [example.label for example in examples]


def test_the_exported_files_are_int8_for_every_reader(exported: tuple[Ended, Path], tuned: Tuned) -> None:
    ended, out = exported
    names = {file.name for file in out.iterdir()} - {"manifest.json", "recipe.yaml"}
    assert names == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    config = json.loads((out / "config.json").read_text())
    assert config["rope_theta"] == 12345.0
    assert config["torch_dtype"] == "bfloat16"
    quantisation = config["quantization_config"]
    assert (quantisation["quant_method"], quantisation["format"]) == ("compressed-tensors", "int-quantized")
    assert quantisation["ignore"] == ["lm_head"]
    (group,) = quantisation["config_groups"].values()
    assert (group["weights"]["num_bits"], group["weights"]["strategy"]) == (8, "channel")
    assert (group["input_activations"]["num_bits"], group["input_activations"]["dynamic"]) == (8, True)
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation.pop("transformers_version")
    assert generation.pop("_from_model_config", False) is False, "servers would take them from config.json"
    assert generation == SPECIAL, "where an answer ends, and nothing that changes answers"
    with safe_open(out / "model.safetensors", "pt") as file:
        dtypes = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118 # not a dict
    assert dtypes["model.layers.0.mlp.down_proj.weight"] is torch.int8
    assert dtypes["lm_head.weight"] is torch.bfloat16
    assert (out / "tokenizer.json").read_bytes() == (tuned.base / "tokenizer.json").read_bytes()
    size = (out / "model.safetensors").stat().st_size
    found = dict(ended.result.scalars)
    assert 0 < float(found.pop("roundingUsed")) <= 1
    assert found == {"format": "INT8", "sizeBytes": str(size), "comparedTensors": "21"}
    assert not any(str(tuned.folder) in file.read_text() for file in out.glob("*.json"))


@dataclass(frozen=True)
class Written:
    """What the files of a format hold."""

    form: str | None
    """Of compressed-tensors; None: 16 bits."""
    bits: int = 16
    strategy: str = ""
    dtype: torch.dtype = torch.bfloat16
    """Of the linear layers' weights."""
    activations: int | None = None
    """Bits to which they are rounded at run time."""
    dynamic: bool | None = None
    """Whether their scale is found then, too; None: they are not rounded."""


WRITTEN = {
    ExportFormat.W8A16: Written("pack-quantized", 8, "channel", torch.int32),
    ExportFormat.FP8: Written("float-quantized", 8, "channel", torch.float8_e4m3fn, 8, dynamic=True),
    ExportFormat.FP8_STATIC: Written("float-quantized", 8, "channel", torch.float8_e4m3fn, 8, dynamic=False),
    ExportFormat.INT4: Written("pack-quantized", 4, "group", torch.int32),
    ExportFormat.INT4_AWQ: Written("pack-quantized", 4, "group", torch.int32),
    ExportFormat.MERGED: Written(None),
}


@pytest.fixture(scope="module")
def several(
    tuned: Tuned, s3: SeaweedFS, quantize_python: Path, tmp_path_factory: Any
) -> tuple[Ended, Mapping[ExportFormat, Path]]:
    """A run that makes all other formats: how it ended, and the files of each."""
    folder = tmp_path_factory.mktemp("several")
    first, *others = WRITTEN
    alternatives = [*others, ExportFormat.ADAPTER]
    ended, out = run_export(tuned, s3, quantize_python, folder, format=first, alternatives=alternatives)
    found = {first: out}
    for each in read_alternatives(out):
        kind = ExportFormat(each.format)
        found[kind] = folder / kind
        fetch_folder(tuned.store, output_folder(Stage.EXPORT, each.digest), found[kind])
    return ended, found


@pytest.fixture(scope="module", params=list(WRITTEN))
def formatted(
    request: pytest.FixtureRequest, several: tuple[Ended, Mapping[ExportFormat, Path]]
) -> tuple[ExportFormat, Path]:
    """One of them, with its files."""
    kind: ExportFormat = request.param
    return kind, several[1][kind]


def test_several_formats_are_made_in_one_run(several: tuple[Ended, Mapping[ExportFormat, Path]]) -> None:
    """The first is the stage's output and names the others, in the order of the spec."""
    ended, found = several
    first, *others = found
    assert [each.format for each in read_alternatives(found[first])] == others
    size = (found[first] / "model.safetensors").stat().st_size
    assert (ended.result.scalars["format"], ended.result.scalars["sizeBytes"]) == (first, str(size))
    assert_says(ended.result.message, f"{first}, {size / 1e6:.0f} MB", f"Beside it: {', '.join(others)}")
    for kind in others:
        manifest = json.loads((found[kind] / "manifest.json").read_text())
        assert manifest["facts"]["format"] == kind
        assert manifest["facts"].get("comparedTensors") == (None if kind is ExportFormat.ADAPTER else "21")
        assert float(manifest["facts"].get("roundingUsed", 0.0)) <= 1
        assert manifest["lineage"]["upstream"]["adapter"]
        assert manifest["lineage"]["usage"]["seconds"] > 0, "it may be the one that is served"
        assert not read_alternatives(found[kind])


def test_an_adapter_alone_answers_like_the_trained_model_on_the_base_beside_it(
    several: tuple[Ended, Mapping[ExportFormat, Path]], tuned: Tuned, both: Both, tmp_path: Path
) -> None:
    """On the rounded base that QLoRA has trained on, in 16 bits. The base is the same for every such adapter."""
    out, base = several[1][ExportFormat.ADAPTER], tmp_path / "base"
    names = {"adapter_config.json", "adapter_model.safetensors", "base.json", "manifest.json"}
    assert {file.name for file in out.iterdir()} == names
    ref = BaseRef.model_validate_json((out / "base.json").read_text())
    assert ref.rank == json.loads((out / "adapter_config.json").read_text())["r"]
    lineage = fetch_folder(tuned.store, ref.folder, base).lineage
    assert lineage.upstream == Upstream(model=lineage.upstream.model), "nothing of the data set is in what others share"
    again = tmp_path / "again"
    write_base(tuned.base, again, tuning_of(Method.QLORA))
    assert describe_folder(again, Stage.EXPORT).content_digest() == ref.digest, "another transformers writes the same"
    trained, untrained = both(Method.QLORA)
    assert divergence(trained, log_probabilities(load_artifact(out, base), tuned)) < divergence(trained, untrained) / 10
    assert divergence(untrained, log_probabilities(load_artifact(base), tuned)) < divergence(untrained, trained) / 10


@pytest.mark.parametrize(("method", "changes"), [(Method.FULL, {}), (Method.LORA, {"use_dora": True})])
def test_what_no_server_loads_is_no_adapter(method: Method, changes: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4} | changes))
    with pytest.raises(StageError, match=r"Full makes no adapter|has use_dora, .* choose another spec.export.format"):
        require_plain(tmp_path, tuning_of(method))


def test_every_format_answers_like_the_trained_model(
    formatted: tuple[ExportFormat, Path], tuned: Tuned, both: Both
) -> None:
    """INT4 too, since it is calibrated: rounded to the nearest value, it would have lost what was trained."""
    _, out = formatted
    trained, untrained = both(Method.QLORA)
    artifact = log_probabilities(load_artifact(out), tuned)
    assert divergence(trained, artifact) < divergence(trained, untrained) / 10

    examples = read_split(tuned.dataset, "train")
    questions = Questions([example.prompt for example in examples], limit=12, batch_size=6)
    answers = generate_answers(load_checkpoint(out), load_tokenizer(out), questions, lambda _done, _total: None)
    assert answers == [example.label for example in examples]


@pytest.mark.parametrize("exported", [Method.QLORA], indirect=True)
def test_transformers_4_finds_what_transformers_5_finds(
    exported: tuple[Ended, Path],
    several: tuple[Ended, Mapping[ExportFormat, Path]],
    tuned: Tuned,
    transformers_4_python: Path,
    without_bfloat16: None,
    tmp_path: Path,
) -> None:
    """Text Generation Inference 3.3 reads with version 4.51: every format that is published has the same prompts, and
    the same weights, hence the same probabilities and perplexity while activations are not rounded, which is a matter
    of a server's kernels."""
    formats = {ExportFormat.INT8: [exported[1]], **{kind: [several[1][kind]] for kind in WRITTEN}}
    ref = BaseRef.model_validate_json((several[1][ExportFormat.ADAPTER] / "base.json").read_text())
    fetch_folder(tuned.store, ref.folder, tmp_path / "base")
    formats[ExportFormat.ADAPTER] = [tmp_path / "base", several[1][ExportFormat.ADAPTER]]
    assert formats.keys() == set(ExportFormat)
    tokenizer, examples = load_tokenizer(tuned.base), read_split(tuned.dataset, "test")
    texts = [chat.encode(tokenizer, each.messages, tokenizer.eos_token_id).input_ids for each in examples]
    prompts = [each.prompt for each in examples]
    found = read_with_transformers_4(transformers_4_python, list(formats.values()), texts, prompts)
    for (kind, folders), theirs in zip(formats.items(), found, strict=True):
        assert theirs.version.startswith("4.51.")
        assert theirs.prompts == [chat.prompt_ids(tokenizer, each) for each in prompts]
        model = load_artifact(folders[-1], folders[0] if len(folders) > 1 else None).eval()
        ours = [of_tokens(model, ids) for ids in texts]
        for ids, other in zip(ours, theirs.log_probabilities, strict=True):
            assert ids == pytest.approx(other, abs=1e-4), kind
        assert perplexity(ours) == pytest.approx(perplexity(theirs.log_probabilities), rel=SAME_PERPLEXITY), kind


def perplexity(texts: list[list[float]]) -> float:
    """Of texts, by the log-probabilities of their tokens."""
    return math.exp(-statistics.fmean(each for text in texts for each in text))


def of_tokens(model: Any, ids: list[int]) -> list[float]:
    """The log-probability of each token but the first, with activations as they are."""
    tokens = torch.tensor([ids])
    with torch.no_grad():
        model(input_ids=tokens)  # compressed-tensors unpacks the weights now
        model.apply(disable_quantization)
        logits = model(input_ids=tokens).logits[0, :-1]
    found: list[float] = torch.log_softmax(logits, -1).gather(-1, tokens[0, 1:, None])[:, 0].tolist()
    return found


def test_every_format_is_what_it_says(formatted: tuple[ExportFormat, Path]) -> None:
    kind, out = formatted
    config, expected = json.loads((out / "config.json").read_text()), WRITTEN[kind]
    assert (config["rope_theta"], config["torch_dtype"]) == (12345.0, "bfloat16")
    assert "chat_template" in json.loads((out / "tokenizer_config.json").read_text())
    with safe_open(out / "model.safetensors", "pt") as file:
        layer = "model.layers.0.mlp.down_proj.weight"
        packed = f"{layer}_packed" if expected.form == "pack-quantized" else layer
        assert file.get_tensor(packed).dtype is expected.dtype
        assert file.get_tensor("lm_head.weight").dtype is torch.bfloat16
    if expected.form is None:
        assert "quantization_config" not in config
        return
    quantisation = config["quantization_config"]
    assert (quantisation["quant_method"], quantisation["format"]) == ("compressed-tensors", expected.form)
    assert quantisation["ignore"] == ["lm_head"]
    (group,) = quantisation["config_groups"].values()
    weights, activations = group["weights"], group["input_activations"]
    assert (weights["num_bits"], weights["strategy"], weights["symmetric"]) == (expected.bits, expected.strategy, True)
    assert (activations and activations["num_bits"]) == expected.activations
    assert (activations and activations["dynamic"]) == expected.dynamic
    if expected.bits == 4:
        assert weights["group_size"] == 64, "the layers have 64 and 128 inputs"


def test_weights_of_every_format_stay_rounded_where_the_gpu_is_too_small(
    formatted: tuple[ExportFormat, Path], tuned: Tuned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One layer after the other is unpacked, and the result is the same; 16 bits stay what they are. How large a model
    is in 16 bits depends on its weights, packed or not, and little on their scales."""
    kind, out = formatted
    tokens = torch.arange(4, 60)[None]
    whole = load_artifact(out)(input_ids=tokens).logits
    monkeypatch.setattr("finetune_jobs.exporting.offload._gpu_holds", lambda _folder: False)
    kept = load_artifact(out)
    assert torch.equal(kept(input_ids=tokens).logits, whole)
    names = ("down_proj.weight", "down_proj.weight_packed")
    found = {p.dtype for name, p in kept.named_parameters() if name.endswith(names)}
    assert found == {WRITTEN[kind].dtype if WRITTEN[kind].form else precision()}
    assert offload._size(out) == pytest.approx(offload._size(tuned.base), rel=0.05)


def test_the_peak_of_an_export_is_measured(
    quantize_python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the benchmark, of a model so small that the process itself decides: more than Python, less than a gigabyte or
    two. The process has made its imports before; without that it would find them in its PYTHONPATH."""

    def start(program: Sequence[str], *, stdout: IO[str], stderr: IO[str], env: Mapping[str, str]) -> Forked:
        python, option, *command = program
        places = [Path(place) for place in env["PYTHONPATH"].split(os.pathsep)]
        assert (option, stdout) == ("-m", stderr)
        for package in ("finetune_api", "finetune_jobs", "hack"):
            assert any((place / package).is_dir() for place in places), package
        return forked.start(command, env, Path(stdout.name), python=python)

    monkeypatch.setattr(exported_by_benchmarks, "subprocess", SimpleNamespace(Popen=start))
    tiny = Size(hidden=128, layers=2, intermediate=256)
    found = measure(tmp_path, build_tiny_llama(tmp_path / "like"), tiny, [ExportFormat.INT4], quantize_python)
    assert found["bytes"] > 2 * 2 * 128 * (4 * 128 + 3 * 256)
    peak = found["multiples"]["INT4"] * found["bytes"]
    assert 100e6 < peak < 2e9
