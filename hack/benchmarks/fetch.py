"""A folder of 1 GiB to a store on this machine and back, against boto3's own defaults and s5cmd in the same run.

The folder is what a model is: a few large files and many small ones. Downloading is ``folders.fetch_folder``, which
verifies every hash while the files come; the others download, boto3 one file after the other and s5cmd many at a time,
then read each file once more for its hash. The baseline is the faster of the two. Uploading is
``folders.publish_folder``, which hashes first, because the address of the folder follows from it; the baseline hashes
one file after the other and uploads them with boto3's defaults. All take turns, and the fastest round of each counts.
Server and client share the machine, so the figures are about its CPUs as much as about the connections; the client's
own CPU time is told too, which other programs disturb less.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune_api.storage import Storage
from hack.benchmarks.result import Result
from hack.cluster import toolchain
from hack.cluster.console import ClusterError, step

MIB = 1 << 20
LARGE = (512, 256, 128, 64)
"""MiB of each large file; together with the small ones 1 GiB."""
SMALL = 64
"""Number of files of 1 MiB."""
ROUNDS = 3


def run() -> Result:
    """Measure; the value is the speed of a verified download."""
    return measure(1)


def measure(share: float) -> Result:
    """As ``run``, with files of this share of the size."""
    from finetune_api.layout import output_folder
    from finetune_api.stages import Stage
    from finetune_jobs.artifacts.folders import fetch_folder, publish_folder
    from finetune_jobs.store.s3 import Store
    from tests.support.seaweedfs import ADMIN, SeaweedFS

    toolchain.build([tool for tool in toolchain.PEERS if tool.name == "s5cmd"])
    os.environ.update(ADMIN.environment())
    with (
        tempfile.TemporaryDirectory(prefix="finetune-fetch-") as scratch,
        SeaweedFS.running(Path(scratch)) as server,
    ):
        source, target = Path(scratch) / "source", Path(scratch) / "target"
        size = write_folder(source, share)
        client = server.client()
        seconds: dict[str, float] = {}
        cpu: dict[str, float] = {}

        def timed(name: str, work: Callable[[], Any]) -> Any:
            started, busy = time.perf_counter(), cpu_seconds()
            result = work()
            seconds[name] = min(seconds.get(name, float("inf")), time.perf_counter() - started)
            cpu[name] = min(cpu.get(name, float("inf")), cpu_seconds() - busy)
            return result

        for number in range(ROUNDS):
            with step(f"round {number + 1} of {ROUNDS}"):
                store = Store.connect(server.storage, f"s3://data/ours-{number}")
                digest = timed("upload", lambda: publish_folder(store, source, Stage.EXPORT))  # noqa: B023 - at once
                timed("boto3 upload", lambda: boto3_upload(client, source, f"theirs-{number}"))  # noqa: B023
                folder = output_folder(Stage.EXPORT, digest)
                timed("download", lambda: fetch_folder(store, folder, target))  # noqa: B023
                shutil.rmtree(target)
                timed("boto3 bare", lambda: boto3_download(client, f"theirs-{number}", source, target))  # noqa: B023
                timed("hashes", lambda: hashes(target))
                shutil.rmtree(target)
                timed("s5cmd bare", lambda: s5cmd_download(server.storage, f"theirs-{number}", target))  # noqa: B023
                if len(list(target.iterdir())) != len(LARGE) + SMALL:
                    raise ClusterError("s5cmd has not downloaded every file")
                shutil.rmtree(target)
    speed = {name: size / took / 1e6 for name, took in seconds.items()}
    verified = {peer: size / (seconds[f"{peer} bare"] + seconds["hashes"]) / 1e6 for peer in ("boto3", "s5cmd")}
    return Result(
        name="fetch",
        value=speed["download"],
        unit="MB/s",
        baseline=max(verified.values()),
        goal="≥ 0.9 of the faster of boto3's defaults and s5cmd, hashes verified",
        details={
            "bytes": size,
            "uploadMBps": round(speed["upload"]),
            "boto3UploadMBps": round(speed["boto3 upload"]),
            "uploadRatio": round(speed["upload"] / speed["boto3 upload"], 2),
            "verifiedMBps": {peer: round(figure) for peer, figure in verified.items()},
            "withoutHashesMBps": {peer: round(speed[f"{peer} bare"]) for peer in verified},
            "ratioToThoseWithoutHashes": {
                peer: round(speed["download"] / speed[f"{peer} bare"], 2) for peer in verified
            },
            "sha256OfOneThreadMBps": round(speed["hashes"]),
            "clientCpuSeconds": {name: round(took, 2) for name, took in cpu.items()},
        },
    )


def write_folder(folder: Path, share: float) -> int:
    """Random files; returns their size together."""
    folder.mkdir()
    sizes = {f"large-{number}.safetensors": mib for number, mib in enumerate(LARGE)}
    sizes |= {f"small-{number:02}.json": 1 for number in range(SMALL)}
    for name, mib in sizes.items():
        with (folder / name).open("wb") as file:
            for _ in range(max(1, round(mib * share * 16))):
                file.write(os.urandom(MIB // 16))
    return sum(path.stat().st_size for path in folder.iterdir())


def boto3_upload(client: Any, source: Path, place: str) -> None:
    """The baseline: hash, then upload, file after file."""
    hashes(source)
    for path in sorted(source.iterdir()):
        client.upload_file(str(path), "data", f"{place}/{path.name}")


def boto3_download(client: Any, place: str, source: Path, target: Path) -> None:
    """The baseline, without hashes."""
    target.mkdir()
    for path in sorted(source.iterdir()):
        client.download_file("data", f"{place}/{path.name}", str(target / path.name))


def s5cmd_download(storage: Storage, place: str, target: Path) -> None:
    """The other baseline, with its defaults, without hashes."""
    target.mkdir()
    command = [str(toolchain.program("s5cmd")), "--endpoint-url", str(storage.endpoint), "--log", "error", "cp"]
    subprocess.run([*command, f"s3://data/{place}/*", f"{target}/"], check=True, timeout=300)


def cpu_seconds() -> float:
    """Of this process and of the programs that it has waited for."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def hashes(folder: Path) -> list[str]:
    """SHA-256 of each file, one after the other."""
    found = []
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            found.append(hashlib.file_digest(file, "sha256").hexdigest())
    return found
