"""Personal data in texts: what finds it (``recognition``), and pseudonyms in its place (``masking``)."""

from finetune_jobs.text.pii.findings import Finding
from finetune_jobs.text.pii.recognition import Recognition

__all__ = ["Finding", "Recognition"]
