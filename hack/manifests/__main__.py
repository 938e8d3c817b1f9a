"""Write the generated files, or check that they are up to date: ``python -m hack.manifests [--check]``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from finetune_api import crdgen
from finetune_operator.rbac import FORMER_ROUTE_RULES, ROUTE_RULES
from hack.cluster.layout import REPOSITORY
from hack.manifests import api_reference, chart, dashboards, families, reasons

CHART = Path("charts/finetune-operator")


def generate() -> dict[Path, str]:
    """Every generated file (relative to the repository) and its content."""
    values = chart.Values.parse((REPOSITORY / CHART / "values.yaml").read_text())
    files = {Path("crds") / crdgen.file_name(kind): crdgen.text(kind) for kind in crdgen.KINDS}
    templates = {CHART / "templates" / path.name: chart.crd_template(text) for path, text in files.items()}
    return {
        **files,
        **templates,
        CHART / "files/rules.yaml": chart.rules(),
        **{CHART / f"files/rules-{each.plural}.yaml": chart.rules([rule]) for each, rule in ROUTE_RULES.items()},
        **{
            CHART / f"files/rules-former-{each.plural}.yaml": chart.rules([rule])
            for each, rule in FORMER_ROUTE_RULES.items()
        },
        **dashboards.files(),
        CHART / "values.schema.json": chart.schema(values),
        Path("docs/reference/values.md"): chart.reference(values),
        Path("docs/reference/api.md"): api_reference.page(),
        Path("docs/reference/reasons.md"): reasons.page(),
        Path("docs/reference/families.md"): families.page(),
    }


def stale(files: dict[Path, str]) -> list[Path]:
    """The files that are missing or out of date."""
    return [path for path, text in files.items() if not _holds(REPOSITORY / path, text)]


def _holds(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() == text


def main() -> int:
    """Exit code 0, or 1 if ``--check`` found a file that is out of date."""
    parser = argparse.ArgumentParser(prog="python -m hack.manifests", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only check; fail if a file is out of date")
    check = parser.parse_args().check
    files = generate()
    outdated = stale(files)
    for path in outdated:
        sys.stdout.write(f"{path}: out of date; run `make manifests`\n" if check else f"{path}: written\n")
        if not check:
            (REPOSITORY / path).parent.mkdir(parents=True, exist_ok=True)
            (REPOSITORY / path).write_text(files[path])
    return 1 if check and outdated else 0


if __name__ == "__main__":
    sys.exit(main())
