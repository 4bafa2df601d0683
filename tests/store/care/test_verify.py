"""verify finds every kind of damage and quarantine puts aside exactly that."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from builder.errors import StoreError
from builder.keys import make_key
from builder.store import blobs, records, seals, views
from builder.store import checkouts as roots
from builder.store.care import drop as prune
from builder.store.care import repair, verify
from builder.store.care.findings import Kind
from builder.store.format import open_store
from builder.store.layout import Store
from builder.store.types import FileEntry, Manifest, Record
from tests.store_scenario import folder_of


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two targets that share a block, a base, a result, a checkout's roots."""
    store = open_store(tmp_path / "store")
    for name, kind, parts in (
        ("m_4bit", "target", ("shared", "four")),
        ("m_5bit", "target", ("shared", "five")),
        ("smol", "base", ("base",)),
    ):
        build(store, name, kind, parts)
    seals.write(store, store.evals / "result", "score = 1\n")
    roots.register(store, tmp_path, [make_key("target", "m_5bit")])
    return store


def build(store: Store, name: str, kind: str, parts: tuple[str, ...]) -> Manifest:
    files = []
    for part in parts:
        blob = blobs.ingest(store, [part.encode() * 500])
        records.write(store, Record(make_key("block", name, part), "block", blob))
        files.append(FileEntry(f"{part}.safetensors", blob))
    manifest = Manifest(make_key("target", name), kind, name, "2025-01-01T00:00:00Z", tuple(files))
    records.write_manifest(store, manifest)
    views.materialize(store, folder_of(store, manifest), manifest)
    return manifest


def manifest(store: Store, name: str = "m_5bit") -> Manifest:
    found = records.read_manifest(store, make_key("target", name))
    assert found is not None
    return found


def blob_path(store: Store, part: int = 1, name: str = "m_5bit") -> Path:
    return blobs.path(store, manifest(store, name).files[part].blob.digest)


def unlinked(path: Path) -> Path:
    """The file as one of its own, so that damage does not reach its hard links; times kept."""
    copy = path.with_name("copy")
    shutil.copy2(path, copy)
    copy.rename(path)
    return path


def flip(path: Path, position: int = 0, quietly: bool = False) -> None:
    """Flips a bit; quietly as a disk does, with the times left as they were."""
    status = path.stat()
    path.chmod(status.st_mode | 0o200)
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)
        file.seek(position)
        file.write(bytes([byte[0] ^ 1]))
    path.chmod(status.st_mode)
    if quietly:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def kinds(store: Store) -> set[tuple[Kind, str]]:
    return {(f.kind, str(f.path.relative_to(store.root))) for f in verify.verify(store).findings}


def test_a_sound_store_is_clean_and_everything_was_read(store: Store) -> None:
    told: list[tuple[int, int]] = []
    report = verify.verify(store, on_progress=lambda done, total: told.append((done, total)))
    assert report.findings == ()
    assert report.is_clean
    assert report.files == len(blobs.present(store)) == 4
    assert told[-1] == (report.bytes, report.bytes)


def test_an_empty_store_is_clean(tmp_path: Path) -> None:
    assert verify.verify(open_store(tmp_path)).findings == ()


@pytest.mark.parametrize("quietly", [False, True])
def test_one_flipped_byte_in_any_file_is_found(store: Store, quietly: bool) -> None:
    chance = random.Random(7)
    files = [p for p in sorted(store.root.rglob("*")) if p.is_file() and p.stat().st_size]
    files.remove(store.root / ".gitignore")  # a person's to edit: nothing that was built is in it
    assert len(files) > 20
    for path in files:
        position = chance.randrange(path.stat().st_size)
        flip(path, position, quietly)
        try:
            found = {finding.path for finding in verify.verify(open_store(store.root)).findings}
            assert path in found or any(path.samefile(other) for other in found), path
        except StoreError as error:
            assert path == store.version, error
        flip(path, position, quietly=True)
    if quietly:
        assert verify.verify(store).findings == ()


