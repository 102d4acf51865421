"""A small hub on loopback: one repository, its files at one commit, ranges served; what was asked is kept."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serving(folder: Path, name: str) -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    """(address, requests as (path, range)) of a hub that has `folder` as the repository `name`, on branch main."""
    asked: list[tuple[str, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Silent."""

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            asked.append((self.path, self.headers.get("Range")))
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            path = self.path.partition("?")[0]
            for revision in ("main", COMMIT):
                if path in (f"/api/models/{name}/revision/{revision}", f"/api/models/{name}"):
                    siblings = [{"rfilename": file.name} for file in sorted(folder.iterdir())]
                    said = {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "private": False}
                    return self._send(200, json.dumps(said).encode(), body, {"Content-Type": "application/json"})
                if path.startswith(f"/api/models/{name}/tree/{revision}"):
                    tree = [
                        {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": _sha(file)[:40]}
                        for file in sorted(folder.iterdir())
                    ]
                    return self._send(200, json.dumps(tree).encode(), body, {"Content-Type": "application/json"})
                prefix = f"/{name}/resolve/{revision}/"
                if path.startswith(prefix):
                    return self._file(folder / path.removeprefix(prefix), body)
            code = "RevisionNotFound" if f"/{name}" in path else "RepoNotFound"
            return self._send(404, b"", body, {"X-Error-Code": code, "X-Error-Message": "not there"})

        def _file(self, file: Path, body: bool) -> None:
            if not file.is_file():
                return self._send(404, b"", body, {"X-Error-Code": "EntryNotFound"})
            data, status = file.read_bytes(), 200
            more = {"ETag": f'"{_sha(file)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            if (wanted := self.headers.get("Range")) and body:
                start = int(wanted.removeprefix("bytes=").partition("-")[0])
                more["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
                data, status = data[start:], 206
            return self._send(status, data, body, more)

        def _send(self, status: int, data: bytes, body: bool, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _sha(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
