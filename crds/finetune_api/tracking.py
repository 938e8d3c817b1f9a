"""What a run leaves behind beside its result: where its measurements are tracked, and how many checkpoints stay.

Nothing here is part of an input's identity: the same training gives the same adapter wherever it is tracked.
"""

from typing import Annotated, Final

from pydantic import Field

from finetune_api.base import ApiModel
from finetune_api.storage import SECRET_NAME

MLFLOW_SECRET_KEYS: Final = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
"""Keys of the Secret, each optional, which the container gets as environment variables of the same names (MLflow's)."""

WANDB_KEY_VARIABLE: Final = "WANDB_API_KEY"
"""Environment variable of the training's container with the API key for Weights & Biases (W&B's own name for it)."""

ServerUrl = Annotated[
    str, Field(pattern=r"^https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?(/[A-Za-z0-9._/-]*)?$", min_length=9, max_length=253)
]
"""URL without user name, password and query."""


class MlflowCredentials(ApiModel):
    """How to log in to the tracking server. Pods read the Secret; the operator never does."""

    secret_name: Annotated[str, Field(pattern=SECRET_NAME, min_length=1, max_length=253)]
    """Secret of this namespace with MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN."""


class Mlflow(ApiModel):
    """An MLflow tracking server. Where it is away, training goes on without it."""

    url: ServerUrl
    """URL of the server, e.g. http://mlflow.tracking.svc:5000; no user name or password in it."""
    experiment: Annotated[str, Field(max_length=128, pattern=r"^([A-Za-z0-9][A-Za-z0-9 ._/-]*)?$")] = ""
    """Experiment that the runs belong to, made where it is missing; left out: namespace/name of this resource."""
    credentials: MlflowCredentials | None = None
    """Login, for servers that want one."""


class WandbCredentials(ApiModel):
    """The API key for Weights & Biases. Pods read the Secret; the operator never does."""

    secret_name: Annotated[str, Field(pattern=SECRET_NAME, min_length=1, max_length=253)]
    """Name of the Secret, in the namespace of this resource."""
    api_key_key: Annotated[str, Field(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253)] = WANDB_KEY_VARIABLE
    """Key of the Secret that holds the API key."""


class Wandb(ApiModel):
    """Weights & Biases, the service or a server of your own. Where it is away, training goes on without it."""

    base_url: ServerUrl = "https://api.wandb.ai"
    """URL of the API; no user name or password in it."""
    entity: Annotated[str, Field(max_length=128, pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*)?$")] = ""
    """Team or user that the runs belong to; left out: the default of the API key's owner."""
    project: Annotated[str, Field(max_length=128, pattern=r"^([A-Za-z0-9][A-Za-z0-9 ._-]*)?$")] = ""
    """Project that the runs belong to, made where it is missing; left out: namespace.name of this resource."""
    credentials: WandbCredentials
    """The API key."""


class Tracking(ApiModel):
    """Where the measurements of a training go. TensorBoard files are always written, beside the results."""

    mlflow: Mlflow | None = None
    """Also to this MLflow server."""
    wandb: Wandb | None = None
    """Also to Weights & Biases."""


class Retention(ApiModel):
    """What stays of the state of runs once it is not needed any more. Results are never deleted."""

    checkpoints: Annotated[int, Field(ge=0, le=100)] = 2
    """Newest checkpoints that stay once their training has succeeded, beside its best one; 0: none. Those of trainings
    before it go."""
