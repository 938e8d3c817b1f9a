"""Reasons: the root cause of a state as one CamelCase word for programs, with a remedy for people.

A reason appears in conditions, events, stage results and reports, always beside a message that says what happened.
The remedy says what to do next; it is appended to the message where there is room. docs/reference/reasons.md, which
lists what each reason means, is generated from this module.
"""

from typing import Final

from finetune_api.base import OpenEnum
from finetune_api.meta import ADAPTERDEPLOYMENT


class Reason(OpenEnum):
    """Reasons of conditions, events and stage results. One of a newer version has no remedy here."""

    # Life of a run
    WAITING = "Waiting"
    RUN_STARTED = "RunStarted"
    STAGE_STARTED = "StageStarted"
    STAGE_SUCCEEDED = "StageSucceeded"
    STAGE_REUSED = "StageReused"
    STAGE_RETRIED = "StageRetried"
    RUN_SUCCEEDED = "RunSucceeded"
    SUSPENDED = "Suspended"
    QUEUED = "Queued"
    AWAITING_REVIEW = "AwaitingReview"
    RESUMED = "Resumed"
    SPEC_CHANGED = "SpecChanged"

    # What the platform or the namespace lacks
    PROFILE_UNKNOWN = "ProfileUnknown"
    RUNTIME_UNKNOWN = "RuntimeUnknown"
    METRIC_UNKNOWN = "MetricUnknown"
    GENERATOR_UNKNOWN = "GeneratorUnknown"
    NOT_ALLOWED = "NotAllowed"
    BELOW_VERIFICATION_FLOOR = "BelowVerificationFloor"
    RUNNER_SERVICE_ACCOUNT_MISSING = "RunnerServiceAccountMissing"
    SECRET_MISSING = "SecretMissing"
    QUOTA_EXCEEDED = "QuotaExceeded"
    UNSCHEDULABLE = "Unschedulable"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    POD_REJECTED = "PodRejected"
    JOB_SUSPENDED = "JobSuspended"
    NAME_TAKEN = "NameTaken"
    OUTPUT_NAME_CONFLICT = "OutputNameConflict"
    API_CALLS_FAIL = "ApiCallsFail"
    SPEC_INVALID = "SpecInvalid"
    STATUS_UNREADABLE = "StatusUnreadable"
    SETTINGS_DISCOURAGED = "SettingsDiscouraged"

    # What the data or the store lacks
    DATASET_INVALID = "DatasetInvalid"
    DATASET_TOO_SMALL = "DatasetTooSmall"
    DATASET_NOT_FOUND = "DatasetNotFound"
    MODEL_NOT_FOUND = "ModelNotFound"
    MODEL_UNSUPPORTED = "ModelUnsupported"
    FIT_REFUSED = "FitRefused"
    RUNTIME_UNSUITABLE = "RuntimeUnsuitable"
    ADAPTERS_UNSUITABLE = "AdaptersUnsuitable"
    GATED_MODEL_UNAUTHORIZED = "GatedModelUnauthorized"
    GATED_DATASET_UNAUTHORIZED = "GatedDatasetUnauthorized"
    BUCKET_NOT_FOUND = "BucketNotFound"
    S3_ACCESS_DENIED = "S3AccessDenied"
    S3_UNREACHABLE = "S3Unreachable"
    S3_CONDITIONAL_WRITES_UNSUPPORTED = "S3ConditionalWritesUnsupported"
    S3_ENCRYPTION_REFUSED = "S3EncryptionRefused"
    EXPORT_MISMATCH = "ExportMismatch"
    ARTIFACT_CORRUPT = "ArtifactCorrupt"
    ARTIFACT_NOT_FOUND = "ArtifactNotFound"
    ARTIFACT_WITHDRAWN = "ArtifactWithdrawn"
    GATES_NOT_PASSED = "GatesNotPassed"
    MANIFEST_NEWER = "ManifestNewer"
    KEY_UNUSABLE = "KeyUnusable"
    SIGNATURE_MISSING = "SignatureMissing"
    SIGNATURE_INVALID = "SignatureInvalid"
    TEACHER_UNAVAILABLE = "TeacherUnavailable"
    TEACHER_REFUSED = "TeacherRefused"
    REGISTRY_ACCESS_DENIED = "RegistryAccessDenied"
    REGISTRY_UNREACHABLE = "RegistryUnreachable"
    REPOSITORY_NOT_FOUND = "RepositoryNotFound"
    PUSH_REFUSED = "PushRefused"
    TAG_TAKEN = "TagTaken"

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
    PEERS_UNREACHABLE = "PeersUnreachable"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    BUDGET_EXCEEDED = "BudgetExceeded"
    PREEMPTED = "Preempted"
    NODE_LOST = "NodeLost"
    STAGE_CRASHED = "StageCrashed"
    METRIC_DATA_NOT_FOUND = "MetricDataNotFound"
    METRIC_FAILED = "MetricFailed"
    GENERATOR_FAILED = "GeneratorFailed"
    GATE_FAILED = "GateFailed"
    RESULT_LOST = "ResultLost"
    INTERNAL_ERROR = "InternalError"

    # How a successful training ended; the best weights are kept
    TRAINING_COMPLETED = "TrainingCompleted"
    OVERFITTING = "Overfitting"
    PLATEAU = "Plateau"

    # Serving
    SOURCE_NOT_READY = "SourceNotReady"
    SOURCE_NOT_FOUND = "SourceNotFound"
    CHANNEL_NOT_FOUND = "ChannelNotFound"
    OUTPUT_NAME_FOREIGN = "OutputNameForeign"
    ROLLOUT_QUEUED = "RolloutQueued"
    CANARY_STEP = "CanaryStep"
    MODEL_CACHE_UNUSED = "ModelCacheUnused"
    API_KEYS_MISSING = "ApiKeysMissing"
    CERTIFICATE_UNUSABLE = "CertificateUnusable"
    ANALYSIS_PASSED = "AnalysisPassed"
    ANALYSIS_INCONCLUSIVE = "AnalysisInconclusive"
    GAP_ANNOUNCED = "GapAnnounced"
    GAP_IN_SERVICE = "GapInService"
    DISRUPTION_BUDGET_REFUSED = "DisruptionBudgetRefused"
    ROUTE_ACCEPTED = "RouteAccepted"
    ROUTE_PENDING = "RoutePending"
    ROUTE_REFUSED = "RouteRefused"
    ROUTE_TAKEN = "RouteTaken"
    ROUTE_UNAVAILABLE = "RouteUnavailable"
    CANDIDATE_STARTING = "CandidateStarting"
    CANDIDATE_FAILED = "CandidateFailed"
    VERIFYING = "Verifying"
    VERIFIED = "Verified"
    ADAPTER_INACTIVE = "AdapterInactive"
    VERIFICATION_FAILED = "VerificationFailed"
    ANALYSIS_FAILED = "AnalysisFailed"
    PROMPTS_TOO_LONG = "PromptsTooLong"
    PROMOTED = "Promoted"
    ADAPTER_REMOVED = "AdapterRemoved"
    ADAPTER_STAYS = "AdapterStays"
    SERVING = "Serving"
    SERVER_UNAVAILABLE = "ServerUnavailable"
    SELF_CHECK_FAILED = "SelfCheckFailed"
    ROLLED_BACK = "RolledBack"
    REVISION_UNUSABLE = "RevisionUnusable"


