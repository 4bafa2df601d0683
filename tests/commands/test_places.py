"""Commands about what is where: path, a shared store, a store that is gone, what is not declared."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands.test_daily import measured_project
from tests.conftest import Sandbox
from tests.terminal import in_terminal
from tests.tiny import DECLARATION, make_adapter, make_base

Make = Callable[..., Sandbox]


@pytest.fixture
def done(sandbox: Make) -> Sandbox:
    box = sandbox(DECLARATION)
    make_base(box.root / "base")
    make_adapter(box.root / "adapter")
    assert box.doit("model:m_4bit").code == 0
    return box


def shared(box: Sandbox, store: Path) -> dict[str, str]:
    """The project with a store outside of its folder; the environment in which that is remembered."""
    box.toml.write_text(f'[store]\npath = "{store}"\n\n{DECLARATION}')
    return {"XDG_STATE_HOME": str(box.root.parent / "state")}


def test_path_prints_what_can_be_loaded(done: Sandbox) -> None:
    ran = done.builder("path", "m_4bit", "base:tiny")
    assert (ran.code, ran.out) == (0, "store/models/m_4bit\nbase\n")
    missing = done.builder("path", "m_5bit")
    assert (missing.code, missing.out) == (1, "")
    assert "m_5bit is not built. [NotBuilt]" in missing.err
    wrong = done.builder("path", "base:tyni")
    assert wrong.code == 3
    assert 'there is no base "tyni" (possible: tiny) [UnknownBase]' in wrong.err
    assert done.builder("path").code == 3


def test_a_store_that_is_gone_is_refused_and_made_when_asked(sandbox: Make, tmp_path: Path) -> None:
    box = sandbox(DECLARATION)
    make_base(box.root / "base")
    make_adapter(box.root / "adapter")
    store = tmp_path / "big" / "store"
    store.parent.mkdir()
    known = shared(box, store)
    assert box.builder("build", "m_4bit", env=known).code == 0
    shutil.rmtree(store)
    for command in ("status", "build", "gc"):
        ran = box.builder(command, env=known)
        assert ran.code == 2, ran.text
        assert "there was a store here, and it is gone. [StoreGone]" in ran.err
    assert not store.exists()
    made = box.builder("init", "--store", env=known)
    assert (made.code, made.out) == (0, f"{store} is the store\n")
    assert box.builder("status", env=known).code == 1
    shutil.rmtree(store.parent)  # as if the disk were not mounted
    assert "StoreGone" in box.builder("status", env=known).err


def test_the_path_of_a_store_is_said_without_dots(sandbox: Make, tmp_path: Path) -> None:
    box = sandbox(DECLARATION)
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "notes").touch()
    known = shared(box, Path("../store"))
    assert f"ERROR: store {tmp_path}/store: it is not a store" in box.builder("status", env=known).err


def test_status_says_that_a_store_is_shared(sandbox: Make, tmp_path: Path) -> None:
    box = sandbox(DECLARATION)
    make_base(box.root / "base")
    make_adapter(box.root / "adapter")
    known = shared(box, tmp_path / "store")
    assert box.builder("build", "m_4bit", env=known).code == 0
    ran = box.builder("status", env=known)
    said = json.loads(box.builder("status", "--json", env=known).out)
    assert Path(said["models"]).parent.parent == tmp_path / "store" / "checkouts"
    assert (Path(said["models"]) / "m_4bit").is_dir()
    (line,) = (line for line in ran.out.splitlines() if line.startswith("the store is shared"))
    assert (box.root / line.rsplit(" ", 1)[1]).samefile(said["models"])


def test_status_names_what_is_not_declared_any_more(done: Sandbox) -> None:
    done.edit(', "4bit"', "")
    assert "stored, but not declared any more: m_4bit (`doit gc` deletes them)" in done.doit("status").out
    assert json.loads(done.doit("status", "--json").out)["undeclared"] == ["m_4bit"]
    assert done.doit("gc", "--grace", "0").code == 0
    assert json.loads(done.doit("status", "--json").out)["undeclared"] == []


def test_gc_asks_on_a_terminal(done: Sandbox) -> None:
    done.edit(', "4bit"', "")
    asked = "Delete this? [y/N] "
    kept = in_terminal(done, "builder", "gc", "--grace", "0", typed=[(asked, "n\n")])
    assert kept.code == 0
    assert "Nothing was deleted." in kept.out
    assert done.view("m_4bit").exists()
    by_default = in_terminal(done, "builder", "gc", "--grace", "0", typed=[(asked, "\n")])
    assert "Nothing was deleted." in by_default.out
    gone = in_terminal(done, "builder", "gc", "--grace", "0", typed=[(asked, "y\n")])
    assert "freed" in gone.out
    assert not done.view("m_4bit").exists()


def test_gc_does_not_ask_with_yes(done: Sandbox) -> None:
    done.edit(', "4bit"', "")
    ran = in_terminal(done, "builder", "gc", "--grace", "0", "--yes")
    assert "Delete this?" not in ran.out
    assert not done.view("m_4bit").exists()


def test_gc_tells_what_is_only_new(done: Sandbox) -> None:
    done.edit(', "4bit"', "")
    said = json.loads(done.doit("gc", "--dry-run", "--json").out)
    assert said["fresh_bytes"] > 0
    assert (said["results"], said["spare_results"], said["freed_bytes"]) == (0, 0, 0)
    assert "are all needed or new: nothing needs" in done.doit("gc", "--dry-run").out


def test_measured_again_where_asked(tmp_path: Path) -> None:
    """Of one target: its results are replaced, those of the others stay as they are."""
    box = measured_project(tmp_path / "project")
    assert box.builder("eval").code == 0
    before = results(box)
    assert {target for target, _ in before} == {"m_4bit", "m_5bit"}
    known = box.builder("eval", "m_4bit")
    assert "measuring" not in known.err
    assert results(box) == before
    again = box.builder("eval", "--again", "m_4bit")
    assert again.code == 0
    assert "measuring m_4bit: fidelity, calls" in again.err
    after = results(box)
    changed = {target for target, suite in before if before[target, suite][1] != after[target, suite][1]}
    assert changed == {"m_4bit"}
    assert {key: values for key, (values, _) in before.items()} == {k: v for k, (v, _) in after.items()}
    box.edit('"fidelity.kl" = "<= 100"', '"fidelity.kl" = "<= 100"\n"calls.rate" = ">= 0"')
    assert "measuring" not in box.builder("eval", "m_5bit").err


def results(box: Sandbox) -> dict[tuple[str, str], tuple[str, int]]:
    """(target, suite) -> the figures, and the moment at which the file was written."""
    found = {}
    for file in (box.root / "store" / "evals").glob("*/*.json"):
        data = json.loads(file.read_text().splitlines()[0])
        found[data["target"], data["suite"]] = (json.dumps(data["figures"]), file.stat().st_mtime_ns)
    return found


def test_a_build_that_does_not_fit_can_be_asked_for(done: Sandbox) -> None:
    """A disk of 8 MB with 2 MB left: less than the slack of a build, and more than this one writes."""
    disk = done.root.parent / "small"
    disk.mkdir()
    done.toml.write_text(f'[store]\npath = "{disk}/store"\n\n{DECLARATION}')
    state = done.root.parent / "state"
    build = f"XDG_STATE_HOME={state} {sys.executable} -m builder.commands.main build m_4bit"
    script = (
        f"mount -t tmpfs -o size=8m small {disk} || exit 99\n"
        f"head -c 6000000 /dev/zero > {disk}/other\n"
        f"{build}; echo refused with $?\n{build} --no-space-check; echo built with $?\n"
    )
    ran = done.run("unshare", "-m", "bash", "-c", script)
    if ran.code == 99 or "Operation not permitted" in ran.err:
        pytest.skip("no mounts here")
    assert "refused with 2" in ran.out, ran.text
    assert "`--no-space-check` builds all the same." in ran.err
    assert "built with 0" in ran.out, ran.text
