"""Tracking of a training: what is measured at every step, and who receives it.

``Measuring`` turns what the trainer logs into measurements, which the stage's Progress shows as Prometheus metrics.
``tracked`` adds the followers of a run: TensorBoard event files, which are always kept beside the results, and runs of
MLflow and Weights & Biases if the spec names them. Tracking is fail-open: a failure costs the figures only.
"""

import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from transformers import TrainerCallback

from finetune_api.layout import run_folder
from finetune_api.stages import StageInput
from finetune_api.tracking import Tracking
from finetune_jobs.base.errors import StoppedError
from finetune_jobs.base.progress import Measurement, Progress
from finetune_jobs.store.s3 import Store
from finetune_jobs.training.event_files import EventFiles
from finetune_jobs.training.figures import End, Facts, Settings
from finetune_jobs.training.mlflow_run import MlflowRun
from finetune_jobs.training.wandb_run import WandbRun

_SPEED_STEPS: Final = 20
"""The speed is averaged over this many last steps: one step says little if examples differ in length."""
LAST_WORDS_SECONDS: Final = 2.0
"""Longest that the end of a training waits for all its followers together; W&B takes longer to close a run."""


class Measuring(TrainerCallback):  # type: ignore[misc] # transformers has no types
    """Records every step and every validation with the Progress; the same values as ``train_log.jsonl`` holds."""

    def __init__(self, progress: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        self._progress, self._clock = progress, clock
        self._began: tuple[float, int] | None = None
        self._took: float | None = None
        self._steps: deque[tuple[float, int]] = deque(maxlen=_SPEED_STEPS)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """An optimiser step begins: its first forward pass is next."""
        self._began = self._clock(), int(state.num_input_tokens_seen)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """An optimiser step is done; logging, where its tokens are counted, validation and saving come after."""
        if self._began:
            self._took = self._clock() - self._began[0]

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        """``logs`` hold ``loss``, ``grad_norm`` and ``learning_rate`` of a step, or ``eval_loss`` of a validation."""
        if not state.is_world_process_zero or not {"loss", "eval_loss"} & logs.keys():
            return
        if "loss" in logs and self._began and self._took is not None:
            self._steps.append((self._took, int(state.num_input_tokens_seen) - self._began[1]))
            self._took = None
        self._progress.record(
            Measurement(
                step=state.global_step,
                planned_steps=state.max_steps,
                loss=logs.get("loss"),
                validation_loss=logs.get("eval_loss"),
                learning_rate=logs.get("learning_rate"),
                gradient_norm=logs.get("grad_norm"),
                tokens=int(state.num_input_tokens_seen),
                tokens_per_second=self._speed(),
                gpu_memory_bytes=torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
            )
        )

    def _speed(self) -> float | None:
        seconds = sum(taken for taken, _ in self._steps)
        return sum(tokens for _, tokens in self._steps) / seconds if seconds > 0 else None


@contextmanager
def tracked(given: StageInput, tracking: Tracking, store: Store, folder: Path, progress: Progress) -> Iterator[None]:
    """Track what ``progress`` records inside the block as the run of ``given``; ``folder`` is for its files.

    The store keeps the event files below ``runs/<name>/<uid>/tracking/<run id>/``, where a pod that takes over from
    another adds its own.
    """
    settings, facts = hyperparameters(given), lineage_facts(given)
    place = store.below(f"{run_folder(given.run)}/tracking/{given.run.id}")
    followers: list[EventFiles | MlflowRun | WandbRun] = [EventFiles(folder, place, settings, facts)]
    name = f"{given.run.name}-{given.run.id}"
    if tracking.mlflow:
        experiment = tracking.mlflow.experiment or f"{given.run.namespace}/{given.run.name}"
        followers.append(MlflowRun(tracking.mlflow.url, experiment, name, settings, facts))
    if tracking.wandb:
        followers.append(WandbRun(tracking.wandb, name, settings, facts, folder / "wandb"))
    for follower in followers:
        progress.follow(follower)
    end = End.FAILED
    try:
        yield
        end = End.FINISHED
    except StoppedError:
        end = End.KILLED
        raise
    finally:
        for follower in followers:
            follower.end(end)
        deadline = time.monotonic() + LAST_WORDS_SECONDS
        for follower in followers:
            follower.wait(max(0.0, deadline - time.monotonic()))


def hyperparameters(given: StageInput) -> Settings:
    """The training's settings by their names in the spec; numbers that the API writes as text are numbers here."""
    training = given.params.train.training.model_dump(mode="json", by_alias=True) if given.params.train else {}
    return dict(_flat("", training))


def lineage_facts(given: StageInput) -> Facts:
    """What links the tracked run to the FineTuneJob, its data and its base model; empty facts are omitted."""
    facts = {
        "job": f"{given.run.namespace}/{given.run.name}",
        "run_id": given.run.id,
        "run_uid": given.run.uid,
        "input_key": given.input_key,
        "dataset_digest": given.upstream.dataset,
        "model_digest": given.upstream.model,
        "base_model": given.base_model_uri,
        "operator_version": given.operator_version,
    }
    return {f"finetune.{name}": value for name, value in facts.items() if value}


def _flat(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, str | float]]:
    for name, value in values.items():
        match value:
            case dict():
                yield from _flat(f"{prefix}{name}.", value)
            case bool() | int() | float():
                yield f"{prefix}{name}", value
            case str():
                yield f"{prefix}{name}", _number(value)
            case None:
                pass
            case _:
                yield f"{prefix}{name}", json.dumps(value)


def _number(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text
