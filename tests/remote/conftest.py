"""Fixtures of remotes. Each test has a store of its own in the server that its process started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from builder.remote import connect
from tests.remote.servers import BUCKET, S3, Web, seaweed, web_server
from tests.remote.team import forget_remotes


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of a bucket have a mark, so that they can be run by themselves."""
    for item in items:
        if "s3" in getattr(item, "fixturenames", ()) or "[s3" in item.name:
            item.add_marker("s3")


@pytest.fixture(autouse=True)
def new_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nothing is known of remotes, nobody has a key, and ~/.aws is empty."""
    forget_remotes()
    for name in [name for name in os.environ if name.startswith(("AWS_", "BUILDER_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setitem(connect._RETRIES, "max_retries", 1)  # tests need not wait for a dead server
    yield
    forget_remotes()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with seaweed(tmp_path_factory.mktemp("weed")) as server:
        yield server


@pytest.fixture
def s3(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server


@pytest.fixture(params=["folder", "s3"])
def lines(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The lines of [remote.team] for a store of this test's own, in a folder and in a bucket."""
    if request.param == "folder":
        return 'url = "../remote"'
    server: S3 = request.getfixturevalue("s3")
    prefix = tmp_path.name.replace("_", "-")
    return f'url = "s3://{BUCKET}/{prefix}"\nendpoint = "{server.endpoint}"'


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    """A web server for the folder `remote` of this test."""
    (tmp_path / "remote").mkdir()
    with web_server(tmp_path / "remote") as server:
        yield server
