"""The artifact with wrong weights that ``make demo-full`` plants."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from finetune_jobs.artifacts.artifact import MODEL_REF, ModelRef
from finetune_jobs.artifacts.folders import fetch_folder, get_listed, require_manifest
from finetune_jobs.store.s3 import Store
from hack.demo.planted import plant
from tests.support.artifacts import publish_artifact
from tests.support.seaweedfs import ADMIN, SeaweedFS
from tests.support.tiny_model import build_tiny_llama

pytestmark = [pytest.mark.unit, pytest.mark.slow]


def test_a_planted_copy_differs_in_one_tensor_and_keeps_its_promises(
    s3: SeaweedFS, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ADMIN.environment().items():
        monkeypatch.setenv(name, value)
    base, tuned = (build_tiny_llama(tmp_path / f"model-{seed}", seed=seed) for seed in (1, 2))
    good = publish_artifact(s3.storage, place, tmp_path / "good", base=base, tuned=tuned).scalars["artifactUri"]
    store = Store.connect(s3.storage, place)
    with pytest.raises(ValueError, match="has no tensor"):
        plant(s3.storage, place, good.rsplit("/", 1)[1])
    planted = plant(s3.storage, place, good.rsplit("/", 1)[1], layer=1)
    assert planted != good
    found = {}
    for uri in (good, planted):
        artifact = f"artifacts/{uri.rsplit('/', 1)[1]}"
        manifest = require_manifest(store, artifact)
        model = ModelRef.model_validate_json(get_listed(store, artifact, manifest, MODEL_REF))
        weights = tmp_path / f"weights-{model.digest}"
        fetch_folder(store, model.folder, weights)
        promised = {each.path: each.sha256 for each in manifest.files if each.path != MODEL_REF}
        found[uri] = (promised, load_file(weights / "model.safetensors"))
    (promises, before), (same, after) = found[good], found[planted]
    assert promises == same
    assert before.keys() == after.keys()
    changed = [name for name in before if not before[name].equal(after[name])]
    assert changed == ["model.layers.1.mlp.down_proj.weight"]
    assert not after[changed[0]].any()
