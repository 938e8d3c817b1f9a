"""Tools of this repository: environments, local cluster, its platform, demo, benchmarks, generated files."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - `make` runs whatever python3 the machine has
    sys.exit(f"error: Python 3.{sys.version_info[1]} is too old; use 3.11 or newer: make PYTHON=python3.11 ...")
