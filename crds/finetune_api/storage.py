"""Where data lives: an S3 endpoint, and which Secret of the same namespace opens it."""

from typing import Annotated, Final

from pydantic import Field

from finetune_api.base import ApiModel

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
