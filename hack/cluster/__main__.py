"""``python3 -m hack.cluster``: the local cluster for development and tests."""

from __future__ import annotations

import argparse
import shutil
import sys

from . import toolchain
from .console import ClusterError, say
from .images import IMAGES, build_images, prune_images
from .layout import cache_directory
from .provider import choice, provider


def main(argv: list[str]) -> int:
    """Run one command; returns 1 if it failed, after printing the reason to standard error."""
    options = _parser().parse_args(argv)
    try:
        _run(options)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _run(options: argparse.Namespace) -> None:
    match options.command:
        case "up":
            name, why = choice()
            say(f"{name} cluster: {why}")
            cluster = provider()
            cluster.up()
            say(f"kubeconfig: {cluster.kubeconfig}")
            if (kubectl := cluster.directory / "bin" / "kubectl").exists():
                say(f"kubectl:    {kubectl}")
        case "down":
            provider().down(purge=options.purge)
        case "status":
            say(provider().status())
        case "kubeconfig":
            say(str(provider().kubeconfig))
        case "build":
            toolchain.build(toolchain.named(options.tools))
        case "images":
            cluster = provider()
            with toolchain.locked(cluster.directory / "lock"):  # `up` might restart the builder
                store = cluster.images()
                built = build_images(store, options.names)
                prune_images(store)
            say("\n".join(f"{name:10} {reference}" for name, reference in built.items()))
        case "clean-cache":
            provider().down(purge=True)
            shutil.rmtree(cache_directory(), ignore_errors=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m hack.cluster", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="start or repair the cluster")
    down = commands.add_parser("down", help="stop it and undo its changes to this machine; keeps programs and images")
    down.add_argument("--purge", action="store_true", help="also remove its images")
    commands.add_parser("status", help="show which parts are running, and since when")
    commands.add_parser("kubeconfig", help="print the path of the administrator's kubeconfig")
    build = commands.add_parser("build", help="build the cluster's programs without starting anything")
    build.add_argument(
        "tools", nargs="*", metavar="TOOL", help=f"default: all; available: {', '.join(toolchain.TOOLS)}"
    )
    images = commands.add_parser("images", help="build the project's images into the cluster, and prune old layers")
    images.add_argument("names", nargs="*", metavar="IMAGE", help=f"default: all; available: {', '.join(IMAGES)}")
    commands.add_parser("clean-cache", help="stop the cluster and remove everything that clones share")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