def _truncate(store: Store) -> set[tuple[Kind, str]]:
    os.truncate(unlinked(blob_path(store)), 10)
    return {(Kind.TRUNCATED, relative(store, blob_path(store)))}


def _lengthen(store: Store) -> set[tuple[Kind, str]]:
    with unlinked(blob_path(store)).open("ab") as file:
        file.write(b"!")
    return {(Kind.TRUNCATED, relative(store, blob_path(store)))}


def _corrupt(store: Store) -> set[tuple[Kind, str]]:
    flip(unlinked(blob_path(store)), quietly=True)
    return {(Kind.CORRUPT, relative(store, blob_path(store)))}


def _corrupt_with_view(store: Store) -> set[tuple[Kind, str]]:
    flip(blob_path(store), quietly=True)
    if not (store.models / "m_5bit" / "five.safetensors").samefile(blob_path(store)):
        pytest.skip("views are no hard links here")
    return {
        (Kind.CORRUPT, relative(store, blob_path(store))),
        (Kind.EDITED, "models/m_5bit/five.safetensors"),
    }


def _swap(store: Store) -> set[tuple[Kind, str]]:
    one, other = blob_path(store), blob_path(store, name="m_4bit")
    unlinked(one).rename(one.with_suffix(".x"))
    shutil.copy2(unlinked(other), one)
    one.with_suffix(".x").unlink()
    return {(Kind.SWAPPED, relative(store, one))}


def _lose(store: Store) -> set[tuple[Kind, str]]:
    blob_path(store).unlink()
    record = records.path(store, make_key("block", "m_5bit", "five"))
    return {(Kind.MISSING, relative(store, blob_path(store))), (Kind.DANGLING, relative(store, record))}


def _unreadable(store: Store) -> set[tuple[Kind, str]]:
    path = records.path(store, make_key("block", "m_5bit", "five"))
    path.write_text("{")
    return {(Kind.BAD_TEXT, relative(store, path))}


def _misfile(store: Store) -> set[tuple[Kind, str]]:
    path = records.path(store, make_key("block", "m_5bit", "five"))
    shutil.copy(records.path(store, make_key("block", "m_5bit", "shared")), path)
    return {(Kind.BAD_TEXT, relative(store, path))}


def _edit_view(store: Store) -> set[tuple[Kind, str]]:
    file = unlinked(store.models / "m_5bit" / "five.safetensors")
    flip(file)
    return {(Kind.EDITED, relative(store, file))}


def _delete_in_view(store: Store) -> set[tuple[Kind, str]]:
    (store.models / "m_5bit" / "five.safetensors").unlink()
    return {(Kind.EDITED, "models/m_5bit/five.safetensors")}


def _edit_manifest_of_view(store: Store) -> set[tuple[Kind, str]]:
    file = store.models / "m_5bit" / views.MANIFEST
    file.chmod(0o644)
    file.write_bytes(seals.sealed(file.read_text().replace("2025", "2026").rpartition("# b3")[0]))
    return {(Kind.OUTDATED, relative(store, file))}


def _add_to_view(store: Store) -> set[tuple[Kind, str]]:
    (store.models / "m_5bit" / "model.safetensors").write_bytes(b"x")
    return {(Kind.FOREIGN, "models/m_5bit/model.safetensors")}


def _writable(store: Store) -> set[tuple[Kind, str]]:
    blob_path(store).chmod(0o644)
    return {(Kind.WRITABLE, relative(store, blob_path(store)))}


def _strange(store: Store) -> set[tuple[Kind, str]]:
    (store.blobs / "notes.txt").write_text("")
    (store.blobs / "ab").mkdir(exist_ok=True)
    (store.blobs / "ab" / ("ab" * 32)).symlink_to("/etc/passwd")
    return {(Kind.FOREIGN, "blobs/notes.txt"), (Kind.FOREIGN, f"blobs/ab/{'ab' * 32}")}


def relative(store: Store, path: Path) -> str:
    return str(path.relative_to(store.root))


