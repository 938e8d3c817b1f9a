"""Names shared by the whole project: API group, kinds, labels, ports, exit codes."""

from enum import IntEnum
from typing import Final

GROUP: Final = "finetune.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"

FINETUNEJOB: Final = "FineTuneJob"
FINETUNEJOBS: Final = "finetunejobs"
ADAPTERDEPLOYMENT: Final = "AdapterDeployment"
ADAPTERDEPLOYMENTS: Final = "adapterdeployments"

MANAGED_BY: Final = "finetune-operator"
"""Field manager and value of ``app.kubernetes.io/managed-by`` on everything that the operator creates."""

LABEL_MANAGED_BY: Final = "app.kubernetes.io/managed-by"
LABEL_OWNER_KIND: Final = f"{GROUP}/owner-kind"
LABEL_OWNER_NAME: Final = f"{GROUP}/owner-name"
LABEL_RUN: Final = f"{GROUP}/run"
LABEL_STAGE: Final = f"{GROUP}/stage"
LABEL_REVISION: Final = f"{GROUP}/revision"
LABEL_ADAPTER: Final = f"{GROUP}/adapter"
"""On the Job that looks where an adapter's channel points."""
LABEL_JOB: Final = "batch.kubernetes.io/job-name"
LABEL_INDEX: Final = "batch.kubernetes.io/job-completion-index"
"""Set on pods by Kubernetes: their Job, and their index in an Indexed Job."""
ANNOTATION_SUSPENDED: Final = f"{GROUP}/suspended"
"""On a Job that the operator has suspended. Only such a Job is resumed: who else suspends one resumes it too."""
ANNOTATION_REVIEW: Final = f"{GROUP}/review"
"""Set by users on a FineTuneJob that awaits a review: any new value has the votes counted at once. On the Job that
counts them it holds the value that was there."""
ANNOTATION_LOOK: Final = f"{GROUP}/look"
"""Set by users on an AdapterDeployment that follows a channel: for any new value a Job looks at once where it
points."""
ANNOTATION_METRIC_SECONDS: Final = f"{GROUP}/metric-seconds"
"""On the pod of an evaluation: how long each of its metric containers may run, as JSON."""
LABEL_ROLE: Final = f"{GROUP}/role"
"""Role of a pod, stage or server; NetworkPolicies select by it."""

LABEL_INSTANCE: Final = f"{GROUP}/instance"
"""Set by users on a custom resource: which operator of the cluster handles it, if there are several."""

NAME_PATTERN: Final = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
"""DNS-1035: the names that a Service, and therefore our custom resources, may have."""
MAX_NAME: Final = 40
"""Longest name of a custom resource: leaves room for stage and hash within a label's 63 characters."""

METRICS_PORT: Final = 9400
"""Port on which a stage's pod exposes its progress as Prometheus metrics."""
TRAINING_PORT: Final = 29400
"""Port on which the first pod of a multi-pod training waits for the others."""
INDEX_VARIABLE: Final = "JOB_COMPLETION_INDEX"
"""Environment variable with the index of a pod in an Indexed Job (set by Kubernetes)."""
POD_VARIABLE: Final = "POD_NAME"
"""Environment variable with the pod's name: an Indexed Job's host names are the same for every pod of an index."""
SERVING_PORT: Final = 8080
"""Port on which a model server listens inside its pod."""
SELF_CHECK_PORT: Final = 9401
"""Port on which the self-check of a serving pod tells the kubelet whether the pod has proved itself."""

CLIENT_PORT: Final = 8081
"""Port on which the proxy of a serving pod takes clients' requests, where the pod has one."""
INNER_PORT: Final = 9402
"""Port on which the same proxy answers the kubelet and Prometheus, without a key: health and metrics only."""

INPUT_FILE: Final = "/etc/finetune/input.json"
"""Where a stage's container finds its StageInput."""
INPUT_DIGEST_VARIABLE: Final = "FINETUNE_INPUT_SHA256"
"""Environment variable with the SHA-256 of that file as the operator wrote it, in hexadecimal."""
SELF_CHECK_FILE: Final = "/etc/finetune-self-check/limits.json"
"""Where the self-check of a serving pod finds its SelfCheckLimits; they change while it runs."""
WANTED_ADAPTERS_FILE: Final = "/etc/finetune-self-check/adapters.json"
"""Where a serving pod finds its WantedAdapters, if its server loads them while it runs; they change meanwhile."""
SOURCES_DIR: Final = "/inputs"
"""Where the ConfigMaps that are data sources are mounted, each in a folder named by the source's number."""
CA_DIR: Final = "/etc/finetune-ca"
"""Where a pod finds the CA certificates of its stores, each key of a ConfigMap as ``<name>/<key>``."""
CA_DIR_VARIABLE: Final = "FINETUNE_CA_DIR"
"""Environment variable with another such folder, outside of pods."""
TEACHER_KEY_VARIABLE: Final = "TEACHER_API_KEY"
"""Environment variable with the teacher's API key."""
API_KEYS_DIR: Final = "/etc/finetune-api-keys"
"""Where a pod finds the keys of an endpoint's clients, a file for each."""
TLS_DIR: Final = "/etc/finetune-tls"
"""Where a pod finds the certificate of an endpoint's servers."""
SCRATCH_DIR: Final = "/scratch"
"""The writable volume of a stage's container."""
PROVED_FILE: Final = f"{SCRATCH_DIR}/proved"
"""Made by verify once all checks have passed: its pod is ready from then on, and the operator opens the network."""
MODELS_DIR: Final = "/models"
"""The volume that fetch fills and the model server reads; the path includes the artifact's digest."""
MODEL_CACHE_DIR: Final = "/model-cache"
"""Where a stage's container finds the volume that keeps base models, if its profile names one."""
METRICS_DIR: Final = "/metrics"
"""The volume through which an evaluation and its metric containers exchange files."""


class ExitCode(IntEnum):
    """Exit codes of the stage containers; ``podFailurePolicy`` and ``docs/reference/stages.md`` follow them.

    The numbers follow BSD's sysexits, which neither shells nor signals use.
    """

    OK = 0
    """The result is written and published."""
    FATAL = 65
    """The same input cannot succeed (EX_DATAERR): the Job fails immediately, without a retry."""
    RETRIABLE = 75
    """A temporary failure, e.g. the object store did not answer (EX_TEMPFAIL): the Job retries."""
    RESTART_GROUP = 76
    """A peer of a multi-pod training was lost, so all its pods restart. Does not count as a failure."""
