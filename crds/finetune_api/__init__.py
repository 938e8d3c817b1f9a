"""The API contract of finetune-operator: both custom resources, stage inputs and results, manifests and keys.

This package is all that the operator and the jobs share. The CRD YAML beside it is generated from these models
(``make manifests``).
"""

__version__ = "0.1.0"
"""Version of the whole project: operator, jobs, chart and images."""
