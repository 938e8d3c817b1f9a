"""A Hugging Face hub on loopback to which models are pushed, with the HTTP interface that huggingface_hub uses."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import yaml

from tests.support.fake_hub import entry, sha256

TOKEN, READER = "hf_writes", "hf_reads"
"""Tokens that the hub knows: of one who may write to what is acme's, and of one who may not."""
NAMESPACE = "acme"
NAME = re.compile(r"(?:[\w.-]+/)?[\w.-]+")
"""A model's or data set's."""
LICENCES = ("apache-2.0", "mit", "llama3.1", "gemma", "other")
"""Some of those that it takes."""
PART = 100
"""Bytes of a part, where large files are sent in parts."""


@dataclass
class Commit:
    """One state of a repository."""

    title: str
    files: dict[str, bytes]
    parent: str = ""

    @property
    def id(self) -> str:
        """Its hash."""
        content = repr((self.title, sorted(self.files.items()), self.parent)).encode()
        return hashlib.sha1(content, usedforsecurity=False).hexdigest()


@dataclass
class Repository:
    """What the hub has of a model."""

    private: bool = True
    commits: list[Commit] = field(default_factory=lambda: [Commit("initial commit", {".gitattributes": b"*.x lfs\n"})])
    """Of main, the first one first."""
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def head(self) -> Commit:
        """What main stands for."""
        return self.commits[-1]

    def at(self, revision: str) -> Commit | None:
        """The commit for which a branch, a tag or a hash stands."""
        known = {"main": self.head.id} | self.tags
        return next((each for each in self.commits if each.id == known.get(revision, revision)), None)


Answer = tuple[int, bytes, dict[str, str]]


