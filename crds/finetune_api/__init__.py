"""The contract of finetune-operator: both custom resources, the stages' inputs and results, manifests, keys.

The operator and the jobs import this package and nothing else of each other. The CRD YAML beside it is generated
from these models (``make manifests``).
"""

__version__ = "0.1.0"
"""Version of the whole project: operator, jobs, chart and images."""
