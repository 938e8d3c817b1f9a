"""What a run leaves behind besides its result: tracked metrics and kept checkpoints.

None of this is part of an input's identity: tracking does not change what a training produces.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Final

from pydantic import Field

from finetune_api.base import ApiModel, Retired
from finetune_api.references import SecretKeyRef, SecretRef
from finetune_api.rules import NotEmpty
from finetune_api.spelled import spelled

MLFLOW_SECRET_KEYS: Final = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
"""Optional keys of the Secret; the container gets them as environment variables with the same names (MLflow's own)."""

WANDB_KEY_VARIABLE: Final = "WANDB_API_KEY"
"""Environment variable of the training container with the Weights & Biases API key (W&B's own name)."""

ServerUrl = Annotated[
    str,
    spelled(
        r"^https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?(/[A-Za-z0-9._/-]*)?$",
        "write http:// or https://, a host and, if need be, a port and a path, e.g. http://mlflow.tracking.svc:5000; "
        "no user, password or query",
        min_length=9,
        max_length=253,
    ),
]
"""URL without user name, password and query."""


class Mlflow(ApiModel):
    """An MLflow tracking server. If it is unavailable, training continues without it."""

    retired: ClassVar[Mapping[str, Retired]] = {"credentials": Retired("name the Secret in secretRef.name")}

    url: ServerUrl
    """URL of the server, e.g. http://mlflow.tracking.svc:5000; no user name or password in it."""
    experiment: Annotated[
        str | None,
        spelled(
            r"^([A-Za-z0-9][A-Za-z0-9 ._/-]*)?$",
            "write letters, digits, spaces and ._/-, starting with a letter or digit",
            max_length=128,
        ),
        NotEmpty("omit experiment for namespace/name"),
    ] = None
    """Experiment of the runs, created if it does not exist. Default: namespace/name of this resource."""
    secret_ref: SecretRef | None = None
    """Secret with MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, for servers that
    require a login."""


class Wandb(ApiModel):
    """Weights & Biases, the service or your own server. If it is unavailable, training continues without it."""

    retired: ClassVar[Mapping[str, Retired]] = {
        "credentials": Retired("name the Secret and its key with the API key in secretKeyRef")
    }

    base_url: ServerUrl = "https://api.wandb.ai"
    """URL of the API; no user name or password in it."""
    entity: Annotated[
        str | None,
        spelled(
            r"^([A-Za-z0-9][A-Za-z0-9._-]*)?$",
            "write letters, digits and ._-, starting with a letter or digit",
            max_length=128,
        ),
        NotEmpty("omit entity for the key owner's default"),
    ] = None
    """Team or user of the runs. Default: the default entity of the API key's owner."""
    project: Annotated[
        str | None,
        spelled(
            r"^([A-Za-z0-9][A-Za-z0-9 ._-]*)?$",
            "write letters, digits, spaces and ._-, starting with a letter or digit",
            max_length=128,
        ),
        NotEmpty("omit project for namespace.name"),
    ] = None
    """Project of the runs, created if it does not exist. Default: namespace.name of this resource."""
    secret_key_ref: SecretKeyRef
    """The API key."""


class Tracking(ApiModel):
    """Where training metrics are tracked. TensorBoard files are always written beside the results."""

    mlflow: Mlflow | None = None
    """Also track in this MLflow server."""
    wandb: Wandb | None = None
    """Also track in Weights & Biases."""


class Retention(ApiModel):
    """How much of the runs' state is kept once it is no longer needed. Results are never deleted."""

    checkpoints: Annotated[int, Field(ge=0, le=100)] = 2
    """Number of newest checkpoints to keep, besides the best one, once their training has succeeded; 0: none.
    Checkpoints of earlier trainings are deleted."""
