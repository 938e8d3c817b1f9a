"""How to reach S3: the endpoint, and the Secret of the same namespace with its keys."""

from enum import StrEnum
from typing import Annotated, Final

from pydantic import ConfigDict, Field, model_validator

from finetune_api.base import ApiModel
from finetune_api.freeze import Changes
from finetune_api.rules import Rule

S3_URI: Final = r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9!_.*'()=+@/-]*)?$"
MODEL_URI: Final = (
    r"^(s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/[A-Za-z0-9!_.*'()=+@/-]+"
    r"|hf://[A-Za-z0-9._-]+/[A-Za-z0-9._-]+@[A-Za-z0-9._/-]+)$"
)
SECRET_NAME: Final = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"

S3Uri = Annotated[str, Field(pattern=S3_URI, min_length=6, max_length=512)]


class Credentials(ApiModel):
    """Static keys in a Secret of the same namespace. Pods read it; the operator never does."""

    secret_name: Annotated[str, Field(pattern=SECRET_NAME, min_length=1, max_length=253)]
    """Name of the Secret, in the namespace of this resource."""
    access_key_id_key: Annotated[str, Field(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253)] = "AWS_ACCESS_KEY_ID"
    """Key of the Secret that holds the access key id."""
    secret_access_key_key: Annotated[str, Field(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253)] = "AWS_SECRET_ACCESS_KEY"
    """Key of the Secret that holds the secret access key."""


class CaBundle(ApiModel):
    """CA certificates in PEM format, in a ConfigMap of the same namespace."""

    config_map_name: Annotated[str, Field(pattern=SECRET_NAME, min_length=1, max_length=253)]
    """Name of the ConfigMap, in the namespace of this resource."""
    key: Annotated[str, Field(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253)] = "ca.crt"
    """Key of the ConfigMap that holds the certificates."""


class EncryptionAlgorithm(StrEnum):
    """Who manages the store's encryption key; the names are S3's own (``x-amz-server-side-encryption``)."""

    KMS = "aws:kms"
    AES256 = "AES256"


_KEY_ONLY_FOR_KMS: Final = Rule(
    f"self.algorithm == '{EncryptionAlgorithm.KMS}' || self.kmsKeyId == ''",
    f"kmsKeyId needs algorithm {EncryptionAlgorithm.KMS}: with {EncryptionAlgorithm.AES256} the store uses its own key",
)


class Encryption(ApiModel):
    """How the store encrypts written objects. If omitted, the bucket's own setting applies."""

    model_config = ConfigDict(json_schema_extra={"x-kubernetes-validations": [_KEY_ONLY_FOR_KMS.as_schema()]})

    algorithm: EncryptionAlgorithm
    """aws:kms (a key of the store's key management service) or AES256 (the store's own key)."""
    kms_key_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9:/_.-]*$", max_length=2048)] = ""
    """Id, ARN or alias of the key for aws:kms, e.g. alias/models. Default: the store's default key."""

    @model_validator(mode="after")
    def _key_only_for_kms(self) -> "Encryption":
        if self.kms_key_id and self.algorithm is not EncryptionAlgorithm.KMS:
            raise ValueError(_KEY_ONLY_FOR_KMS.message)
        return self


class Storage(ApiModel):
    """How to reach S3. Empty: AWS, with the pod's own identity (IRSA, workload identity)."""

    endpoint: Annotated[str, Field(pattern=r"^(https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?)?$", max_length=253)] = ""
    """URL of an S3-compatible store, e.g. http://seaweedfs.storage.svc:8333; empty for AWS."""
    region: Annotated[str, Field(pattern=r"^[a-z0-9-]+$", min_length=1, max_length=32)] = "us-east-1"
    """Region for the request signature."""
    path_style: bool = True
    """Put the bucket in the URL's path (most S3-compatible stores) rather than in the host name."""
    credentials: Annotated[Credentials | None, Changes.RETRY] = None
    """Secret with the keys; omit it if the pod's service account provides the identity."""
    ca_bundle: Annotated[CaBundle | None, Changes.RETRY] = None
    """CA certificates to trust if a private CA issued the store's certificate; omit it for public CAs."""
    encryption: Encryption | None = None
    """How the store encrypts what stages write; reading needs no setting. Changing it does not invalidate results."""

    @property
    def for_reading(self) -> "Storage":
        """Settings for reading: the store knows how objects are encrypted."""
        return self.model_copy(update={"encryption": None})
