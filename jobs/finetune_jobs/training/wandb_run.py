"""A training as a run of Weights & Biases: settings and lineage as its config, figures as its history.

Everything goes through a bounded queue and its own thread, as for MLflow: a slow, unavailable or faulty server costs
the figures, never a step. W&B's client runs a process beside the training (wandb-core), which sends what that thread
hands over, and retries by itself if a server that has answered before is unavailable.

The client is configured to send only what is listed here: no code, no list of packages, nothing about the machine, no
output of the program, no files, no usage statistics or crash reports. Hence nothing but the server is contacted.
https://docs.wandb.ai/ref/python/
"""

import logging
import os
from collections import deque
from pathlib import Path
from typing import Any, Final

from finetune_api.reasons import Reason
from finetune_api.references import SecretKeyRef
from finetune_api.tracking import WANDB_KEY_VARIABLE, Wandb
from finetune_jobs.base.background import Repeating
from finetune_jobs.base.errors import StageError
from finetune_jobs.base.progress import Measurement
from finetune_jobs.training.figures import End, Facts, Settings, figures, identity

log = logging.getLogger(__name__)

_DELIVER_SECONDS: Final = 5.0
"""Time between two deliveries to wandb-core."""
_QUEUE: Final = 5_000
"""Maximum of queued measurements while there is no run (about 5 MB); beyond it, the oldest are dropped."""
_REQUEST_SECONDS: Final = 5
"""Longest that the server may take for an answer."""
_OPEN_SECONDS: Final = 15.0
"""Longest that opening a run may take, wandb-core's start included."""
_FINISH_SECONDS: Final = 10.0
"""Longest that closing a run may take. A run that is not closed looks crashed, so this may take a while."""


class WandbRun:
    """Records a training as a run of W&B. The API key comes from the environment; ``folder`` is for W&B's files."""

    def __init__(self, spec: Wandb, name: str, settings: Settings, facts: Facts, folder: Path) -> None:
        self._spec, self._name = spec, name
        self._settings, self._facts = settings, facts
        self._client = _client(folder)
        self._folder = folder
        self._run: Any = None
        self._end: End | None = None
        self._waiting: deque[tuple[int, dict[str, float]]] = deque(maxlen=_QUEUE)
        self._lost = 0
        name = f"tracking with Weights & Biases at {spec.base_url}"
        self._delivering = Repeating(self._deliver, name=name, pause=_DELIVER_SECONDS)
        self._delivering.soon()  # so that the run exists from the start

    def measured(self, measurement: Measurement) -> None:
        """Queue what is known of a step."""
        self._lost += len(self._waiting) == _QUEUE
        self._waiting.append((measurement.step, dict(figures(measurement))))

    def end(self, end: End) -> None:
        """Deliver the rest and close the run. The pod that resumes a stopped training reopens it."""
        self._end = end
        self._delivering.end()

    def wait(self, seconds: float) -> bool:
        """After ``end``: whether the server has everything, within ``seconds``; more for a server that has answered."""
        done = self._delivering.wait(max(seconds, _FINISH_SECONDS) if self._run else seconds)
        missing = self._lost + len(self._waiting)
        if missing or not done:
            log.warning("not all figures reached Weights & Biases")
        return done and not missing

    def _deliver(self) -> None:
        """In the thread: a failure here is retried."""
        self._run = self._run or self._open()
        while self._waiting:
            step, row = self._waiting[0]
            # Steps repeated after a restart are already there, with the same values; the client skips them.
            self._run.log(row, step=step)
            self._waiting.popleft()
        if self._end:
            if self._end is End.KILLED:
                self._run.mark_preempting()
            self._run.finish(exit_code=0 if self._end is End.FINISHED else 1)

    def _open(self) -> Any:
        """This training's run, whose id is derived from the lineage: a pod that resumes finds the earlier one's."""
        if not os.environ[WANDB_KEY_VARIABLE]:
            raise StageError(Reason.SPEC_INVALID, _no_key(self._spec.secret_key_ref))
        job = self._facts["finetune.job"]
        return self._client.init(
            entity=self._spec.entity,
            project=self._spec.project or job.replace("/", "."),
            group=job,
            job_type="train",
            name=self._name,
            id=identity(self._facts)[:32],
            resume="allow",
            reinit="create_new",  # beside any other run of this process: no library takes it for its own
            config=_nested({**self._settings, **self._facts}),
            settings=self._client.Settings(
                mode="online",
                base_url=self._spec.base_url,
                root_dir=str(self._folder),
                program="finetune_jobs.train",  # instead of its path
                host="",
                silent=True,
                console="off",
                disable_code=True,
                disable_git=True,
                save_code=False,
                ignore_globs=("*",),  # its files repeat config and summary; they would go to another host
                stop_fn=_stop_asked,
                init_timeout=_OPEN_SECONDS,
                finish_timeout=_FINISH_SECONDS,
                finish_timeout_raises=True,
                x_disable_meta=True,
                x_disable_machine_info=True,
                x_disable_stats=True,
                x_disable_viewer=True,
                x_save_requirements=False,
                x_skip_transaction_log=True,
                x_graphql_retry_max=1,
                x_graphql_timeout_seconds=_REQUEST_SECONDS,
            ),
        )


def _client(folder: Path) -> Any:
    """W&B's client, configured to be quiet, to keep its caches below ``folder``, and to send no reports about
    itself."""
    folder.mkdir(parents=True, exist_ok=True)
    os.environ |= {
        WANDB_KEY_VARIABLE: os.environ.get(
            WANDB_KEY_VARIABLE, ""
        ).strip(),  # Secrets made from files end in a line break
        "WANDB_SILENT": "true",
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_CACHE_DIR": str(folder / "cache"),
        "WANDB_CONFIG_DIR": str(folder / "config"),
        "WANDB_DATA_DIR": str(folder / "data"),
    }
    import wandb

    return wandb


def _no_key(secret: SecretKeyRef) -> str:
    return f"{WANDB_KEY_VARIABLE} is empty: Secret {secret.name!r} must hold the API key under {secret.key!r}."


def _stop_asked() -> None:
    """Somebody has pressed Stop in W&B; the client would interrupt the process."""
    log.warning("W&B asked to stop the run; the training continues. To stop it, set spec.suspend of the FineTuneJob.")


def _nested(flat: dict[str, str | float]) -> dict[str, Any]:
    """``{"a.b": 1}`` as ``{"a": {"b": 1}}``: W&B's pages show, sort and filter by nested names."""
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = value
    return nested