DAMAGE = [_truncate, _lengthen, _corrupt, _corrupt_with_view, _swap, _lose, _unreadable, _misfile]
DAMAGE += [_edit_view, _delete_in_view]
NOTES = [_edit_manifest_of_view, _add_to_view, _writable, _strange]


@pytest.mark.parametrize("damage", DAMAGE + NOTES)
def test_damage_is_named_and_nothing_else(
    store: Store, damage: Callable[[Store], set[tuple[Kind, str]]]
) -> None:
    expected = damage(store)
    assert kinds(store) == expected
    report = verify.verify(store)
    assert report.is_clean == (damage in NOTES)
    assert all(str(f.path) in f.message for f in report.findings)


@pytest.mark.parametrize("damage", DAMAGE)
def test_after_quarantine_a_build_makes_it_whole_again(
    store: Store, damage: Callable[[Store], set[tuple[Kind, str]]]
) -> None:
    damage(store)
    repair.quarantine(store, verify.verify(store).findings)
    assert {f.kind for f in verify.verify(store).findings if f.kind.is_damage} <= {Kind.MISSING}
    for name, kind, parts in (
        ("m_4bit", "target", ("shared", "four")),
        ("m_5bit", "target", ("shared", "five")),
    ):
        build(store, name, kind, parts)
    assert verify.verify(store).findings == ()
    again = manifest(store)
    assert views.is_current(store, folder_of(store, again), again)


def test_quarantine_moves_only_what_is_damaged(store: Store) -> None:
    flip(unlinked(blob_path(store)))
    path = blob_path(store, name="smol", part=0)
    path.chmod(0o666)
    before = set(blobs.present(store))
    moved = repair.quarantine(store, verify.verify(store).findings)
    assert [p.parent for p in moved] == [store.quarantine]
    assert moved[0].name.startswith(blob_path(store).name)
    assert set(blobs.present(store)) == before
    assert path.stat().st_mode & 0o777 == 0o444
    assert {f.kind for f in verify.verify(store).findings} == {Kind.MISSING, Kind.DANGLING}


def test_what_was_replaced_since_it_was_looked_at_is_left_alone(store: Store) -> None:
    flip(unlinked(blob_path(store)))
    findings = verify.verify(store).findings
    build(store, "m_5bit", "target", ("shared", "five"))
    assert repair.quarantine(store, findings) == ()
    assert verify.verify(store).findings == ()


def test_a_pruned_target_is_no_damage(store: Store) -> None:
    prune.drop(store, {"m_4bit": [make_key("target", "m_4bit")]})
    report = verify.verify(store)
    assert {f.kind for f in report.findings} == {Kind.DANGLING}
    assert report.is_clean


def test_one_target(store: Store) -> None:
    flip(unlinked(blob_path(store)))
    flip(unlinked(blob_path(store, name="m_4bit")))
    report = verify.verify(store, only={make_key("target", "m_4bit")})
    assert [f.path for f in report.findings] == [blob_path(store, name="m_4bit")]
    assert report.files == 3  # two blobs, and the view's file that is no link to its blob any more


def test_a_sample(store: Store) -> None:
    assert verify.verify(store, fraction=0.5).files == 2
    assert verify.verify(store, fraction=0).files == 0
    damaged = blob_path(store)
    flip(unlinked(damaged))
    seeds = [bool(verify.verify(store, fraction=0.5, seed=seed).findings) for seed in range(20)]
    assert seeds == [bool(verify.verify(store, fraction=0.5, seed=seed).findings) for seed in range(20)]
    assert True in seeds
    assert False in seeds


def test_a_disk_that_cannot_read_is_a_finding(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real, bad = blobs.hash_file, blob_path(store)

    def fail(path: Path, on_bytes: Callable[[int], None] | None = None) -> object:
        if path == bad:
            raise OSError(5, "Input/output error")
        return real(path, on_bytes)

    monkeypatch.setattr(blobs, "hash_file", fail)
    report = verify.verify(store)
    assert (report.findings[0].kind, report.findings[0].path) == (Kind.UNREADABLE, bad)
    assert report.findings[0].message == f"{bad}: it cannot be read (Input/output error)"
