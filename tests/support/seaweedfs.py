"""A real S3 server (SeaweedFS) on loopback, with three users, for tests.

with SeaweedFS.running(tmp_path, buckets=("data", "models")) as s3:
    s3.client().put_object(...)
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from finetune_api.references import SecretRef
from finetune_api.storage import Storage
from hack.cluster.layout import free_ports

WEED = Path(sys.executable).with_name("weed")
START_TIMEOUT_S = 180.0
STARTS = 3
"""A port that was free can be taken by another program before the server listens on it."""


@dataclass(frozen=True)
class User:
    """An access key and what it may do."""

    key: str
    secret: str
    actions: tuple[str, ...]

    def environment(self, secret: SecretRef | None = None) -> dict[str, str]:
        """The variables by which boto3 takes this identity, or a stage that of a Secret."""
        values = {"AWS_ACCESS_KEY_ID": self.key, "AWS_SECRET_ACCESS_KEY": self.secret}
        return {secret.at(key).variable: value for key, value in values.items()} if secret else values


ADMIN = User("testadmin", "testadminsecret", ("Admin", "Read", "Write", "List", "Tagging"))
WRITER = User("testwriter", "testwritersecret", ("Read", "Write", "List"))
READER = User("testreader", "testreadersecret", ("Read", "List"))
STRANGER = User("nobody", "wrong-secret", ())
"""Not known to the server."""
KMS_KEY = "alias/seaweedfs-default"
"""The only key of the server's key management, which keeps it in memory."""
_KEY_MANAGEMENT = {"default_provider": "local", "providers": {"local": {"type": "local"}}}


@dataclass(frozen=True)
class SeaweedFS:
    """A running server."""

    endpoint: str

    @property
    def storage(self) -> Storage:
        """How a FineTuneJob would reach it, with the machine's own identity."""
        return Storage(endpoint=self.endpoint)

    def with_secret(self, name: str) -> Storage:
        """How a FineTuneJob would reach it, with the keys of a Secret."""
        return Storage(endpoint=self.endpoint, secret_ref=SecretRef(name=name))

    def client(self, user: User = ADMIN) -> Any:
        """A boto3 client that fails fast."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=user.key,
            aws_secret_access_key=user.secret,
            config=Config(
                s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}, connect_timeout=10, read_timeout=60
            ),
        )

    @classmethod
    @contextmanager
    def running(
        cls, directory: Path, buckets: Sequence[str] = ("data",), users: Sequence[User] = (ADMIN, WRITER, READER)
    ) -> Iterator["SeaweedFS"]:
        """Start a server whose data lie in ``directory``, make the buckets, stop it at the end. The first user makes
        the buckets."""
        known = directory / "identities.json"
        identities = [_identity(user) for user in users]
        known.write_text(json.dumps({"identities": identities, "kms": _KEY_MANAGEMENT}))
        process, server = _start(directory, known, buckets, users[0])
        try:
            yield server
        finally:
            _kill(process)


def _start(
    directory: Path, known: Path, buckets: Sequence[str], user: User
) -> tuple["subprocess.Popen[bytes]", SeaweedFS]:
    """A server with its buckets. It starts anew with other ports where another program took one in the meantime."""
    for attempt in range(1, STARTS + 1):
        data, log = directory / f"data-{attempt}", directory / f"weed-{attempt}.log"
        data.mkdir()
        s3, *others = free_ports(8)
        with log.open("wb") as output:
            process = subprocess.Popen(
                _command(data, known, s3, others),
                stdout=output,
                stderr=output,
                cwd=directory,
                env=os.environ | {"WEED_S3_SSE_KEY": "of the tests"},
                start_new_session=True,
            )
        server = SeaweedFS(f"http://127.0.0.1:{s3}")
        try:
            if _make_buckets(server.client(user), process, buckets):
                return process, server
        except BaseException:
            _kill(process)
            raise
    raise RuntimeError(f"SeaweedFS did not start {STARTS} times; the last lines of its log:\n{_tail(log)}")


def _make_buckets(client: Any, process: "subprocess.Popen[bytes]", buckets: Sequence[str]) -> bool:
    """The first write that succeeds shows that volume server and filer are up too. No if the server has ended."""
    deadline = time.monotonic() + START_TIMEOUT_S
    missing = list(buckets)
    while missing:
        try:
            client.create_bucket(Bucket=missing[0])  # again is no error for its owner
            client.put_object(Bucket=missing[0], Key=".ready", Body=b"1")
            client.delete_object(Bucket=missing[0], Key=".ready")
            missing.pop(0)
        except (BotoCoreError, ClientError) as error:
            if process.poll() is not None:
                return False
            if time.monotonic() > deadline:
                raise RuntimeError(f"SeaweedFS took no object in {START_TIMEOUT_S:.0f} s; see its log") from error
            time.sleep(0.1)
    return True


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """Its graceful stop takes ten seconds, and the data are thrown away."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=30)


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])


def _identity(user: User) -> dict[str, Any]:
    return {
        "name": user.key,
        "credentials": [{"accessKey": user.key, "secretKey": user.secret}],
        "actions": list(user.actions),
    }


def _command(data: Path, users: Path, port: int, others: Sequence[int]) -> list[str]:
    """Small volumes, as each bucket reserves seven; no ports beyond the eight needed; buckets only on request."""
    master, volume, filer, *calls = others
    grpc = dict(zip(("master", "volume", "filer", "s3"), calls, strict=True))
    return [
        str(WEED),
        "server",
        "-s3",
        "-filer",
        f"-dir={data}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-master.port={master}",
        f"-master.port.grpc={grpc['master']}",
        "-master.volumeSizeLimitMB=64",
        f"-volume.port={volume}",
        f"-volume.port.grpc={grpc['volume']}",
        "-volume.max=200",
        f"-filer.port={filer}",
        f"-filer.port.grpc={grpc['filer']}",
        f"-s3.port={port}",
        f"-s3.port.grpc={grpc['s3']}",
        f"-s3.config={users}",
        "-s3.autoCreateBucket=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
    ]
