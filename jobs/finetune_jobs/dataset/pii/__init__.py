"""Personal data in texts: what finds it (``recognition``), and pseudonyms in its place (``masking``)."""

from finetune_jobs.dataset.pii.findings import Finding
from finetune_jobs.dataset.pii.recognition import Recognition

__all__ = ["Finding", "Recognition"]
