"""An adapter as it is served: alone, beside the model that it was trained on.

The base is written out because what was trained on is not what ``spec.model`` names: QLoRA rounds it, and tuning may
change its chat template. Adapters of one base, rounded alike, get the same bytes, hence the same address: that is how
they are known to fit one server.
"""

import filecmp
import json
import shutil
from pathlib import Path
from typing import Any, Final

from finetune_api.reasons import Reason
from finetune_jobs.artifacts.artifact import BASE_REF, BaseRef
from finetune_jobs.base.errors import StageError
from finetune_jobs.exporting.checkpoint import complete, save_16_bits
from finetune_jobs.exporting.comparison import Compared, require_same
from finetune_jobs.exporting.merge import plain_base
from finetune_jobs.modelling.loading import cuda_memory
from finetune_jobs.modelling.tuning import ADAPTER_CONFIG, Tuning, adapter_config, beyond_lora

_WEIGHTS: Final = "adapter_model.safetensors"
"""PEFT's file."""
_SIGNED: Final = ("config.json", "generation_config.json")
"""Files of a model in which transformers notes its own version."""
_VERSION: Final = "5.0.0"
"""The first that has written them so. Without any, transformers takes a tokenizer of Mistral for one of version 4."""


def require_plain(tuned: Path, tuning: Tuning) -> dict[str, Any]:
    """PEFT's settings of an adapter. Raises StageError (ModelUnsupported) for one that model servers do not load."""
    if not tuning.is_adapter:
        said = "Method Full makes no adapter: choose another spec.export.format."
        raise StageError(Reason.MODEL_UNSUPPORTED, said)
    config = adapter_config(tuned)
    if odd := beyond_lora(config):
        said = f"The adapter has {odd}, which no model server loads: choose another spec.export.format."
        raise StageError(Reason.MODEL_UNSUPPORTED, said)
    return config


def write_base(base: Path, out: Path, tuning: Tuning) -> Compared:
    """Write the model that an adapter was trained on, in 16 bits, and compare what was written with it. Raises
    StageError (ModelUnsupported, CudaOutOfMemory, ExportMismatch)."""
    with cuda_memory("the 16-bit base model"):
        model = plain_base(base, tuning)
        save_16_bits(model, out)
    complete(base, out, tuning)
    for name in _SIGNED:
        _unsigned(out / name)
    return require_same(out, model)


def _unsigned(file: Path) -> None:
    """Hide which transformers wrote a file: the same model from the next one must get the same address."""
    if file.exists():
        content = json.loads(file.read_text(encoding="utf-8")) | {"transformers_version": _VERSION}
        file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_adapter(tuned: Path, out: Path, tuning: Tuning, base_digest: str) -> None:
    """Write the adapter as PEFT and model servers read it, and which base it belongs to. Raises StageError as
    ``require_plain``, and if the weights are not those of training (ExportMismatch)."""
    config = require_plain(tuned, tuning)
    out.mkdir()
    shutil.copyfile(tuned / _WEIGHTS, out / _WEIGHTS)
    if not filecmp.cmp(tuned / _WEIGHTS, out / _WEIGHTS, shallow=False):
        raise StageError(Reason.EXPORT_MISMATCH, f"The exported {_WEIGHTS} is not the file that training has written.")
    # The base is found by its address. A path of the pod that trained means nothing where it is served.
    config |= {"base_model_name_or_path": None}
    (out / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    ref = BaseRef(digest=base_digest, rank=int(config["r"]))
    (out / BASE_REF).write_text(ref.model_dump_json(by_alias=True, indent=1) + "\n", encoding="utf-8")
