"""Views: complete or not there, the old or the new, and never believed when edited."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from builder.errors import StoreError
from builder.keys import make_key
from builder.store import blobs, seals, views
from builder.store.disk import capability, swap
from builder.store.format import open_store
from builder.store.layout import Store
from builder.store.types import FileEntry, Manifest
from tests.store_scenario import folder_of


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store")


def make(store: Store, seed: int = 0, names: tuple[str, ...] = ("a.safetensors", "config.json")) -> Manifest:
    files = tuple(FileEntry(n, blobs.ingest(store, [f"{seed} {n}".encode() * 50])) for n in names)
    return Manifest(make_key("view", seed), "target", "m_5bit", "2025-01-01T00:00:00Z", files)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != views.MANIFEST}


def test_a_view_holds_the_files_and_its_manifest(store: Store) -> None:
    manifest = make(store)
    folder = folder_of(store, manifest)
    assert folder == store.models / "m_5bit"
    assert not views.is_current(store, folder, manifest)
    views.materialize(store, folder, manifest)
    assert views.is_current(store, folder, manifest)
    assert views.current_key(folder) == manifest.key
    assert contents(folder) == {e.name: blobs.read(store, e.blob) for e in manifest.files}
    assert not list(store.tmp.iterdir())


def test_a_base_has_its_view_among_the_bases(store: Store) -> None:
    manifest = Manifest(make_key("b"), "base", "smol", "2025-01-01T00:00:00Z", ())
    assert folder_of(store, manifest) == store.bases / manifest.key


def test_a_new_view_replaces_the_old_as_a_whole(store: Store) -> None:
    old, new = make(store, 1, ("a.safetensors", "b.safetensors")), make(store, 2, ("a.safetensors",))
    folder = folder_of(store, old)
    views.materialize(store, folder, old)
    views.materialize(store, folder, new)
    assert set(contents(folder)) == {"a.safetensors"}
    assert views.is_current(store, folder, new)
    assert not views.is_current(store, folder, old)
    assert not list(store.tmp.iterdir())


@pytest.mark.parametrize("way", ["reflink", "hardlink", "copy"])
def test_each_way_gives_the_same_view(store: Store, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    def clone(source: Path, destination: Path) -> None:
        destination.write_bytes(source.read_bytes())

    def refuse(source: Path, destination: Path) -> None:
        destination.write_bytes(b"half")
        raise OSError(errno.EOPNOTSUPP, "no")

    monkeypatch.setattr(capability, "reflink", clone if way == "reflink" else refuse)
    monkeypatch.setattr(capability, "hardlink", capability.hardlink if way == "hardlink" else refuse)
    manifest = make(store)
    folder = folder_of(store, manifest)
    views.materialize(store, folder, manifest)
    assert views.is_current(store, folder, manifest)
    assert contents(folder) == {e.name: blobs.read(store, e.blob) for e in manifest.files}
    for entry in manifest.files:
        file = folder / entry.name
        assert file.samefile(blobs.path(store, entry.blob.digest)) == (way == "hardlink")
        assert file.stat().st_mode & 0o777 == 0o444
        assert file.stat().st_mtime_ns == blobs.path(store, entry.blob.digest).stat().st_mtime_ns


def _flip(folder: Path) -> None:
    file = folder / "config.json"
    file.chmod(0o644)
    with file.open("r+b") as handle:
        handle.write(b"X")


def _truncate(folder: Path) -> None:
    os.truncate(folder / "config.json", 3)


def _delete(folder: Path) -> None:
    (folder / "config.json").unlink()


def _relink(folder: Path) -> None:
    (folder / "config.json").rename(folder / "other.json")
    (folder / "config.json").symlink_to("other.json")


def _add_weights(folder: Path) -> None:
    (folder / "model-extra.safetensors").write_bytes(b"stale")


def _replace_manifest(folder: Path) -> None:
    text = seals.read(folder / views.MANIFEST)
    assert text is not None
    (folder / views.MANIFEST).unlink()
    (folder / views.MANIFEST).write_bytes(seals.sealed(text.replace("2025", "2024")))


@pytest.mark.parametrize("change", [_flip, _truncate, _delete, _relink, _add_weights, _replace_manifest])
def test_a_changed_view_is_not_current_and_is_made_again(
    store: Store, change: Callable[[Path], None]
) -> None:
    manifest = make(store)
    folder = folder_of(store, manifest)
    views.materialize(store, folder, manifest)
    change(folder)
    assert not views.is_current(store, folder, manifest)
    make(store)  # an edit of a hard link is an edit of the blob, which is made again
    views.materialize(store, folder, manifest)
    assert views.is_current(store, folder, manifest)
    assert contents(folder) == {e.name: blobs.read(store, e.blob) for e in manifest.files}


def test_notes_that_no_loader_takes_do_not_make_a_view_stale(store: Store) -> None:
    manifest = make(store)
    folder = folder_of(store, manifest)
    views.materialize(store, folder, manifest)
    (folder / ".DS_Store").write_bytes(b"")
    (folder / "notes.txt").write_bytes(b"")
    assert views.is_current(store, folder, manifest)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "/etc/x",
        "../x",
        "a/..",
        "./x",
        "a/b/c",
        "a//b",
        "a/",
        "a/.b",
        ".a/b",
        "a\0b",
        views.MANIFEST,
        f"{views.MANIFEST}/x",
    ],
)
def test_a_file_name_that_is_not_plain_is_refused(store: Store, name: str) -> None:
    blob = blobs.ingest(store, [b"x"])
    manifest = Manifest(make_key("v"), "target", "m", "", (FileEntry(name, blob),))
    with pytest.raises(StoreError, match="cannot be the name of a file"):
        views.materialize(store, store.models / "m", manifest)
    assert not (store.models / "m").exists()


def test_a_missing_blob_leaves_the_old_view(store: Store) -> None:
    old, new = make(store, 1), make(store, 2)
    folder = folder_of(store, old)
    views.materialize(store, folder, old)
    blobs.path(store, new.files[1].blob.digest).unlink()
    with pytest.raises(StoreError, match=r"missing or damaged, needed by config.json of m_5bit"):
        views.materialize(store, folder, new)
    assert views.is_current(store, folder, old)


def _link(folder: Path, precious: Path) -> None:
    folder.symlink_to(precious)


def _file(folder: Path, precious: Path) -> None:
    folder.write_text("a file")


def _folder(folder: Path, precious: Path) -> None:
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "weights.safetensors").write_text("mine")


def _own_toml(folder: Path, precious: Path) -> None:
    folder.mkdir()
    (folder / views.MANIFEST).write_text('name = "mine"\n')


@pytest.mark.parametrize("put", [_link, _file, _folder, _own_toml])
def test_what_this_program_did_not_make_is_neither_replaced_nor_removed(
    store: Store, tmp_path: Path, put: Callable[[Path, Path], None]
) -> None:
    manifest, folder, precious = make(store), store.models / "m_5bit", tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("mine")
    store.models.mkdir()
    put(folder, precious)

    def content() -> list[tuple[str, str]]:
        return [
            (str(p), p.read_text())
            for p in sorted(tmp_path.rglob("*"))
            if p.is_file() and store.blobs not in p.parents
        ]

    before = content()
    for act in (lambda: views.materialize(store, folder, manifest), lambda: views.remove(store, folder)):
        with pytest.raises(StoreError, match="this program did not make"):
            act()
        assert content() == before


def test_a_view_that_half_went_on_a_full_disk_is_still_ours(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without room for a name in tmp/ a view is deleted where it lies; killed in between, it must not block
    builds.
    """
    manifest, folder = make(store), store.models / "m_5bit"
    views.materialize(store, folder, manifest)
    (folder / views.MANIFEST).rename(folder / views.REMOVED)
    (folder / manifest.files[0].name).unlink()
    assert views.is_view(folder)
    views.materialize(store, folder, manifest)
    assert views.is_current(store, folder, manifest)


