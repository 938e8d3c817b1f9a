"""What this project needs to know of huggingface_hub's HTTP client, which is httpx or httpx2, by its version."""

from typing import Final

from huggingface_hub.errors import HfHubHTTPError

CLIENT_ERROR: Final[type[Exception]] = HfHubHTTPError.__bases__[0]
"""Base class of everything that the client raises: no connection, a timeout, a status of 400 or more."""
