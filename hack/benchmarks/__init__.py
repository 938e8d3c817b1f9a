"""Benchmarks: ``make bench NAME=<name>`` runs ``hack/benchmarks/<name>.py``; ``make bench`` runs all of them.

Each module has ``run() -> Result``. Figures that compare are taken side by side in one run, because an absolute time
says more about the machine than about the program.
"""
