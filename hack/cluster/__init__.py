"""The local cluster: a real Kubernetes for development and tests, with kind where Docker answers, native otherwise.

Standard library only, because it runs before any virtual environment exists.
"""
