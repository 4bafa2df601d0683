"""Publishing to an OCI registry: a real one on loopback, and a stand-in for what a real one never does."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from builder.console.events import silent
from builder.project.project import Project
from builder.publish.bundle import Plan
from builder.publish.errors import PlaceFailed, PlaceRefused
from builder.publish.oci import artifact
from builder.publish.publication import find, look, publish
from tests.toy import DECLARATION, build, make_toy, prepared

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
REGISTRY = shutil.which("docker-registry") or shutil.which("registry")


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """The address of a real registry with an empty store."""
    if REGISTRY is None:
        pytest.skip("docker-registry is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = tmp_path / "registry.yml"
    config.write_text(
        f"version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {tmp_path / 'registry'}\n"
        f"http:\n  addr: 127.0.0.1:{port}\nlog:\n  level: error\n"
    )
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([REGISTRY, "serve", str(config)], **quiet) as process:  # type: ignore[call-overload]
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/").close()
                break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield f"127.0.0.1:{port}"
        process.terminate()


def toy(tmp_path: Path, registry: str) -> Project:
    tables = "".join(
        f'\n[publish.{name}]\ntarget = "m_{variant}"\nto = "oci://{registry}/{repository}:v1"\n'
        for name, variant, repository in (
            ("a", "4bit", "me/a"),
            ("b", "4bit", "me/b"),
            ("c", "8bit", "me/a8"),
        )
    )
    project = prepared(make_toy(tmp_path / "project", DECLARATION + tables))
    build(project, "m_4bit")
    build(project, "m_8bit")
    return project


def sent(project: Project, name: str) -> Plan:
    return publish(project, find(project, name), silent)


def fetched(registry: str, path: str) -> bytes:
    request = urllib.request.Request(f"http://{registry}/v2/{path}", headers={"Accept": MANIFEST})
    with urllib.request.urlopen(request) as answer:
        content: bytes = answer.read()
        return content


def stored(tmp_path: Path) -> int:
    return sum(path.stat().st_size for path in (tmp_path / "registry").rglob("data"))


@pytest.mark.slow
def test_pushed_known_mounted_and_pulled(tmp_path: Path, registry: str) -> None:
    project = toy(tmp_path, registry)
    assert look(project, find(project, "a"), silent).sends > 0
    first = sent(project, "a")
    assert sent(project, "a").is_empty
    manifest = fetched(registry, "me/a/manifests/v1")
    said = json.loads(manifest)
    assert said["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    config = json.loads(fetched(registry, f"me/a/blobs/{said['config']['digest']}"))
    assert config["modelfs"]["diffIds"] == [layer["digest"] for layer in said["layers"]]
    pulled = {
        layer["annotations"]["org.cncf.model.filepath"]: fetched(registry, f"me/a/blobs/{layer['digest']}")
        for layer in said["layers"]
    }
    assert pulled == {file.name: file.read() for file in first.bundle.files}
    weights = [layer for layer in said["layers"] if "weight.v1" in layer["mediaType"]]
    assert len(weights) == len([name for name in pulled if name.endswith(".safetensors")])

    before = stored(tmp_path)
    sent(project, "b")
    assert fetched(registry, "me/b/manifests/v1") == manifest, "the same model has the same digest"
    assert stored(tmp_path) - before < 10_000, "every blob is mounted"
    shared = {layer["digest"] for layer in said["layers"]}
    sent(project, "c")
    other = json.loads(fetched(registry, "me/a8/manifests/v1"))
    assert shared & {layer["digest"] for layer in other["layers"]}


@pytest.mark.slow
def test_a_tag_that_is_not_ours_stays(tmp_path: Path, registry: str) -> None:
    project = toy(tmp_path, registry)
    sent(project, "b")
    theirs = json.loads(fetched(registry, "me/b/manifests/v1"))
    del theirs["annotations"]
    body = json.dumps(theirs).encode()
    request = urllib.request.Request(
        f"http://{registry}/v2/me/b/manifests/v1", body, {"Content-Type": MANIFEST}, method="PUT"
    )
    urllib.request.urlopen(request).close()
    with pytest.raises(PlaceRefused, match="the tag v1 exists, and was not published by this program"):
        sent(project, "b")
    assert fetched(registry, "me/b/manifests/v1") == body


class _Server(BaseHTTPRequestHandler):
    """A registry that wants a token, and may lie or be full."""

    protocol_version = "HTTP/1.1"
    blobs: dict[str, bytes]
    manifests: dict[str, bytes]
    mode = ""
    login = base64.b64encode(b"ann:secret").decode()

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path, _, query = self.path.partition("?")
        if path == "/token":
            ok = self.headers.get("Authorization") == f"Basic {self.login}"
            return self._answer(200 if ok else 401, b'{"token": "t0ken"}' if ok else b"{}")
        if self.headers.get("Authorization") != "Bearer t0ken":
            port = self.server.server_address[1]
            challenge = f'Bearer realm="http://127.0.0.1:{port}/token",service="s"'
            return self._answer(401, b"{}", {"WWW-Authenticate": challenge})
        name = path.rpartition("/")[2]
        if "/manifests/" in path and self.command == "PUT":
            self.manifests[name] = b"{}" if self.mode == "lies" else body
            return self._answer(201, b"")
        if self.command == "POST":
            return self._answer(202, b"", {"Location": f"{path}1"})
        if self.command == "PUT":
            if self.mode == "full":
                return self._answer(507, b'{"errors": [{"message": "no space left"}]}')
            digest = query.partition("digest=")[2]
            assert digest == f"sha256:{hashlib.sha256(body).hexdigest()}"
            self.blobs[digest] = body
            return self._answer(201, b"")
        found = (self.manifests if "/manifests/" in path else self.blobs).get(name)
        return self._answer(404 if found is None else 200, found or b"")

    do_POST = do_PUT = do_HEAD = do_GET

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@dataclass
class Held:
    """A stand-in registry that stops at the first request that begins like `holds`, until it is released."""

    holds: str
    address: str = ""
    login: str = _Server.login
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)
    puts: list[str] = field(default_factory=list)  # digests of blobs as they were sent
    reached: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)


@contextmanager
def registry_of(holds: str) -> Iterator[Held]:
    """A registry that holds requests."""
    held = Held(holds)

    class Holding(_Server):
        blobs, manifests = held.blobs, held.manifests

        def do_GET(self) -> None:
            line = f"{self.command} {self.path}"
            if self.command == "PUT" and "/blobs/" in self.path:
                held.puts.append(self.path.partition("digest=")[2])
            if held.holds and line.startswith(held.holds):
                held.reached.set()
                held.released.wait()
                return
            super().do_GET()

        do_POST = do_PUT = do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Holding)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    held.address = f"127.0.0.1:{server.server_address[1]}"
    try:
        yield held
    finally:
        held.released.set()
        server.shutdown()
        server.server_close()


def test_a_login_and_what_goes_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    kind = type("Server", (_Server,), {"blobs": {}, "manifests": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    address = f"127.0.0.1:{server.server_address[1]}"
    project = toy(tmp_path, address)
    with pytest.raises(PlaceFailed, match="the registry gave no token") as caught:
        sent(project, "a")
    assert f"docker login {address}" in str(caught.value)
    (tmp_path / "docker").mkdir()
    auths = {"auths": {address: {"auth": _Server.login}}}
    (tmp_path / "docker/config.json").write_text(json.dumps(auths))
    kind.mode = "full"  # type: ignore[attr-defined]
    with pytest.raises(PlaceFailed, match=r"answered 507 to PUT \(no space left\)"):
        sent(project, "a")
    assert not kind.manifests, "nothing is shown"  # type: ignore[attr-defined]
    kind.mode = "lies"  # type: ignore[attr-defined]
    with pytest.raises(PlaceFailed, match="does not show it as it was sent"):
        sent(project, "a")
    kind.mode, kind.manifests = "", {}  # type: ignore[attr-defined]
    made = sent(project, "a")
    assert kind.manifests["v1"] == artifact(made.bundle)[0]  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()
    with pytest.raises(PlaceFailed, match="the registry cannot be reached"):
        sent(project, "b")
