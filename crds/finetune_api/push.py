"""Copies of a published artifact outside of S3: where they go, and what became of them."""

from typing import Annotated, ClassVar, Final

from pydantic import ConfigDict, Field, model_validator

from finetune_api.base import ApiModel, WireModel
from finetune_api.freeze import Changes
from finetune_api.references import SecretKeyRef, SecretRef
from finetune_api.rules import exactly_one_of
from finetune_api.spelled import spelled
from finetune_api.storage import CaBundle

MAX_TARGETS: Final = 4
REGISTRY_URL: Final = r"^https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?$"
RegistryUrl = Annotated[
    str,
    spelled(
        REGISTRY_URL,
        "write http:// or https://, a host and, if need be, a port, without a path, e.g. https://ghcr.io",
        min_length=8,
        max_length=253,
    ),
]
REPOSITORY: Final = r"^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$"
"""A repository's name, as OCI's distribution spec has it (https://github.com/opencontainers/distribution-spec)."""
TAG: Final = r"^[A-Za-z0-9_][A-Za-z0-9._-]*$"
HUB_REPOSITORY: Final = r"^[A-Za-z0-9]([.-]?[A-Za-z0-9_])*/[A-Za-z0-9]([.-]?[A-Za-z0-9_])*$"
"""A repository of the Hugging Face hub, as its client checks names
(https://github.com/huggingface/huggingface_hub/blob/main/src/huggingface_hub/utils/_validators.py)."""
HUB_TAG: Final = r"^[A-Za-z0-9_][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*$"
"""A tag that Git takes (https://git-scm.com/docs/git-check-ref-format), without a slash."""
COPY_DIGEST: Final = r"^(sha256:[0-9a-f]{64}|[0-9a-f]{40})$"
"""The digest of a manifest in a registry; the hash of a commit on the hub."""
REGISTRY_SECRET_KEYS: Final = ("username", "password")
"""Keys of a registry's Secret: those of Kubernetes' own type kubernetes.io/basic-auth."""
_TAG_LENGTH: Final = 12
"""Characters of the artifact's digest that are its tag, where the spec names none."""


class OciTarget(ApiModel):
    """A repository of an OCI registry, in which the model becomes an artifact in the layout of CNCF's ModelPack."""

    registry: RegistryUrl
    """URL of the registry, without a path, e.g. https://ghcr.io; for Docker Hub https://registry-1.docker.io."""
    repository: Annotated[
        str,
        spelled(
            REPOSITORY,
            "write lower-case letters and digits, with ., _, __ or - between them, in parts divided by /, e.g. "
            "acme/support",
            min_length=1,
            max_length=255,
        ),
    ]
    """Name of the repository, e.g. acme/support."""
    tag: Annotated[
        str | None,
        spelled(
            TAG, "write letters, digits, _, . and -, starting with a letter, digit or _", min_length=1, max_length=128
        ),
    ] = None
    """Tag of the model. If it already points to another one, the run fails: no tag is ever moved. Default: the first
    12 characters of the artifact's digest, so that each artifact has a tag of its own."""
    secret_ref: Annotated[SecretRef | None, Changes.RETRY] = None
    """Secret with username and password (or an access token), of the type kubernetes.io/basic-auth; omit it for a
    registry that asks for none."""
    ca_bundle: Annotated[CaBundle | None, Changes.RETRY] = None
    """CA certificates to trust in addition to the public ones, if a private CA issued the registry's certificate; omit
    it for public CAs."""

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


class HubTarget(ApiModel):
    """A model repository of the Hugging Face hub. Each artifact is one commit on its branch main, with a tag."""

    endpoint: RegistryUrl = "https://huggingface.co"
    """URL of the hub, without a path."""
    repository: Annotated[
        str,
        spelled(
            HUB_REPOSITORY,
            "write organisation/name, each in letters, digits and _, with single . or - in between",
            min_length=3,
            max_length=96,
        ),
    ]
    """Organisation or user, and name, e.g. acme/support. It is created, private, if it does not exist."""
    tag: Annotated[
        str | None,
        spelled(
            HUB_TAG,
            "write letters, digits, _, - and single points, starting with a letter, digit or _ and not ending with a "
            "point",
            min_length=1,
            max_length=128,
        ),
    ] = None
    """Tag of the model. If it already points to another one, the run fails: no tag is ever moved. Default: the first
    12 characters of the artifact's digest, so that each artifact has a tag of its own."""
    public: bool = False
    """Whether everybody may read the model: a repository that is created is public. Otherwise what is public is not
    pushed to. A private repository stays private."""
    secret_key_ref: Annotated[SecretKeyRef, Changes.RETRY]
    """An access token with write access to the repository."""

    ca_bundle: ClassVar[None] = None
    """The hub's certificate is one of a public authority."""

    def tag_of(self, artifact_digest: str) -> str:
        """The tag under which an artifact is pushed."""
        return self.tag or artifact_digest[:_TAG_LENGTH]

    def reference(self, artifact_digest: str) -> str:
        """What names the copy: ``host/organisation/name@tag``."""
        return f"{self.endpoint.partition('://')[2]}/{self.repository}@{self.tag_of(artifact_digest)}"

    @property
    def login(self) -> tuple[SecretKeyRef, ...]:
        """Where the token is."""
        return (self.secret_key_ref,)


class PushTarget(ApiModel):
    """Where a published artifact is pushed: exactly one of oci and huggingFace."""

    model_config = ConfigDict(json_schema_extra=exactly_one_of("oci", "hugging_face"))

    oci: OciTarget | None = None
    """An OCI registry."""
    hugging_face: HubTarget | None = None
    """The Hugging Face hub."""
    candidates: bool = False
    """Whether an artifact that missed a goal and is published as a candidate (evaluation.onFail) is pushed too."""

    @model_validator(mode="after")
    def _exactly_one(self) -> "PushTarget":
        if (self.oci is None) == (self.hugging_face is None):
            raise ValueError("exactly one of oci and huggingFace must be set")
        return self

    @property
    def place(self) -> OciTarget | HubTarget:
        """The registry or the hub."""
        found = self.oci or self.hugging_face
        if found is None:
            raise ValueError("exactly one of oci and huggingFace must be set")
        return found

    def wants(self, *, candidate: bool) -> bool:
        """Whether an accepted artifact, or a candidate, is pushed here."""
        return self.candidates or not candidate


class PushStatus(WireModel):
    """A copy of the artifact that is whole."""

    to: Annotated[str, Field(max_length=640)]
    """What pulls it, e.g. ghcr.io/acme/support:e3a9c07715f2; on the Hugging Face hub, repository and tag, e.g.
    huggingface.co/acme/support@e3a9c07715f2."""
    digest: Annotated[str, Field(pattern=COPY_DIGEST, min_length=40, max_length=71)]
    """Digest of its manifest in the registry, or its commit on the hub, which no tag can change."""
