"""Why something is as it is: one CamelCase word for programs, one sentence of remedy for people.

A reason names the root cause. It appears in conditions, events, stage results and reports, always with a message
that says what happened; the remedy says what to do next and is appended where there is room. What a reason means in
general stands in docs/reference/reasons.md, which is made from here.
"""

import re
from enum import StrEnum
from typing import Final

from finetune_api.meta import ADAPTERDEPLOYMENT

_WORD: Final = re.compile(r"[A-Za-z](?:[A-Za-z0-9_,:]{0,61}[A-Za-z0-9_])?", re.ASCII)
"""What metav1.Condition takes as a reason, with the length that a condition of ours has room for."""


class Reason(StrEnum):
    """Reasons of conditions, events and stage results.

    Other words are those of newer versions. They are reasons too, ``Reason("AddedLater")``, that have no remedy here.
    """

    # Life of a run
    WAITING = "Waiting"
    RUN_STARTED = "RunStarted"
    STAGE_STARTED = "StageStarted"
    STAGE_SUCCEEDED = "StageSucceeded"
    STAGE_REUSED = "StageReused"
    STAGE_RETRIED = "StageRetried"
    RUN_SUCCEEDED = "RunSucceeded"
    SUSPENDED = "Suspended"
    RESUMED = "Resumed"
    SPEC_CHANGED = "SpecChanged"

    # What the admin or the namespace lacks
    PROFILE_UNKNOWN = "ProfileUnknown"
    RUNTIME_UNKNOWN = "RuntimeUnknown"
    NOT_ALLOWED = "NotAllowed"
    RUNNER_SERVICE_ACCOUNT_MISSING = "RunnerServiceAccountMissing"
    SECRET_MISSING = "SecretMissing"
    QUOTA_EXCEEDED = "QuotaExceeded"
    UNSCHEDULABLE = "Unschedulable"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    POD_REJECTED = "PodRejected"
    NAME_TAKEN = "NameTaken"
    OUTPUT_NAME_CONFLICT = "OutputNameConflict"
    API_CALLS_FAIL = "ApiCallsFail"
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
    S3_ENCRYPTION_REFUSED = "S3EncryptionRefused"
    ARTIFACT_CORRUPT = "ArtifactCorrupt"
    ARTIFACT_NOT_FOUND = "ArtifactNotFound"
    TEACHER_UNAVAILABLE = "TeacherUnavailable"
    TEACHER_REFUSED = "TeacherRefused"

    # What went wrong while running
    GPU_UNUSABLE = "GpuUnusable"
    OUT_OF_MEMORY = "OutOfMemory"
    CUDA_OUT_OF_MEMORY = "CudaOutOfMemory"
    SCRATCH_FULL = "ScratchFull"
    LOSS_NOT_FINITE = "LossNotFinite"
    LOSS_DIVERGED = "LossDiverged"
    STEP_HUNG = "StepHung"
    SUPERSEDED = "Superseded"
    PEER_LOST = "PeerLost"
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
    PROMPTS_TOO_LONG = "PromptsTooLong"
    PROMOTED = "Promoted"
    SERVING = "Serving"
    SERVER_UNAVAILABLE = "ServerUnavailable"

    @classmethod
    def _missing_(cls, value: object) -> "Reason | None":
        """A word of a newer version, made as ``enum.Flag`` makes its unnamed members; None for what is no word."""
        if not isinstance(value, str) or not _WORD.fullmatch(value):
            return None
        unknown = str.__new__(cls, value)
        unknown._name_ = unknown._value_ = value
        return unknown


