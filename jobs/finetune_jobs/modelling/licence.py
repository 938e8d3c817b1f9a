"""The licence of a base model, as its card names it: for the card of what is made from it."""

import logging
from typing import Final

import yaml
from huggingface_hub import ModelCard

from finetune_jobs.base.errors import StageError
from finetune_jobs.modelling.base_model import hub_name
from finetune_jobs.runtime.runner import Context
from finetune_jobs.store.hub import HUB_ERRORS, hub_client

log = logging.getLogger(__name__)

CARD: Final = "README.md"
_MOST: Final = 64
"""Longest name of a licence that is believed."""


def licence_of(context: Context) -> str:
    """E.g. ``apache-2.0``; empty where there is no card, or it does not say, or is not to be had: no run fails for
    it."""
    given = context.input
    try:
        if given.base_model_uri.startswith("s3://"):
            place = context.places.open(given.base_model_uri, given.base_model_storage)
            found = ModelCard((place.get(CARD) or b"").decode("utf-8"), ignore_metadata_errors=True).data.get("license")
        else:
            repo, revision = hub_name(given.base_model_uri)
            card = hub_client(given.base_model_secret_key_ref).model_info(repo, revision=revision).card_data
            found = card.get("license") if card else None
    except (StageError, yaml.YAMLError, *HUB_ERRORS) as error:
        log.warning("the base model's card could not be read: %s", error)
        return ""
    return found if isinstance(found, str) and len(found) <= _MOST else ""