UNSCHEDULABLE_MINUTES: Final = 10
"""After so long a person has to act on ``Unschedulable``; before, an autoscaler may be adding a node."""

# One sentence a line reads best here.
# ruff: noqa: E501
MEANINGS: Final[dict[Reason, str]] = {
    Reason.WAITING: "Something must happen first: a pod must start, a pod of an earlier run must end, or endpoints must propagate.",
    Reason.RUN_STARTED: "A run has started.",
    Reason.STAGE_STARTED: "A stage's Job has started.",
    Reason.STAGE_SUCCEEDED: "A stage finished and reported its result.",
    Reason.STAGE_REUSED: "The store already holds the result for the same input, so the work was not repeated.",
    Reason.STAGE_RETRIED: "A stage's pod failed and its Job retries; the message says how the last attempt ended.",
    Reason.RUN_SUCCEEDED: "The artifact is published.",
    Reason.SUSPENDED: "spec.suspend is true.",
    Reason.AWAITING_REVIEW: "The artifact is evaluated and waits for people's votes, which spec.evaluation.humanReview requires; no pod runs.",
    Reason.QUEUED: "The stage's Job is in a queue of Kueue, which decides when it starts.",
    Reason.RESUMED: "spec.suspend is false again.",
    Reason.SPEC_CHANGED: "The spec changed, so a new run cut this one short.",
    Reason.PROFILE_UNKNOWN: "The chart's values have no profile with the name in spec.profile.",
    Reason.RUNTIME_UNKNOWN: "The chart's values have no runtime with the name in spec.runtime.",
    Reason.METRIC_UNKNOWN: "The chart's values have no metric container with the name in spec.evaluation.metrics, or a goal asks for a figure that it does not measure.",
    Reason.GENERATOR_UNKNOWN: "The chart's values have no image for the program in spec.evaluation.generator.",
    Reason.NOT_ALLOWED: "No rule in tenancy.rules of the chart's values allows this namespace to use what the spec asks for; without rules, profiles with a price may not be used.",
    Reason.RUNNER_SERVICE_ACCOUNT_MISSING: "The namespace lacks the ServiceAccount that the profile or runtime names.",
    Reason.SECRET_MISSING: "A Secret that the spec names does not exist in the namespace, or lacks a key. An empty teacher API key fails the run.",
    Reason.QUOTA_EXCEEDED: "The namespace's ResourceQuota has no room for the pod, or requires requests or limits that the pod does not set.",
    Reason.UNSCHEDULABLE: "No node has enough free resources for the pod, or none matches its node selector and tolerations.",
    Reason.IMAGE_PULL_FAILED: "A node cannot pull an image: its name is wrong, or the registry or the pull secret does not work.",
    Reason.POD_REJECTED: "The API server or the node rejects the pod, for example because of an admission policy or a missing ConfigMap.",
    Reason.JOB_SUSPENDED: "The stage's Job was suspended, and not by the operator: by a person, or by Kueue where it manages Jobs without a queue label; the operator resumes only Jobs that it suspended itself.",
    Reason.NAME_TAKEN: "A conflicting object, not owned by this resource, has a name that the operator needs; the operator does not adopt it.",
    Reason.OUTPUT_NAME_CONFLICT: "Another FineTuneJob publishes under the same spec.output.name. If only the store knows of it, the run fails.",
    Reason.API_CALLS_FAIL: "The API server has failed or refused the operator's calls for a minute or more: a permission is missing, or an admission webhook does not answer; the message quotes the server.",
    Reason.SPEC_INVALID: "The spec combines settings that exclude each other, or has a value that only a stage can recognise as invalid.",
    Reason.STATUS_UNREADABLE: "The status holds something that this version of the operator cannot read, so a newer one has written it; the operator changes nothing but conditions.",
    Reason.SETTINGS_DISCOURAGED: "The settings of a training or an endpoint are valid, but known to give worse results; the message of the condition Discouraged says what works better.",
    Reason.DATASET_INVALID: "The data cannot be used as is: too many invalid rows, only one label, or a test set too close to the training set; the message says where.",
    Reason.DATASET_TOO_SMALL: "Too few examples remain for training, validation and test.",
    Reason.DATASET_NOT_FOUND: "A source does not exist, is empty, or was overwritten during the run. If a hub does not answer, the stage is retried.",
    Reason.MODEL_NOT_FOUND: "There is no base model at spec.model.uri. If a hub does not answer, the stage is retried.",
    Reason.MODEL_UNSUPPORTED: "The model has no safetensors weights, has no chat template that fits the examples, has an adapter beside it, cannot be written in the format of spec.export, or its files cannot be read.",
    Reason.FIT_REFUSED: "The training is estimated to exceed the profile's memory; the message names the smallest change that would make it fit.",
    Reason.RUNTIME_UNSUITABLE: "The runtime cannot serve a model of this architecture and format on its GPU, or it is not known whether it can, or the model does not fit its pods' scratch space or memory; a FineTuneJob fails, before a GPU is requested, only if every runtime of the platform is known to be unable to serve it.",
    Reason.ADAPTERS_UNSUITABLE: "The artifacts of spec.source.adapters cannot share one server: one is not of format Adapter, was trained on another base model, has too high a rank, or is in a store with other access settings; or an adapter is to be served as a whole model.",
    Reason.GATED_MODEL_UNAUTHORIZED: "The hub gives this model only to accounts that have accepted its terms, and the spec names no token of such an account.",
    Reason.GATED_DATASET_UNAUTHORIZED: "The hub gives this data set only to accounts that have accepted its terms, and the spec names no token of such an account.",
    Reason.BUCKET_NOT_FOUND: "The store has no such bucket.",
    Reason.S3_ACCESS_DENIED: "The store rejects the keys, or the pod has none.",
    Reason.S3_UNREACHABLE: "The store does not answer, drops the connection, or has a TLS certificate that is not trusted.",
    Reason.S3_CONDITIONAL_WRITES_UNSUPPORTED: "The store ignores or rejects If-None-Match or If-Match on PUT, so two runs could overwrite each other's results.",
    Reason.S3_ENCRYPTION_REFUSED: "The store does not encrypt as the storage's encryption requires, or the keys may not use the encryption key.",
    Reason.EXPORT_MISMATCH: "The exported files, read back, do not hold the tuned model: the message names tensors that are missing, or further from the tuned model's than rounding explains. Nothing is published.",
    Reason.ARTIFACT_CORRUPT: "The store does not hold what was written: a file is missing, damaged or replaced.",
    Reason.ARTIFACT_NOT_FOUND: "A published result no longer exists.",
    Reason.BELOW_VERIFICATION_FLOOR: "The spec verifies less than serving.verificationFloors in the chart's values requires; the message names each field, its value and the minimum.",
    Reason.GATES_NOT_PASSED: "The artifact's gates do not have the outcome that spec.policy.gates or requiredGates requires; the message lists each gate with its figure and interval.",
    Reason.ARTIFACT_WITHDRAWN: "The artifact is marked as withdrawn; the message says who, when and why.",
    Reason.MANIFEST_NEWER: "A newer version wrote a result in a format that this version cannot read.",
    Reason.KEY_UNUSABLE: "The signing key, or a key to check signatures with, cannot be read or is neither Ed25519 nor ECDSA P-256.",
    Reason.SIGNATURE_MISSING: "None of the keys in spec.policy.signature has signed the artifact.",
    Reason.SIGNATURE_INVALID: "The signature stored for such a key was made with another key, or for something else.",
    Reason.TEACHER_UNAVAILABLE: "The teacher, or another model that the evaluation calls, does not respond or asks for too long a wait.",
    Reason.TEACHER_REFUSED: "The teacher, or another model that the evaluation calls, rejects the key, the model name or a parameter, or the account has no credit left.",
    Reason.REGISTRY_ACCESS_DENIED: "The registry or the hub does not allow the user in the Secret to push to the repository, or requires a login and the spec names none.",
    Reason.REGISTRY_UNREACHABLE: "The registry or the hub does not respond, drops the connection, asks for too long a wait, or has a TLS certificate that is not trusted; or the repository changed during the push.",
    Reason.REPOSITORY_NOT_FOUND: "The registry has no such repository and does not create one on push; the hub has no such user or organisation.",
    Reason.PUSH_REFUSED: "The registry or the hub rejects the model: it is too large, its type is not supported, or the address belongs to neither. Or the model must not be pushed there: the hub's repository is public or holds something else.",
    Reason.TAG_TAKEN: "The tag to push to already points to something else.",
    Reason.GPU_UNUSABLE: "CUDA does not work in the pod although its profile has a GPU, the GPU is far smaller than the profile says, or it lacks bfloat16 or the kernels that models need; the stage does not fall back to the CPU. A GPU that is there but computes nothing is tried again, because another pod may get another one.",
    Reason.OUT_OF_MEMORY: "A container exceeded its memory limit and was killed.",
    Reason.CUDA_OUT_OF_MEMORY: "The GPU's memory is too small for a single example of the training, after smaller passes were tried, or for a model that is exported or evaluated.",
    Reason.SCRATCH_FULL: "The pod's scratch volume, or the disk under it, is full.",
    Reason.LOSS_NOT_FINITE: "The loss or the gradient became infinite or NaN.",
    Reason.LOSS_DIVERGED: "The loss of the latest steps is far above that of the first steps.",
    Reason.STEP_HUNG: "The training made no progress for too long.",
    Reason.SUPERSEDED: "A newer attempt at the same training has taken over; this one stops writing.",
    Reason.PEER_LOST: "Another pod of a multi-pod training was lost or told to stop.",
    Reason.PEERS_UNREACHABLE: "The processes of a training on several GPUs or pods did not connect to each other within an hour.",
    Reason.DEADLINE_EXCEEDED: "The stage exceeded its profile's deadline (or a distillation its deadlineMinutes), or the server exceeded its runtime's start-up time.",
    Reason.BUDGET_EXCEEDED: "The run would cost more than spec.budget or a teacher's maxCost allows. With onExceeded: Checkpoint, a training that stops for this reason has succeeded.",
    Reason.PREEMPTED: "The pod was evicted or told to stop: its node was drained or needed the resources.",
    Reason.NODE_LOST: "The node of a pod no longer answers the cluster's control plane.",
    Reason.STAGE_CRASHED: "A pod ended without reporting why.",
    Reason.METRIC_DATA_NOT_FOUND: "The folder that spec.evaluation.metrics names as a container's data does not exist, has no files, or was changed during the run.",
    Reason.METRIC_FAILED: "A metric container of the evaluation failed, took too long, or wrote a report that cannot be used: none, an unreadable one, a figure that is missing, not listed or out of its range. The answers are kept, and nothing is published.",
    Reason.GENERATOR_FAILED: "The program in spec.evaluation.generator cannot load one of the models under test, or ended while it answered. No other program answers in its place, and nothing is published.",
    Reason.GATE_FAILED: "The artifact is not published as stable. It missed a goal of spec.evaluation.goals, or the test is too small to tell; without goals, it is significantly worse than the base model, or cannot be told from it; the export lost more than chance explains; or people prefer the base model's answers.",
    Reason.RESULT_LOST: "A stage succeeded, but its pod is gone with the result, and the store does not hold it.",
    Reason.INTERNAL_ERROR: "An unexpected error.",
    Reason.TRAINING_COMPLETED: "All training steps are done.",
    Reason.OVERFITTING: "The validation loss rose: training stopped early and kept the best weights.",
    Reason.PLATEAU: "The validation loss stopped falling: training stopped early and kept the best weights.",
    Reason.SOURCE_NOT_READY: "The FineTuneJob does not exist yet, or has not published yet.",
    Reason.SOURCE_NOT_FOUND: "The FineTuneJob is gone; the artifact that it published is still served.",
    Reason.CHANNEL_NOT_FOUND: "Nothing was published in that channel of the output name, or its pointer was deleted; what serves still does.",
    Reason.OUTPUT_NAME_FOREIGN: "The output name belongs to a FineTuneJob of another namespace; what serves still does.",
    Reason.ROLLOUT_QUEUED: "Other endpoints are being rolled out; this one waits for its turn, and serves as before.",
    Reason.CANARY_STEP: "Strategy Canary: a verified revision has a share of the traffic, or is about to get it; the message says how much and until when.",
    Reason.MODEL_CACHE_UNUSED: "A pod could not use the volume that the runtime's pods share (modelCache), and has downloaded the model to its own; it serves all the same. The message says why.",
    Reason.API_KEYS_MISSING: "The Secret of spec.access.apiKeys does not exist, is empty, or holds no valid key: every request is rejected, and no new pod starts.",
    Reason.CERTIFICATE_UNUSABLE: "The Secret of spec.access.tls does not exist, or clients could not connect with the certificate in it; the message says why. No new pod starts; running pods keep the certificate that they have.",
    Reason.ANALYSIS_PASSED: "Strategy Canary: in the finished step, the new revision failed no more requests than the serving one, and was no slower.",
    Reason.ANALYSIS_INCONCLUSIVE: "Strategy Canary: a step had too little data for a verdict. With onInconclusive: Hold, the step is extended and analysed again; with Continue, the canary continues.",
    Reason.GAP_ANNOUNCED: "Strategy InPlace: the serving pods are about to stop for another revision; the message says when.",
    Reason.GAP_IN_SERVICE: "Strategy InPlace: the serving pods are stopped, and requests are not answered until another revision is verified or the previous one is back.",
    Reason.DISRUPTION_BUDGET_REFUSED: "The endpoint's PodDisruptionBudget cannot be written: its name is taken, or a policy or quota refuses it. The endpoint still serves and is updated; the message of the condition Discouraged says what to do.",
    Reason.ROUTE_ACCEPTED: "The gateway or the ingress controller accepts the endpoint's route.",
    Reason.ROUTE_PENDING: "The endpoint's route waits for the answer of the gateway or the ingress controller, or for the first revision that serves.",
    Reason.ROUTE_REFUSED: "The gateway does not accept the endpoint's HTTPRoute, or the API server rejects the HTTPRoute or Ingress. Inside the cluster, the endpoint still serves.",
    Reason.ROUTE_TAKEN: "Another AdapterDeployment has a route with the same host and path, or is older and asks for it too. The endpoint's other hosts keep their route; inside the cluster, it still serves.",
    Reason.ROUTE_UNAVAILABLE: "The platform offers no such routes, or the cluster lacks the Gateway API's CRDs. Inside the cluster, the endpoint still serves.",
    Reason.CANDIDATE_STARTING: "A revision's pods are starting.",
    Reason.CANDIDATE_FAILED: "A revision's server crashed repeatedly, or did not answer, during verification or soon after it took over. With strategy Canary, one crash is enough once the revision has a share of the traffic.",
    Reason.VERIFYING: "A revision is being verified.",
    Reason.VERIFIED: "A revision passed verification; its network opens and the rest of its pods start.",
    Reason.ADAPTER_INACTIVE: "The server's probabilities or answers are the base model's: the adapter is inactive, or the training learned nothing.",
    Reason.VERIFICATION_FAILED: "The server does not answer like the evaluated artifact, serves a different one, or is too slow.",
    Reason.ANALYSIS_FAILED: "Strategy Canary: the new revision failed more of its requests than the one that serves, or was slower, by more than spec.strategy.canary.analysis allows.",
    Reason.PROMPTS_TOO_LONG: "The artifact's prompts and answers have more tokens than the runtime accepts.",
    Reason.PROMOTED: "A revision has taken over the traffic.",
    Reason.ADAPTER_STAYS: "A running pod still has an adapter that spec.source.adapters no longer names, or does not say that it has let go of it; the message names the pod's address.",
    Reason.ADAPTER_REMOVED: "No running pod answers to the name of an adapter any more that spec.source.adapters no longer has.",
    Reason.SERVING: "A revision is serving.",
    Reason.SERVER_UNAVAILABLE: "No pod of the serving revision answers.",
    Reason.SELF_CHECK_FAILED: "Pods of the serving revision do not answer like the evaluated artifact, at their start or later, so they get no new connections; the message names the pod and the check, with the expected and the actual value.",
    Reason.ROLLED_BACK: "An earlier revision serves again: the spec asks for it, or the newer one crashed, stopped answering, or failed the self-check of all its pods.",
    Reason.REVISION_UNUSABLE: "spec.rollbackTo names a revision that is no longer kept, or whose signature was checked with other keys than the spec's; the current revision keeps serving.",
}
"""What each reason means in general, for the reference page."""

