"""A hub on the loopback: the few endpoints that downloads ask, and what can go wrong with each file.

with Hub({"owner/name": folder}) as hub:
    hub.fail("unet/config.json", Reset(at=100))   # once; times=3 for the next three requests
    ...                                           # HF_ENDPOINT=hub.url
    hub.requests                                  # "GET /owner/name/resolve/<commit>/unet/config.json"
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

BRANCH = "main"
FOREVER = 10**9
LARGE = (".safetensors", ".bin", ".pth")
"""What the real hub keeps outside git, and lists by sha256."""


@dataclass(frozen=True)
class Reset:
    """The connection is reset after so many bytes of this answer's body."""

    at: int


@dataclass(frozen=True)
class Close:
    """The connection is closed tidily, too early; without `sized` nothing but the listing tells that it is."""

    at: int
    sized: bool = True


@dataclass(frozen=True)
class Stall:
    """After so many bytes nothing comes any more, until the hub is stopped."""

    at: int


@dataclass(frozen=True)
class Hold:
    """After so many bytes the hub says so by `reached`, and waits for `go`."""

    at: int
    reached: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Status:
    """Another answer than the usual one."""

    code: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True)
class Flip:
    """One byte of the file is another one."""

    at: int


@dataclass(frozen=True)
class Resize:
    """The file that is sent has so many bytes more, or fewer, than the listed one."""

    by: int


@dataclass(frozen=True)
class NoRange:
    """The whole file is sent, whatever was asked for."""


Fault = Reset | Close | Stall | Hold | Status | Flip | Resize | NoRange


@dataclass(frozen=True)
class Request:
    line: str
    headers: Mapping[str, str]


class Hub:
    """Serves each folder as a repository with one commit, on the branch `main` and under the tag `v1`."""

    def __init__(self, repositories: Mapping[str, Path]) -> None:
        self.repositories = dict(repositories)
        self.renamed: dict[str, str] = {}
        """Old names, which the hub redirects with a 307 to a relative address."""
        self.files_at: str | None = None
        """Another origin that the content is redirected to, as the hub does with large files."""
        self.asked: list[Request] = []
        self.stopped = threading.Event()
        self._faults: list[tuple[str, Fault, list[int]]] = []
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def requests(self) -> list[str]:
        return [request.line for request in self.asked]

    def commit(self, repository: str) -> str:
        return hashlib.sha1(repository.encode()).hexdigest()

    def fail(self, end: str, fault: Fault, times: int = 1) -> None:
        """Lets the next requests of a path that ends so go wrong. Faults of the same path take their turns in order."""
        self._faults.append((end, fault, [times]))

    def heal(self) -> None:
        self._faults.clear()

    def fault_for(self, path: str) -> Fault | None:
        with self._lock:
            for end, fault, left in self._faults:
                if path.endswith(end) and left[0] > 0:
                    left[0] -= 1
                    return fault
        return None

    def downloads(self) -> list[tuple[str, str | None]]:
        """Returns the files whose content was asked for, in order, and the range of each that was."""
        asked = [(re.match(r"GET /[^/]+/[^/]+/resolve/[^/]+/(.+)", r.line), r.headers.get("range")) for r in self.asked]
        return [(match[1], span) for match, span in asked if match]

    def downloaded(self) -> set[str]:
        """Returns the files whose content was asked for."""
        return {path for path, _ in self.downloads()}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@dataclass
