"""A training as a run of an MLflow tracking server: settings as params, figures as metrics, lineage as tags.

Everything goes through a bounded queue and its own thread: a slow, unavailable or faulty server costs the figures,
never a step. Nothing but that server is contacted: MLflow's own usage statistics are off.
https://mlflow.org/docs/latest/ml/tracking/
"""

import logging
import os
import time
from collections import deque
from typing import Any, Final

from finetune_jobs.base.background import Repeating
from finetune_jobs.base.progress import Measurement
from finetune_jobs.training.figures import End, Facts, Settings, figures, identity

log = logging.getLogger(__name__)

_DELIVER_SECONDS: Final = 5.0
"""Time between two deliveries."""
_QUEUE: Final = 20_000
"""Maximum of queued figures (about 3,000 steps, 5 MB); beyond it, the oldest are dropped."""
_BATCH: Final = 1000
"""Most metrics that the server takes in a request."""
_PARAMS: Final = 100
"""Most params that the server takes in a request."""
_TIMEOUT_SECONDS: Final = 5
_IDENTITY: Final = "finetune.identity"
"""Tag by which a resumed training finds its MLflow run again."""


class MlflowRun:
    """Records a training as a run of the server at ``url``. Login comes from MLflow's environment variables."""

    def __init__(self, url: str, experiment: str, name: str, settings: Settings, facts: Facts) -> None:
        self._experiment, self._name = experiment, name
        self._settings = settings
        self._facts = facts | {_IDENTITY: identity(facts)}
        self._client = _client(url)
        self._run_id = ""
        self._end: End | None = None
        self._waiting: deque[tuple[str, float, int, int]] = deque(maxlen=_QUEUE)
        self._batch: list[tuple[str, float, int, int]] = []
        self._lost = 0
        self._delivering = Repeating(self._deliver, name=f"tracking with MLflow at {url}", pause=_DELIVER_SECONDS)
        self._delivering.soon()  # so that the run exists from the start

    def measured(self, measurement: Measurement) -> None:
        """Queue what is known of a step."""
        now = time.time_ns() // 1_000_000
        for tag, value in figures(measurement):
            self._lost += len(self._waiting) == _QUEUE
            self._waiting.append((tag, value, now, measurement.step))

    def end(self, end: End) -> None:
        """Deliver the rest and close the run. The pod that resumes a stopped training reopens it."""
        self._end = end
        self._delivering.end()

    def wait(self, seconds: float) -> bool:
        """After ``end``: whether the server has everything, within ``seconds``."""
        done = self._delivering.wait(seconds)
        missing = self._lost + len(self._batch) + len(self._waiting)
        if missing:
            log.warning("%d figures did not reach MLflow", missing)
        return done and not missing

    def _deliver(self) -> None:
        """In the thread: a failure here is retried, with the same batch."""
        from mlflow.entities import Metric

        self._run_id = self._run_id or self._open()
        while self._batch or self._waiting:
            while self._waiting and len(self._batch) < _BATCH:
                self._batch.append(self._waiting.popleft())
            self._client.log_batch(self._run_id, metrics=[Metric(*each) for each in self._batch], synchronous=True)
            self._batch = []
        if self._end:
            self._client.set_terminated(self._run_id, self._end.value)

    def _open(self) -> str:
        """The id of this training's run: an earlier pod's, or a new one."""
        from mlflow.entities import Param

        found = self._client.get_experiment_by_name(self._experiment)
        experiment = found.experiment_id if found else self._client.create_experiment(self._experiment)
        same = f"tags.`{_IDENTITY}` = '{self._facts[_IDENTITY]}'"
        if runs := self._client.search_runs([experiment], filter_string=same, max_results=1):
            run_id = str(runs[0].info.run_id)
            self._client.update_run(run_id, status="RUNNING")
        else:
            run_id = str(self._client.create_run(experiment, run_name=self._name, tags=self._facts).info.run_id)
        params = [Param(name, str(value)) for name, value in self._settings.items()]
        for first in range(0, len(params), _PARAMS):
            self._client.log_batch(run_id, params=params[first : first + _PARAMS], synchronous=True)
        return run_id


def _client(url: str) -> Any:
    """MLflow's client, configured to log little and contact only its server. It reads its settings from the environment
    only."""
    os.environ |= {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # where the stage's result may go
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(_TIMEOUT_SECONDS),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # Repeating tries again
    }
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=url, registry_uri=url)