REMEDIES: Final[dict[Reason, str]] = {
    # The run waits and continues automatically
    Reason.PROFILE_UNKNOWN: "Choose a profile that the platform offers, or ask the platform's admin to add one to the chart's values.",
    Reason.METRIC_UNKNOWN: "Choose a metric and a figure that the platform offers, or ask the platform's admin to add the container to metricContainers of the chart's values.",
    Reason.GENERATOR_UNKNOWN: "Set spec.evaluation.generator to Transformers, or ask the platform's admin to set images.evaluateVllm of the chart's values.",
    Reason.NOT_ALLOWED: "Ask only for what this namespace may use, or ask the platform's admin to extend tenancy.rules in the chart's values (without any, tenancy.open: true allows everything); the operator then continues automatically.",
    Reason.RUNNER_SERVICE_ACCOUNT_MISSING: "Ask the admin to create the runner ServiceAccount in this namespace.",
    Reason.SECRET_MISSING: "Create that Secret, or add the key to it (a storage's secretRef needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY); the pod then starts automatically.",
    Reason.QUOTA_EXCEEDED: "Raise the ResourceQuota, free resources in the namespace, or choose a smaller profile.",
    Reason.UNSCHEDULABLE: "Free or add a node that fits the profile, or choose another profile.",
    Reason.IMAGE_PULL_FAILED: "Check the image name and the pull secret in the chart's values.",
    Reason.POD_REJECTED: "Ask the admin which admission policy refused the pod.",
    Reason.NODE_LOST: "Check the node named here. Kubernetes starts no other pod for the stage until it answers again or is deleted (kubectl delete node); then the stage starts again, a training from its newest checkpoint.",
    Reason.JOB_SUSPENDED: "Set spec.suspend of the Job named here to false. If Kueue suspends it, give this FineTuneJob the label kueue.x-k8s.io/queue-name and delete the Job.",
    Reason.NAME_TAKEN: "Delete or rename the conflicting object, or rename this resource.",
    Reason.OUTPUT_NAME_CONFLICT: "Give one of the two jobs a different spec.output.name or spec.output.uri.",
    Reason.API_CALLS_FAIL: "Ask the admin to check the operator's RBAC roles and the cluster's admission webhooks; the operator continues once its calls succeed.",
    Reason.STATUS_UNREADABLE: "Ask the admin to upgrade the operator to the version that wrote the status, or a newer one; if none did, correct the field with kubectl edit --subresource=status.",
    # The run has failed: changing the spec starts a new one
    Reason.SPEC_INVALID: "Correct the field named here.",
    Reason.MODEL_UNSUPPORTED: "Make the change named here, or set spec.model.uri to another model, with safetensors weights and an architecture that transformers supports.",
    Reason.FIT_REFUSED: "Make the change named here, or choose a profile with more memory.",
    Reason.RUNTIME_UNSUITABLE: "Set spec.model.uri to a model that this platform can serve; or ask the admin to add a model server for this one to the chart's values, then set spec.rerun to a new value.",
    Reason.S3_CONDITIONAL_WRITES_UNSUPPORTED: "Set the endpoint of spec.output.storage or spec.storage to a store that honours If-None-Match and If-Match on PUT (AWS S3, MinIO, Ceph, SeaweedFS).",
    Reason.OUT_OF_MEMORY: "Choose a profile with more memory, or lower spec.training.batchSize or spec.training.maxLength.",
    Reason.CUDA_OUT_OF_MEMORY: "Choose a profile with a larger GPU; or, for a training, lower spec.training.maxLength or set spec.training.method to QLoRA.",
    Reason.LOSS_NOT_FINITE: "Lower spec.training.learningRate, and check the data for broken rows.",
    Reason.LOSS_DIVERGED: "Lower spec.training.learningRate to half or less.",
    Reason.BUDGET_EXCEEDED: "Raise the maxCost named here, or ask for less work; finished work is kept.",
    # The run has failed for a cause outside the spec: spec.rerun starts a new one, which reuses finished stages
    Reason.DATASET_INVALID: "Correct the setting of spec.dataset named here; or correct the data, then set spec.rerun to a new value.",
    Reason.DATASET_TOO_SMALL: "Add examples (500 to 5,000 good ones are a sound size), then set spec.rerun to a new value.",
    Reason.DATASET_NOT_FOUND: "Correct spec.dataset.sources; or upload the file, then set spec.rerun to a new value.",
    Reason.GATED_MODEL_UNAUTHORIZED: "Accept the model's terms on the hub and name a token of that account in spec.model.secretKeyRef; or correct the token in its Secret, then set spec.rerun to a new value.",
    Reason.GATED_DATASET_UNAUTHORIZED: "Accept the data set's terms on the hub and name a token of that account in the source's secretKeyRef (spec.dataset.sources); or correct the token in its Secret, then set spec.rerun to a new value.",
    Reason.MODEL_NOT_FOUND: "Correct spec.model.uri; or upload the model, then set spec.rerun to a new value.",
    Reason.BUCKET_NOT_FOUND: "Correct the URI; or create the bucket, then set spec.rerun to a new value.",
    Reason.S3_ACCESS_DENIED: "Correct the keys in the Secret or the bucket's policy, then set spec.rerun to a new value.",
    Reason.S3_UNREACHABLE: "Check the storage's endpoint (spec.storage, or that of the output, model or source) and the network policies between the pod and the store; if the run has failed, set spec.rerun to a new value.",
    Reason.S3_ENCRYPTION_REFUSED: "Correct encryption of spec.output.storage or spec.storage; or allow the keys in the Secret to use that encryption key (kms:GenerateDataKey, kms:Decrypt), then set spec.rerun to a new value.",
    Reason.EXPORT_MISMATCH: "To export again, set spec.rerun to a new value; the training is reused. If it happens again, choose another spec.export.format, and report it.",
    Reason.ARTIFACT_CORRUPT: "Delete the object named here and manifest.json of its folder, then set spec.rerun to a new value to make the result again.",
    Reason.ARTIFACT_NOT_FOUND: "Make sure that no objects are deleted below spec.output.uri, then set spec.rerun to a new value to make the result again.",
    Reason.ARTIFACT_WITHDRAWN: "Train on other data, because the same input gives the withdrawn artifact again; or, if it is the base model that was withdrawn, on another base model. If the mark was a mistake, delete withdrawn.json in its folder, then set spec.rerun to a new value.",
    Reason.MANIFEST_NEWER: "Ask the admin to use images of the version that wrote it in the chart's values, then set spec.rerun to a new value; or name another spec.output.uri.",
    Reason.KEY_UNUSABLE: "Put a private key in PEM without a password (Ed25519 or ECDSA P-256) into the Secret that spec.output.signing names, then set spec.rerun to a new value.",
    Reason.TEACHER_UNAVAILABLE: "Check the URL of the teacher or other model, its limits and the network policies, then set spec.rerun to a new value; the answers so far are kept.",
    Reason.REGISTRY_ACCESS_DENIED: "Let the user push to the repository, or correct the login in the Secret that spec.output.pushTo names, then set spec.rerun to a new value: only the push runs again.",
    Reason.REGISTRY_UNREACHABLE: "Check the URL and the certificate of the registry or the hub, the proxy and the network policies on the way there, then set spec.rerun to a new value: only the push runs again.",
    Reason.REPOSITORY_NOT_FOUND: "Create the repository, then set spec.rerun to a new value: only the push runs again. Or correct spec.output.pushTo.",
    Reason.PUSH_REFUSED: "Correct spec.output.pushTo as the message says, or ask the registry's or the hub's admin which limits it has, then set spec.rerun to a new value: only the push runs again.",
    Reason.TAG_TAKEN: "Name another tag in spec.output.pushTo, or none, which gives each artifact a tag of its own; or delete the tag there, then set spec.rerun to a new value.",
    Reason.TEACHER_REFUSED: "Correct the name of the teacher or other model, or its parameters; or correct the key in the Secret, then set spec.rerun to a new value; the answers so far are kept.",
    Reason.GPU_UNUSABLE: "Choose another profile; or ask the admin to check the NVIDIA driver and device plugin on the profile's nodes, and its gpu and runtimeClassName in the chart's values, then set spec.rerun to a new value.",
    Reason.SCRATCH_FULL: "Choose a profile with more scratch space; or ask the admin to raise its scratchSize in the chart's values, then set spec.rerun to a new value.",
    Reason.STEP_HUNG: "The pod restarts and resumes from its newest checkpoint; if the run has failed, check the node's GPU, then set spec.rerun to a new value.",
    Reason.SUPERSEDED: "Find out what else runs this training; if the run has failed, set spec.rerun to a new value.",
    Reason.PEER_LOST: "All pods restart and resume from the newest checkpoint; if the run has failed, find the pod that was lost first, then set spec.rerun to a new value.",
    Reason.PEERS_UNREACHABLE: "See that every pod of the training has a node, that they reach each other on every port, and that nothing else listens at the port where they meet; then set spec.rerun to a new value.",
    Reason.DEADLINE_EXCEEDED: "Choose a faster profile; or ask the admin to raise the profile's deadlineSeconds, then set spec.rerun to a new value.",
    Reason.PREEMPTED: "The pod restarts elsewhere; if the run has failed, find out why its nodes go away, then set spec.rerun to a new value.",
    Reason.STAGE_CRASHED: "Read the pod's log, then set spec.rerun to a new value to try again.",
    Reason.AWAITING_REVIEW: "Vote on review.html of the evaluation (status.evaluation.reportUri) and store your file with python -m finetune_jobs.review; it is counted within the hour, or at once when you set the annotation finetune.dev/review to a new value.",
    Reason.METRIC_DATA_NOT_FOUND: "Correct data.uri in spec.evaluation.metrics; or upload the files, then set spec.rerun to a new value.",
    Reason.METRIC_FAILED: "Correct its parameters in spec.evaluation.metrics, or remove it there; or read the log of its container and ask the platform's admin to correct it in the chart's values, then set spec.rerun to a new value: only the metric containers run again.",
    Reason.GENERATOR_FAILED: "Set spec.evaluation.generator to Transformers, or correct what the message and the pod's log say, then set spec.rerun to a new value; finished stages are reused.",
    Reason.GATE_FAILED: "Read the evaluation's report (status.evaluation.reportUri); improve the data or the training, raise spec.evaluation.maxSamples if the test is too small, set spec.export.onRegression to FallBack or choose another spec.export.format if the export caused the loss, or change the goals: only what depends on the change runs again.",
    Reason.RESULT_LOST: "To run the stage again, set spec.rerun to a new value; finished stages are reused.",
    Reason.INTERNAL_ERROR: "Read the pod's log, then set spec.rerun to a new value to try again; report it if it happens again.",
}
"""What to do next, for each reason of a FineTuneJob that a person can act on."""

