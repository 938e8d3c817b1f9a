"""Names that the whole project agrees on: API group, kinds, labels, ports, exit codes."""

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
"""Field manager and value of ``app.kubernetes.io/managed-by`` on all that the operator makes."""

LABEL_MANAGED_BY: Final = "app.kubernetes.io/managed-by"
LABEL_OWNER_KIND: Final = f"{GROUP}/owner-kind"
LABEL_OWNER_NAME: Final = f"{GROUP}/owner-name"
LABEL_RUN: Final = f"{GROUP}/run"
LABEL_STAGE: Final = f"{GROUP}/stage"
LABEL_REVISION: Final = f"{GROUP}/revision"
LABEL_JOB: Final = "batch.kubernetes.io/job-name"
LABEL_INDEX: Final = "batch.kubernetes.io/job-completion-index"
"""On pods, set by Kubernetes: their Job, and their number in an Indexed one."""
LABEL_ROLE: Final = f"{GROUP}/role"
"""Role of a pod, which NetworkPolicies select: stage or server."""

NAME_PATTERN: Final = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
"""DNS-1035: what a Service, and so a custom resource of ours, may be called."""
MAX_NAME: Final = 40
"""Longest name of a custom resource: leaves room for stage and hash within the 63 characters of a label."""

METRICS_PORT: Final = 9400
"""Where a stage's pod shows its progress as Prometheus metrics."""
TRAINING_PORT: Final = 29400
"""Where the first of several pods that train together waits for the others."""
INDEX_VARIABLE: Final = "JOB_COMPLETION_INDEX"
"""Where a pod of an Indexed Job finds its number (set by Kubernetes)."""
POD_VARIABLE: Final = "POD_NAME"
"""Where a pod of an Indexed Job finds its name: its host's is that of every pod with its number."""
SERVING_PORT: Final = 8080
"""Where a model server listens inside its pod."""

INPUT_FILE: Final = "/etc/finetune/input.json"
"""Where a stage's container finds its StageInput."""
SOURCES_DIR: Final = "/inputs"
"""Where ConfigMaps that are sources of data are mounted, each in a folder with the source's number."""
CA_FILE: Final = "/etc/finetune-ca/ca.crt"
"""Where a pod finds the certificate authorities of its store."""
CA_VARIABLE: Final = "AWS_CA_BUNDLE"
"""Environment variable that names that file; boto3 reads it, inside and outside of pods."""
TEACHER_KEY_VARIABLE: Final = "TEACHER_API_KEY"
"""Environment variable that holds the API key of a teacher."""
SCRATCH_DIR: Final = "/scratch"
"""The writable volume of a stage's container."""
MODELS_DIR: Final = "/models"
"""The volume that fetch fills and the model server reads; the artifact's digest is part of the path."""


class ExitCode(IntEnum):
    """Exit codes of the stage containers; ``podFailurePolicy`` and ``docs/reference/stages.md`` follow them.

    The numbers are those of BSD's sysexits, which no shell and no signal uses.
    """

    OK = 0
    """The result is written and published."""
    FATAL = 65
    """What was asked cannot succeed as it is (EX_DATAERR): the Job fails at once, no retry."""
    RETRIABLE = 75
    """A temporary failure, e.g. the object store did not answer (EX_TEMPFAIL): the Job tries again."""
    REGROUP = 76
    """Of a training over several pods: another one was lost, so that all begin again. Does not count as a failure."""
