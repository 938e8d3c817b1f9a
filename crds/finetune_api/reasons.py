"""Why something is as it is: one CamelCase word for programs, one sentence of remedy for people.

A reason names the root cause. It appears in conditions, events, stage results and reports, always with a message
that says what happened; the remedy says what to do next and is appended where there is room.
"""

from enum import StrEnum


class Reason(StrEnum):
    """Reasons of conditions, events and stage results."""

    # Life of a run
    WAITING = "Waiting"
    RUN_STARTED = "RunStarted"
    STAGE_STARTED = "StageStarted"
    STAGE_SUCCEEDED = "StageSucceeded"
    STAGE_REUSED = "StageReused"
    STAGE_RETRIED = "StageRetried"
    RUN_SUCCEEDED = "RunSucceeded"
    RUN_FAILED = "RunFailed"
    SUSPENDED = "Suspended"
    RESUMED = "Resumed"
    SPEC_CHANGED = "SpecChanged"

    # What the admin or the namespace lacks
    PROFILE_UNKNOWN = "ProfileUnknown"
    RUNTIME_UNKNOWN = "RuntimeUnknown"
    RUNNER_SERVICE_ACCOUNT_MISSING = "RunnerServiceAccountMissing"
    SECRET_MISSING = "SecretMissing"
    QUOTA_EXCEEDED = "QuotaExceeded"
    UNSCHEDULABLE = "Unschedulable"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    POD_REJECTED = "PodRejected"
    NAME_TAKEN = "NameTaken"
    OUTPUT_NAME_CONFLICT = "OutputNameConflict"
    SPEC_INVALID = "SpecInvalid"
    SETTINGS_DISCOURAGED = "SettingsDiscouraged"

    # What the data or the store lacks
    DATASET_INVALID = "DatasetInvalid"
    DATASET_TOO_SMALL = "DatasetTooSmall"
    DATASET_NOT_FOUND = "DatasetNotFound"
    MODEL_NOT_FOUND = "ModelNotFound"
    MODEL_UNSUPPORTED = "ModelUnsupported"
    FIT_REFUSED = "FitRefused"
    GATED_MODEL_UNAUTHORIZED = "GatedModelUnauthorized"
    BUCKET_NOT_FOUND = "BucketNotFound"
    S3_ACCESS_DENIED = "S3AccessDenied"
    S3_UNREACHABLE = "S3Unreachable"
    S3_CONDITIONAL_WRITES_UNSUPPORTED = "S3ConditionalWritesUnsupported"
    ARTIFACT_CORRUPT = "ArtifactCorrupt"
    ARTIFACT_NOT_FOUND = "ArtifactNotFound"
    TEACHER_UNAVAILABLE = "TeacherUnavailable"
    TEACHER_REFUSED = "TeacherRefused"

    # What went wrong while running
    OUT_OF_MEMORY = "OutOfMemory"
    CUDA_OUT_OF_MEMORY = "CudaOutOfMemory"
    LOSS_NOT_FINITE = "LossNotFinite"
    LOSS_DIVERGED = "LossDiverged"
    STEP_HUNG = "StepHung"
    SUPERSEDED = "Superseded"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    BUDGET_EXCEEDED = "BudgetExceeded"
    PREEMPTED = "Preempted"
    STAGE_CRASHED = "StageCrashed"
    RESULT_LOST = "ResultLost"
    INTERNAL_ERROR = "InternalError"

    # How a training ended that went well, or well enough: the best weights are kept
    TRAINING_COMPLETED = "TrainingCompleted"
    OVERFITTING = "Overfitting"
    PLATEAU = "Plateau"

    # Serving
    SOURCE_NOT_READY = "SourceNotReady"
    SOURCE_NOT_FOUND = "SourceNotFound"
    CANDIDATE_STARTING = "CandidateStarting"
    CANDIDATE_FAILED = "CandidateFailed"
    VERIFYING = "Verifying"
    VERIFIED = "Verified"
    ADAPTER_INACTIVE = "AdapterInactive"
    VERIFICATION_FAILED = "VerificationFailed"
    PROMOTED = "Promoted"
    SERVING = "Serving"
    SERVER_UNAVAILABLE = "ServerUnavailable"


