"""Where the suite works: a model, a data set and a store, and the stages as programs on them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from finetune_api.finetunejob import Output
from finetune_api.layout import output_folder
from finetune_api.stages import Stage, StageInput, TrainParams, Upstream
from finetune_api.training import Training
from finetune_jobs.artifacts.folders import read_manifest
from finetune_jobs.fit.shapes import Shape, read_shape
from finetune_jobs.store.s3 import Store
from finetune_jobs.training.division import mapped_split
from finetune_jobs.training.trainer import longest
from hack.cluster.layout import cache_directory
from hack.gpu.model import random_model
from hack.models import ensure_smollm2
from tests.support.seaweedfs import ADMIN, SeaweedFS
from tests.support.stages import PYTHON, RUN, Ended, Started, pipeline_params, stage_input, start_process, wait_for
from tests.support.tiny_model import build_tiny_llama
from tests.support.training import BASE, publish_inputs, rows, write_dataset

EXAMPLES = 512
ADAPTER = "adapter_model.safetensors"
PASSED = ("LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_HOME")
"""Variables by which a machine's driver may be found; stages get no others of this process."""


@dataclass
class Bench:
    """A folder, an S3 server on this machine, and what a run would find in it."""

    folder: Path
    server: SeaweedFS
    on_gpu: bool
    """Whether models run on a GPU; otherwise it is a rehearsal with a tiny model."""
    _runs: int = field(default=0, init=False)

    @classmethod
    @contextmanager
    def running(cls, folder: Path, *, on_gpu: bool) -> Iterator[Bench]:
        """With its server, until the end of the suite."""
        (folder / "store").mkdir()
        os.environ.update(ADMIN.environment())
        with SeaweedFS.running(folder / "store") as server:
            yield cls(folder, server, on_gpu)

    @cached_property
    def model(self) -> Path:
        """A model of half a billion parameters; in a rehearsal a tiny one."""
        if not self.on_gpu:
            return build_tiny_llama(self.folder / "model")
        return random_model(self.folder / "model", ensure_smollm2(cache_directory()))

    @cached_property
    def shape(self) -> Shape:
        """The model's, as ``fit`` sees it."""
        return read_shape(json.loads((self.model / "config.json").read_text()))

    @cached_property
    def store(self) -> Store:
        """Where runs read and write."""
        return Store.connect(self.server.storage, "s3://data/gpu-check")

    @cached_property
    def upstream(self) -> Upstream:
        """Model and data set, as resolve and prepare leave them."""
        count = EXAMPLES if self.on_gpu else 48
        splits = {"train": rows(count), "validation": rows(24, first=count), "test": rows(24, first=2 * count)}
        return publish_inputs(self.store, self.model, write_dataset(self.folder / "dataset", **splits))

    @cached_property
    def longest(self) -> int:
        """Tokens of the data set's longest example."""
        self.upstream  # noqa: B018 # which writes the data set
        return longest(*(mapped_split(self.folder / "dataset", split) for split in ("train", "validation")))

    def training(self, **changes: Any) -> Training:
        """Short, with the usual settings; what is learnt in it is the three answers by heart."""
        steps = {"max_steps": 24, "batch_size": 8, "gradient_accumulation": 1, "checkpoint_steps": 8}
        return Training(**{**steps, "max_length": 256, "epochs": 8, "dropout": "0", **changes})

    def input_of(self, training: Training, name: str) -> StageInput:
        """What the operator would write for a training."""
        output = Output(uri=self.store.uri(), name=name)
        params = pipeline_params([], output).model_copy(update={"train": TrainParams(training=training)})
        given = {
            "base_model_uri": self.store.uri(BASE),
            "run": RUN.model_copy(update={"name": name, "uid": name, "id": name}),
        }
        return stage_input(Stage.TRAIN, self.server.storage, output, params, self.upstream, **given)

    def start(self, given: StageInput, python: Path = PYTHON) -> tuple[Started, Path]:
        """A stage as a program, and the folder of its files. In a rehearsal it is forked from one that has made the
        imports, where it can be."""
        self._runs += 1
        folder = self.folder / f"{given.stage}-{self._runs}"
        folder.mkdir()
        variables = {name: os.environ[name] for name in PASSED if name in os.environ}
        return start_process(given, folder, ADMIN, python=python, variables=variables, fresh=self.on_gpu), folder

    def run(self, given: StageInput, python: Path = PYTHON) -> Ended:
        """A stage from its start to its end."""
        return wait_for(*self.start(given, python))

    def weights(self, ended: Ended) -> str:
        """The hash of the adapter that a training has left; empty if it left none."""
        manifest = read_manifest(self.store, output_folder(Stage.TRAIN, ended.result.output_digest))
        return next((each.sha256 for each in manifest.files if each.path == ADAPTER), "") if manifest else ""

    def losses(self, ended: Ended) -> list[float]:
        """The losses of all steps of a training that has ended well."""
        found = self.store.get(f"{output_folder(Stage.TRAIN, ended.result.output_digest)}/train_log.jsonl") or b""
        entries = [json.loads(line) for line in found.decode().splitlines()]
        return [float(entry["loss"]) for entry in entries if "loss" in entry]
