"""What an AdapterDeployment serves: a published artifact, or several adapters of one base."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Final

from pydantic import ConfigDict, Field, model_validator

from finetune_api.base import NAME_IN_WORDS, ApiModel, Name, as_map
from finetune_api.hashing import digest
from finetune_api.meta import NAME_PATTERN
from finetune_api.rules import exactly_one_of
from finetune_api.spelled import spelled
from finetune_api.storage import S3Uri, Storage
from finetune_api.strategy import seconds_of

ARTIFACT_URI: Final = r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/([A-Za-z0-9!_.*'()=+@-]+/)*artifacts/[0-9a-f]{64}$"
ArtifactUri = Annotated[
    str,
    spelled(
        ARTIFACT_URI,
        "write s3://bucket/prefix/artifacts/ and the artifact's digest of 64 hexadecimal digits, as in a FineTuneJob's "
        "status.artifact.uri",
        min_length=6,
        max_length=512,
    ),
]


def artifact_digest(uri: str) -> str:
    """The digest in an artifact's URI, for URIs that people write and inputs of earlier versions; empty if there is
    none."""
    _, folder, address = uri.rstrip("/").rpartition("/artifacts/")
    return address if folder else ""


class FineTuneJobRef(ApiModel):
    """A FineTuneJob of the same namespace."""

    name: Name
    """Name of the FineTuneJob. Its newest published artifact is served, and replaced when it publishes a new one."""


class ArtifactRef(ApiModel):
    """A pinned, published artifact."""

    uri: ArtifactUri
    """The artifact, as in a FineTuneJob's status.artifact.uri: s3://bucket/prefix/artifacts/<digest>."""
    storage: Storage = Storage()
    """How to reach S3."""

    @property
    def digest(self) -> str:
        """Content address of the artifact."""
        return artifact_digest(self.uri)


class Channel(StrEnum):
    """Pointers of an output name."""

    STABLE = "stable"
    """To the newest accepted artifact."""
    CANDIDATE = "candidate"
    """To the newest artifact that was published although it missed a goal."""


LOOK_INTERVAL: Final = r"^(0m|[1-9][0-9]{0,3}m|[1-9][0-9]?h)$"
"""Pattern of the time between two looks: none, or a minute and more."""


class OutputRef(ApiModel):
    """An output name of a FineTuneJob, wherever that runs: what it points to is served, and followed."""

    uri: S3Uri
    """Bucket and prefix of the results: spec.output.uri of that FineTuneJob, e.g. s3://models/team-a."""
    name: Name
    """Its spec.output.name. The name must belong to a FineTuneJob of a namespace with this one's name."""
    channel: Channel = Channel.STABLE
    """stable: the newest artifact that met its goals. candidate: the newest that missed one and was published all the
    same."""
    storage: Storage = Storage()
    """How to reach S3."""
    interval: Annotated[str, spelled(LOOK_INTERVAL, "write minutes or hours, e.g. 5m or 2h, or 0m", max_length=6)] = (
        "5m"
    )
    """How often a Job looks where the channel points: minutes or hours. "0m": only for a new value of the annotation
    finetune.dev/look, which has it look at once, whatever the interval. A change of it starts no pod but that of the
    Job."""

    @property
    def interval_seconds(self) -> int:
        """The interval in seconds; 0: there is none."""
        return seconds_of(self.interval)

    @property
    def place(self) -> str:
        """The channel in one word, for people."""
        return f"{self.uri.rstrip('/')}/{self.name}/{self.channel}"

    def artifact_uri(self, digest: str) -> str:
        """The folder of a published artifact."""
        return f"{self.uri.rstrip('/')}/artifacts/{digest}"


MAX_ADAPTERS: Final = 8
"""So many adapters share a server: the results of all of them fit the termination message of their verification."""

LONGEST_ADAPTER: Final = 32
"""Characters of an adapter's name."""

AdapterName = Annotated[str, spelled(NAME_PATTERN, NAME_IN_WORDS, min_length=1, max_length=LONGEST_ADAPTER)]


def adapter_model(deployment: str, adapter: str) -> str:
    """The name by which clients ask for an adapter. That of its base is the AdapterDeployment's own."""
    return f"{deployment}:{adapter}"


def set_address(adapters: Mapping[str, str]) -> str:
    """One address for several artifacts, from their names and digests."""
    return digest(sorted(adapters.items()))


class AdapterSource(ApiModel):
    """One of several adapters: a name, and exactly one of fineTuneJob, artifact and output."""

    model_config = ConfigDict(json_schema_extra=exactly_one_of("fine_tune_job", "artifact", "output"))

    name: AdapterName
    """Clients ask for the model <name of the AdapterDeployment>:<name>."""
    fine_tune_job: FineTuneJobRef | None = None
    """Follow a FineTuneJob that publishes in format Adapter."""
    artifact: ArtifactRef | None = None
    """Serve one pinned artifact of format Adapter."""
    output: OutputRef | None = None
    """Follow a channel of an output name in the store, of a FineTuneJob that publishes in format Adapter."""

    @model_validator(mode="after")
    def _one(self) -> "AdapterSource":
        if sum(each is not None for each in (self.fine_tune_job, self.artifact, self.output)) != 1:
            raise ValueError("exactly one of fineTuneJob, artifact and output must be set")
        return self


class ArtifactSource(ApiModel):
    """What to serve: exactly one of fineTuneJob, artifact, output and adapters."""

    model_config = ConfigDict(json_schema_extra=exactly_one_of("fine_tune_job", "artifact", "output", "adapters"))

    fine_tune_job: FineTuneJobRef | None = None
    """Follow a FineTuneJob; its storage settings at the time of publishing are used."""
    artifact: ArtifactRef | None = None
    """Serve one pinned artifact."""
    output: OutputRef | None = None
    """Follow a channel of an output name in the store, where the FineTuneJob that publishes there is in another
    cluster, or gone."""
    adapters: Annotated[list[AdapterSource], Field(min_length=1, max_length=MAX_ADAPTERS), as_map("name")] | None = None
    """Serve several artifacts of format Adapter on one copy of the model that they were trained on, which all must
    share. Each is verified. Another artifact of one of them is another revision of all; running pods load one that
    comes, and unload one that goes. Their stores must be reached alike. The base itself is served under the
    AdapterDeployment's name."""

    @model_validator(mode="after")
    def _one(self) -> "ArtifactSource":
        if sum(each is not None for each in (self.fine_tune_job, self.artifact, self.output, self.adapters)) != 1:
            raise ValueError("exactly one of fineTuneJob, artifact, output and adapters must be set")
        names = [each.name for each in self.adapters or []]
        if len(set(names)) < len(names):
            raise ValueError("the names of adapters must differ")
        return self

    @property
    def channels(self) -> dict[str, OutputRef]:
        """The channels that it follows, by the names of their adapters; that of a whole model by an empty name."""
        asked = {"": self.output, **{each.name: each.output for each in self.adapters or []}}
        return {adapter: output for adapter, output in asked.items() if output is not None}

    @property
    def followed(self) -> list[str]:
        """What it follows: FineTuneJobs by their names, channels by their places."""
        jobs = [self.fine_tune_job, *(each.fine_tune_job for each in self.adapters or [])]
        places = [each.place for each in self.channels.values()]
        return list(dict.fromkeys([*(job.name for job in jobs if job), *places]))
