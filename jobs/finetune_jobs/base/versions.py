"""Which libraries made a result."""

from importlib.metadata import version


def versions(*packages: str) -> dict[str, str]:
    """Installed version of each package, for the lineage."""
    return {package: version(package) for package in packages}
