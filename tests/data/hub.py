"""A server on loopback that behaves like the Hub: repositories of files, revisions, redirects, ranges, commits.

with serve_hub() as hub:
    hub.repositories["owner/name"] = Repository({"data/train.jsonl": b"…"})
    environment = hub.environment(cache)            # HF_ENDPOINT and the rest, for a process of its own

It knows what `huggingface_hub` and `datasets` ask for, and answers 404 to all else.
"""

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Refusal = Callable[["Handler"], bool]  # True: the request is answered already
DATE = "2026-01-02T03:04:05.000Z"


@dataclass
class Repository:
    """Files by path; `gated` ones want a token."""

    files: dict[str, bytes] = field(default_factory=dict)
    gated: bool = False

    @property
    def sha(self) -> str:
        """The one revision that there is."""
        digest = hashlib.sha1()
        for name, data in sorted(self.files.items()):
            digest.update(f"{name}\0{len(data)}\0".encode() + data)
        return digest.hexdigest()


@dataclass
class Hub:
    """A running server, what it holds, and what it was asked."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    token: str = "hf_aSecretThatNobodyMaySee"
    failures: list[tuple[str, int, int]] = field(default_factory=list)
    """Paths (a pattern), statuses, and how many more requests are answered so."""
    requests: list[str] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)
    """Bytes of each file that went out."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def environment(self, cache: Path) -> dict[str, str]:
        """The environment of a process that takes this for the Hub."""
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
            "HF_ENDPOINT": self.url, "HF_HOME": str(cache), "HF_TOKEN": self.token, "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1", "OMP_NUM_THREADS": "1",
        }  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def handle(self) -> None:
        with suppress(ConnectionResetError):  # clients let go of answers that they don't read to the end
            super().handle()

    def reply(self, code: int, data: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def tell(self, value: Any) -> None:
        self.reply(200, json.dumps(value).encode(), Content_Type="application/json")

    def refuse(self, code: int, message: str, error: str = "") -> None:
        self.reply(code, json.dumps({"error": message}).encode(), X_Error_Message=message, X_Error_Code=error)

    def do_GET(self) -> None:
        self.answer(b"")

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        self.answer(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    def answer(self, body: bytes) -> None:
        split = urlsplit(self.path)
        path = unquote(split.path)
        with self.hub.lock:
            self.hub.requests.append(f"{self.command} {path}")
            for number, (pattern, code, left) in enumerate(self.hub.failures):
                if left and re.search(pattern, path):
                    self.hub.failures[number] = (pattern, code, left - 1)
                    return self.refuse(code, "not now")
        if path.startswith("/blobs/"):
            return self._blob(path)
        known = re.fullmatch(
            r"/api/datasets/([^/]+/[^/]+?)(?:/(revision|tree|paths-info|preupload|commit)/(.*))?", path
        )
        resolve = re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        name = (known or resolve or [None, ""])[1]
        repository = self.hub.repositories.get(name)
        if repository is None:
            return self.refuse(404 if name else 400, "Repository not found", "RepoNotFound")
        if repository.gated and "revision" not in path and not path.endswith(name):
            return self.refuse(403, f"Access to dataset {name} is restricted.", "GatedRepo")
        if resolve:
            return self._resolve(name, repository, resolve[2], resolve[3])
        assert known is not None
        what, rest = known[2] or "revision", known[3] or "main"
        revision, _, inside = rest.partition("/")
        if revision not in ("main", repository.sha):
            return self.refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        match what:
            case "revision":
                return self.tell(self._info(name, repository))
            case "tree":
                deep = parse_qs(split.query).get("recursive", ["false"])[0].lower() == "true"
                return self._tree(repository, inside.strip("/"), deep)
            case "paths-info":
                asked = parse_qs(body.decode()).get("paths") or json.loads(body or b"{}").get("paths", [])
                return self.tell([entry for path in asked if (entry := _entry(repository, path.strip("/")))])
            case "preupload":
                files = json.loads(body)["files"]
                told = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
                return self.tell({"files": told})
            case _:
                return self._commit(name, repository, body)

    def _info(self, name: str, repository: Repository) -> dict[str, Any]:
        return {
            "_id": "0" * 24, "id": name, "author": name.split("/")[0], "sha": repository.sha, "private": False,
            "gated": "manual" if repository.gated else False, "disabled": False, "tags": [], "downloads": 0, "likes": 0,
            "lastModified": DATE, "createdAt": DATE,
            "siblings": [{"rfilename": path, "size": len(data)} for path, data in sorted(repository.files.items())],
        }  # fmt: skip

    def _tree(self, repository: Repository, folder: str, deep: bool) -> None:
        inside = [path for path in repository.files if not folder or path.startswith(f"{folder}/")]
        if folder and not inside:
            return self.refuse(404, f"{folder} does not exist", "EntryNotFound")
        skip = len(folder) + 1 if folder else 0
        folders = {
            "/".join(path.split("/")[:depth])
            for path in inside
            for depth in range(1 + folder.count("/") + bool(folder), path.count("/") + 1)
        }
        listed = (
            sorted(folders | set(inside))
            if deep
            else sorted({path[:skip] + path[skip:].split("/")[0] for path in inside})
        )
        return self.tell([_entry(repository, path) for path in listed])

    def _resolve(self, name: str, repository: Repository, revision: str, path: str) -> None:
        if revision not in ("main", repository.sha):
            return self.refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        if path not in repository.files:
            return self.refuse(404, "Entry not found", "EntryNotFound")
        data = repository.files[path]
        headers = {
            "X_Repo_Commit": repository.sha, "X_Linked_Size": str(len(data)), "X_Linked_Etag": f'"{_oid(data)}"',
            "ETag": f'"{_oid(data)}"', "Accept_Ranges": "bytes",
        }  # fmt: skip
        return self.reply(
            302, Location=f"{self.hub.url}/blobs/{name}/{path}".replace("127.0.0.1", "localhost"), **headers
        )

    def _blob(self, path: str) -> None:
        _, _, owner, name, inside = path.split("/", 4)
        data = self.hub.repositories[f"{owner}/{name}"].files[inside]
        headers = {"ETag": f'"{_oid(data)}"', "Accept_Ranges": "bytes", "Content_Type": "application/octet-stream"}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        code = 200
        if wanted:
            first = int(wanted[1]) if wanted[1] else len(data) - int(wanted[2])
            last = min(int(wanted[2]) if wanted[1] and wanted[2] else len(data) - 1, len(data) - 1)
            if first > last:
                return self.reply(416, Content_Range=f"bytes */{len(data)}")
            headers["Content_Range"], code = f"bytes {first}-{last}/{len(data)}", 206
            data = data[first : last + 1]
        if self.command == "GET":
            with self.hub.lock:
                self.hub.sent[inside] = self.hub.sent.get(inside, 0) + len(data)
        return self.reply(code, data, **headers)

    def _commit(self, name: str, repository: Repository, body: bytes) -> None:
        for line in body.splitlines():
            order = json.loads(line)
            value = order["value"]
            if order["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif order["key"] == "deletedFile":
                repository.files.pop(value["path"], None)
        place = f"{self.hub.url}/datasets/{name}/commit/{repository.sha}"
        self.tell({"success": True, "commitOid": repository.sha, "commitUrl": place})


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def _entry(repository: Repository, path: str) -> dict[str, Any] | None:
    if path in repository.files:
        data = repository.files[path]
        return {"type": "file", "path": path, "size": len(data), "oid": _oid(data)}
    if any(name.startswith(f"{path}/") for name in repository.files):
        return {"type": "directory", "path": path, "size": 0, "oid": _oid(path.encode())}
    return None


@contextmanager
def serve_hub() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
