"""gc, verify and the preflight through the real command line."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from builder.store.format import open_store
from tests.build.test_one_pass import ROW
from tests.conftest import Sandbox
from tests.store.test_file_systems import disk as disk  # a fixture
from tests.store.test_file_systems import fill
from tests.tiny import DECLARATION, make_adapter, make_base

Make = Callable[..., Sandbox]


@pytest.fixture
def done(sandbox: Make) -> Sandbox:
    box = sandbox(DECLARATION)
    make_base(box.root / "base")
    make_adapter(box.root / "adapter")
    assert box.doit().code == 0
    return box


def blob_files(box: Sandbox) -> list[Path]:
    return sorted(path for path in (box.root / "store/blobs").glob("*/*") if path.is_file())


def undeclare(box: Sandbox, variant: str) -> None:
    box.edit(f', "{variant}"', "")


def test_gc_frees_what_is_no_longer_declared(done: Sandbox) -> None:
    undeclare(done, "5bit")
    before = sum(path.stat().st_size for path in blob_files(done))
    assert "needed or new" in done.doit("gc").out  # the grace period
    dry = done.doit("gc", "--grace", "0", "--dry-run", "--json")
    planned = json.loads(dry.out)
    assert planned["targets"] == ["m_5bit"]
    assert planned["bytes"] > 0
    assert sum(path.stat().st_size for path in blob_files(done)) == before
    ran = done.doit("gc", "--grace", "0")
    assert ran.code == 0, ran.text
    assert "target m_5bit" in ran.out
    after = sum(path.stat().st_size for path in blob_files(done))
    assert before - after == planned["bytes"]
    assert not done.view("m_5bit").exists()
    assert not ROW.findall(done.doit().out)  # nothing that is declared was lost


def test_gc_keeps_what_was_used_lately(done: Sandbox) -> None:
    undeclare(done, "5bit")
    assert "needed or new" in done.doit("gc", "--grace", "0", "--keep-days", "7").out
    assert "needed or new" in done.doit("gc", "--grace", "0", "--max-size", "1GB").out
    small = done.doit("gc", "--grace", "0", "--max-size", "1kB")
    assert small.code == 1
    assert "larger than --max-size" in small.out
    assert not done.view("m_5bit").exists()
    assert done.view("m_4bit").exists()


def test_gc_says_that_sources_are_not_known(sandbox: Make) -> None:
    refused = sandbox(DECLARATION).doit("gc")
    assert refused.code == 2
    assert "no target is declared" not in refused.err
    assert "what the declared targets need is not known (m_f16: " in refused.err


def test_gc_refuses_without_roots_and_with_a_bad_declaration(done: Sandbox) -> None:
    text = done.toml.read_text()
    done.toml.write_text("")
    refused = done.doit("gc", "--grace", "0")
    assert (refused.code, refused.out) == (2, "")
    assert "no target is declared, so everything would be deleted" in refused.err
    done.toml.write_text("[model.m\n")
    assert done.doit("gc", "--grace", "0").code == 3
    done.toml.write_text(text)
    assert not ROW.findall(done.doit().out)


@pytest.mark.parametrize(
    "arguments", [["--max-size", "200"], ["--keep-days", "x"], ["--grace", "-1"], ["--forget", "nowhere"]]
)
def test_bad_options_are_one_line(done: Sandbox, arguments: list[str]) -> None:
    ran = done.doit("gc", *arguments)
    assert ran.code == 3
    assert ran.err.startswith(f"ERROR: {arguments[0]}: ")
    assert ran.err.count("\n") == 1


def test_two_checkouts_share_a_store(done: Sandbox, sandbox: Make) -> None:
    text = DECLARATION.replace('"base"', f'"{done.root}/base"').replace(
        '"adapter"\n', f'"{done.root}/adapter"\n'
    )
    other = sandbox(f'{text}\n[store]\npath = "{done.root}/store"\n', name="other")
    undeclare(other, "4bit")
    ran = other.doit()
    assert ran.code == 0, ran.text
    assert not ROW.findall(ran.out)
    undeclare(done, "5bit")
    assert "needed or new" in done.doit("gc", "--grace", "0").out  # the other checkout needs it
    assert done.doit("gc", "--grace", "0", "--forget", str(other.root)).code == 0
    assert not done.view("m_5bit").exists()


def test_verify_finds_every_flipped_byte_and_repairs(done: Sandbox) -> None:
    assert done.doit("verify").code == 0
    rng = random.Random(3)
    files = [path for path in blob_files(done) if path.stat().st_size > 100_000]
    wrong = rng.sample(files, 3)
    good = {path: path.read_bytes() for path in wrong}
    for path in wrong:
        flip(path, rng.randrange(path.stat().st_size))
    found = json.loads(done.doit("verify", "--json").out)
    hit = {entry["path"] for entry in found["findings"] if entry["damage"]}
    assert {str(path) for path in wrong} <= {str(done.root / path) for path in hit}
    assert done.doit("verify").code == 1
    repaired = done.doit("verify", "--repair")
    assert repaired.code == 0, repaired.text
    assert {path: path.read_bytes() for path in wrong} == good
    assert done.doit("verify").code == 0
    assert not ROW.findall(done.doit().out)


def flip(path: Path, at: int) -> None:
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    path.chmod(0o444)


@pytest.mark.parametrize("percent", [1, 10, 50])
def test_lost_blobs_are_made_again_and_only_they(done: Sandbox, percent: int) -> None:
    files = blob_files(done)
    contents = {path: path.read_bytes() for path in files}
    lost = random.Random(percent).sample(files, max(1, len(files) * percent // 100))
    records = {path: path.stat().st_mtime_ns for path in (done.root / "store/actions").glob("*/*")}
    for path in lost:
        path.unlink()
    ran = done.doit()
    assert ran.code == 0, ran.text
    assert {path: path.read_bytes() for path in blob_files(done)} == contents
    rewritten = sum(path.stat().st_mtime_ns != stamp for path, stamp in records.items())
    assert rewritten <= len(lost) + 1  # the action of each lost blob, no other


def test_an_edited_view_is_noticed(done: Sandbox) -> None:
    file = done.view("m_4bit") / "config.json"
    text = file.read_text()
    file.chmod(0o644)
    file.write_text(text.replace("qwen3", "qwen2"))
    assert done.doit("verify").code == 1
    assert done.doit().code == 0
    assert file.read_text() == text


def test_sample_and_single_target(done: Sandbox) -> None:
    part = json.loads(done.doit("verify", "--json", "--sample", "0.5").out)
    whole = json.loads(done.doit("verify", "--json").out)
    assert 0 < part["files"] < whole["files"]
    assert json.loads(done.doit("verify", "m_4bit", "--json").out)["files"] < whole["files"]
    assert done.doit("verify", "--sample", "0").code == 3
    assert "did you mean" in done.doit("verify", "m_4bits").err.lower()


def test_a_memory_budget_is_refused_with_numbers(done: Sandbox) -> None:
    done.toml.write_text(done.toml.read_text() + '\n[build]\nmemory = "100MB"\n\n[variant.8bit]\nbits = 8\n')
    done.edit('"5bit"]', '"5bit", "8bit"]')
    ran = done.doit("model:m_8bit")
    assert ran.code == 2
    assert 'block "model.embed_tokens" of m needs about' in ran.text
    assert "[build] memory is 100 MB" in ran.text
    assert "Traceback" not in ran.text


def test_a_full_disk_is_refused_before_the_start(done: Sandbox, disk: Path) -> None:
    """The numbers come before the first byte, and gc works on the full disk."""
    done.toml.write_text(done.toml.read_text() + f'\n[store]\npath = "{disk}/store"\n')
    assert done.doit("model:m_4bit").code == 0
    fill(open_store(disk / "store"))
    ran = done.doit("model:m_5bit")
    assert ran.code == 2
    assert "this build writes" in ran.text
    assert "`doit gc` frees" in ran.text
    assert not (disk / "store/models/m_5bit").exists()
    undeclare(done, "4bit")
    assert done.doit("gc", "--grace", "0").code == 0
    (disk / "store" / "ballast").unlink()
    os.sync()  # btrfs frees later
    assert done.doit("model:m_5bit").code == 0
