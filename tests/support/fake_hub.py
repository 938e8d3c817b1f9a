"""A Hugging Face hub on loopback: one repository, with the HTTP interface that huggingface_hub uses for its files."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote

import pytest
from huggingface_hub import constants

COMMIT = "5e" * 20
LARGE = 1000
"""Files of more bytes are in large file storage, with the SHA-256 of their content."""


@dataclass
class Seen:
    """The ``Authorization`` of each request for the repository; empty where there was none."""

    hub: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    """Of those to the other host that has the large files."""


@contextmanager
def fake_hub(
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    repo: str,
    files: Mapping[str, bytes],
    *,
    revisions: tuple[str, ...] = ("main",),
    gated: bool = False,
    tokens: Mapping[str, bool] = MappingProxyType({}),
    spoil: Callable[[bytes], bytes] = bytes,
) -> Iterator[Seen]:
    """Serve ``repo`` of a ``kind`` (model, dataset) with ``files``; the ``revisions`` all stand for ``COMMIT``.

    ``tokens`` are those that the hub knows, and whether each opens the repository, which is then closed to others.
    Large files are then on another host, as they are on the real hub. ``spoil`` changes what the hub says of a
    repository (its JSON), as a broken proxy does.
    """
    seen = Seen()
    api = f"/api/{kind}s/{repo}"
    resolve = f"/{'' if kind == 'model' else f'{kind}s/'}{repo}/resolve/{COMMIT}/"

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path, _, query = unquote(self.path).partition("?")
            given = self.headers.get("Authorization", "")
            token = given.removeprefix("Bearer ")
            if path.startswith((api, resolve)):
                seen.hub.append(given)
            if token and tokens and token not in tokens:
                self._answer(401, b"", {"X-Error-Message": "Invalid credentials in Authorization header"})
            elif not path.startswith((api, resolve)):
                self._answer(401, b"", {"X-Error-Code": "RepoNotFound"})
            elif gated or (tokens and not tokens.get(token)):
                self._answer(403 if token else 401, b"", {"X-Error-Code": "GatedRepo"})
            elif path == f"{api}/auth-check":
                self._answer(200, b"")
            elif path in {f"{api}/revision/{revision}" for revision in (*revisions, COMMIT)}:
                siblings = [{"rfilename": name} for name in files]
                self._answer(200, spoil(_json({"id": repo, "sha": COMMIT, "private": False, "siblings": siblings})))
            elif path.startswith(f"{api}/tree/{COMMIT}"):
                folder = path.removeprefix(f"{api}/tree/{COMMIT}").strip("/")
                self._tree(folder, recursive="recursive=true" in query.lower())
            elif content := files.get(path.removeprefix(resolve)):
                about = {"ETag": f'"{_git_hash(content)}"', "X-Repo-Commit": COMMIT}
                if tokens and len(content) > LARGE:
                    about |= {"Location": f"{other}/{path.removeprefix(resolve)}"}
                    about |= {"X-Linked-ETag": f'"{sha256(content)}"', "X-Linked-Size": str(len(content))}
                    self._answer(302, b"", about)
                else:
                    self._answer(200, content, about)
            else:
                known = path.startswith(resolve)
                self._answer(404, b"", {"X-Error-Code": "EntryNotFound" if known else "RevisionNotFound"})

        def _tree(self, folder: str, *, recursive: bool) -> None:
            below = f"{folder}/" if folder else ""
            found = {name: content for name, content in files.items() if name.startswith(below)}
            if not found:
                self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            folders = {name.rpartition("/")[0] for name in found} - {folder, ""}
            here = [entry(name, found[name]) for name in found if recursive or "/" not in name.removeprefix(below)]
            self._answer(
                200, spoil(_json([{"type": "directory", "path": each, "oid": "0" * 40} for each in folders] + here))
            )

        def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as the base class names it
            pass

    class Elsewhere(Handler):
        def do_GET(self) -> None:
            seen.elsewhere.append(self.headers.get("Authorization", ""))
            self._answer(200, files[unquote(self.path).removeprefix("/")])

    server, storage = (ThreadingHTTPServer(("127.0.0.1", 0), each) for each in (Handler, Elsewhere))
    other = f"http://localhost:{storage.server_address[1]}"
    for each in (server, storage):
        threading.Thread(target=each.serve_forever, args=(0.05,), daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    try:
        yield seen
    finally:
        for each in (server, storage):
            each.shutdown()
            each.server_close()


def entry(name: str, content: bytes, *, large: bool | None = None) -> dict[str, Any]:
    """How the hub lists a file; ``large``: whether it is in large file storage, if its size does not say."""
    listed: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": _git_hash(content)}
    if len(content) > LARGE if large is None else large:
        listed["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 134}
    return listed


def sha256(content: bytes) -> str:
    """In hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _json(value: object) -> bytes:
    return json.dumps(value).encode()
