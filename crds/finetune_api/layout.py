"""The layout of results under a FineTuneJob's output URI (``s3://bucket/prefix``), and the manifest of a folder.

``keys/<stage>/<inputKey>``                     StageRecord, written once (If-None-Match: *)
``keys/train/<inputKey>.cut/<maxCost>``         the same for a training that this budget ended early, e.g. ``25.00``
``datasets/<digest>/``                          output of prepare
``models/<digest>/adapter/``                    output of train
``models/<digest>/quantized/``                  output of export
``evaluations/<digest>/``                       output of evaluate; in ``outputs/`` all that the models said
``evaluations/<digest>/votes/by-<name>.json``   what a reviewer voted on its page, beside the folder's own files
``artifacts/<digest>/``                         output of publish
``artifacts/<digest>/provenance/<key id>.json`` signed statement of its origin, beside the folder's own files
``artifacts/<digest>/provenance/unsigned.json`` the same without a key, which proves nothing
``artifacts/<digest>/pushes/<hash>.json``       a copy of it that is whole elsewhere, beside the folder's own files
``artifacts/<digest>/gates/<hash>.json``        what the gates of a run said of it, beside the folder's own files
``artifacts/<digest>/withdrawn.json``           the mark that it must no longer be served, written once
``runs/<name>/<uid>/``                          a run: report.html, index.html, checkpoints/, curves/, logs/, tracking/
``runs/<name>/<uid>/results/<run id>/…``        StageRecords of a run that reuses nothing, for itself
``channels/<output name>/stable.json``          pointer to the newest accepted artifact (compare and swap)
``channels/<output name>/candidate.json``       the same, of the newest one that missed a goal
``owners/<output name>.json``                   whose the name is, in all its channels, written once

Every folder holds ``manifest.json``, written last.
"""

import hashlib
from typing import ClassVar, Final

from finetune_api.artifact_source import Channel
from finetune_api.base import Timestamp, WireModel
from finetune_api.budget import dollars
from finetune_api.gates import GoalStatus
from finetune_api.hashing import digest
from finetune_api.stages import RunRef, Stage, StageResult, Upstream
from finetune_api.usage import Usage

MANIFEST: Final = "manifest.json"
READINESS_PAGE: Final = "readiness.html"
"""The readiness report for people, in a data set's folder."""
CURVE_PAGE: Final = "learning_curve.html"
"""What more examples would bring, in a trained model's folder, where a learning curve was measured."""
EVALUATION_PAGE: Final = "report.html"
"""The evaluation for people, in its folder."""
REVIEW_PAGE: Final = "review.html"
"""The page on which people vote which answers are better, beside it."""
REPORTS_INDEX: Final = "index.html"
"""Links to the reports of a FineTuneJob's newest run, in the run's folder."""
RUN_REPORT: Final = "report.html"
"""The newest run on one page, beside it."""

_FOLDERS: Final = {
    Stage.PREPARE: "datasets/{digest}",
    Stage.TRAIN: "models/{digest}/adapter",
    Stage.EXPORT: "models/{digest}/quantized",
    Stage.EVALUATE: "evaluations/{digest}",
    Stage.PUBLISH: "artifacts/{digest}",
}


def output_folder(stage: Stage, output_digest: str) -> str:
    """Folder of a stage's output, relative to the output URI."""
    return _FOLDERS[stage].format(digest=output_digest)


def key_object(stage: Stage, input_key: str) -> str:
    """Object that maps a stage's input to its output, relative to the output URI."""
    return f"keys/{stage}/{input_key}"


def cut_folder(stage: Stage, input_key: str) -> str:
    """Folder with the records of results that a budget ended early, relative to the output URI."""
    return f"{key_object(stage, input_key)}.cut"


def cut_object(stage: Stage, input_key: str, max_cost: str) -> str:
    """Like ``key_object``, for a result that a budget of ``max_cost`` US dollars ended early."""
    return f"{cut_folder(stage, input_key)}/{dollars(float(max_cost))}"


def run_folder(run: RunRef) -> str:
    """Folder of a run's own state, relative to the output URI."""
    return f"runs/{run.name}/{run.uid}"


def own_record_object(run: RunRef, stage: Stage, input_key: str) -> str:
    """Like ``key_object``, for the result of a run that uses no other run's: the key's own object may be another
    run's, and stays as it is."""
    return f"{run_folder(run)}/results/{run.id}/{stage}/{input_key}"


def run_report(run: RunRef) -> str:
    """The page of a run, relative to the output URI."""
    return f"{run_folder(run)}/{RUN_REPORT}"


def channel_object(output_name: str, channel: Channel = Channel.STABLE) -> str:
    """Pointer to the newest artifact of an output name, relative to the output URI."""
    return f"channels/{output_name}/{channel}.json"


def owner_object(output_name: str) -> str:
    """Whose an output name is, relative to the output URI. Not beside the channels, where readers of earlier versions
    would take it for one."""
    return f"owners/{output_name}.json"


UNSIGNED: Final = "unsigned"
"""In place of a key's id, which is 64 hexadecimal digits: nobody has signed."""


def provenance_object(artifact_digest: str, key_id: str) -> str:
    """The statement of an artifact's origin that a key has signed, or nobody (``UNSIGNED``), relative to the output
    URI. No file of the folder: it names the folder's digest, and says when and on what the artifact was made."""
    return f"{output_folder(Stage.PUBLISH, artifact_digest)}/provenance/{key_id}.json"


