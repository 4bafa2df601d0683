"""The program replaces and deletes only what it made, as the command line shows it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Ran, Sandbox
from tests.tiny import DECLARATION, make_adapter, make_base

Make = Callable[..., Sandbox]
COMMANDS = (
    ("doit",),
    ("status",),
    ("gc", "--grace", "0"),
    ("verify", "--repair"),
    ("clean:4bit",),
    ("plan",),
)


def tree(folder: Path) -> dict[str, tuple[bytes, int] | None]:
    """Every file with its bytes and time, every folder. Not what Python and doit keep beside a dodo.py."""
    found: dict[str, tuple[bytes, int] | None] = {}
    for path in sorted(folder.rglob("*")):
        if "__pycache__" not in path.parts and not path.name.startswith(".modelkiln.db"):
            data = (path.read_bytes(), path.stat().st_mtime_ns) if path.is_file() else None
            found[str(path.relative_to(folder))] = data
    return found


def run(box: Sandbox, words: tuple[str, ...], home: Path) -> Ran:
    words = words[1:] if words[0] == "doit" else words
    return box.doit(*words, env={"HOME": str(home)})


@pytest.mark.parametrize("place", [".", "..", "~", "data", "data/deep", "notes.txt"])
def test_a_store_is_not_made_among_a_persons_files(sandbox: Make, tmp_path: Path, place: str) -> None:
    """[store] path = "." once emptied their tmp/ and replaced their models/m_4bit."""
    box = sandbox(f'[store]\npath = "{place}"\n\n{DECLARATION}')
    home = tmp_path / "home"
    for folder in (box.root, tmp_path, home, box.root / "data/deep"):
        for name in ("tmp/draft.txt", "models/m_4bit/mine.txt", "blobs/ab/x", f"tmp/{'ab' * 16}"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("mine")
    (box.root / "notes.txt").write_text("mine")
    make_base(box.root / "base", layers=1)
    make_adapter(box.root / "adapter", layers=(0,))
    before = tree(tmp_path)
    for words in COMMANDS if place == "." else COMMANDS[:1]:
        ran = run(box, words, home)
        assert ran.code == 2, ran.text
        assert ran.text.count("[StoreError]") == 1
        why = "it is not a folder" if place == "notes.txt" else "it is not a store and not empty (it holds "
        assert why in ran.text
        assert "Traceback" not in ran.text
        assert tree(tmp_path) == before


@pytest.fixture
def box(sandbox: Make) -> Sandbox:
    made = sandbox(DECLARATION)
    make_base(made.root / "base", layers=1)
    make_adapter(made.root / "adapter", layers=(0,))
    return made


@pytest.mark.parametrize("link", [False, True], ids=["folder", "link"])
def test_a_persons_folder_in_the_place_of_a_view_stays(box: Sandbox, tmp_path: Path, link: bool) -> None:
    mine = tmp_path / "mine" if link else box.view("m_4bit")
    mine.mkdir(parents=True)
    (mine / "thesis.txt").write_text("months of work")
    (mine / "model.safetensors").write_bytes(b"my own")
    if link:
        (box.root / "store/models").mkdir(parents=True)
        box.view("m_4bit").symlink_to(mine)
    (box.root / "store/version").write_text("2\n")
    before = tree(mine)
    ran = box.doit("model:m_4bit")
    assert ran.code == 2, ran.text
    assert "m_4bit: something is there that this program did not make, and it stays" in ran.text
    assert "Traceback" not in ran.text
    assert tree(mine) == before
    for words in (("clean:m_4bit",), ("gc", "--grace", "0"), ("verify", "--repair"), ("status",)):
        ran = box.doit(*words)
        assert "Traceback" not in ran.text
        assert tree(mine) == before, words
        assert os.path.lexists(box.view("m_4bit"))
    box.view("m_4bit").rename(tmp_path / "elsewhere")
    assert box.doit("model:m_4bit").code == 0
    assert (box.view("m_4bit") / "config.json").is_file()
    assert tree(mine if link else tmp_path / "elsewhere") == before


def test_a_persons_files_in_the_store_stay(box: Sandbox) -> None:
    assert box.doit().code == 0
    store = box.root / "store"
    names = (
        "tmp/draft.txt",
        "models/old/mine.txt",
        "notes.txt",
        "bases/mine/x.json",
        "quarantine/x",
        "evals/x.txt",
    )
    for name in names:
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        (store / name).write_text("mine")
    box.edit(', "5bit"]', "]")
    for words in (("gc", "--grace", "0"), ("clean:4bit",), (), ("gc", "--grace", "0", "--max-size", "1kB")):
        assert "Traceback" not in box.doit(*words).text
    assert [name for name in names if not (store / name).is_file()] == []
