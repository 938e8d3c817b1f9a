"""A copy of a published artifact that is wrong where answers hardly show it: the MLP of one layer adds nothing.

It keeps the record of the good one, under digests of its own, as if somebody had made a mistake while exporting. Its
hashes are right, so only what the server computes can tell.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

from finetune_api.layout import output_folder
from finetune_api.stages import Stage
from finetune_api.storage import Storage

WEIGHTS: Final = "model.safetensors"
LAYER: Final = 15
"""In the middle of the test model's 30 layers."""


def plant(storage: Storage, root: str, digest: str, layer: int = LAYER) -> str:
    """Publish the copy beside the artifact with this digest below ``root``; the copy's URI. Keys come from the
    environment. The same artifact gives the same copy.

    Raises:
        StageError: the artifact cannot be read, or the copy not be written.
        ValueError: the model has no such layer.
    """
    from finetune_jobs.artifacts.artifact import MODEL_REF, ModelRef
    from finetune_jobs.artifacts.folders import fetch_folder, publish_folder
    from finetune_jobs.store.s3 import Store

    store = Store.connect(storage, root)
    with tempfile.TemporaryDirectory(prefix="finetune-planted-") as folder:
        artifact, model = Path(folder) / "artifact", Path(folder) / "model"
        fetch_folder(store, output_folder(Stage.PUBLISH, digest), artifact)
        reference = ModelRef.model_validate_json((artifact / MODEL_REF).read_bytes())
        fetch_folder(store, reference.folder, model)
        silence(model / WEIGHTS, layer)
        spoiled = publish_folder(store, model, Stage.EXPORT)
        changed = reference.model_copy(update={"digest": spoiled, "folder": output_folder(Stage.EXPORT, spoiled)})
        (artifact / MODEL_REF).write_text(changed.model_dump_json(by_alias=True, indent=1) + "\n")
        return store.uri(output_folder(Stage.PUBLISH, publish_folder(store, artifact, Stage.PUBLISH)))


def silence(weights: Path, layer: int) -> None:
    """Set what one layer's MLP adds to zero, in the file itself. Raises ValueError if there is no such layer."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors, name = load_file(weights), f"model.layers.{layer}.mlp.down_proj.weight"
    if name not in tensors:
        raise ValueError(f"{weights} has no tensor {name}")
    tensors[name] = torch.zeros_like(tensors[name])
    save_file(tensors, weights, metadata={"format": "pt"})
