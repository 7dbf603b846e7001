"""A hub that lives in memory and speaks as much of the Hugging Face hub's HTTP interface as its real client needs.

Repositories have one branch.  Small files come inside of the commit, others by the large file protocol.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_test"
LARGE = 2000  # bytes of a file from which on it is uploaded by itself


class Hub(ThreadingHTTPServer):
    """repositories: name -> path -> content, as they are now.  refuse: a path after which the connection breaks."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.large: dict[str, bytes] = {}
        self.messages: list[str] = []
        self.broken: str | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def environment(self) -> dict[str, str]:
        """What makes the real client talk to this hub, and nothing else."""
        return {"HF_ENDPOINT": self.address, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


@contextmanager
def running() -> Iterator[Hub]:
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


def _commit(files: dict[str, bytes]) -> str:
    return hashlib.sha1(repr(sorted((name, hashlib.sha1(x).hexdigest()) for name, x in files.items())).encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _send(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: Any, code: int = 200, **headers: str) -> None:
        self._send(code, json.dumps(value).encode(), Content_Type="application/json", **headers)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _known(self, name: str) -> dict[str, bytes] | None:
        """Return a repository, or answer that there is none: a private one is none without the token."""
        signed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if name not in self.server.repositories or (name in self.server.private and not signed):
            self._json({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            return None
        return self.server.repositories[name]

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            files = self._known(found[1])
            if files is not None and found[2] not in (None, "main", _commit(files)):
                self._json({"error": "Invalid rev"}, 404, X_Error_Code="RevisionNotFound")
            elif files is not None:
                names = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
                self._json(
                    {"id": found[1], "sha": _commit(files), "siblings": names, "private": found[1] in self.server.private}
                )
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            files = self._known(found[1])
            if files is not None:
                entries = [
                    {"type": "file", "path": name, "size": len(x), "oid": hashlib.sha1(x).hexdigest()}
                    for name, x in files.items()
                ]
                self._json(entries)
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            files = self._known(found[1])
            if files is None:
                return
            if found[3] not in files:
                self._json({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
            elif found[3] == self.server.broken and self.command == "GET":
                self._json({"error": "the disk of the hub is broken"}, 410)
            else:
                content = files[found[3]]
                self._send(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=_commit(files))
        else:
            self._json({"error": f"no such path: {path}"}, 404)

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        self.server.large[urlsplit(self.path).path.rsplit("/", 1)[-1]] = self._body()
        self._send(200)

    def do_POST(self) -> None:
        path, body = unquote(urlsplit(self.path).path), self._body()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._json({"error": "Invalid username or password."}, 401)
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            if name in self.server.repositories:
                self._json({"error": "You already created this model repo", "url": f"{self.server.address}/{name}"}, 409)
                return
            self.server.repositories[name] = {".gitattributes": b""}
            if asked.get("private") or asked.get("visibility") == "private":
                self.server.private.add(name)
            self._json({"url": f"{self.server.address}/{name}", "name": name, "id": name})
        elif path.endswith("/preupload/main"):
            files = [
                {"path": file["path"], "uploadMode": "lfs" if file["size"] >= LARGE else "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._json({"files": files})
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**item, "actions": {"upload": {"href": f"{self.server.address}/large/{item['oid']}"}}}
                for item in json.loads(body)["objects"]
            ]
            self._json({"transfer": "basic", "objects": objects})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            self._commit(found[1], body)
        else:
            self._json({"error": f"no such path: {path}"}, 404)

    def _commit(self, name: str, body: bytes) -> None:
        files = self.server.repositories[name]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.server.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                content = self.server.large[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
                files[value["path"]] = content
        sha = _commit(files)
        self._json({"success": True, "commitOid": sha, "commitUrl": f"{self.server.address}/{name}/commit/{sha}"})