class _Answer:
    status: int
    headers: dict[str, str]
    body: bytes = b""


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else each small answer waits 40 ms

        def do_GET(self) -> None:
            self._serve(with_body=True)

        def do_HEAD(self) -> None:
            self._serve(with_body=False)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

        def _serve(self, *, with_body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            headers = {name.lower(): value for name, value in self.headers.items()}
            hub.asked.append(Request(f"{self.command} {path}", headers))
            fault = hub.fault_for(path) if with_body else None
            if isinstance(fault, Status):
                answer = _Answer(fault.code, dict(fault.headers), fault.body)
            else:
                answer = _ranged(_respond(hub, path, fault), headers, fault)
            self.send_response(answer.status)
            unsized = isinstance(fault, Close) and not fault.sized
            length = {"Connection": "close"} if unsized else {"Content-Length": str(len(answer.body))}
            for name, value in {**answer.headers, **length}.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                with contextlib.suppress(ConnectionError):  # the one who asked may have gone
                    self._send(answer.body, fault)

        def _send(self, body: bytes, fault: Fault | None) -> None:
            if not isinstance(fault, Reset | Close | Stall | Hold) or fault.at >= len(body):
                self.wfile.write(body)
                return
            self.wfile.write(body[: fault.at])
            self.wfile.flush()
            if isinstance(fault, Hold):
                fault.reached.set()
                fault.go.wait()
                self.wfile.write(body[fault.at :])
                return
            if isinstance(fault, Stall):
                hub.stopped.wait()
            if isinstance(fault, Reset):
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
            self.close_connection = True

    return Handler


def _ranged(answer: _Answer, headers: Mapping[str, str], fault: Fault | None) -> _Answer:
    match = re.fullmatch(r"bytes=(\d+)-", headers.get("range", ""))
    if answer.status != 200 or not match or isinstance(fault, NoRange):
        return answer
    start, size = int(match[1]), len(answer.body)
    if start >= size:
        return _Answer(416, {"Content-Range": f"bytes */{size}"})
    span = {"Content-Range": f"bytes {start}-{size - 1}/{size}"}
    return _Answer(206, {**answer.headers, **span}, answer.body[start:])


def _respond(hub: Hub, path: str, fault: Fault | None) -> _Answer:
    api = path.startswith("/api/models/")
    start = "/api/models/" if api else "/"
    parts = path.removeprefix(start).split("/")
    name, rest = "/".join(parts[:2]), parts[2:]
    if name in hub.renamed:
        return _Answer(307, {"Location": "/".join([start + hub.renamed[name], *rest])})
    if name not in hub.repositories:
        return _Answer(404, {"X-Error-Code": "RepoNotFound"}, b"{}")
    folder, commit = hub.repositories[name], hub.commit(name)
    if rest and rest[1] not in (BRANCH, "v1", commit):
        return _Answer(404, {"X-Error-Code": "RevisionNotFound"}, b"{}")
    return _listing(folder, name, commit, tree=rest[:1] == ["tree"]) if api else _file(hub, folder, path, rest, fault)


def _file(hub: Hub, folder: Path, path: str, rest: list[str], fault: Fault | None) -> _Answer:
    headers = {"X-Repo-Commit": hub.commit("/".join(path.split("/")[1:3]))}
    file = folder / "/".join(rest[2:])
    if not file.is_file():
        return _Answer(404, {**headers, "X-Error-Code": "EntryNotFound"})
    if hub.files_at:
        return _Answer(302, {**headers, "Location": hub.files_at + path})
    content = file.read_bytes()
    sha256, sha1 = hashes(file)
    if isinstance(fault, Flip):
        content = content[: fault.at] + bytes([content[fault.at] ^ 1]) + content[fault.at + 1 :]
    if isinstance(fault, Resize):
        content = content[: fault.by] if fault.by < 0 else content + b"x" * fault.by
    return _Answer(200, {**headers, "ETag": f'"{sha256 if file.suffix in LARGE else sha1}"'}, content)


@functools.cache
def hashes(file: Path) -> tuple[str, str]:
    """Returns the file's sha256 and git's sha1 of it."""
    content = file.read_bytes()
    return hashlib.sha256(content).hexdigest(), hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def _listing(folder: Path, name: str, commit: str, *, tree: bool) -> _Answer:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    entries: list[dict[str, Any]] = []
    for file in files:
        sha256, sha1 = hashes(file)
        size, path = file.stat().st_size, str(file.relative_to(folder))
        entry: dict[str, Any] = {"type": "file", "path": path, "size": size, "oid": sha1}
        if not tree:
            entry = {"rfilename": path, "size": size, "blobId": sha1}
        if file.suffix in LARGE:
            entry["lfs"] = {"oid": sha256, "sha256": sha256, "size": size, "pointerSize": 134}
        entries.append(entry)
    answer = entries if tree else {"id": name, "sha": commit, "siblings": entries}
    return _Answer(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())


def write_repository(folder: Path, *, weights_bytes: int = 300_000) -> Path:
    """Returns a folder that holds a model in form only, quickly: whole files of the right names, with no sense in them."""
    unet = {"_class_name": "UNet3DConditionModel", "block_out_channels": [8, 8]}
    texts = {
        "model_index.json": {
            part: ["library", "Class"] for part in ("tokenizer", "scheduler", "text_encoder", "unet", "vae")
        },
        "tokenizer/vocab.json": {"a": 0},
        "tokenizer/tokenizer_config.json": {},
        "tokenizer/special_tokens_map.json": {"pad_token": "!"},
        "scheduler/scheduler_config.json": {"beta_start": 0.1},
        "text_encoder/config.json": {"num_hidden_layers": 2},
        "unet/config.json": unet,
        "vae/config.json": {"block_out_channels": [8, 16]},
        "README.md": {"for": "others"},
        "zs2_XL/text2video_pytorch_model.pth": {"for": "others, too"},
    }
    for path, value in texts.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps(value))
    (folder / "tokenizer/merges.txt").write_text("#version: 0.2\n")
    for number, path in enumerate(WEIGHTS):
        count = weights_bytes if path.startswith("unet") else weights_bytes // 10
        header = json.dumps({"weight": {"dtype": "U8", "shape": [count], "data_offsets": [0, count]}}).encode()
        content = (hashlib.sha256(bytes([number])).digest() * (count // 32 + 1))[:count]
        (folder / path).write_bytes(struct.pack("<Q", len(header)) + header + content)
    return folder


UNET = "unet/diffusion_pytorch_model.safetensors"
WEIGHTS = ("text_encoder/model.safetensors", UNET, "vae/diffusion_pytorch_model.safetensors")
