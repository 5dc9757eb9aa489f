"""A Hugging Face Hub in this process, in memory: what a push sends is in `FakeHub.repos` afterwards.

Every file is declared `regular` when the client asks how to upload it, so that it comes inside the commit request and
no LFS or Xet server is needed.
"""

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
from urllib.parse import unquote, urlsplit

USER = "tester"


@dataclass
class Repo:
    """One repository: files by path, and the summaries of its commits, oldest first."""

    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)

    @property
    def sha(self) -> str:
        return hashlib.sha1(f"commit {len(self.commits)}".encode()).hexdigest()

    def entries(self) -> list[dict]:
        return [
            {"type": "file", "path": path, "size": len(data), "oid": oid(data)} for path, data in self.files.items()
        ]


class FakeHub:
    """State of the Hub: `repos` by kind and name, e.g. `("model", "tester/a")`, and `log`, the requests in order."""

    def __init__(self):
        self.repos: dict[tuple[str, str], Repo] = {}
        self.log: list[str] = []
        self.url = ""  # set when it runs

    def create(self, body: dict) -> tuple[int, Any]:
        kind, name = body.get("type") or "model", f"{body.get('organization') or USER}/{body['name']}"
        status = 409 if (kind, name) in self.repos else 200
        self.repos.setdefault((kind, name), Repo())
        prefix = "" if kind == "model" else f"{kind}s/"
        return status, {"url": f"{self.url}/{prefix}{name}", "name": name, "id": name}

    def preupload(self, repo: Repo, body: dict) -> tuple[int, Any]:
        modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in body["files"]]
        return 200, {"files": modes}

    def commit(self, name: str, repo: Repo, lines: list[dict]) -> tuple[int, Any]:
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                repo.commits.append(value["summary"])
            elif line["key"] == "file":
                repo.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                repo.files.pop(value["path"], None)
            else:
                return 400, {"error": f"this fake does not know {line['key']}"}
        return 200, {"commitUrl": f"{self.url}/{name}/commit/{repo.sha}", "commitOid": repo.sha, "success": True}

    def info(self, name: str, repo: Repo) -> tuple[int, Any]:
        siblings = [{"rfilename": path} for path in repo.files]
        return 200, {"id": name, "modelId": name, "sha": repo.sha, "private": False, "tags": [], "siblings": siblings}

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        """Status, body and headers of one request."""
        self.log.append(f"{method} {path}")
        if path == "/api/whoami-v2":
            return 200, {"name": USER, "type": "user", "auth": {"accessToken": {"role": "write"}}}, {}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}, {}
        if path == "/api/repos/create":
            return *self.create(json.loads(body)), {}
        if match := re.fullmatch(r"/api/(model|dataset|space)s/([^/]+/[^/]+)(?:/([a-z-]+)/.*)?(/revision/.*)?", path):
            kind, name, action, _ = match.groups()
            repo = self.repos.get((kind, name))
            if repo is None:
                return not_found("RepoNotFound")
            actions: dict[str | None, Callable[[], tuple[int, Any]]] = {
                None: lambda: self.info(name, repo),
                "revision": lambda: self.info(name, repo),
                "preupload": lambda: self.preupload(repo, json.loads(body)),
                "commit": lambda: self.commit(name, repo, [json.loads(line) for line in body.splitlines()]),
                "tree": lambda: (200, repo.entries()),
                "paths-info": lambda: (200, [e for e in repo.entries() if e["path"] in json.loads(body)["paths"]]),
            }
            if action in actions:
                return *actions[action](), {}
        if match := re.fullmatch(r"/(?:(dataset|space)s/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            repo = self.repos.get((match[1] or "model", match[2]))
            if repo is None:
                return not_found("RepoNotFound")
            if match[3] not in repo.files:
                return not_found("EntryNotFound", repo)
            data = repo.files[match[3]]
            return 200, data, {"ETag": f'"{oid(data)}"', "X-Repo-Commit": repo.sha, "Accept-Ranges": "bytes"}
        self.log.append(f"UNKNOWN {method} {path}")
        return not_found("EntryNotFound")


def oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def not_found(code: str, repo: Repo | None = None) -> tuple[int, Any, dict[str, str]]:
    headers = {"X-Error-Code": code, "X-Error-Message": code} | ({"X-Repo-Commit": repo.sha} if repo else {})
    return 404, {"error": code}, headers


@contextmanager
def running_hub() -> Iterator[FakeHub]:
    """A `FakeHub` that answers at its `url` on this machine. Clients find it through the variable `HF_ENDPOINT`."""
    hub, lock = FakeHub(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with lock:
                status, content, headers = hub.answer(self.command, unquote(urlsplit(self.path).path), body)
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(data))}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing on stderr; `FakeHub.log` has it all."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
