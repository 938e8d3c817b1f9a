"""Copies of a published artifact outside of S3: where they go, and what became of them."""

from typing import Annotated, Final

from pydantic import Field

from finetune_api.base import ApiModel, WireModel
from finetune_api.freeze import Changes
from finetune_api.references import SecretKeyRef, SecretRef
from finetune_api.storage import CaBundle

MAX_TARGETS: Final = 4
REGISTRY_URL: Final = r"^https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?$"
REPOSITORY: Final = r"^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$"
"""A repository's name, as OCI's distribution spec has it (https://github.com/opencontainers/distribution-spec)."""
TAG: Final = r"^[A-Za-z0-9_][A-Za-z0-9._-]*$"
OCI_DIGEST: Final = r"^sha256:[0-9a-f]{64}$"
REGISTRY_SECRET_KEYS: Final = ("username", "password")
"""Keys of a registry's Secret: those of Kubernetes' own type kubernetes.io/basic-auth."""
_TAG_LENGTH: Final = 12
"""Characters of the artifact's digest that are its tag, where the spec names none."""


class OciTarget(ApiModel):
    """A repository of an OCI registry, in which the model becomes an artifact in the layout of CNCF's ModelPack."""

    registry: Annotated[str, Field(pattern=REGISTRY_URL, min_length=8, max_length=253)]
    """URL of the registry, without a path, e.g. https://ghcr.io; for Docker Hub https://registry-1.docker.io."""
    repository: Annotated[str, Field(pattern=REPOSITORY, min_length=1, max_length=255)]
    """Name of the repository, e.g. acme/support."""
    tag: Annotated[str | None, Field(pattern=TAG, min_length=1, max_length=128)] = None
    """Tag of the model. If it stands for another one already, the run fails: no tag is ever moved. Default: the first
    12 characters of the artifact's digest, so that each artifact has a tag of its own."""
    secret_ref: Annotated[SecretRef | None, Changes.RETRY] = None
    """Secret with username and password (or an access token), of the type kubernetes.io/basic-auth; omit it for a
    registry that asks for none."""
    ca_bundle: Annotated[CaBundle | None, Changes.RETRY] = None
    """CA certificates to trust beside the public ones, if a private CA issued the registry's certificate; omit it for
    public CAs."""

    def tag_of(self, artifact_digest: str) -> str:
        """The tag under which an artifact is pushed."""
        return self.tag or artifact_digest[:_TAG_LENGTH]

    def reference(self, artifact_digest: str) -> str:
        """What pulls it: ``host/repository:tag``."""
        return f"{self.registry.partition('://')[2]}/{self.repository}:{self.tag_of(artifact_digest)}"

    @property
    def login(self) -> tuple[SecretKeyRef, ...]:
        """Where user name and password are; nothing where none is needed."""
        return tuple(self.secret_ref.at(key) for key in REGISTRY_SECRET_KEYS) if self.secret_ref else ()


class PushTarget(ApiModel):
    """Where a published artifact is pushed."""

    oci: OciTarget
    """An OCI registry."""
    candidates: bool = False
    """Whether an artifact that missed a goal and is published as a candidate (evaluation.onFail) is pushed too."""

    def wants(self, *, candidate: bool) -> bool:
        """Whether an accepted artifact, or a candidate, is pushed here."""
        return self.candidates or not candidate


class PushStatus(WireModel):
    """A copy of the artifact that is whole."""

    to: Annotated[str, Field(max_length=640)]
    """What pulls it, e.g. ghcr.io/acme/support:e3a9c07715f2."""
    digest: Annotated[str, Field(pattern=OCI_DIGEST, min_length=71, max_length=71)]
    """Digest of its manifest in the registry, which no tag can change."""