# One sentence a line reads best here.
# ruff: noqa: E501
MEANINGS: Final[dict[Reason, str]] = {
    Reason.WAITING: "Something has to come first: a pod that starts, one of an earlier run that ends, endpoints that spread.",
    Reason.RUN_STARTED: "A run has begun.",
    Reason.STAGE_STARTED: "A stage's Job is under way.",
    Reason.STAGE_SUCCEEDED: "A stage has given its result.",
    Reason.STAGE_REUSED: "The store holds the result for the same input: nothing was done again.",
    Reason.STAGE_RETRIED: "A stage's pod failed, and its Job tries again; the message says how the last attempt ended.",
    Reason.RUN_SUCCEEDED: "The artifact is published.",
    Reason.SUSPENDED: "spec.suspend is true.",
    Reason.RESUMED: "spec.suspend is false again.",
    Reason.SPEC_CHANGED: "A run that another one cut short, since the spec was changed.",
    Reason.PROFILE_UNKNOWN: "The chart's values have no profile of the name in spec.profile.",
    Reason.RUNTIME_UNKNOWN: "The chart's values have no runtime of the name in spec.runtime.",
    Reason.NOT_ALLOWED: "No rule of tenancy.rules in the chart's values allows this namespace what the spec asks for.",
    Reason.RUNNER_SERVICE_ACCOUNT_MISSING: "The namespace lacks the ServiceAccount that the profile or runtime names.",
    Reason.SECRET_MISSING: "A Secret that the spec names does not exist in the namespace, or lacks a key. A teacher's key that is empty fails the run.",
    Reason.QUOTA_EXCEEDED: "The namespace's ResourceQuota leaves no room for the pod, or wants requests or limits that it lacks.",
    Reason.UNSCHEDULABLE: "No node has room for the pod, or the labels and taints that it asks for.",
    Reason.IMAGE_PULL_FAILED: "A node cannot get an image: its name, the registry, or the pull secret.",
    Reason.POD_REJECTED: "The API server or the node refuses the pod: an admission policy, say, or a ConfigMap that is missing.",
    Reason.NAME_TAKEN: "An object of somebody else has a name that is needed here; it is not taken over.",
    Reason.OUTPUT_NAME_CONFLICT: "Another FineTuneJob publishes under the same spec.output.name. Where only the store knows of it, the run fails.",
    Reason.API_CALLS_FAIL: "For a minute or more the API server has not done what the operator asks of it: it lacks a right, an admission webhook does not answer; the message has the server's words.",
    Reason.SPEC_INVALID: "The spec asks for something that does not go together, or that only a stage can find to be wrong.",
    Reason.SETTINGS_DISCOURAGED: "Settings of the training are allowed and known to do badly; the message of the condition Discouraged says what does better.",
    Reason.DATASET_INVALID: "The data cannot be used as they are: too many rows are wrong, one label only, a test like the training; the message says where.",
    Reason.DATASET_TOO_SMALL: "Too few examples are left for training, validation and test.",
    Reason.DATASET_NOT_FOUND: "A source does not exist, holds nothing, or was overwritten while the run was under way. A hub that does not answer is asked again.",
    Reason.MODEL_NOT_FOUND: "There is no base model at spec.model.uri. A hub that does not answer is asked again.",
    Reason.MODEL_UNSUPPORTED: "The model has no safetensors or no chat template that fits the examples, or its files cannot be read.",
    Reason.FIT_REFUSED: "By the estimate the training does not fit the profile's memory; the message has the smallest change that would.",
    Reason.GATED_MODEL_UNAUTHORIZED: "The hub gives this model only to accounts that have accepted its terms.",
    Reason.BUCKET_NOT_FOUND: "The store has no such bucket.",
    Reason.S3_ACCESS_DENIED: "The store refuses the keys, or the pod has none.",
    Reason.S3_UNREACHABLE: "The store does not answer, breaks off, or is not trusted (TLS).",
    Reason.S3_CONDITIONAL_WRITES_UNSUPPORTED: "The store ignores or refuses If-None-Match or If-Match on PUT: two runs could overwrite each other's results.",
    Reason.S3_ENCRYPTION_REFUSED: "The store does not encrypt as spec.storage.encryption asks, or the encryption key may not be used.",
    Reason.ARTIFACT_CORRUPT: "What the store holds is not what was written there: a file is missing, damaged or exchanged.",
    Reason.ARTIFACT_NOT_FOUND: "A result that was published is not there any more.",
    Reason.TEACHER_UNAVAILABLE: "The teacher does not answer, or asks to wait too long.",
    Reason.TEACHER_REFUSED: "The teacher refuses: the key, the model, a parameter, or no credit is left.",
    Reason.GPU_UNUSABLE: "The profile has a GPU, and CUDA cannot be used in the pod: it does not go on with its CPUs.",
    Reason.OUT_OF_MEMORY: "A container used more memory than its limit and was killed.",
    Reason.CUDA_OUT_OF_MEMORY: "The GPU's memory did not hold a single example. Before that, smaller passes are tried.",
    Reason.SCRATCH_FULL: "The pod's own volume, or the disk below it, is full.",
    Reason.LOSS_NOT_FINITE: "The loss or the gradient became infinite, or no number.",
    Reason.LOSS_DIVERGED: "The loss of the newest steps is far above that of the first ones.",
    Reason.STEP_HUNG: "The training showed no sign of life for too long.",
    Reason.SUPERSEDED: "A newer attempt at the same training has taken over; this one writes nothing more.",
    Reason.PEER_LOST: "Of several pods that train together another one was lost, or told to stop.",
    Reason.DEADLINE_EXCEEDED: "The stage took longer than its profile allows (or a distillation than its deadlineMinutes), the server longer than its runtime does.",
    Reason.BUDGET_EXCEEDED: "More money would be spent than spec.budget or a teacher's maxCost allows. With onExceeded: Checkpoint a training that ends for it has succeeded.",
    Reason.PREEMPTED: "The pod was told to stop or evicted: its node was drained, or needed the place.",
    Reason.STAGE_CRASHED: "A pod ended without saying why.",
    Reason.RESULT_LOST: "A stage has ended well, but its pod is gone with the result, and the store does not hold it.",
    Reason.INTERNAL_ERROR: "An error that nobody expected.",
    Reason.TRAINING_COMPLETED: "All steps are done.",
    Reason.OVERFITTING: "The validation loss rose: the training ended early, and the best weights are kept.",
    Reason.PLATEAU: "The validation loss did not fall any more: the training ended early, and the best weights are kept.",
    Reason.SOURCE_NOT_READY: "The FineTuneJob has published nothing yet, or does not exist yet.",
    Reason.SOURCE_NOT_FOUND: "The FineTuneJob is gone; what it published goes on being served.",
    Reason.CANDIDATE_STARTING: "A revision's pods start.",
    Reason.CANDIDATE_FAILED: "The server of a revision crashed again and again, or did not answer the proof.",
    Reason.VERIFYING: "A revision is being proved.",
    Reason.VERIFIED: "A revision is proved; its network opens, and the rest of its pods start.",
    Reason.ADAPTER_INACTIVE: "The golden prompts are answered as by the base model: the tuning is not on, or nothing was learnt.",
    Reason.VERIFICATION_FAILED: "The server does not answer like the evaluated artifact, answers for another one, or too slowly.",
    Reason.PROMPTS_TOO_LONG: "The runtime takes fewer tokens than the artifact's prompts and answers have.",
    Reason.PROMOTED: "A revision has taken over.",
    Reason.SERVING: "A revision serves.",
    Reason.SERVER_UNAVAILABLE: "No pod of the revision that serves answers.",
}
"""What each reason says, whatever the case, for the reference."""

