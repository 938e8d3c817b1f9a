"""Where data lives: an S3 endpoint, and which Secret of the same namespace opens it."""

from enum import StrEnum
from typing import Annotated, Final

from pydantic import ConfigDict, Field, model_validator

from finetune_api.base import ApiModel
from finetune_api.rules import Rule

S3_URI: Final = r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9!_.*'()=+@/-]*)?$"
MODEL_URI: Final = (
    r"^(s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/[A-Za-z0-9!_.*'()=+@/-]+"
    r"|hf://[A-Za-z0-9._-]+/[A-Za-z0-9._-]+@[A-Za-z0-9._/-]+)$"
)
SECRET_NAME: Final = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"

S3Uri = Annotated[str, Field(pattern=S3_URI, min_length=6, max_length=512)]


class Credentials(ApiModel):
    """Fixed keys of a Secret in the same namespace. Pods read it; the operator never does."""

    secret_name: Annotated[str, Field(pattern=SECRET_NAME, min_length=1, max_length=253)]
    """Name of the Secret, in the namespace of this resource."""
    access_key_id_key: Annotated[str, Field(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253)] = "AWS_ACCESS_KEY_ID"
    """Key of the Secret that holds the access key id."""
    secret_access_key_key: Annotated[str, Field(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253)] = "AWS_SECRET_ACCESS_KEY"
    """Key of the Secret that holds the secret access key."""


class CaBundle(ApiModel):
    """Certificate authorities in PEM, in a ConfigMap of the same namespace."""

    config_map_name: Annotated[str, Field(pattern=SECRET_NAME, min_length=1, max_length=253)]
    """Name of the ConfigMap, in the namespace of this resource."""
    key: Annotated[str, Field(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253)] = "ca.crt"
    """Its key that holds the certificates."""


class EncryptionAlgorithm(StrEnum):
    """Who keeps the key by which the store encrypts; the names are S3's own (``x-amz-server-side-encryption``)."""

    KMS = "aws:kms"
    AES256 = "AES256"


_KEY_ONLY_FOR_KMS: Final = Rule(
    f"self.algorithm == '{EncryptionAlgorithm.KMS}' || self.kmsKeyId == ''",
    f"kmsKeyId needs algorithm {EncryptionAlgorithm.KMS}: with {EncryptionAlgorithm.AES256} the store uses a key of "
    "its own",
)


class Encryption(ApiModel):
    """How the store encrypts what is written. Left out, the bucket's own setting decides."""

    model_config = ConfigDict(json_schema_extra={"x-kubernetes-validations": [_KEY_ONLY_FOR_KMS.as_schema()]})

    algorithm: EncryptionAlgorithm
    """aws:kms (a key of the store's key management) or AES256 (a key of the store's own)."""
    kms_key_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9:/_.-]*$", max_length=2048)] = ""
    """Id, ARN or alias of the key for aws:kms, e.g. alias/models; left out, the store's default key."""

    @model_validator(mode="after")
    def _key_only_for_kms(self) -> "Encryption":
        if self.kms_key_id and self.algorithm is not EncryptionAlgorithm.KMS:
            raise ValueError(_KEY_ONLY_FOR_KMS.message)
        return self


class Storage(ApiModel):
    """How to reach S3. Empty means AWS with the pod's own identity (IRSA, workload identity)."""

    endpoint: Annotated[str, Field(pattern=r"^(https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?)?$", max_length=253)] = ""
    """URL of an S3-compatible store, e.g. http://seaweedfs.storage.svc:8333; empty for AWS."""
    region: Annotated[str, Field(pattern=r"^[a-z0-9-]+$", min_length=1, max_length=32)] = "us-east-1"
    """Region for the request signature."""
    path_style: bool = True
    """Address buckets in the path (most S3-compatible stores) rather than in the host name."""
    credentials: Credentials | None = None
    """Secret with the keys; leave it out when the pod's service account carries the identity."""
    ca_bundle: CaBundle | None = None
    """Whom to trust when the store's certificate is of a private authority; leave it out for the public ones."""
    encryption: Encryption | None = None
    """How the store encrypts what stages write; reading needs no setting. No part of any key: results stay valid."""

    @property
    def for_reading(self) -> "Storage":
        """What it takes to read: how objects were encrypted, the store knows."""
        return self.model_copy(update={"encryption": None})
