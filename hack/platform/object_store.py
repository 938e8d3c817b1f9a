"""The S3 store of the demo and the tests: one SeaweedFS pod. Not for production: its data are lost with the pod."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.client import Config

from finetune_api.storage import Storage
from hack.cluster.console import step
from hack.platform.kubectl import Kubectl, Object

NAMESPACE = "storage"
NAME = "seaweedfs"
PORT = 8333
ENDPOINT = f"http://{NAME}.{NAMESPACE}.svc:{PORT}"
BUCKETS = ("datasets", "base-models", "artifacts")


@dataclass(frozen=True)
class Key:
    """One user of the store."""

    name: str
    access_key_id: str
    secret_access_key: str
    actions: tuple[str, ...]

    def secret(self, name: str) -> Object:
        """The Secret with which stage pods use this key."""
        data = {"AWS_ACCESS_KEY_ID": self.access_key_id, "AWS_SECRET_ACCESS_KEY": self.secret_access_key}
        return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data}


# Keys of a throwaway store that is reachable only in this cluster.
OWNER = Key("owner", "local-owner", "local-owner-secret", ("Admin", "Read", "Write", "List", "Tagging"))
READER = Key("reader", "local-reader", "local-reader-secret", ("Read", "List"))


def manifests(image: str) -> list[Object]:
    """Namespace, configuration, Deployment and Service of the store."""
    identities = [
        {
            "name": key.name,
            "credentials": [{"accessKey": key.access_key_id, "secretKey": key.secret_access_key}],
            "actions": list(key.actions),
        }
        for key in (OWNER, READER)
    ]
    labels = {"app.kubernetes.io/name": NAME}
    arguments = [
        "server",
        "-dir=/data",
        "-ip=127.0.0.1",
        "-ip.bind=0.0.0.0",
        "-volume.max=300",
        "-master.volumeSizeLimitMB=1024",
        "-s3",
        f"-s3.port={PORT}",
        "-s3.autoCreateBucket=false",
        "-s3.config=/etc/seaweedfs/identities.json",
    ]
    container: Object = {
        "name": NAME,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "args": arguments,
        "ports": [{"name": "s3", "containerPort": PORT}],
        "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1},
        # Without a request it would get next to nothing of the CPU while models train, and be the first to be evicted.
        "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "data", "mountPath": "/data"},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "configuration", "mountPath": "/etc/seaweedfs", "readOnly": True},
        ],
    }
    pod: Object = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 5,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "fsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            {"name": "data", "emptyDir": {}},
            {"name": "tmp", "emptyDir": {}},
            {"name": "configuration", "secret": {"secretName": f"{NAME}-identities"}},
        ],
    }
    return [
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": f"{NAME}-identities"},
            "stringData": {"identities.json": json.dumps({"identities": identities})},
        },
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": NAME},
            "spec": {
                "replicas": 1,
                "strategy": {"type": "Recreate"},
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": NAME},
            "spec": {"selector": labels, "ports": [{"name": "s3", "port": PORT, "targetPort": "s3"}]},
        },
    ]


def restricted_namespace(name: str) -> Object:
    """A namespace in which the API server rejects every pod that is not *restricted*."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def install(kubectl: Kubectl, image: str) -> None:
    """Start the store and create its buckets. A running store is not replaced: a new pod would have lost its data."""
    kubectl = kubectl.within(NAMESPACE)
    with step(f"start the object store at {ENDPOINT}"):
        kubectl.apply(restricted_namespace(NAMESPACE))
        if not kubectl.exists("service", NAME):
            kubectl.apply(*manifests(image))
        kubectl("rollout", "status", f"deployment/{NAME}", "--timeout=180s", timeout=200)
        with client(kubectl) as s3:
            existing = {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}
            for bucket in BUCKETS:
                if bucket not in existing:
                    s3.create_bucket(Bucket=bucket)


@contextmanager
def client(kubectl: Kubectl, key: Key = OWNER) -> Iterator[Any]:
    """A boto3 client for the store, from outside the cluster."""
    with kubectl.within(NAMESPACE).port_forward(f"service/{NAME}", PORT) as port:
        yield boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{port}",
            region_name="us-east-1",
            aws_access_key_id=key.access_key_id,
            aws_secret_access_key=key.secret_access_key,
            config=Config(s3={"addressing_style": "path"}, retries={"mode": "standard", "max_attempts": 5}),
        )


@contextmanager
def from_here(kubectl: Kubectl) -> Iterator[Storage]:
    """The cluster's store as this process reaches it, with its keys in the environment."""
    keys = {"AWS_ACCESS_KEY_ID": OWNER.access_key_id, "AWS_SECRET_ACCESS_KEY": OWNER.secret_access_key}
    with (
        kubectl.within(NAMESPACE).port_forward(f"service/{NAME}", PORT) as port,
        patch.dict(os.environ, keys),
    ):
        yield Storage(endpoint=f"http://127.0.0.1:{port}")


def upload(kubectl: Kubectl, path: Path, bucket: str, prefix: str) -> None:
    """Upload a file, or a folder's files below ``prefix``; files of a folder that exist with the same size are
    skipped."""
    files = {f"{prefix}/{each.name}": each for each in path.iterdir()} if path.is_dir() else {prefix: path}
    with client(kubectl) as s3:
        listed = s3.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])
        sizes = {entry["Key"]: entry["Size"] for entry in listed}
        for key, file in files.items():
            if path.is_dir() and sizes.get(key) == file.stat().st_size:
                continue
            s3.upload_file(str(file), bucket, key, Config=TransferConfig(preferred_transfer_client="classic"))


def empty_bucket(kubectl: Kubectl, bucket: str) -> None:
    """Delete every object of a bucket."""
    with client(kubectl) as s3:
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            keys = [{"Key": entry["Key"]} for entry in page.get("Contents", [])]
            if keys:
                s3.delete_objects(Bucket=bucket, Delete={"Objects": keys, "Quiet": True})
