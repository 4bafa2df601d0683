"""A hub on loopback with the protocol of huggingface_hub's client: preupload, LFS, commit, tree, resolve.

It keeps everything in memory, counts what it gets, and fails where a test asks for it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlparse

TOKEN = "hf_secretsecretsecretsecretsecretsec"


@dataclass
class Repository:
    """Commits in order: (id, path -> sha256 of a large file, or the bytes of a small one)."""

    private: bool
    commits: list[tuple[str, dict[str, str | bytes]]] = field(default_factory=list)

    @property
    def head(self) -> tuple[str, dict[str, str | bytes]]:
        return self.commits[-1]

    def commit(self, files: dict[str, str | bytes]) -> str:
        oid = hashlib.sha1(f"{len(self.commits)}{sorted(files)}".encode()).hexdigest()
        self.commits.append((oid, files))
        return oid


@dataclass
class FakeHub:
    """The server. `faults` are (pattern of "METHOD path", status) and each strikes once.

    `loses_answer`: the next commit is made, but its answer is lost. `lies`: commits are not made as sent.
    """

    address: str = ""
    owners: tuple[str, ...] = ("me",)
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    faults: list[tuple[str, int]] = field(default_factory=list)
    loses_answer: bool = False
    lies: bool = False
    xet: str = ""
    holds: str = ""  # a request with this text waits until `released`
    released: threading.Event = field(default_factory=threading.Event)
    log: list[str] = field(default_factory=list)
    received: int = 0

    @property
    def environment(self) -> dict[str, str]:
        """For a command that publishes here."""
        return {
            "HF_ENDPOINT": self.address,
            "HF_TOKEN": TOKEN,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "0" if self.xet else "1",
        }

    def files(self, repo: str) -> dict[str, bytes]:
        """What a person who downloads the repository gets."""
        return {
            name: self.objects[content] if isinstance(content, str) else content
            for name, content in self.repositories[repo].head[1].items()
        }


class _Handler(BaseHTTPRequestHandler):
    disable_nagle_algorithm = True
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._handle()

    do_POST = do_PUT = do_HEAD = do_GET

    def _handle(self) -> None:
        path = unquote(urlparse(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        said = f"{self.command} {path}"
        self.hub.log.append(said)
        if self.hub.holds and self.hub.holds in said:
            self.hub.released.wait()
            return None
        for fault in self.hub.faults:
            if re.search(fault[0], said):
                self.hub.faults.remove(fault)
                return self._answer(fault[1], {"error": "injected"})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}" and not path.startswith("/object/"):
            return self._answer(401, {"error": "Invalid credentials in Authorization header"})
        for method, pattern, handler in _ROUTES:
            if method in (self.command, "*") and (match := re.fullmatch(pattern, path)):
                return handler(self, body, *match.groups())
        return self._answer(404, {"error": f"no route {said}"})

    def _answer(self, status: int, data: Any, headers: dict[str, str] | None = None) -> None:
        content = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _missing(self, code: str) -> None:
        self._answer(404, {"error": code}, {"X-Error-Code": code})

    def _create(self, body: bytes) -> None:
        said = json.loads(body)
        owner = said.get("organization") or "me"
        repo = f"{owner}/{said['name']}"
        if owner not in self.hub.owners:
            return self._answer(403, {"error": f"You don't have the rights to create a model under {owner}"})
        if repo in self.hub.repositories:
            return self._answer(409, {"error": "exists", "url": f"{self.hub.address}/{repo}"})
        private = bool(said.get("private") or said.get("visibility") == "private")
        made = self.hub.repositories[repo] = Repository(private)
        made.commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        return self._answer(200, {"url": f"{self.hub.address}/{repo}"})

    def _validate(self, body: bytes) -> None:
        ok = json.loads(body)["content"].startswith("---\n")
        self._answer(200 if ok else 400, {"errors": [], "warnings": []})

    def _info(self, _: bytes, repo: str, revision: str | None) -> None:
        found = self.hub.repositories.get(repo)
        if found is None:
            return self._missing("RepoNotFound")
        oid = found.head[0]
        return self._answer(200, {"id": repo, "sha": oid, "private": found.private, "siblings": []})

    def _at(self, repo: str, revision: str) -> dict[str, str | bytes] | None:
        found = self.hub.repositories[repo]
        if revision == "main":
            return found.head[1]
        return dict(found.commits).get(revision)

    def _tree(self, _: bytes, repo: str, revision: str) -> None:
        files = self._at(repo, revision)
        if files is None:
            return self._missing("RevisionNotFound")
        rows = []
        for name, content in files.items():
            row: dict[str, Any] = {"type": "file", "path": name, "oid": _git(content)}
            row["size"] = len(self.hub.objects[content] if isinstance(content, str) else content)
            if isinstance(content, str):
                row["lfs"] = {"oid": content, "size": row["size"], "pointerSize": 134}
            rows.append(row)
        return self._answer(200, rows)

    def _preupload(self, body: bytes, repo: str, revision: str) -> None:
        if repo not in self.hub.repositories:
            return self._missing("RepoNotFound")
        there = self._at(repo, revision) or {}
        answer = []
        for file in json.loads(body)["files"]:
            large = file["path"].endswith((".safetensors", ".gguf")) or file["size"] > 10_000_000
            content = there.get(file["path"])
            oid = content if isinstance(content, str) else _git(content) if content is not None else None
            mode = "lfs" if large else "regular"
            answer.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return self._answer(200, {"files": answer})

    def _batch(self, body: bytes, repo: str) -> None:
        rows = []
        for each in json.loads(body)["objects"]:
            row = {"oid": each["oid"], "size": each["size"]}
            if each["oid"] not in self.hub.objects:
                row["actions"] = {"upload": {"href": f"{self.hub.address}/object/{each['oid']}"}}
            rows.append(row)
        self._answer(200, {"transfer": "basic", "objects": rows})

    def _put(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self._answer(400, {"error": "other bytes"})
        self.hub.objects[oid] = body
        self.hub.received += len(body)
        return self._answer(200, {})

    def _commit(self, body: bytes, repo: str, revision: str) -> None:
        found = self.hub.repositories[repo]
        lines = [json.loads(line) for line in body.splitlines()]
        parent = lines[0]["value"].get("parentCommit")
        if parent is not None and parent != found.head[0]:
            return self._answer(412, {"error": "A commit has happened since. Please refresh and try again."})
        files = dict(found.head[1])
        for line in lines[1:]:
            value = line["value"]
            match line["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                    self.hub.received += len(files[value["path"]])
                case "lfsFile":
                    if value["oid"] not in self.hub.objects and not self.hub.xet:
                        return self._answer(400, {"error": f"no object {value['oid']}"})
                    self.hub.objects.setdefault(value["oid"], b"\0" * value["size"])
                    files[value["path"]] = value["oid"]
                case "deletedFile":
                    del files[value["path"]]
        if self.hub.lies:
            files["config.json"] = b"{}"
        oid = found.commit(files)
        if self.hub.loses_answer:
            self.hub.loses_answer = False
            return self._answer(503, {"error": "the answer is lost"})
        url = f"{self.hub.address}/{repo}/commit/{oid}"
        return self._answer(200, {"commitUrl": url, "commitOid": oid, "success": True})

    def _resolve(self, _: bytes, repo: str, revision: str, path: str) -> None:
        if repo not in self.hub.repositories:
            return self._missing("RepoNotFound")
        content = (self._at(repo, revision) or {}).get(path)
        if content is None:
            return self._missing("EntryNotFound")
        oid = self.hub.repositories[repo].head[0] if revision == "main" else revision
        headers = {
            "X-Repo-Commit": oid,
            "ETag": f'"{content if isinstance(content, str) else _git(content)}"',
        }
        data = self.hub.objects[content] if isinstance(content, str) else content
        return self._answer(200, data, headers)

    def _xet(self, _: bytes, repo: str, revision: str) -> None:
        self._answer(200, {"accessToken": "x", "exp": 4102444800, "casUrl": f"local://{self.hub.xet}"})


_REPO = r"([^/]+/[^/]+)"
_ROUTES = (
    ("POST", "/api/repos/create", _Handler._create),
    ("POST", "/api/validate-yaml", _Handler._validate),
    ("GET", rf"/api/models/{_REPO}/tree/([^/]+)", _Handler._tree),
    ("POST", rf"/api/models/{_REPO}/preupload/([^/]+)", _Handler._preupload),
    ("GET", rf"/api/models/{_REPO}/xet-write-token/([^/]+)", _Handler._xet),
    ("POST", rf"/api/models/{_REPO}/commit/([^/]+)", _Handler._commit),
    ("GET", rf"/api/models/{_REPO}(?:/revision/([^/]+))?", _Handler._info),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler._batch),
    ("PUT", r"/object/([0-9a-f]+)", _Handler._put),
    ("*", rf"/{_REPO}/resolve/([^/]+)/(.+)", _Handler._resolve),
)


def _git(content: str | bytes) -> str:
    if isinstance(content, str):  # the digest of the pointer that git sees, which nobody here compares
        return hashlib.sha1(content.encode()).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
