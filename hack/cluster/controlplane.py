"""etcd, the API server and, optionally, the controller manager and the scheduler.

Used for the cluster's control plane, and for temporary ones in tests::

    with ControlPlane.temporary(controllers=("job-controller",)) as plane:
        plane.kubectl("create", "namespace", "team-a")
        KubeClient(plane.kubeconfig)
"""

from __future__ import annotations

import shutil
import ssl
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final

from . import toolchain
from .console import run
from .layout import CLUSTER_DOMAIN, KUBERNETES_SERVICE_IP, SERVICE_SUBNET, Ports
from .pki import Authority
from .processes import GRACE_SECONDS, Daemon, Identity, Record, start_in_order, stop_all, terminate

LOOPBACK = "127.0.0.1"
TEMPORARY_PREFIX = "finetune-control-plane-"
OWNER = "owner.pid"
FRONT_PROXY = "front-proxy"
FEW_COLLECTIONS: Final = {"GOGC": "400"}
"""Of garbage, in an API server that lives for minutes: with its heap of 100 MB, two fifths of its CPU time go into them
otherwise. It takes 0.3 GB more memory."""
OFTEN_AUTOSCALED: Final = "--horizontal-pod-autoscaler-sync-period=1s"
"""Every 15 seconds otherwise, for which a test would wait each time."""


@dataclass
class ControlPlane:
    """One control plane in one folder.

    ``controllers`` are the controller manager's ``--controllers``; without any it is not started, and pods need no
    service account, because nothing would create it. An ``address`` other than loopback makes the API server reachable
    from pods.
    """

    directory: Path
    ports: Ports = field(default_factory=Ports)
    address: str = LOOPBACK
    controllers: tuple[str, ...] = ()
    scheduler: bool = False
    temporary_directory: bool = False

    @classmethod
    def temporary(cls, controllers: Sequence[str] = (), scheduler: bool = False) -> ControlPlane:
        """A control plane for a test, with free ports and a temporary folder that ``stop`` removes.

        It belongs to the calling process: if that dies, the next call stops the control plane and removes the folder.
        """
        _remove_abandoned()
        directory = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX))
        Record(Identity.mine(), "", time.time()).write(directory / OWNER)
        return cls(directory, Ports.free(), LOOPBACK, tuple(controllers), scheduler, temporary_directory=True)

    def __enter__(self) -> ControlPlane:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"https://{LOOPBACK}:{self.ports.apiserver}"

    @property
    def kubeconfig(self) -> Path:
        """Cluster administrator."""
        return self.directory / "admin.kubeconfig"

    @property
    def authority(self) -> Authority:
        return Authority(self.directory / "pki")

    @property
    def front_proxy(self) -> Authority:
        """Of the certificate with which the API server asks aggregated APIs. It issues nothing else: with one of its
        certificates a client may say which user it is."""
        return Authority(self.authority.directory / "front-proxy")

    def start(self) -> bool:
        """Start missing parts and wait until all are ready; returns whether etcd or the API server was started.

        Raises:
            ClusterError: a part did not start; includes the end of its log.
        """
        toolchain.build(toolchain.CONTROL_PLANE)
        self._credentials()
        store, apiserver, *clients = self.daemons()
        fresh = start_in_order((store, apiserver))
        if fresh:
            stop_all(clients)  # otherwise they would wait for a back-off of up to a minute
        start_in_order(clients)
        return fresh

    def stop(self) -> None:
        """Stop all parts, the API server's clients first, and remove a temporary folder."""
        stop_all(self.daemons(), grace_seconds=2 if self.temporary_directory else GRACE_SECONDS)
        if self.temporary_directory:
            shutil.rmtree(self.directory, ignore_errors=True)

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout: float = 180) -> str:
        """Run kubectl as administrator and return its output."""
        kubectl = toolchain.program("kubectl")
        return run([kubectl, "--kubeconfig", self.kubeconfig, *arguments], stdin=stdin, timeout=timeout)

    def daemons(self) -> list[Daemon]:
        """The parts, in start order."""
        parts = [self._etcd(), self._apiserver()]
        if self.controllers:
            parts.append(self._controller_manager())
        if self.scheduler:
            parts.append(self._scheduler())
        return parts

    def _credentials(self) -> None:
        self.authority.create()
        self.authority.create_signing_key()
        names = ("localhost", "kubernetes", "kubernetes.default", f"kubernetes.default.svc.{CLUSTER_DOMAIN}")
        addresses = dict.fromkeys((LOOPBACK, self.address, KUBERNETES_SERVICE_IP))
        self.authority.issue(
            "apiserver",
            "/CN=kube-apiserver",
            (*(f"DNS:{name}" for name in (*names, "kubernetes.default.svc")), *(f"IP:{each}" for each in addresses)),
        )
        self.front_proxy.create()
        self.front_proxy.issue(FRONT_PROXY, f"/CN={FRONT_PROXY}")
        self.authority.kubeconfig(self.kubeconfig, self.url, "admin", "/O=system:masters/CN=admin")
        for name in ("controller-manager", "scheduler"):
            self.authority.kubeconfig(self._client(name), self.url, name, f"/CN=system:kube-{name}")

    def _client(self, name: str) -> Path:
        return self.directory / f"{name}.kubeconfig"

    def _etcd(self) -> Daemon:
        # 3.6, because older versions send no watch progress, and lists of idle resources answer 504.
        # No fsync: a power cut may lose this cluster, but disk latency does not slow down every test.
        client = f"http://{LOOPBACK}:{self.ports.etcd}"
        peer = f"http://{LOOPBACK}:{self.ports.etcd_peer}"
        argv = (
            str(toolchain.program("etcd")),
            f"--data-dir={self.directory / 'etcd'}",
            "--unsafe-no-fsync",
            "--watch-progress-notify-interval=5s",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--log-level=warn",
        )
        return Daemon("etcd", argv, self.directory, lambda: answers(f"{client}/readyz"))

    def _apiserver(self) -> Daemon:
        pki, front_proxy = self.authority, self.front_proxy
        argv = [
            str(toolchain.program("kube-apiserver")),
            f"--etcd-servers=http://{LOOPBACK}:{self.ports.etcd}",
            f"--secure-port={self.ports.apiserver}",
            f"--bind-address={LOOPBACK if self.address == LOOPBACK else '0.0.0.0'}",
            f"--advertise-address={self.address}",
            f"--service-cluster-ip-range={SERVICE_SUBNET}",
            "--authorization-mode=Node,RBAC",
            f"--client-ca-file={pki.certificate}",
            f"--tls-cert-file={pki.directory / 'apiserver.crt'}",
            f"--tls-private-key-file={pki.directory / 'apiserver.key'}",
            f"--service-account-issuer=https://kubernetes.default.svc.{CLUSTER_DOMAIN}",
            f"--service-account-key-file={pki.service_account_public_key}",
            f"--service-account-signing-key-file={pki.service_account_key}",
            f"--kubelet-client-certificate={pki.directory / 'admin.crt'}",
            f"--kubelet-client-key={pki.directory / 'admin.key'}",
            "--kubelet-preferred-address-types=InternalIP",  # DNS does not know the node's name
            *_aggregation_flags(front_proxy),
            "--allow-privileged=true",
            "--enable-admission-plugins=NodeRestriction",
            "--profiling=false",
        ]
        if self.address == LOOPBACK:
            argv.append(
                "--endpoint-reconciler-type=none"
            )  # otherwise it logs once a second that a loopback endpoint is refused
        if not self.controllers:
            argv.append("--disable-admission-plugins=ServiceAccount")
        # The probe uses a client certificate, because anonymous requests may not see everything that /readyz checks.
        admin = (pki.directory / "admin.crt", pki.directory / "admin.key")
        return Daemon(
            "apiserver",
            tuple(argv),
            self.directory,
            lambda: answers(f"{self.url}/readyz", admin),
            files=(
                pki.certificate,
                pki.directory / "apiserver.crt",
                front_proxy.certificate,
                front_proxy.directory / f"{FRONT_PROXY}.crt",
            ),
            env=FEW_COLLECTIONS if self.temporary_directory else {},
            ready_seconds=300,
        )

    def _controller_manager(self) -> Daemon:
        config = self._client("controller-manager")
        argv = (
            str(toolchain.program("kube-controller-manager")),
            *_kubeconfig_flags(config),
            f"--controllers={','.join(self.controllers)}",
            f"--service-account-private-key-file={self.authority.service_account_key}",
            f"--root-ca-file={self.authority.certificate}",
            "--use-service-account-credentials=true",
            "--leader-elect=false",
            f"--bind-address={LOOPBACK}",
            f"--secure-port={self.ports.controller_manager}",
            "--profiling=false",
            # By default each controller makes 20 calls a second: a burst of 400 Jobs would take minutes.
            "--kube-api-qps=200",
            "--kube-api-burst=400",
            *((OFTEN_AUTOSCALED,) if self.temporary_directory else ()),
        )
        return Daemon(
            "controller-manager",
            argv,
            self.directory,
            lambda: answers(f"https://{LOOPBACK}:{self.ports.controller_manager}/healthz"),
            files=(config,),
        )

    def _scheduler(self) -> Daemon:
        config = self._client("scheduler")
        argv = (
            str(toolchain.program("kube-scheduler")),
            *_kubeconfig_flags(config),
            "--leader-elect=false",
            f"--bind-address={LOOPBACK}",
            f"--secure-port={self.ports.scheduler}",
            "--profiling=false",
        )
        return Daemon(
            "scheduler",
            argv,
            self.directory,
            lambda: answers(f"https://{LOOPBACK}:{self.ports.scheduler}/healthz"),
            files=(config,),
        )


