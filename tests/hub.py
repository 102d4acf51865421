"""A hub on loopback: repositories with commits, as Hugging Face's client speaks to them; it breaks where it is told."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml

TOKEN = "hf_wRItEr0123456789"
READER = "hf_rEaDeR0123456789"


@dataclass
class Repository:
    private: bool
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{".gitattributes": b"*.safetensors lfs\n"}])
    messages: list[str] = field(default_factory=lambda: ["initial commit"])

    @property
    def head(self) -> dict[str, bytes]:
        return self.commits[-1]

    @property
    def sha(self) -> str:
        return self.sha_of(len(self.commits) - 1)

    def at(self, revision: str) -> int | None:
        if revision == "main":
            return len(self.commits) - 1
        return next((number for number in range(len(self.commits)) if self.sha_of(number) == revision), None)

    def sha_of(self, number: int) -> str:
        return hashlib.sha1(f"{number} {sorted(self.commits[number])}".encode()).hexdigest()


@dataclass
class Hub:
    """What the server knows.

    Attributes:
        breaks: part of a path at which it closes the connection.
        refuses: status that it answers everything with.
        echoes: whether refusals repeat the token.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)
    breaks: str = ""
    refuses: int = 0
    echoes: bool = False
    address: str = ""

    def publish(self, folder: Path, name: str) -> Repository:
        """A public repository whose last commit holds the files of a folder."""
        found = self.repositories.setdefault(name, Repository(private=False))
        found.commits.append({file.name: file.read_bytes() for file in sorted(folder.iterdir())})
        found.messages.append(f"files of {folder.name}")
        return found

    def files_asked(self, since: int = 0) -> list[str]:
        """Names of the files that were sent, in the order of the requests from that one on."""
        return [line.rpartition("/")[2] for line in self.seen[since:] if re.match("GET .*/resolve/", line)]


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.seen.append(f"{self.command} {path}")
        if self.hub.breaks and self.hub.breaks in path:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if self.hub.refuses:
            return self._refuse(self.hub.refuses, token)
        for pattern, serve in ROUTES:
            if match := re.fullmatch(pattern, path):
                return serve(self, body, token, *match.groups())
        self._refuse(404, token)

    def _send(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), Content_Type="application/json")

    def _refuse(self, status: int, token: str, code: str = "") -> None:
        said = f"not for {token}" if self.hub.echoes else "no"
        headers = {"X_Error_Code": code} if code else {}
        self._send(status, json.dumps({"error": said}).encode(), X_Error_Message=said, **headers)

    def _readable(self, name: str, token: str) -> Repository | None:
        found = self.hub.repositories.get(name)
        if found is None or (found.private and token not in (TOKEN, READER)):
            self._refuse(401, token, "RepoNotFound")
            return None
        return found

    def _writable(self, token: str) -> bool:
        if token != TOKEN:
            self._refuse(403 if token == READER else 401, token)
        return token == TOKEN

    def create(self, body: bytes, token: str) -> None:
        if not self._writable(token):
            return
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repositories:
            return self._json({"error": "You already created this model repo"}, 409)
        private = asked.get("private") is True or asked.get("visibility") == "private"
        self.hub.repositories[name] = Repository(private)
        self._json({"url": f"{self.hub.address}/{name}", "name": name, "id": name})

    def info(self, body: bytes, token: str, name: str, revision: str | None = None) -> None:
        if (found := self._readable(name, token)) is None:
            return
        number = found.at(revision or "main")
        if number is None:
            return self._refuse(404, token, "RevisionNotFound")
        files = [{"rfilename": file} for file in found.commits[number]]
        _, fields, _ = found.commits[number].get("README.md", b"---\n---\n").decode().split("---\n", 2)
        said = {"id": name, "private": found.private, "sha": found.sha_of(number), "siblings": files, "tags": []}
        self._json({**said, "cardData": yaml.safe_load(fields)})

    def tree(self, body: bytes, token: str, name: str, revision: str) -> None:
        if (found := self._readable(name, token)) is None:
            return
        number = found.at(revision)
        if number is None:
            return self._refuse(404, token, "RevisionNotFound")
        files = found.commits[number].items()
        self._json([{"type": "file", "path": file, "size": len(content), "oid": "0" * 40} for file, content in files])

    def check_yaml(self, body: bytes, token: str) -> None:
        self._json({"errors": [], "warnings": []})

    def preupload(self, body: bytes, token: str, name: str, revision: str) -> None:
        if not self._writable(token):
            return
        modes = [
            {"path": file["path"], "uploadMode": mode(file["path"]), "shouldIgnore": False}
            for file in json.loads(body)["files"]
        ]
        self._json({"files": modes})

    def batch(self, body: bytes, token: str, name: str) -> None:
        asked = json.loads(body)["objects"]
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.hub.address}/store/{one['oid']}?signed=s3cret"}}}
            for one in asked
        ]
        self._json({"transfer": "basic", "objects": objects})

    def store(self, body: bytes, token: str, oid: str) -> None:
        self.hub.stored[oid] = body
        self._send(200, b"")

    def commit(self, body: bytes, token: str, name: str, revision: str) -> None:
        if not self._writable(token):
            return
        found, files, message = self.hub.repositories[name], dict(self.hub.repositories[name].head), ""
        for line in body.splitlines():
            entry = json.loads(line)
            kind, value = entry["key"], entry["value"]
            if kind == "header":
                message = value["summary"]
            elif kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
            else:
                assert kind == "deletedFile", kind
                del files[value["path"]]
        found.commits.append(files)
        found.messages.append(message)
        url = f"{self.hub.address}/{name}/commit/{found.sha}"
        self._json({"success": True, "commitOid": found.sha, "commitUrl": url})

    def resolve(self, body: bytes, token: str, name: str, revision: str, file: str) -> None:
        if (found := self._readable(name, token)) is None:
            return
        number = found.at(revision)
        if number is None:
            return self._refuse(404, token, "RevisionNotFound")
        if file not in found.commits[number]:
            return self._refuse(404, token, "EntryNotFound")
        content = found.commits[number][file]
        etag = hashlib.sha256(content).hexdigest() if mode(file) == "lfs" else hashlib.sha1(content).hexdigest()
        headers = {"ETag": f'"{etag}"', "X_Repo_Commit": found.sha_of(number), "Accept_Ranges": "bytes"}
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        if start:
            headers["Content_Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(206 if start else 200, content[start:], **headers)


def mode(path: str) -> str:
    return "lfs" if path.endswith(".safetensors") else "regular"


NAME = r"([^/]+/[^/]+)"
ROUTES = [
    ("/api/repos/create", Handler.create),
    ("/api/validate-yaml", Handler.check_yaml),
    (rf"/api/models/{NAME}/revision/([^/]+)", Handler.info),
    (rf"/api/models/{NAME}/tree/([^/]+)", Handler.tree),
    (rf"/api/models/{NAME}/preupload/([^/]+)", Handler.preupload),
    (rf"/api/models/{NAME}/commit/([^/]+)", Handler.commit),
    (rf"/api/models/{NAME}", Handler.info),
    (rf"/{NAME}\.git/info/lfs/objects/batch", Handler.batch),
    (r"/store/([0-9a-f]+)", Handler.store),
    (rf"/{NAME}/resolve/([^/]+)/(.+)", Handler.resolve),
]


@contextmanager
def running() -> Iterator[Hub]:
    """A hub without repositories, at its `address` until the end."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def serving(patch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    """A hub that this process's client takes for the public one; nothing waits before another attempt."""
    import huggingface_hub.constants as constants

    for name in ("HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY", "HF_TOKEN"):
        patch.delenv(name, raising=False)
    with running() as hub:
        patch.setenv("HF_ENDPOINT", hub.address)
        patch.setenv("HF_TOKEN", TOKEN)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no-token"))
        patch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        yield hub