def push_object(artifact_digest: str, reference: str) -> str:
    """The note that an artifact is whole at another place, relative to the output URI; no file of the folder, which
    never changes."""
    name = hashlib.sha256(reference.encode()).hexdigest()
    return f"{pushes_folder(artifact_digest)}/{name}.json"


def pushes_folder(artifact_digest: str) -> str:
    """Where the notes of all copies of an artifact lie, relative to the output URI."""
    return f"{output_folder(Stage.PUBLISH, artifact_digest)}/pushes"


def votes_folder(evaluation_digest: str) -> str:
    """Where the votes on an evaluation's answers lie, one object a reviewer, relative to the output URI: no files
    of the folder, which never changes."""
    return f"{output_folder(Stage.EVALUATE, evaluation_digest)}/votes"


def judged_object(evaluation_digest: str, judge: str, suffix: str) -> str:
    """What a judge (``Judge.identity``) said of an evaluation's answers, as ``json`` or ``html``, relative to the
    output URI: no file of the folder, which never changes."""
    return f"{judged_folder(evaluation_digest)}/{judge[:16]}.{suffix}"


def judged_folder(evaluation_digest: str) -> str:
    """Where all judges' verdicts on an evaluation's answers lie, relative to the output URI."""
    return f"{output_folder(Stage.EVALUATE, evaluation_digest)}/judged"


def withdrawn_object(artifact_digest: str) -> str:
    """The mark of a withdrawn artifact, relative to the output URI; no file of the folder, which never changes."""
    return f"{output_folder(Stage.PUBLISH, artifact_digest)}/withdrawn.json"


def gates_folder(artifact_digest: str) -> str:
    """Where lies what gates said of an artifact, an object for each verdict, relative to the output URI: no files of
    the folder, which is the same whatever the goals were."""
    return f"{output_folder(Stage.PUBLISH, artifact_digest)}/gates"


class GatesRecord(WireModel):
    """Content of ``artifacts/<digest>/gates/<hash>.json``: one verdict, whoever got it."""

    schema_version: int = 1
    channel: Channel
    """Where the artifact was published; candidate: it missed a goal."""
    are_set: bool
    """Whether they are goals that somebody set; False: the gate that stands without any."""
    goals: list[GoalStatus]
    """What was asked, and what was found."""
    review: str = ""
    """What people said, as the outcome of a gate; empty: they were not asked."""


class Withdrawal(WireModel):
    """Content of ``artifacts/<digest>/withdrawn.json``."""

    schema_version: int = 1
    reason: str
    """Why, for people."""
    by: str
    """Who decided it."""
    withdrawn_at: Timestamp
    models: list[str] = []
    """Addresses of its model, as trained and as exported: known also when its files are erased. Empty: an earlier
    version did not note them."""


class PushRecord(WireModel):
    """Content of ``artifacts/<digest>/pushes/<hash of the reference>.json``."""

    schema_version: int = 1
    to: str
    """The reference: ``host/repository:tag``."""
    digest: str
    """Of the manifest in the registry."""
    run: RunRef
    """Who pushed it."""
    pushed_at: Timestamp


class FileEntry(WireModel):
    """One file of a folder."""

    path: str
    """Relative to the folder, with forward slashes."""
    size: int
    sha256: str


class Lineage(WireModel):
    """How a folder was made: everything that is not part of its identity."""

    run: RunRef | None = None
    upstream: Upstream = Upstream()
    input_key: str = ""
    recipe_version: int = 0
    base_model_uri: str = ""
    operator_version: str = ""
    image: str = ""
    """The image that made it, as the platform's values name it; empty: made by hand, or by an earlier version."""
    usage: Usage | None = None
    """None: an earlier version did not measure it."""
    tools: dict[str, str] = {}
    """Versions of the libraries that made it."""
    created_at: Timestamp = ""


class Manifest(WireModel):
    """Contents of a folder. A reader uses only the files listed here and verifies each hash."""

    SCHEMA: ClassVar[int] = 1
    """The form that this version writes; a reader refuses a later one."""

    schema_version: int = SCHEMA
    stage: Stage
    files: list[FileEntry]
    facts: dict[str, str] = {}
    """The scalars of the stage's result."""
    lineage: Lineage = Lineage()

    def content_digest(self) -> str:
        """Content address of the folder: from its files only, so that the same bytes have the same address
        everywhere."""
        return digest([[f.path, f.size, f.sha256] for f in sorted(self.files, key=lambda f: f.path)])


class StageRecord(WireModel):
    """Content of ``keys/<stage>/<inputKey>`` and ``….cut/<maxCost>``, and of a run's own ``results/``: which output
    that input produced."""

    schema_version: int = 1
    result: StageResult
    lineage: Lineage = Lineage()


class ChannelPointer(WireModel):
    """Content of ``channels/<output name>/<channel>.json``."""

    schema_version: int = 1
    artifact_digest: str
    owner: RunRef
    """Who published it. Of a name that earlier versions have published under, which has no NameOwner, this is whose it
    is."""
    updated_at: Timestamp


class NameOwner(WireModel):
    """Content of ``owners/<output name>.json``."""

    schema_version: int = 1
    owner: RunRef
    """Who published there first; another FineTuneJob with this output name is refused."""
    claimed_at: Timestamp
