"""A CPU without bfloat16 computes in float32, and writes the same kind of files."""

from pathlib import Path

import pytest
import torch

from finetune_api.reasons import Reason
from finetune_api.training import Method, Quantization
from finetune_jobs.base.errors import StageError
from finetune_jobs.exporting.merge import merge
from finetune_jobs.fit.recipe import Batch, schedule
from finetune_jobs.modelling.device import precision
from finetune_jobs.modelling.loading import load_base, load_checkpoint
from finetune_jobs.modelling.tuning import read_tuning
from finetune_jobs.store.s3 import Store
from finetune_jobs.training.build import configuration, load_trainable
from tests.support.seaweedfs import SeaweedFS
from tests.support.tiny_model import build_tiny_int8, build_tiny_llama
from tests.support.training import load_tuned, run_training, settings, write_dataset
from tgi_cpu import checkpoint as tgi
from tgi_cpu.args import parse_args
from tgi_cpu.dialect import read_checkpoint

pytestmark = [pytest.mark.unit, pytest.mark.slow]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_llama(tmp_path_factory.mktemp("base"))


@pytest.mark.usefixtures("without_bfloat16")
@pytest.mark.parametrize("quantization", [None, *Quantization])
def test_a_base_computes_in_float32(base: Path, quantization: Quantization | None) -> None:
    assert precision("cuda:0") is torch.bfloat16
    found = load_base(base, quantization)
    stored = load_base(base, dtype=torch.bfloat16).state_dict()
    same = found.state_dict() if quantization is None else {"model.norm.weight": found.model.norm.weight}
    assert all(torch.equal(value, stored[name].float()) for name, value in same.items())
    assert found(input_ids=torch.arange(4, 20)[None]).logits.dtype is torch.float32


@pytest.mark.usefixtures("without_bfloat16")
def test_an_artifact_computes_in_float32(base: Path, tmp_path: Path) -> None:
    tokens = torch.arange(4, 20)[None]
    folder = build_tiny_int8(tmp_path / "int8", base)
    assert load_checkpoint(folder)(input_ids=tokens).logits.dtype is torch.float32
    for served in (base, folder):
        args = parse_args([], {"MODEL_ID": str(served)})
        assert tgi.load_checkpoint(args, read_checkpoint(args)).model(input_ids=tokens).logits.dtype is torch.float32


def test_a_checkpoint_that_is_quantised_already_is_not_trained_as_a_whole(base: Path, tmp_path: Path) -> None:
    """transformers says so when its trainer is made, as a fault that another pod could mend."""
    folder = build_tiny_int8(tmp_path / "int8", base)
    with pytest.raises(
        StageError, match=r"already quantised \(compressed-tensors\), which method Full.*16 bits"
    ) as found:
        load_trainable(folder, settings(Method.FULL))
    assert (found.value.reason, found.value.retriable) == (Reason.MODEL_UNSUPPORTED, False)
    load_trainable(folder, settings(Method.LORA))


@pytest.mark.usefixtures("without_bfloat16")
@pytest.mark.parametrize("method", [Method.QLORA, Method.FULL])
def test_a_training_without_autocast_is_exported_in_bfloat16(
    method: Method, base: Path, s3: SeaweedFS, place: str, tmp_path: Path
) -> None:
    training, dataset = settings(method, epochs=2), write_dataset(tmp_path / "dataset")
    assert not configuration(training, tmp_path, Batch.of(training), schedule(training, 1000, 48, 12)).bf16
    run_training(base, dataset, tmp_path, training, Store.connect(s3.storage, place))
    tuned = load_tuned(base, tmp_path / "adapter", method)
    assert {value.dtype for name, value in tuned.named_parameters() if "norm" in name} == {torch.float32}
    merged = merge(base, tmp_path / "adapter", read_tuning(tmp_path / "adapter", method))
    assert {value.dtype for value in merged.state_dict().values()} == {torch.bfloat16}