def test_remove_takes_it_away_and_may_be_repeated(store: Store) -> None:
    manifest = make(store)
    folder = folder_of(store, manifest)
    views.materialize(store, folder, manifest)
    views.remove(store, folder)
    views.remove(store, folder)
    assert not folder.exists()
    assert not list(store.tmp.iterdir())
    assert all(blobs.has(store, entry.blob) for entry in manifest.files)


def test_without_exchange_two_renames_do(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swap, "_exchange_function", lambda: None)
    old, new = make(store, 1), make(store, 2)
    folder = folder_of(store, old)
    views.materialize(store, folder, old)
    views.materialize(store, folder, new)
    assert views.is_current(store, folder, new)
    assert not list(store.tmp.iterdir())


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks through /proc")
def test_readers_never_see_a_mixture(store: Store) -> None:
    """Three readers hold the folder open (one look each) while two writers swap it 60 times."""
    manifests = [make(store, seed) for seed in (1, 2)]
    folder = folder_of(store, manifests[0])
    views.materialize(store, folder, manifests[0])
    allowed = [{e.name: e.blob for e in m.files} for m in manifests]
    wrong: list[object] = []
    looks = [0]
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            try:
                fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            except OSError as error:
                wrong.append(error)
                continue
            inside = Path(f"/proc/self/fd/{fd}")
            try:
                found = {p.name: blobs.hash_file(p) for p in inside.iterdir() if p.name != views.MANIFEST}
                if found not in allowed and (inside / views.MANIFEST).exists():
                    wrong.append(found)
                looks[0] += 1
            except FileNotFoundError:
                pass  # this one was replaced and is being deleted
            finally:
                os.close(fd)

    def write(manifest: Manifest) -> None:
        for _ in range(30):
            views.materialize(store, folder, manifest)

    readers = [threading.Thread(target=read) for _ in range(3)]
    writers = [threading.Thread(target=write, args=(m,)) for m in manifests]
    for thread in readers + writers:
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in readers:
        thread.join()
    assert wrong == []
    assert looks[0] > 10
    assert not list(store.tmp.iterdir())


def test_current_key_of_anything(tmp_path: Path) -> None:
    assert views.current_key(tmp_path) is None
    for text in (b"", b"\xff\xfe", b"key = 1\n", b'key = "../../x"\n', b"x" * 10_000, b'format = 1\nkey = "'):
        (tmp_path / views.MANIFEST).write_bytes(text)
        assert views.current_key(tmp_path) is None
