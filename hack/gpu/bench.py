"""Where the suite works: a model, a data set and a store, and the stages as programs on them."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from finetune_api.finetunejob import Output
from finetune_api.layout import output_folder
from finetune_api.meta import ExitCode
from finetune_api.reasons import Reason
from finetune_api.stages import Stage, StageInput, TrainParams, Upstream
from finetune_api.training import Training
from finetune_jobs.artifacts.folders import read_manifest
from finetune_jobs.fit.shapes import Shape, read_shape
from finetune_jobs.modelling.cards import Card
from finetune_jobs.runtime.results import failure
from finetune_jobs.store.s3 import Store
from finetune_jobs.training.build import longest
from finetune_jobs.training.division import mapped_split, token_counts
from hack.cluster.console import ClusterError, say
from hack.cluster.layout import REPOSITORY, cache_directory
from hack.gpu.machine import VISIBLE, allocator, numbers
from hack.gpu.model import SMALL, random_model
from hack.models import ensure_smollm2
from tests.support.seaweedfs import ADMIN, SeaweedFS
from tests.support.stages import (
    PYTHON,
    RUN,
    STDERR,
    Ended,
    Started,
    pipeline_params,
    stage_input,
    start_process,
    wait_for,
)
from tests.support.tiny_model import build_tiny_llama
from tests.support.training import BASE, publish_inputs, rows, write_dataset

EXAMPLES = 512
PASSED = ("LD_LIBRARY_PATH", "CUDA_HOME", "TRITON_LIBCUDA_PATH", "CC")
"""Variables by which a machine's driver and compiler may be found; stages get no others of this process, but NCCL's."""
LOGS: Final = REPOSITORY / "build" / "gpu-check-logs"
"""What the stages have said, for whoever has to find out why one failed."""
_NO_VARIABLES: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass
class Bench:
    """A folder, an S3 server on this machine, and what a run would find in it."""

    folder: Path
    server: SeaweedFS
    cards: Sequence[Card]
    """GPUs on which models run, the first one alone but where several train together; none: it is a rehearsal with
    small models."""
    uri: str = "s3://data/gpu-check"
    """Where its runs read and write."""
    tiny: bool = True
    """Whether a rehearsal does with the smallest model that there is."""
    _runs: int = field(default=0, init=False)
    _ended: dict[str, Ended] = field(default_factory=dict, init=False)

    @classmethod
    @contextmanager
    def running(cls, folder: Path, cards: Sequence[Card]) -> Iterator[Bench]:
        """With its server, until the end of the suite. CUDA's settings are for all that is started from here on."""
        (folder / "store").mkdir()
        shutil.rmtree(LOGS, ignore_errors=True)
        LOGS.mkdir(parents=True)
        os.environ.update(ADMIN.environment())
        if cards:
            os.environ.update(allocator())
        with SeaweedFS.running(folder / "store") as server:
            yield cls(folder, server, cards)

    @property
    def on_gpu(self) -> bool:
        """Whether models run on a GPU."""
        return bool(self.cards)

    @cached_property
    def numbers(self) -> list[str]:
        """By what CUDA knows the GPUs."""
        return numbers(len(self.cards))

    def within(self, name: str) -> Bench:
        """The same with a folder and a place of its own, and with a model that any server takes."""
        (self.folder / name).mkdir()
        return replace(self, folder=self.folder / name, uri=f"{self.uri}-{name}", tiny=False)

    @cached_property
    def model(self) -> Path:
        """A model of half a billion parameters; in a rehearsal a tiny one, or one that servers take."""
        path = self.folder / "model"
        if not self.on_gpu and self.tiny:
            return build_tiny_llama(path)
        if not self.on_gpu:
            return random_model(path, build_tiny_llama(self.folder / "tokenizer"), SMALL, words=0)
        try:
            return random_model(path, ensure_smollm2(cache_directory()))
        except ClusterError as error:
            say(f"  the tokenizer of the test model is not to be had, a smaller one is used: {error}")
            return random_model(path, build_tiny_llama(self.folder / "tokenizer"))

    @cached_property
    def shape(self) -> Shape:
        """The model's, as ``fit`` sees it."""
        return read_shape(json.loads((self.model / "config.json").read_text()))

    @cached_property
    def store(self) -> Store:
        """Where runs read and write."""
        return Store.connect(self.server.storage, self.uri)

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

    @cached_property
    def mean(self) -> int:
        """Tokens of an example that is trained on, on average, rounded."""
        self.upstream  # noqa: B018 # which writes the data set
        return round(statistics.mean(token_counts(mapped_split(self.folder / "dataset", "train"))))

    def training(self, **changes: Any) -> Training:
        """Short, with the usual settings; what is learnt in it is the three answers by heart."""
        steps = {"max_steps": 24, "batch_size": 8, "gradient_accumulation": 1, "checkpoint_steps": 8}
        return Training(**{**steps, "max_length": 256, "epochs": 8, "dropout": "0", **changes})

    def input_of(self, training: Training, name: str) -> StageInput:
        """What the operator would write for a training, which takes nothing from another one that is the same."""
        output = Output(uri=self.store.uri(), name=name)
        params = pipeline_params([], output).model_copy(update={"train": TrainParams(training=training)})
        given = {
            "base_model_uri": self.store.uri(BASE),
            "run": RUN.model_copy(update={"name": name, "uid": name, "id": name}),
            "reuse": False,
        }
        return stage_input(Stage.TRAIN, self.server.storage, output, params, self.upstream, **given)

    def start(
        self,
        given: StageInput,
        *arguments: str,
        python: Path = PYTHON,
        program: str = "",
        variables: Mapping[str, str] = _NO_VARIABLES,
    ) -> tuple[Started, Path]:
        """A stage as a program, and the folder of its files; it sees the first GPU, unless ``variables`` name others.
        In a rehearsal it is forked from one that has made the imports, where it can be."""
        self._runs += 1
        folder = self.folder / f"{given.stage}-{self._runs}"
        folder.mkdir()
        passed = {name: value for name, value in os.environ.items() if name in PASSED or name.startswith("NCCL_")}
        if self.on_gpu:
            passed |= {**allocator(), VISIBLE: self.numbers[0], "OMP_NUM_THREADS": str(os.cpu_count() or 1)}
        started = start_process(
            given,
            folder,
            ADMIN,
            *arguments,
            python=python,
            program=program,
            variables={**passed, **variables},
            fresh=self.on_gpu,
        )
        return started, folder

    def wait(self, given: StageInput, process: Started, folder: Path) -> Ended:
        """The end of a stage. One that left no result, or does not end, is a failure like any other."""
        try:
            return wait_for(process, folder)
        except subprocess.TimeoutExpired:
            process.kill()
            return Ended(ExitCode.RETRIABLE, failure(given.stage, Reason.STAGE_CRASHED, "it does not end"), [])
        except FileNotFoundError:
            said = (folder / STDERR).read_text(errors="replace").strip().splitlines() or ["nothing"]
            message = f"it ended with {process.wait()} and without a result; its last words: {said[-1]}"
            return Ended(ExitCode.RETRIABLE, failure(given.stage, Reason.STAGE_CRASHED, message), [])
        finally:
            if (folder / STDERR).exists():
                shutil.copyfile(folder / STDERR, LOGS / f"{self.uri.rpartition('/')[2]}-{folder.name}.log")

    def run(self, given: StageInput, *arguments: str, **how: Any) -> Ended:
        """A stage from its start to its end; arguments as of ``start``."""
        return self.wait(given, *self.start(given, *arguments, **how))

    def once(self, given: StageInput) -> Ended:
        """The same for a run that several parts look at: whichever comes first runs it, known by its name."""
        if given.run.name not in self._ended:
            self._ended[given.run.name] = self.run(given)
        return self._ended[given.run.name]

    def weights(self, ended: Ended) -> str:
        """The hashes of the weights that a training has left; empty if it left none."""
        manifest = read_manifest(self.store, output_folder(Stage.TRAIN, ended.result.output_digest))
        files = sorted(manifest.files, key=lambda each: each.path) if manifest else []
        return " ".join(each.sha256 for each in files if each.path.endswith(".safetensors"))

    def losses(self, ended: Ended) -> list[float]:
        """The losses of all steps of a training that has ended well."""
        found = self.store.get(f"{output_folder(Stage.TRAIN, ended.result.output_digest)}/train_log.jsonl") or b""
        entries = [json.loads(line) for line in found.decode().splitlines()]
        return [float(entry["loss"]) for entry in entries if "loss" in entry]
