"""How to reach S3: the endpoint, and the Secret of the same namespace with its keys."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, ClassVar, Final

from pydantic import ConfigDict, model_validator

from finetune_api.base import ApiModel, Retired, Successor
from finetune_api.freeze import Changes
from finetune_api.references import ConfigMapKeyRef, SecretRef
from finetune_api.rules import NotEmpty, Rule
from finetune_api.spelled import spelled

S3_URI: Final = r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9!_.*'()=+@/-]*)?$"
MODEL_URI: Final = (
    r"^(s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/[A-Za-z0-9!_.*'()=+@/-]+"
    r"|hf://[A-Za-z0-9._-]+/[A-Za-z0-9._-]+@[A-Za-z0-9._/-]+)$"
)
STORE_SECRET_KEYS: Final = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
"""Keys of a store's Secret (AWS's own names)."""
STORE_SESSION_KEY: Final = "AWS_SESSION_TOKEN"
"""Optional key of a store's Secret, for temporary credentials."""

_KEY: Final = "after the bucket come letters, digits and !_.*'()=+@/- only"
ModelUri = Annotated[
    str,
    spelled(
        MODEL_URI,
        f"write s3://bucket/prefix, or hf://organisation/name@revision with a branch, tag or commit; {_KEY}",
        min_length=6,
        max_length=512,
    ),
]
S3Uri = Annotated[
    str, spelled(S3_URI, f"write s3://bucket or s3://bucket/prefix; {_KEY}", min_length=6, max_length=512)
]


class CaBundle(ApiModel):
    """CA certificates in PEM format, in a ConfigMap of the same namespace."""

    retired: ClassVar[Mapping[str, Retired]] = {
        "configMapName": Retired("name the ConfigMap in configMapKeyRef.name", "string"),
        "key": Retired("name the key in configMapKeyRef.key", "string"),
    }

    config_map_key_ref: ConfigMapKeyRef
    """The ConfigMap, and its key with the certificates, e.g. ca.crt."""


class EncryptionAlgorithm(StrEnum):
    """Who manages the store's encryption key; the names are S3's own (``x-amz-server-side-encryption``)."""

    KMS = "aws:kms"
    AES256 = "AES256"


_KEY_ONLY_FOR_KMS: Final = Rule(
    f"self.algorithm == '{EncryptionAlgorithm.KMS}' || !has(self.kmsKeyId)",
    f"kmsKeyId needs algorithm {EncryptionAlgorithm.KMS}: with {EncryptionAlgorithm.AES256} the store uses its own key",
)


class Encryption(ApiModel):
    """How the store encrypts written objects. If omitted, the bucket's own setting applies."""

    model_config = ConfigDict(json_schema_extra={"x-kubernetes-validations": [_KEY_ONLY_FOR_KMS.as_schema()]})

    algorithm: EncryptionAlgorithm
    """aws:kms (a key of the store's key management service) or AES256 (the store's own key)."""
    kms_key_id: Annotated[
        str | None,
        spelled(r"^[A-Za-z0-9:/_.-]*$", "write letters, digits and :/_.-", max_length=2048),
        NotEmpty("omit kmsKeyId for the store's default key"),
    ] = None
    """Id, ARN or alias of the key for aws:kms, e.g. alias/models. Default: the store's default key."""

    @model_validator(mode="after")
    def _key_only_for_kms(self) -> "Encryption":
        if self.kms_key_id and self.algorithm is not EncryptionAlgorithm.KMS:
            raise ValueError(_KEY_ONLY_FOR_KMS.message)
        return self


class Addressing(StrEnum):
    """Where URLs have a bucket's name."""

    AUTO = "Auto"
    PATH = "Path"
    VIRTUAL_HOST = "VirtualHost"


class InputStorage(ApiModel):
    """How to reach a store that is only read. Empty: AWS, with the pod's own identity (IRSA, workload identity)."""

    retired: ClassVar[Mapping[str, Retired]] = {
        "credentials": Retired(
            f"name the Secret in secretRef.name; its keys are {' and '.join(STORE_SECRET_KEYS)}",
        ),
        "pathStyle": Retired(
            "write addressing: Path for true, or addressing: VirtualHost for false; omit both if the store is AWS",
            "boolean",
            Successor("addressing", {True: Addressing.PATH, False: Addressing.VIRTUAL_HOST}),
        ),
    }

    endpoint: Annotated[
        str | None,
        spelled(
            r"^(https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?)?$",
            "write http:// or https://, a host and, if need be, a port, without a path, e.g. "
            "http://seaweedfs.storage.svc:8333",
            max_length=253,
        ),
        NotEmpty("omit endpoint for AWS"),
    ] = None
    """URL of an S3-compatible store, e.g. http://seaweedfs.storage.svc:8333. Default: AWS."""
    region: Annotated[
        str,
        spelled(r"^[a-z0-9-]+$", "write lower-case letters, digits and -, e.g. eu-west-1", min_length=1, max_length=32),
    ] = "us-east-1"
    """Region for the request signature."""
    addressing: Addressing = Addressing.AUTO
    """Where URLs have the bucket's name: Path (most S3-compatible stores), or VirtualHost, in front of the host's name.
    Auto: Path if endpoint is set, otherwise VirtualHost."""
    secret_ref: Annotated[SecretRef | None, Changes.RETRY] = None
    """Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and AWS_SESSION_TOKEN for temporary credentials; omit it
    if the pod's service account provides the identity."""
    ca_bundle: Annotated[CaBundle | None, Changes.RETRY] = None
    """CA certificates to trust if a private CA issued the store's certificate; omit it for public CAs."""

    @property
    def in_path(self) -> bool:
        """Whether URLs have the bucket's name in their path; boto3 puts it there too if it does not suit a host."""
        if self.addressing is Addressing.AUTO:
            return self.endpoint is not None
        return self.addressing is Addressing.PATH


class Storage(InputStorage):
    """How to reach S3. Empty: AWS, with the pod's own identity (IRSA, workload identity)."""

    encryption: Encryption | None = None
    """How the store encrypts what stages write; reading needs no setting. Changing it does not invalidate results."""

    @property
    def for_reading(self) -> "Storage":
        """Settings for reading: the store knows how objects are encrypted."""
        return self.model_copy(update={"encryption": None})