@dataclass
class PushedHub:
    """The hub's state, and what it was asked."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    """Files in large file storage, by SHA-256."""
    asked: list[str] = field(default_factory=list)
    """Method and path of each request."""
    tokens: set[str] = field(default_factory=set)
    """What came as ``Authorization``, with the path."""
    fault: Callable[[str, str], int | None] = lambda method, path: None
    """The status with which a request fails; None: it does not. May change the hub, or raise ConnectionError, which
    ends the connection without an answer."""
    ignored: str = ""
    """A file that the hub leaves out of commits."""
    in_parts: bool = False
    """Whether large files are sent in parts."""

    @property
    def written(self) -> list[str]:
        """Requests that change what the hub has."""
        return [each for each in self.asked if not each.startswith("GET") and "validate" not in each]

    def answer(self, method: str, path: str, token: str, body: bytes) -> Answer:
        """What the hub says."""
        if path.startswith("/large/"):
            return self._keep(path, body)
        if token not in (TOKEN, READER):
            return 401, b"", {"X-Error-Message": "Invalid credentials in Authorization header"}
        if path == "/api/validate-yaml":
            faults = metadata_faults(json.loads(body)["content"])
            return _json({"errors": [{"message": each} for each in faults], "warnings": []}, 400 if faults else 200)
        if path == "/api/repos/create":
            return self._create(json.loads(body), token)
        name = "/".join(path.removeprefix("/api/models").strip("/").split("/")[:2]).removesuffix(".git")
        found = self.repositories.get(name)
        if found is None or not (name.startswith(f"{NAMESPACE}/") or not found.private):
            return 404, b"", {"X-Error-Code": "RepoNotFound"}
        if method != "GET" and (token != TOKEN or not name.startswith(f"{NAMESPACE}/")):
            return 403, b"", {"X-Error-Message": "no write access"}
        what, _, rest = path.partition(name)[2].strip("/").partition("/")
        if what == "commit":
            return self._commit(name, found, body)
        if what == "tag":
            return self._tag(found, rest, json.loads(body)["tag"])
        if path.endswith("/objects/batch"):
            return self._batch(json.loads(body))
        return self._read(name, found, what, rest, body)

    def _read(self, name: str, found: Repository, what: str, rest: str, body: bytes) -> Answer:
        if what == "":
            return _json({"id": name, "private": found.private})
        if what == "refs":
            known = {"branches": {"main": found.head.id}, "tags": found.tags, "converts": {}}
            refs = {
                kind: [{"name": each, "ref": f"refs/{kind}/{each}", "targetCommit": names[each]} for each in names]
                for kind, names in known.items()
            }
            return _json(refs)
        if what == "preupload":
            files = [
                {
                    "path": each["path"],
                    "uploadMode": "lfs" if each["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": each["path"] == self.ignored,
                }
                for each in json.loads(body)["files"]
            ]
            return _json({"files": files})
        commit = found.at(rest)
        if commit is None:
            return 404, b"", {"X-Error-Code": "RevisionNotFound"}
        if what == "tree":
            return _json(
                [entry(name, content, large=name.endswith(".safetensors")) for name, content in commit.files.items()]
            )
        past = found.commits[: found.commits.index(commit) + 1]
        date = "2026-01-31T12:00:00.000Z"
        return _json(
            [{"id": each.id, "title": each.title, "message": "", "authors": [], "date": date} for each in past[::-1]]
        )

    def _create(self, asked: dict[str, Any], token: str) -> Answer:
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.repositories:
            return 409, b"", {"X-Error-Message": "You already created this model repo"}
        if token != TOKEN or asked["organization"] != NAMESPACE:
            return 403, b"", {"X-Error-Message": "You don't have the rights to create a model under this namespace"}
        self.repositories[name] = Repository(private=asked.get("visibility") == "private")
        return _json({"url": f"{self.url}/{name}"})

    def _batch(self, asked: dict[str, Any]) -> Answer:
        return _json({"transfer": "basic", "objects": [self._object(each) for each in asked["objects"]]})

    def _object(self, asked: dict[str, Any]) -> dict[str, Any]:
        oid, size = asked["oid"], asked["size"]
        known = {"oid": oid, "size": size}
        if oid in self.large:
            return known
        place = f"{self.url}/large/{oid}"
        if not self.in_parts:
            return known | {"actions": {"upload": {"href": place}}}
        parts = {str(number + 1): f"{place}?part={number}" for number in range(-(-size // PART))}
        return known | {"actions": {"upload": {"href": place, "header": parts | {"chunk_size": str(PART)}}}}

    def _keep(self, path: str, body: bytes) -> Answer:
        oid, _, part = path.removeprefix("/large/").partition("?part=")
        if self.in_parts and not part:  # they are whole
            body = b"".join(self.large.pop(f"{oid}:{number['partNumber'] - 1}") for number in json.loads(body)["parts"])
        if not part and sha256(body) != oid:
            return 400, b"", {}
        self.large[f"{oid}:{part}" if part else oid] = body
        return 200, b"", {"ETag": f'"{sha256(body)}"'}

    def _commit(self, name: str, found: Repository, body: bytes) -> Answer:
        lines = [json.loads(line) for line in body.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit") != found.head.id:
            return 412, b"", {"X-Error-Message": "A commit has happened since. Please refresh and try again."}
        files = dict(found.head.files)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "deletedFile":
                del files[value["path"]]
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.large[value["oid"]]
            else:
                files[value["path"]] = base64.b64decode(value["content"])
        found.commits.append(Commit(header["summary"], files, found.head.id))
        made = found.head.id
        return _json({"commitUrl": f"{self.url}/{name}/commit/{made}", "commitOid": made})

    def _tag(self, found: Repository, revision: str, name: str) -> Answer:
        if name in found.tags:
            return 409, b"", {"X-Error-Message": "Tag reference exists already"}
        commit = found.at(revision)
        if commit is None:
            return 404, b"", {"X-Error-Code": "RevisionNotFound"}
        found.tags[name] = commit.id
        return 200, b"", {}


@contextmanager
def pushed_hub() -> Iterator[PushedHub]:
    """A hub without repositories."""
    hub = PushedHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except ConnectionError:
                self.close_connection = True

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = unquote(self.path)
            path = path if path.startswith("/large/") else path.partition("?")[0]
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            hub.asked.append(f"{self.command} {path}")
            hub.tokens.add(f"{token} {path.split('/')[1]}")
            status = hub.fault(self.command, path)
            answered = (status, b"", {}) if status else hub.answer(self.command, path, token, body)
            self.send_response(answered[0])
            for name, value in answered[2].items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answered[1])))
            self.end_headers()
            self.wfile.write(answered[1])

        do_POST = do_PUT = do_GET  # noqa: N815 - as the base class asks for them

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as the base class names it
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def metadata_faults(card: str) -> list[str]:
    """What the hub says of a model card's metadata, in its words. That it takes names alone as a base model:
    huggingface/peft#2124; its list of licences: huggingface/huggingface_hub#4218; names of data sets:
    huggingface/transformers#28482."""
    data = yaml.safe_load(card.split("---")[1])
    faults = []
    base, licence = data.get("base_model"), data.get("license", "other")
    if base is not None and not NAME.fullmatch(base):
        faults.append(f'"base_model" with value "{base}" is not valid. Use a model id from https://hf.co/models.')
    if licence not in LICENCES:
        faults.append(f'"license" must be one of [{", ".join(LICENCES)}]')
    for number, result in enumerate(data.get("model-index", [{"results": []}])[0]["results"]):
        if not NAME.fullmatch(result["dataset"]["type"]):
            place = f"model-index[0].results[{number}].dataset.type"
            faults.append(f'"{place}" with value "{result["dataset"]["type"]}" fails to match the required pattern')
    return faults


def _json(value: object, status: int = 200) -> Answer:
    return status, json.dumps(value).encode(), {"Content-Type": "application/json"}
