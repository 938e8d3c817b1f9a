"""Checkpoints that outlive the pod: the trainer's ``checkpoint-<step>`` folders, kept in the store.

Each is complete once its manifest is there, and is verified when it comes back. Nothing in it is unpickled without
``weights_only`` (transformers 5 reads optimiser, scheduler and random states that way).
"""

import json
import logging
from pathlib import Path
from typing import Final

from finetune_api.layout import MANIFEST
from finetune_api.reasons import Reason
from finetune_api.stages import Stage
from finetune_jobs import folders
from finetune_jobs.errors import StageError
from finetune_jobs.store import Store

log = logging.getLogger(__name__)

_PATTERN: Final = "checkpoint-*"
_NOT_NEEDED: Final = ("training_args.bin", "README.md")
"""A pickle that only the writing process may read, and a model card."""
_STATE: Final = "trainer_state.json"


class Checkpoints:
    """The checkpoints of one training in ``store``, a place of its own."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def mirror(self, work: Path) -> None:
        """Make the store hold the checkpoints below ``work`` and no others: the new first, then the old go."""
        local = {folder.name: folder for folder in work.glob(_PATTERN)}
        for name, folder in local.items():
            if not self._store.exists(f"{name}/{MANIFEST}"):
                self._upload(name, folder)
        for name in self._stored() - local.keys():
            self._delete(name)

    def restore(self, work: Path) -> Path | None:
        """Bring the store's checkpoints below ``work``; the newest of them, or None where there is none.

        A damaged one is dropped with a warning: an older one, or the beginning, costs time and nothing else.
        """
        for name in self._stored():
            try:
                folders.fetch_folder(self._store, name, work / name)
            except StageError as error:
                if error.reason is not Reason.ARTIFACT_CORRUPT:
                    raise
                log.warning("checkpoint left out: %s", error.message)
                self._delete(name)
        restored = sorted(work.glob(_PATTERN), key=lambda folder: int(folder.name.rpartition("-")[2]))
        for folder in restored:
            _relocate(folder)
        return restored[-1] if restored else None

    def _stored(self) -> set[str]:
        return {entry.key.split("/")[0] for entry in self._store.list() if entry.key.endswith(f"/{MANIFEST}")}

    def _upload(self, name: str, folder: Path) -> None:
        for unwanted in _NOT_NEEDED:
            (folder / unwanted).unlink(missing_ok=True)
        manifest = folders.describe_folder(folder, Stage.TRAIN)
        place = self._store.below(name)
        for file in manifest.files:
            place.upload(file.path, folder / file.path)
        place.put(MANIFEST, manifest.model_dump_json(by_alias=True, indent=1).encode())

    def _delete(self, name: str) -> None:
        place = self._store.below(name)
        place.delete(MANIFEST)  # first: what is left is then no checkpoint any more
        for entry in place.list():
            place.delete(entry.key)


def _relocate(checkpoint: Path) -> None:
    """The trainer's state names the best checkpoint by an absolute path, which is another one in this pod."""
    path = checkpoint / _STATE
    state = json.loads(path.read_text(encoding="utf-8"))
    if best := state.get("best_model_checkpoint"):
        state["best_model_checkpoint"] = str(checkpoint.parent / Path(best).name)
        path.write_text(json.dumps(state), encoding="utf-8")