REMEDIES: Final[dict[Reason, str]] = {
    # The run waits, and goes on by itself
    Reason.PROFILE_UNKNOWN: "Choose a profile that the platform offers, or ask its admin to add one to the chart's values.",
    Reason.NOT_ALLOWED: "Ask for what this namespace may have; or let the platform's admin extend tenancy.rules in the chart's values: it goes on by itself then.",
    Reason.RUNNER_SERVICE_ACCOUNT_MISSING: "Ask the admin to create the runner ServiceAccount in this namespace.",
    Reason.SECRET_MISSING: "Create the Secret with the keys that spec.storage.credentials names; the pod starts by itself then.",
    Reason.QUOTA_EXCEEDED: "Raise the ResourceQuota, free resources in the namespace, or choose a smaller profile.",
    Reason.UNSCHEDULABLE: "Free or add a node that fits the profile, or choose another profile.",
    Reason.IMAGE_PULL_FAILED: "Check the image name and the pull secret in the chart's values.",
    Reason.POD_REJECTED: "Ask the admin which admission policy refused the pod.",
    Reason.NAME_TAKEN: "Delete or rename the object that is in the way, or rename this resource.",
    Reason.OUTPUT_NAME_CONFLICT: "Give one of the two a different spec.output.name or spec.output.uri.",
    Reason.API_CALLS_FAIL: "Ask the admin to look at the operator's roles and at the cluster's admission webhooks: it goes on by itself once its calls succeed.",
    # The run has failed: a change of the spec begins another
    Reason.SPEC_INVALID: "Correct the field that is named here.",
    Reason.MODEL_UNSUPPORTED: "Name a model in spec.model.uri whose weights are safetensors and whose architecture transformers knows.",
    Reason.FIT_REFUSED: "Make the change that is named here, or choose a profile with more memory.",
    Reason.GATED_MODEL_UNAUTHORIZED: "Copy the model to your store, with an account that has accepted its terms, and name that s3:// URI in spec.model.uri: pods hold no token of the hub.",
    Reason.S3_CONDITIONAL_WRITES_UNSUPPORTED: "Name a store in spec.storage.endpoint that honours If-None-Match and If-Match on PUT (AWS S3, MinIO, Ceph, SeaweedFS).",
    Reason.OUT_OF_MEMORY: "Choose a profile with more memory, or lower spec.training.batchSize or spec.training.maxLength.",
    Reason.CUDA_OUT_OF_MEMORY: "Lower spec.training.batchSize or spec.training.maxLength, or choose a profile with a larger GPU.",
    Reason.LOSS_NOT_FINITE: "Lower spec.training.learningRate, and look for broken rows in the data.",
    Reason.LOSS_DIVERGED: "Lower spec.training.learningRate to a half or less.",
    Reason.BUDGET_EXCEEDED: "Raise the maxCost that is named here, or ask for less; what is done is kept.",
    # The run has failed for a cause outside the spec: spec.rerun begins another, which reuses what is finished
    Reason.DATASET_INVALID: "Correct what is named here in spec.dataset; or correct the data, then set spec.rerun to a new value.",
    Reason.DATASET_TOO_SMALL: "Add examples, 500 to 5,000 good ones are a sound size, then set spec.rerun to a new value.",
    Reason.DATASET_NOT_FOUND: "Correct spec.dataset.sources; or upload the file, then set spec.rerun to a new value.",
    Reason.MODEL_NOT_FOUND: "Correct spec.model.uri; or upload the model, then set spec.rerun to a new value.",
    Reason.BUCKET_NOT_FOUND: "Correct the URI; or create the bucket, then set spec.rerun to a new value.",
    Reason.S3_ACCESS_DENIED: "Correct the keys in the Secret or the bucket's policy, then set spec.rerun to a new value.",
    Reason.S3_UNREACHABLE: "Check spec.storage.endpoint and the network policies between the pod and the store; if the run has failed, set spec.rerun to a new value.",
    Reason.S3_ENCRYPTION_REFUSED: "Correct spec.storage.encryption; or let the keys in the Secret use that encryption key (kms:GenerateDataKey, kms:Decrypt), then set spec.rerun to a new value.",
    Reason.ARTIFACT_CORRUPT: "Delete the object that is named here, and manifest.json of its folder, then set spec.rerun to a new value: it is made again.",
    Reason.ARTIFACT_NOT_FOUND: "Check that nobody deletes what is below spec.output.uri, then set spec.rerun to a new value: it is made again.",
    Reason.TEACHER_UNAVAILABLE: "Check the teacher's URL, its limits and the network policies, then set spec.rerun to a new value: its answers so far are kept.",
    Reason.TEACHER_REFUSED: "Correct the teacher's model or its parameters; or correct the key in the Secret, then set spec.rerun to a new value: its answers so far are kept.",
    Reason.GPU_UNUSABLE: "Let the admin look at the NVIDIA driver and the device plugin of the profile's nodes, and at its runtimeClassName in the chart's values, then set spec.rerun to a new value.",
    Reason.SCRATCH_FULL: "Choose a profile with more scratch space; or let the admin raise its scratchSize in the chart's values, then set spec.rerun to a new value.",
    Reason.STEP_HUNG: "The pod is started again and goes on from its newest checkpoint; if the run has failed, look at the node's GPU, then set spec.rerun to a new value.",
    Reason.SUPERSEDED: "Find out what else works on this run; if the run has failed, set spec.rerun to a new value.",
    Reason.PEER_LOST: "All pods are started again and go on from the newest checkpoint; if the run has failed, look for the pod that was lost first, then set spec.rerun to a new value.",
    Reason.DEADLINE_EXCEEDED: "Choose a faster profile; or let the admin raise the profile's deadline, then set spec.rerun to a new value.",
    Reason.PREEMPTED: "The pod is started again elsewhere; if the run has failed, find out why nodes go, then set spec.rerun to a new value.",
    Reason.STAGE_CRASHED: "Read the pod's log, then set spec.rerun to a new value to try again.",
    Reason.RESULT_LOST: "Finished stages are reused: set spec.rerun to a new value.",
    Reason.INTERNAL_ERROR: "Read the pod's log, then set spec.rerun to a new value to try again; report it if it happens again.",
}
"""What to do next, for the reasons of a FineTuneJob that a person can act on."""

