"""The settings as they are read, once, from the chart's ConfigMap; and what to do where they cannot be used: operator
and chart may be of different versions."""

from pathlib import Path
from typing import Final

import yaml
from pydantic import ValidationError

from finetune_api import __version__
from finetune_operator.settings import Settings

_UNKNOWN: Final = "extra_forbidden"
"""Pydantic's word for a field that the model does not have."""
_MISSING: Final = "missing"
"""And for one that is not given."""


class SettingsError(Exception):
    """The configuration cannot be used; says what is wrong where, and what to do."""


def load_settings(path: Path) -> Settings:
    """Read the configuration. Raises SettingsError."""
    try:
        return Settings.model_validate(yaml.safe_load(path.read_text()))
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is not YAML: {error}") from error
    except ValidationError as error:
        raise SettingsError(f"{path}: {_problems(error)}") from error


def _problems(error: ValidationError) -> str:
    """What is wrong. The chart's schema lets through what its own version knows: unknown is what a newer one says, and
    an older one leaves out images that this operator needs."""
    found = [(".".join(map(str, each["loc"])), each["type"], each["msg"]) for each in error.errors()]
    text = "; ".join(f"{place}: {message}" for place, kind, message in found if kind != _UNKNOWN)
    unknown = [place for place, kind, _ in found if kind == _UNKNOWN]
    missing = [place for place, kind, _ in found if kind == _MISSING and place.startswith("images.")]
    if missing and not unknown:
        return (
            f"{text}. This operator ({__version__}) needs {', '.join(missing)}. Its image is newer than its chart: "
            "upgrade the chart, or set images.tag, or images.operator.digest, of its values to the image that was "
            "built with it."
        )
    if not unknown:
        return f"{text}."
    advice = (
        f"this operator ({__version__}) does not know {', '.join(unknown)}. Its image is older than its chart: set "
        "images.tag, or images.operator.digest, of the chart's values to the image that was built with the chart."
    )
    return f"{text}; {advice}" if text else advice
