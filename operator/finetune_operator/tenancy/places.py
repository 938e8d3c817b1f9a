"""Where things are: URIs below a prefix, hosts inside of the cluster."""

import re
from typing import Final

_INSIDE: Final = re.compile(r"[a-z][-a-z0-9]*|[-a-z0-9.]+\.svc(\.cluster\.local)?")
"""Names that only the cluster's DNS answers. A name without a dot begins with a letter: 134744072 is an address."""
_ODD: Final = re.compile(r"://(.*/)?\.{0,2}/")


def lies_below(uri: str, prefix: str) -> bool:
    """Whether ``uri`` is at ``prefix`` or below it, by whole path segments.

    Some stores resolve ``..``, ``.`` and double slashes in a key, others do not. So a URI that has any is below
    nothing.
    """
    place = _folder(uri)
    return not _ODD.search(place) and place.startswith(_folder(prefix))


def host_of(url: str) -> str:
    """The host of a URL as the API takes it: without user name, perhaps with a port and a path."""
    return url.lower().partition("://")[2].partition("/")[0].partition(":")[0]


def is_inside(host: str) -> bool:
    """Whether a host can only be one of the cluster's own: a Service of the same namespace, or name.namespace.svc."""
    return bool(_INSIDE.fullmatch(host))


def _folder(uri: str) -> str:
    """The URI with a slash at its end, so that text comparison compares whole segments.

    The revision of a repository on the hub is a part of its own: hf://organisation/name is above each revision.
    """
    if uri.startswith("hf:"):
        uri = uri.replace("@", "/@", 1)
    return uri if uri.endswith("/") else f"{uri}/"
