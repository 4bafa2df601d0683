"""Real servers on this machine: SeaweedFS as S3, a web server that knows ranges, and a proxy that cuts
lines.
"""

from __future__ import annotations

import http.server
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PATIENCE

USER, SECRET = "kiln", "kilnsecret"
BUCKET = "models"


def free_ports(count: int) -> list[int]:
    """Ports that nobody has now, below those that a system gives to whoever asks for any, and other ones in
    each worker of pytest-xdist: a server that is killed finds them free when it comes back.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = 20_000 + 1000 * (worker % 12)
    found: list[int] = []
    with ExitStack() as held:
        while len(found) < count:
            one = held.enter_context(socket.socket())
            port = random.SystemRandom().randrange(first, first + 1000)
            with suppress(OSError):
                one.bind(("127.0.0.1", port))
                found.append(port)
    return found


@dataclass
class S3:
    """A running SeaweedFS. `environment` is what a client needs."""

    folder: Path
    port: int
    _arguments: list[str]
    _process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        return {"AWS_ACCESS_KEY_ID": USER, "AWS_SECRET_ACCESS_KEY": SECRET}

    def start(self) -> None:
        log = (self.folder / "log").open("ab")
        env = {**os.environ, **self.environment, "HOME": str(self.folder)}
        self._process = subprocess.Popen(
            self._arguments, stdout=log, stderr=log, env=env, cwd=self.folder, start_new_session=True
        )
        deadline = time.monotonic() + PATIENCE
        while not self._answers():
            assert self._process.poll() is None, (self.folder / "log").read_text()[-2000:]
            assert time.monotonic() < deadline, "SeaweedFS does not answer"
            time.sleep(0.05)

    def _answers(self) -> bool:
        """Whether its bucket can be listed: it appears a moment after the server."""
        import obstore
        from obstore.exceptions import GenericError
        from obstore.store import S3Store

        client: Any = {"allow_http": True}
        retry: Any = {"max_retries": 0}
        store = S3Store(
            BUCKET,
            endpoint=self.endpoint,
            access_key_id=USER,
            secret_access_key=SECRET,
            region="us-east-1",
            virtual_hosted_style_request=False,
            client_options=client,
            retry_config=retry,
        )
        try:
            obstore.list(store).collect()
        except GenericError:
            return False
        return True

    def kill(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


def weed() -> str:
    """The program, where it is installed: `uv run --group s3`."""
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        pytest.skip("SeaweedFS is not installed (uv run --group s3 pytest)")
    return found


@contextmanager
def seaweed(folder: Path) -> Iterator[S3]:
    folder.mkdir(parents=True, exist_ok=True)
    ports = free_ports(9)
    named = dict(
        zip(
            (
                *("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port"),
                *("filer.port.grpc", "s3.port", "s3.port.grpc", "admin.port"),
            ),
            ports,
            strict=True,
        )
    )
    options = [f"-{name}={port}" for name, port in named.items()]
    options += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-bucket={BUCKET}", f"-dir={folder / 'data'}"]
    options += ["-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    options += ["-master.telemetry=false"]
    (folder / "data").mkdir(exist_ok=True)
    server = S3(folder, named["s3.port"], [weed(), "mini", *options])
    server.start()
    try:
        yield server
    finally:
        server.kill()


# -- a web server -------------------------------------------------------------------------------------------


@dataclass
class Web:
    """A folder behind HTTP. `cut_after`, `stall_after`: of an answer, before the line is cut, or stands
    still.
    """

    folder: Path
    ranges: bool = True
    cut_after: int | None = None
    stall_after: int | None = None
    asked: list[str] = field(default_factory=list)
    url: str = ""


@contextmanager
def web_server(folder: Path) -> Iterator[Web]:
    web = Web(folder)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            wanted = self.headers.get("Range")
            web.asked.append(f"{self.command} {self.path} {wanted or ''}".rstrip())
            file = web.folder / self.path.lstrip("/")
            if not file.is_file():
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            data, status = file.read_bytes(), 200
            whole = len(data)
            tag = f'"{file.stat().st_mtime_ns:x}-{whole:x}"'
            if wanted and web.ranges and (match := re.fullmatch(r"bytes=(\d+)-(\d*)", wanted)):
                start, end = int(match[1]), int(match[2] or whole - 1)
                data, status = data[start : end + 1], 206
            self.send_response(status)
            if status == 206:
                self.send_header("Content-Range", f"bytes {start}-{start + len(data) - 1}/{whole}")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", tag)
            self.send_header("Last-Modified", self.date_time_string(int(file.stat().st_mtime)))
            self.end_headers()
            if body and web.cut_after is not None and len(data) > web.cut_after:
                self.wfile.write(data[: web.cut_after])
                self.wfile.flush()
                with suppress(OSError):
                    self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
            elif body and web.stall_after is not None and "/blobs/" in self.path:
                self.wfile.write(data[: web.stall_after])
                self.wfile.flush()
                time.sleep(2)
                self.close_connection = True
            elif body:
                self.wfile.write(data)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