SERVING_REMEDIES: Final[dict[Reason, str]] = {
    # It waits, and goes on by itself
    Reason.SOURCE_NOT_READY: "It is served once the FineTuneJob has published: look at the status of that one.",
    Reason.SOURCE_NOT_FOUND: "Apply the FineTuneJob again, or pin what serves: set spec.source.artifact.uri to that URI.",
    Reason.RUNTIME_UNKNOWN: "Choose a runtime that the platform offers, or ask its admin to add one to the chart's values.",
    Reason.SERVER_UNAVAILABLE: "Look at the events and logs of the serving pods.",
    # It waits for a while; then the revision has failed, and is not tried again by itself
    Reason.SECRET_MISSING: "Create the Secret with the keys that the storage's credentials name; if the revision has failed, set spec.rerun to a new value.",
    Reason.QUOTA_EXCEEDED: "Raise the ResourceQuota, or free resources in the namespace; if the revision has failed, set spec.rerun to a new value.",
    Reason.UNSCHEDULABLE: "Free or add a node that fits the runtime; if the revision has failed, set spec.rerun to a new value.",
    Reason.IMAGE_PULL_FAILED: "Check the image name and the pull secret in the chart's values; if the revision has failed, set spec.rerun to a new value.",
    Reason.POD_REJECTED: "Ask the admin which admission policy refused the pod; if the revision has failed, set spec.rerun to a new value.",
    Reason.S3_UNREACHABLE: "Check the storage's endpoint and the network policies between the pod and the store; if the revision has failed, set spec.rerun to a new value.",
    Reason.PREEMPTED: "The pod is started again elsewhere; if the revision has failed, set spec.rerun to a new value.",
    # The revision has failed
    Reason.MODEL_UNSUPPORTED: "Serve an artifact that a FineTuneJob has published.",
    Reason.S3_ACCESS_DENIED: "Correct the keys in the Secret or the bucket's policy, then set spec.rerun to a new value.",
    Reason.S3_ENCRYPTION_REFUSED: "Let the keys in the Secret use the key by which the artifact is encrypted (kms:Decrypt), then set spec.rerun to a new value.",
    Reason.BUCKET_NOT_FOUND: "Correct the artifact's URI; or create the bucket, then set spec.rerun to a new value.",
    Reason.ARTIFACT_NOT_FOUND: "Correct the artifact's URI; or let its FineTuneJob publish it again, then set spec.rerun to a new value.",
    Reason.ARTIFACT_CORRUPT: "Delete the object that is named here, and manifest.json of its folder, and set spec.rerun of the FineTuneJob to a new value; once it has published, do the same here.",
    Reason.OUT_OF_MEMORY: "Ask the admin to give the runtime more memory in the chart's values: that is another revision, which is tried by itself.",
    Reason.SCRATCH_FULL: "Ask the admin to raise the runtime's scratchSize in the chart's values: that is another revision, which is tried by itself.",
    Reason.DEADLINE_EXCEEDED: "Find out from the pod's log what takes so long, or ask the admin to raise the runtime's startupTimeoutSeconds, then set spec.rerun to a new value.",
    Reason.STAGE_CRASHED: "Read the pod's log, then set spec.rerun to a new value to try again.",
    Reason.INTERNAL_ERROR: "Read the pod's log, then set spec.rerun to a new value to try again; report it if it happens again.",
    Reason.ADAPTER_INACTIVE: "The server answers like the base model: check the runtime's version and the artifact's format, then set spec.rerun to a new value.",
    Reason.VERIFICATION_FAILED: "Compare the runtime's version with the one the artifact was evaluated for, then set spec.rerun to a new value.",
    Reason.PROMPTS_TOO_LONG: "Ask the admin to raise the runtime's maxInputTokens and maxTotalTokens in the chart's values, or choose a runtime that takes more: that is another revision, which is tried by itself.",
    Reason.CANDIDATE_FAILED: "Read the log of the candidate's pod, then set spec.rerun to a new value to try again.",
}
"""The same for an AdapterDeployment, where it has other fields, other limits or reasons of its own."""


def remedy(reason: Reason, kind: str) -> str:
    """What to do next about a resource of a kind; empty where nobody can act."""
    shared = REMEDIES.get(reason, "")
    return SERVING_REMEDIES.get(reason, shared) if kind == ADAPTERDEPLOYMENT else shared


def with_remedy(reason: Reason, message: str, kind: str, limit: int = 1024) -> str:
    """``message`` followed by the reason's remedy, cut to ``limit`` characters (the message gives way first)."""
    advice = remedy(reason, kind)
    if not advice or (advice in message and len(message) <= limit):
        return message[:limit]
    message = message.partition(advice)[0]
    room = limit - len(advice) - 1
    return f"{message[:room].rstrip()} {advice}"