# One sentence a line reads best here.
# ruff: noqa: E501
REMEDIES: dict[Reason, str] = {
    Reason.PROFILE_UNKNOWN: "Choose a profile that the platform offers, or ask its admin to add one to the chart's values.",
    Reason.RUNTIME_UNKNOWN: "Choose a runtime that the platform offers, or ask its admin to add one to the chart's values.",
    Reason.RUNNER_SERVICE_ACCOUNT_MISSING: "Ask the admin to create the runner ServiceAccount in this namespace.",
    Reason.SECRET_MISSING: "Create the Secret with the keys that spec.storage.credentials names; the pod starts by itself then.",
    Reason.QUOTA_EXCEEDED: "Raise the ResourceQuota, free resources in the namespace, or choose a smaller profile.",
    Reason.UNSCHEDULABLE: "Free or add a node that fits the profile, or choose another profile.",
    Reason.IMAGE_PULL_FAILED: "Check the image name and the pull secret in the chart's values.",
    Reason.POD_REJECTED: "Ask the admin which admission policy refused the pod.",
    Reason.NAME_TAKEN: "Delete or rename the object that is in the way, or rename this resource.",
    Reason.OUTPUT_NAME_CONFLICT: "Give one of the two a different spec.output.name or spec.output.uri.",
    Reason.DATASET_INVALID: "Correct the rows named here, or raise spec.dataset.maxInvalidPercent.",
    Reason.DATASET_TOO_SMALL: "Add examples: 500 to 5,000 good ones are a sound size.",
    Reason.DATASET_NOT_FOUND: "Upload the file, or correct spec.dataset.sources.",
    Reason.MODEL_NOT_FOUND: "Upload the model, or correct spec.model.uri.",
    Reason.MODEL_UNSUPPORTED: "Use a model whose weights are safetensors and whose architecture transformers knows.",
    Reason.FIT_REFUSED: "Make the change that is named here, or choose a profile with more memory.",
    Reason.GATED_MODEL_UNAUTHORIZED: "Accept the model's terms and provide a token, or mirror the model to S3.",
    Reason.BUCKET_NOT_FOUND: "Create the bucket, or correct the URI.",
    Reason.S3_ACCESS_DENIED: "Correct the keys in the Secret or the bucket's policy, then set spec.rerun to a new value.",
    Reason.S3_UNREACHABLE: "Check spec.storage.endpoint and the network policies between the pod and the store.",
    Reason.S3_CONDITIONAL_WRITES_UNSUPPORTED: "Use a store that honours If-None-Match on PUT (AWS S3, MinIO, Ceph, SeaweedFS).",
    Reason.ARTIFACT_CORRUPT: "Delete the damaged object and set spec.rerun of the FineTuneJob to a new value.",
    Reason.ARTIFACT_NOT_FOUND: "Check that the artifact's URI exists and that the credentials may read it.",
    Reason.TEACHER_UNAVAILABLE: "Check the teacher's URL, its limits and the network policies; its answers are kept, a new spec.rerun goes on.",
    Reason.TEACHER_REFUSED: "Correct the key in the Secret, the teacher's model or its parameters; its answers so far are kept.",
    Reason.OUT_OF_MEMORY: "Choose a profile with more memory, or lower spec.training.batchSize or maxLength.",
    Reason.CUDA_OUT_OF_MEMORY: "Lower spec.training.batchSize or maxLength, or choose a profile with a larger GPU.",
    Reason.LOSS_NOT_FINITE: "Lower spec.training.learningRate, and look for broken rows in the data.",
    Reason.LOSS_DIVERGED: "Lower spec.training.learningRate to a half or less.",
    Reason.STEP_HUNG: "The pod is started again and goes on from its newest checkpoint; if it hangs again, look at the node's GPU.",
    Reason.DEADLINE_EXCEEDED: "Choose a faster profile or raise the profile's deadline, then set spec.rerun to a new value.",
    Reason.BUDGET_EXCEEDED: "Raise the maxCost that is named here, or ask for less; what is done is kept.",
    Reason.STAGE_CRASHED: "Read the pod's log, then set spec.rerun to a new value to try again.",
    Reason.RESULT_LOST: "Set spec.rerun to a new value: finished stages are reused.",
    Reason.SOURCE_NOT_FOUND: "Apply the FineTuneJob again, or pin what serves: set spec.source.artifact.uri to that URI.",
    Reason.ADAPTER_INACTIVE: "The server answers like the base model: check the runtime's version and the artifact's format.",
    Reason.VERIFICATION_FAILED: "Compare the runtime's version with the one the artifact was evaluated for; the old revision still serves.",
    Reason.CANDIDATE_FAILED: "Read the candidate pod's log; the old revision still serves.",
}
"""What to do next, for the reasons that a person can act on."""


def with_remedy(reason: Reason, message: str, limit: int = 1024) -> str:
    """``message`` followed by the reason's remedy, cut to ``limit`` characters (the message gives way first)."""
    remedy = REMEDIES.get(reason, "")
    if not remedy or remedy in message:
        return message[:limit]
    room = limit - len(remedy) - 1
    return f"{message[:room].rstrip()} {remedy}"
