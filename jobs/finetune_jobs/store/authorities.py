"""The certificates of private authorities that a pod mounts."""

import os
from pathlib import Path

from finetune_api.meta import CA_DIR, CA_DIR_VARIABLE
from finetune_api.reasons import Reason
from finetune_api.storage import CaBundle
from finetune_jobs.base.errors import StageError


def authorities_file(bundle: CaBundle | None, field: str) -> str | None:
    """The file with the certificate authorities to trust, of a bundle that ``field`` of the spec names; None: those of
    the system. Raises StageError (SpecInvalid) if it is missing."""
    if bundle is None:
        return None
    named = bundle.config_map_key_ref
    file = Path(os.environ.get(CA_DIR_VARIABLE, CA_DIR)) / named.name / named.key
    if not file.is_file():
        raise StageError(
            Reason.SPEC_INVALID,
            f"{field}: ConfigMap {named.name!r} does not exist in this namespace, or has no key "
            f"{named.key!r} (there is no file {str(file)!r}). Create it, then set spec.rerun to a new value.",
        )
    return str(file)