def _remove_abandoned() -> None:
    """Stop and remove temporary control planes whose owner was killed before it could do so."""
    for owner in Path(tempfile.gettempdir()).glob(f"{TEMPORARY_PREFIX}*/{OWNER}"):
        record = Record.read(owner)
        if record and not record.identity.alive():
            for pid_file in owner.parent.glob("*.pid"):
                if part := Record.read(pid_file):
                    terminate(part.identity, grace_seconds=0)
            shutil.rmtree(owner.parent, ignore_errors=True)


def _kubeconfig_flags(path: Path) -> tuple[str, ...]:
    names = ("kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig")
    return tuple(f"--{name}={path}" for name in names)


def _aggregation_flags(front_proxy: Authority) -> tuple[str, ...]:
    """How aggregated APIs know who asks: by headers that only the API server may send, as its certificate proves."""
    certificate = front_proxy.directory / f"{FRONT_PROXY}.crt"
    return (
        f"--requestheader-client-ca-file={front_proxy.certificate}",
        f"--requestheader-allowed-names={FRONT_PROXY}",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={certificate}",
        f"--proxy-client-key-file={certificate.with_suffix('.key')}",
    )


def answers(url: str, client: tuple[Path, Path] | None = None) -> bool:
    """Whether a local health endpoint answers 200 (its self-signed certificate is not checked). ``client``: the files
    of the certificate and the key with which it is asked."""
    context = ssl._create_unverified_context() if url.startswith("https") else None
    if context and client:
        context.load_cert_chain(*client)
    try:
        with urllib.request.urlopen(url, timeout=2, context=context) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
