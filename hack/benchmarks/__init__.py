"""Benchmarks: ``make bench NAME=<name>`` runs ``hack/benchmarks/<name>.py``; ``make bench`` runs all of them.

Each module has ``run() -> Result``. Compared figures are measured side by side in one run, because an absolute time
depends more on the machine than on the program.
"""
