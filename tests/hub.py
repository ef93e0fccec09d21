"""A hub on the loopback: the few endpoints that huggingface_hub asks when it downloads a snapshot.

with Hub({"owner/name": folder}) as hub:
    ...                             # HF_ENDPOINT=hub.url
    hub.requests                    # what was asked for: "GET /owner/name/resolve/<commit>/unet/config.json"
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

BRANCH = "main"


class Hub:
    """Serves each folder as a repository with one commit, on the branch `main` and under the tag `v1`."""

    def __init__(self, repositories: Mapping[str, Path]) -> None:
        self.repositories = dict(repositories)
        self.requests: list[str] = []
        self.statuses: dict[str, int] = {}
        """Answers to give in place of the usual ones, by how the path ends."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def commit(self, repository: str) -> str:
        return hashlib.sha1(repository.encode()).hexdigest()

    def downloaded(self) -> set[str]:
        """Returns the files whose content was asked for."""
        starts = [f"GET /{name}/resolve/{self.commit(name)}/" for name in self.repositories]
        return {r.removeprefix(start) for r in self.requests for start in starts if r.startswith(start)}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

        def _answer(self, *, with_body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            status, headers, body = _respond(hub, path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

    return Handler


def _respond(hub: Hub, path: str) -> tuple[int, dict[str, str], bytes]:
    for end, status in hub.statuses.items():
        if path.endswith(end):
            return status, {}, b""
    api = path.startswith("/api/models/")
    parts = path.removeprefix("/api/models/" if api else "/").split("/")
    name, rest = "/".join(parts[:2]), parts[2:]
    if name not in hub.repositories:
        return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
    folder, commit = hub.repositories[name], hub.commit(name)
    if rest and rest[1] not in (BRANCH, "v1", commit):
        return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
    if not api:
        file = folder / "/".join(rest[2:])
        headers = {"X-Repo-Commit": commit}
        if not file.is_file():
            return 404, {**headers, "X-Error-Code": "EntryNotFound"}, b""
        content = file.read_bytes()
        return 200, {**headers, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}, content
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    answer: Any
    if rest and rest[0] == "tree":
        answer = [
            {
                "type": "file",
                "path": str(file.relative_to(folder)),
                "size": file.stat().st_size,
                "oid": hashlib.sha1(file.read_bytes()).hexdigest(),
            }
            for file in files
        ]
    else:
        siblings = [{"rfilename": str(file.relative_to(folder)), "size": file.stat().st_size} for file in files]
        answer = {"id": name, "sha": commit, "siblings": siblings}
    return 200, {"Content-Type": "application/json"}, json.dumps(answer).encode()
