"""How often a build empties a drive's cache: on a Mac each time takes milliseconds, whatever was written."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from builder import Project
from builder.store.disk import capability
from tests.drive import Drive
from tests.tiny import make_adapter, make_base

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts through /proc")
BITS = (3, 4, 5, 6, 8)
DECLARATION = """\
[base.tiny]
path = "base"

[adapter.tuned]
base = "tiny"
path = "adapter"
"""


def declare(folder: Path) -> Path:
    """Five variants of one model of 49 blocks."""
    make_base(folder / "base", layers=47)
    make_adapter(folder / "adapter")
    variants = "".join(f"\n[variant.{bits}bit]\nbits = {bits}\n" for bits in BITS)
    names = ", ".join(f'"{bits}bit"' for bits in BITS)
    file = folder / "artifacts.toml"
    file.write_text(f'{DECLARATION}{variants}\n[model.m]\nadapter = "tuned"\nvariants = [{names}]\n')
    return file


def test_five_variants_of_49_blocks_empty_the_cache_a_few_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1,642 times before blobs and records asked for their order only."""
    drive = Drive(tmp_path)
    project = Project(declare(tmp_path))
    # As on APFS, where each file of a view is a clone, which is flushed for itself.
    monkeypatch.setattr(capability, "reflink", shutil.copyfile)
    drive.install(monkeypatch)
    project.build()
    actions = len(list((tmp_path / "store/actions").glob("*/*")))
    print(f"{actions} actions: {dict(drive.counts)}")
    assert actions >= 5 * 48 + 1  # the final norm is the same in all five
    assert drive.counts["full"] <= 4 * len(BITS) + 8, drive.counts
    assert drive.counts["fsync"] == 0
    full = [path for what, path in drive.log if what == "full"]
    assert not [path for path in full if path.startswith(("store/blobs", "store/actions"))]
    assert full.count("store/targets") == len(BITS)
    assert_durable(drive.log)


def assert_durable(log: list[tuple[str, str]]) -> None:
    """A full flush stands between the last blob or record and the manifest, and around each view."""
    for at, (what, path) in enumerate(log):
        folder = path.rpartition("/")[0]
        if what == "rename" and folder == "store/targets":
            assert log[at - 1][0] == "full"
            assert ("full", "store/targets") in log[at + 1 : at + 2]
        if what == "rename" and folder == "store/models":
            assert "full" in {what for what, _ in log[at - 3 : at]}
            assert log[at + 1] == ("full", "store/models")
