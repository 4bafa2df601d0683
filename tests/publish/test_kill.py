"""SIGKILL in the middle of publishing: what was shown before is shown still, and the next run goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from builder.publish import folder
from tests.conftest import ROOT, wait_until
from tests.publish.fake_hub import FakeHub, fake_hub
from tests.publish.test_oci import registry_of
from tests.toy import DECLARATION, build, make_toy, prepared

PUBLISH = """
[publish.hub]
target = "m_4bit"
to = "hf://me/toy"

[publish.disk]
target = "m_4bit"
to = "out"
"""
SCRIPT = """
import os, signal, sys
from pathlib import Path
from builder.console.events import silent
from builder.project.project import Project
from builder.publish.publication import find, publish

left = int(sys.argv[2])
if left:
    import builder.store.disk.swap as swap, builder.publish.folder as folder

    def dying(real):
        def step(*args, **options):
            global left
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)
        return step

    for module, name in ((folder, "_put"), (folder, "_list"), (folder, "_delete"), (swap, "into_place")):
        setattr(module, name, dying(getattr(module, name)))
project = Project.load(Path("artifacts.toml"))
publish(project, find(project, sys.argv[1]), silent)
"""


def start(
    root: Path, name: str, *, dies: int = 0, env: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, name, str(dies)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
    )


def project(tmp_path: Path) -> Path:
    made = prepared(make_toy(tmp_path / "project", DECLARATION + PUBLISH))
    build(made, "m_4bit")
    build(made, "m_8bit")
    return made.spec.file.parent


@pytest.mark.slow
def test_killed_while_a_hub_is_asked(tmp_path: Path) -> None:
    root = project(tmp_path)
    for moment in ("repos/create", "PUT /object", "/commit/"):
        with fake_hub() as hub:
            _killed_at(root, hub, moment)


def _killed_at(root: Path, hub: FakeHub, moment: str) -> None:
    hub.holds = moment
    run = start(root, "hub", env=hub.environment)
    wait_until(lambda: any(moment in line for line in hub.log), run)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    hub.holds = ""
    hub.released.set()
    if "me/toy" in hub.repositories:
        assert set(hub.files("me/toy")) == {".gitattributes"}, moment
    assert start(root, "hub", env=hub.environment).wait() == 0
    assert len(hub.repositories["me/toy"].commits) == 2
    assert "model-00001-of-00003.safetensors" in hub.files("me/toy")


@pytest.mark.slow
def test_killed_at_each_step_of_a_folder(tmp_path: Path) -> None:
    root = project(tmp_path)
    place = root / "out"
    assert start(root, "disk").wait() == 0
    file = root / "artifacts.toml"
    targets, shown = ["m_4bit", "m_8bit"], [content(place)]
    file.write_text(file.read_text().replace('"m_4bit"\nto = "out"', '"m_8bit"\nto = "out"'))
    dies = 0
    while True:
        dies += 1
        code = start(root, "disk", dies=dies).wait()
        now = content(place)
        if now not in shown:
            shown.append(now)
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert dies > 10, "it died at each of these steps"
    assert len(shown) == len(targets), "never anything but the former and the new content"
    assert start(root, "disk").wait() == 0
    assert {path.name for path in root.iterdir() if path.name.startswith(".out")} == set()


@pytest.mark.slow
def test_killed_while_a_registry_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for moment in ("POST /v2/me/m/blobs/uploads/", "PUT /v2/me/m/blobs/", "PUT /v2/me/m/manifests/"):
        where = tmp_path / moment[:4].strip().lower() / moment.rpartition("/v2/me/m/")[2].strip("/")
        _registry_killed_at(where, moment)


def _registry_killed_at(where: Path, moment: str) -> None:
    with registry_of(moment) as server:
        file = make_toy(where / "project", DECLARATION + PUBLISH)
        file.write_text(file.read_text().replace("hf://me/toy", f"oci://{server.address}/me/m:v1"))
        build(prepared(file), "m_4bit")
        (where / "docker").mkdir()
        auths = {"auths": {server.address: {"auth": server.login}}}
        (where / "docker/config.json").write_text(json.dumps(auths))
        env = {"DOCKER_CONFIG": str(where / "docker")}
        run = start(file.parent, "hub", env=env)
        assert wait_until(server.reached.is_set, run) is None
        run.send_signal(signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL
        assert not server.manifests, "no tag leads to what was sent"
        sent = dict(server.blobs)
        server.holds = ""
        server.released.set()
        assert start(file.parent, "hub", env=env).wait() == 0
        assert [*server.manifests] == ["v1"]
        again = [each for each in server.puts if each in sent]
        assert len(again) == len(sent), "what was there was not sent again"


def content(place: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in place.iterdir() if path.name != folder.MARKER}