SERVING_REMEDIES: Final[dict[Reason, str]] = {
    # It waits and continues automatically
    Reason.BELOW_VERIFICATION_FLOOR: "Change the fields as the message says, or ask the platform's admin to change serving.verificationFloors in the chart's values; the operator then continues automatically.",
    Reason.SOURCE_NOT_READY: "Check the status of the FineTuneJob: its artifact is served as soon as it is published.",
    Reason.CHANNEL_NOT_FOUND: "Correct uri, name or channel of the output in spec.source, or wait for a FineTuneJob to publish there; to look at once, set the annotation finetune.dev/look to a new value.",
    Reason.OUTPUT_NAME_FOREIGN: "Name an output of your own namespace in spec.source; or pin the artifact there, if the platform's rules let you read it.",
    Reason.SOURCE_NOT_FOUND: "Apply the FineTuneJob again, or pin the artifact: set spec.source.artifact.uri to the URI that is being served.",
    Reason.RUNTIME_UNKNOWN: "Choose a runtime that the platform offers, or ask the platform's admin to add one to the chart's values.",
    Reason.REVISION_UNUSABLE: "Set spec.rollbackTo to a revision that the message lists, or remove it and pin the artifact in spec.source.artifact.",
    Reason.SERVER_UNAVAILABLE: "Check the events and logs of the serving pods.",
    Reason.ADAPTER_STAYS: "Read the log of the container self-check of the pod named here, then delete the pod: a new one loads the current list.",
    Reason.SELF_CHECK_FAILED: "Read the logs of the pod named here, then delete it: a new one starts, and proves itself. If that one fails too, serve an earlier revision with spec.rollbackTo, and find out what has changed: the server's image, the node, its GPU or driver. Only if the server is known to be right, raise spec.verification.maxDistance.",
    Reason.API_KEYS_MISSING: "Put a key of 20 to 512 characters of ASCII, without spaces, commas or line breaks, into the Secret that spec.access.apiKeys names, with `kubectl create secret generic NAME --from-literal=client=KEY`; pods pick it up within about two minutes; to retry a waiting revision at once, set spec.rerun to a new value.",
    Reason.CERTIFICATE_UNUSABLE: "Put a certificate for NAME.NAMESPACE.svc and its key into the Secret that spec.access.tls names, with cert-manager's Certificate or `kubectl create secret tls NAME --cert=FILE --key=FILE`; pods pick it up within about two minutes; to retry a waiting revision at once, set spec.rerun to a new value.",
    Reason.QUOTA_EXCEEDED: "Raise the ResourceQuota, or free resources in the namespace; pods that still wait for that then start automatically.",
    Reason.UNSCHEDULABLE: "Free or add a node that fits the pod named here; pods that still wait for that then start automatically.",
    Reason.POD_REJECTED: "Ask the admin which admission policy, or which node, refused the pod; pods that still wait for that then start automatically.",
    Reason.PREEMPTED: "A pod that is still needed restarts on another node; if that happens often, find out why its nodes go away. If they were low on disk or memory, ask the admin to raise the runtime's requests of ephemeral-storage or memory in the chart's values, so that its pods get nodes with enough.",
    Reason.NODE_LOST: "Check the node named here: Kubernetes restarts a pod that is still needed on another node after five minutes, unless its tolerations say otherwise.",
    # It waits for a while; then its pods are removed, and tried again an hour later
    Reason.SECRET_MISSING: "Create that Secret, or add the key to it (a storage's secretRef needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY); pods that still wait for that then start automatically; to try a new revision again at once, set spec.rerun to a new value.",
    Reason.IMAGE_PULL_FAILED: "Check the image name and the pull secret in the chart's values; pods that still wait for that then start automatically; to try a new revision again at once, set spec.rerun to a new value.",
    Reason.S3_UNREACHABLE: "Check the storage's endpoint and the network policies between the pod and the store; pods that still wait for that then start automatically; to try a new revision again at once, set spec.rerun to a new value.",
    # The revision has failed
    Reason.MODEL_UNSUPPORTED: "Serve an artifact that a FineTuneJob has published.",
    Reason.S3_ACCESS_DENIED: "Correct the keys in the Secret or the bucket's policy, then set spec.rerun to a new value.",
    Reason.S3_ENCRYPTION_REFUSED: "Allow the keys in the Secret to use the key that encrypts the artifact (kms:Decrypt), then set spec.rerun to a new value.",
    Reason.BUCKET_NOT_FOUND: "Correct the artifact's URI; or create the bucket, then set spec.rerun to a new value.",
    Reason.ARTIFACT_NOT_FOUND: "Correct the artifact's URI; or have its FineTuneJob publish it again, then set spec.rerun to a new value.",
    Reason.ARTIFACT_CORRUPT: "Delete the object named here and manifest.json of its folder, and set spec.rerun of the FineTuneJob to a new value; once it has published, set spec.rerun here too.",
    Reason.GATES_NOT_PASSED: "Serve an artifact that has passed these gates. If it was published by an earlier version, which recorded none, set spec.rerun of the FineTuneJob to a new value; once it has published, set spec.rerun here too. To serve it anyway, change spec.policy, if the platform allows that.",
    Reason.ARTIFACT_WITHDRAWN: "Serve another artifact. To serve this one anyway, set spec.policy.withdrawn to Warn, which starts another attempt.",
    Reason.KEY_UNUSABLE: "Correct spec.policy.signature.publicKeys: public keys in PEM, Ed25519 or ECDSA P-256.",
    Reason.SIGNATURE_MISSING: "Name a key in output.signing of the FineTuneJob and set spec.rerun of the FineTuneJob to a new value; once it has published, set spec.rerun here too. Or add the public key of whoever has signed it to spec.policy.signature.publicKeys.",
    Reason.SIGNATURE_INVALID: "Find out who changed the object named here; delete it and set spec.rerun of the FineTuneJob to a new value, which signs again; then set spec.rerun here too.",
    Reason.MANIFEST_NEWER: "Ask the admin to use images of the version that published it in the chart's values, then set spec.rerun to a new value.",
    Reason.OUT_OF_MEMORY: "Ask the admin to give the runtime more memory in the chart's values: this makes a new revision, which starts automatically.",
    Reason.SCRATCH_FULL: "Ask the admin to raise the runtime's scratchSize in the chart's values, or the limit of ephemeral storage if the message names that: this makes a new revision, which starts automatically.",
    Reason.DEADLINE_EXCEEDED: "Find out from the pod's log what takes so long, or ask the admin to raise the runtime's startupTimeoutSeconds, then set spec.rerun to a new value.",
    Reason.STAGE_CRASHED: "Read the pod's log, then set spec.rerun to a new value to try again.",
    Reason.INTERNAL_ERROR: "Read the pod's log, then set spec.rerun to a new value to try again; report it if it happens again.",
    Reason.ADAPTER_INACTIVE: "The server answers like the base model: check the runtime's version and the artifact's format, then set spec.rerun to a new value.",
    Reason.VERIFICATION_FAILED: "Read status.candidate.verification. If the artifact has no record of probabilities, set spec.rerun of its FineTuneJob to a new value, which publishes it with one. Otherwise compare the runtime's version and precision with those the artifact was evaluated for, then set spec.rerun to a new value; if the server is known to serve the right weights, raise spec.verification.maxDistance.",
    Reason.PROMPTS_TOO_LONG: "Ask the admin to raise the runtime's maxTotalTokens, and on Text Generation Inference maxInputTokens, in the chart's values, or choose a runtime that accepts more: either makes a new revision, which starts automatically.",
    Reason.RUNTIME_UNSUITABLE: "Choose another runtime, or ask the admin to change this one in the chart's values: either makes a new revision, which starts automatically.",
    Reason.ANALYSIS_FAILED: "Compare both revisions in the dashboards, and read the logs of the new pods, if your cluster keeps logs. Serve another artifact; or, if the difference is known and acceptable, raise the limit under spec.strategy.canary.analysis and set spec.rerun to a new value.",
    Reason.ANALYSIS_INCONCLUSIVE: "The canary continues automatically once there is enough data. To need less, lower spec.strategy.canary.analysis.minRequests; to continue without a verdict, set onInconclusive there to Continue; to end the canary, set spec.rollbackTo to the serving revision.",
    Reason.ADAPTERS_UNSUITABLE: "List in spec.source.adapters only artifacts of format Adapter that were trained on the same base model and are read with the same storage settings, and choose a runtime with vLLM; serve the others by AdapterDeployments of their own.",
    Reason.ROUTE_PENDING: "If this takes long, check that the Gateway or IngressClass exists and that its controller runs.",
    Reason.ROUTE_REFUSED: "Correct spec.access.route, or ask the platform's admin to let the Gateway's listener take routes of this namespace and host; the operator then continues automatically, after a refusal by the API server within five minutes.",
    Reason.ROUTE_TAKEN: "Choose another hostname or path in spec.access.route, or remove it from the other AdapterDeployment.",
    Reason.ROUTE_UNAVAILABLE: "Ask the platform's admin for it, or remove spec.access.route.",
    Reason.CANDIDATE_FAILED: "Read the log of the pod named here, if your cluster keeps logs; serve another artifact, or set spec.rerun to a new value to try this one again.",
}
"""The same for an AdapterDeployment, where its fields, limits or reasons differ."""


def remedy(reason: Reason, kind: str) -> str:
    """What to do next for a resource of this kind; empty where there is nothing to do."""
    shared = REMEDIES.get(reason, "")
    return SERVING_REMEDIES.get(reason, shared) if kind == ADAPTERDEPLOYMENT else shared


def with_remedy(reason: Reason, message: str, kind: str, limit: int = 1024) -> str:
    """``message`` followed by the reason's remedy, at most ``limit`` characters: the message is cut, not the remedy."""
    advice = remedy(reason, kind)
    if not advice or (advice in message and len(message) <= limit):
        return message[:limit]
    message = message.partition(advice)[0]
    room = limit - len(advice) - 1
    return f"{message[:room].rstrip()} {advice}"
