"""A stage that is to run: its input, and what its pod gets."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from finetune_api import meta
from finetune_api.hashing import short, without_defaults
from finetune_api.stages import RunRef, Stage, StageInput
from finetune_operator.framework.ownership import Owner
from finetune_operator.settings import Images, MetricContainer, ModelCache, PodShape, Proxy


def stage_name(owner: Owner, stage: Stage, identity: Any) -> str:
    """Name of a stage's Job and ConfigMap."""
    return f"{owner.name}-{stage}-{short(identity)}"


def run_ref(owner: Owner, run: str) -> RunRef:
    """What a stage works for: a run of a FineTuneJob, or a revision of an AdapterDeployment."""
    return RunRef(kind=owner.resource.kind, namespace=owner.namespace, name=owner.name, uid=owner.uid, id=run)


@dataclass(frozen=True)
class StageRequest:
    """A stage to run as a Job."""

    owner: Owner
    input: StageInput
    image: str
    images: Images
    shape: PodShape
    service_account: str
    proxy: Proxy = field(default_factory=Proxy)
    labels: Mapping[str, str] = field(default_factory=dict)
    """For ConfigMap, Job and pod, besides the owner's and the stage's."""
    attempt: str = ""
    """Distinguishes Jobs with the same input; empty for the first."""
    identity: Any = None
    """What the name is made of where the input depends on the moment at which the Job is created; None: the input."""
    queue: str = ""
    """Kueue's local queue for the Job; empty: none."""
    retries: int = 2
    deadline_seconds: int = 3600
    """How long one attempt may run, from when its pod has a node."""
    nodes: int = 1
    """Pods that work together, as an Indexed Job."""
    processes: int = 1
    """Processes of each pod that work together."""
    engine_gpus: int = 1
    """GPUs of an engine that the stage starts, with a process for each of them; 1: it starts none, or one in a single
    process."""
    asked: str = ""
    """The value of the owner's annotation for which the stage counts votes; empty: there is none."""
    model_cache: ModelCache | None = None
    """The volume that keeps models; None: there is none."""
    answers: StageInput | None = None
    """Of an evaluation with metric containers: the input of its first part, which asks the models. None: there are no
    such containers."""
    metrics: Mapping[str, MetricContainer] = field(default_factory=dict)
    """The metric containers by name."""
    measuring_shape: PodShape = field(default_factory=PodShape)
    """What the last part of such an evaluation needs, which runs no model."""

    @property
    def stage(self) -> Stage:
        """The stage."""
        return self.input.stage

    @property
    def together(self) -> bool:
        """Whether several processes do this stage's work."""
        return self.nodes * self.processes > 1

    @property
    def shared_memory(self) -> str:
        """Size of the pod's /dev/shm, ample for NCCL's buffers and an engine's messages; empty for one process, which
        keeps the default."""
        together = max(self.processes, self.engine_gpus)
        return f"{together}Gi" if together > 1 else ""

    @cached_property
    def name(self) -> str:
        """Name of both ConfigMap and Job: equal inputs have equal names, also those of neighbouring versions."""
        if self.identity is not None:
            return stage_name(self.owner, self.stage, self.identity)
        given = without_defaults(self.input)
        return stage_name(self.owner, self.stage, [given, self.attempt] if self.attempt else given)

    @property
    def name_with_defaults(self) -> str:
        """The name that earlier versions gave it, at its first attempt: its hash holds the defaults too."""
        return f"{self.owner.name}-{self.stage}-{short(self.input)}"

    @property
    def all_labels(self) -> dict[str, str]:
        """Labels of everything that belongs to this stage's run."""
        return {**self.labels, meta.LABEL_STAGE: self.stage.value, meta.LABEL_ROLE: "stage"}
