"""Views: the folders that a person or mlx_lm loads. Always replaced as a whole, never changed in place (but
for the card, README.md, which is rewritten when a target is measured).

A reader sees the old folder or the new one, complete (where the kernel can swap two names; elsewhere the
name is missing for an instant). Everything in a view can be made again from the manifest and the blobs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from pathlib import Path

from builder.errors import StoreError
from builder.keys import Key, is_digest
from builder.store import blobs, records, seals, tmp
from builder.store.disk import capability, durable, swap
from builder.store.disk.identity import Identity, identity_of
from builder.store.disk.names import alike, is_hidden
from builder.store.layout import Store, is_file_name
from builder.store.types import Blob, Manifest, manifest_to_text

MANIFEST = "artifact.toml"
CARD = "README.md"
NAME = ".name"
REMOVED = "artifact.toml.removed"  # a view that is being deleted


def materialize(store: Store, folder: Path, manifest: Manifest, card: str = "", name: str = "") -> None:
    """Makes `folder` the view of the manifest, in place of the view that is there, atomically and durably.

    `card` becomes its README.md, which is for people and no part of what the view must be. `name`: the
    target, if the folder is called otherwise (a release). Files are reflinks of the blobs, else hard links,
    else copies. `folder` must be on the store's file system.

    Raises StoreError: a folder that is not a view (it is somebody's, and stays), a file name that is not
    plain, two that differ only by case where that is one name, a blob that is missing or damaged, the disk.
    """
    refuse_foreign(folder)
    for entry in manifest.files:
        if not is_file_name(entry.name) or entry.name.partition("/")[0] == MANIFEST:
            raise StoreError(path=folder, what=f"{entry.name!r} cannot be the name of a file in a view")
        if not blobs.has(store, entry.blob):
            place = blobs.path(store, entry.blob.digest)
            raise StoreError(path=place, what=f"missing or damaged, needed by {entry.name} of {folder.name}")
    check_names(store, folder, (entry.name for entry in manifest.files))
    with durable.explained(folder), tmp.new_folder(store) as staged:
        put = _Placer(store)
        inner = sorted({entry.name.rpartition("/")[0] for entry in manifest.files} - {""})
        for name in inner:
            (staged / name).mkdir()
        for entry in manifest.files:
            put(entry.blob, staged / entry.name)
        if card and not (staged / CARD).exists():
            _write(staged / CARD, card.encode())
        if name:
            _write(staged / NAME, seals.sealed(f"{name}\n"))
        _write(staged / MANIFEST, _text_of(store, manifest))
        for place in (*(staged / name for name in inner), staged):
            durable.set_mode(place, 0o755)
            durable.sync_folder(place, order_only=place != staged)  # the last in full, for all before it
        durable.make_folder(folder.parent)
        swap.into_place(staged, folder, tmp.new_name(store))
        if os.path.lexists(staged) and not is_view(staged):  # put there since we looked
            swap.into_place(staged, folder, tmp.new_name(store))
            refuse_foreign(folder)
        durable.sync_folder(folder.parent)


def is_view(folder: Path) -> bool:
    """Whether a folder is one that this program made: it says which manifest it shows."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    return current_key(folder) is not None or (folder / REMOVED).is_file()


def refuse_foreign(folder: Path) -> None:
    """Only what this program made is replaced and deleted. Raises StoreError for anything but a view."""
    if os.path.lexists(folder) and not is_view(folder):
        raise StoreError(
            path=folder,
            what="something is there that this program did not make, and it stays",
            hint="Move it away, then run the same command again. "
            "(`doit verify --repair` moves a damaged view.)",
        )


def _text_of(store: Store, manifest: Manifest) -> bytes:
    """The manifest exactly as the store has it: two copies of one text can be compared."""
    data = records.manifest_bytes(store, manifest.key)
    known = records.parse_manifest(seals.unsealed(data), manifest.key) if data is not None else None
    return data if data is not None and known == manifest else seals.sealed(manifest_to_text(manifest))


def instance(folder: Path) -> tuple[int, Identity] | None:
    """Which view lies there: another one each time that it was made. None where none does.

    The folder's inode alone would not tell: a new folder may get the number of one that was just deleted.
    """
    place, said = (identity_of(path, follow_symlinks=False) for path in (folder, folder / MANIFEST))
    return (place.inode, said) if place and said else None


def current_key(folder: Path) -> Key | None:
    """The key of the manifest that the folder claims to be the view of, from its first lines."""
    text = _said(folder, b"key")
    return Key(text) if text is not None and is_digest(text) else None


def current_name(folder: Path) -> str | None:
    """The name of the target that a release shows: what it was called then, else what its manifest says."""
    text = seals.read(folder / NAME)
    return text.strip() if text is not None else _said(folder, b"name")


def _said(folder: Path, key: bytes) -> str | None:
    """A text that stands at the beginning of the folder's manifest."""
    try:
        with (folder / MANIFEST).open("rb") as file:
            head = file.read(512)
    except OSError:
        return None
    for line in head.splitlines():
        name, _, value = line.partition(b" = ")
        if name == key:
            return value.strip(b'"').decode(errors="replace")
    return None


def is_current(store: Store, folder: Path, manifest: Manifest) -> bool:
    """Whether the folder is exactly the manifest's view: the same text, every file there, unedited by size
    and seal.

    A weights file that is not the manifest's makes it stale too, since loaders take all that they find.
    """
    try:
        if (folder / MANIFEST).read_bytes() != _text_of(store, manifest):
            return False
    except OSError:
        return False
    if not all(blobs.sound_file(folder / entry.name, entry.blob) for entry in manifest.files):
        return False
    names = {entry.name for entry in manifest.files}
    return not strangers(names, (file.name for file in folder.glob("*.safetensors")))


def strangers(names: Collection[str], present: Iterable[str]) -> list[str]:
    """The weights files among those present that a view of the files `names` does not hold."""
    return [n for n in present if n.endswith(".safetensors") and n not in names and not is_hidden(n)]


def check_names(store: Store, folder: Path, names: Iterable[str]) -> None:
    """Raises StoreError if one of these files would take the place of another in a view."""
    pair = alike((*names, MANIFEST))
    if pair is not None and capability.ignores_case(store.tmp):
        raise StoreError(
            path=folder,
            what=f'"{pair[0]}" and "{pair[1]}" differ only by case, and this file system holds one of them',
            hint="Rename or remove one of the two in the base, or declare a [store] path on another disk.",
        )


def remove(store: Store, folder: Path) -> None:
    """Takes a view away as a whole, then deletes it; nothing happens when there is none.

    Works on a full disk. Raises StoreError, also for a folder that is not a view.
    """
    refuse_foreign(folder)
    doomed = store.tmp / os.urandom(16).hex()
    with durable.explained(folder):
        try:
            durable.make_folder(store.tmp)
            folder.rename(doomed)
        except FileNotFoundError:
            return
        except OSError:  # no room for a name in tmp/: at least nobody takes what is left for whole
            _remove_in_place(folder)
            return
        if not is_view(doomed):  # put there since we looked
            swap.into_place(doomed, folder, tmp.new_name(store))
            refuse_foreign(folder)
        durable.sync_folder(folder.parent)
    tmp.delete(doomed)


def _remove_in_place(folder: Path) -> None:
    """Deletes a view where it lies; what proves that it is a view goes last. Raises OSError."""
    with suppress(FileNotFoundError):
        (folder / MANIFEST).rename(folder / REMOVED)
    durable.sync_folder(folder)
    for entry in folder.iterdir():
        if entry.name != REMOVED:
            tmp.delete(entry)
    (folder / REMOVED).unlink(missing_ok=True)
    folder.rmdir()
    durable.sync_folder(folder.parent)


class _Placer:
    """Puts blobs into a folder the cheapest way that works here; remembers which ways do not."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.ways: list[Callable[[Path, Path], None]] = [capability.reflink, capability.hardlink]

    def __call__(self, blob: Blob, destination: Path) -> None:
        source = blobs.path(self.store, blob.digest)
        for way in tuple(self.ways):
            try:
                way(source, destination)
            except FileNotFoundError:
                raise
            except OSError:
                self.ways.remove(way)
                destination.unlink(missing_ok=True)
            else:
                break
        else:
            import shutil

            shutil.copyfile(source, destination)
        if not destination.samefile(source):
            _finish(destination, source, blob)


def _finish(destination: Path, source: Path, blob: Blob) -> None:
    """Makes a clone or copy durable, read-only and sealed like its blob."""
    fd = os.open(destination, os.O_RDONLY)
    try:
        seals.close(fd, source.stat(), blob.digest)
        durable.set_mode(fd, 0o444)
        durable.sync_file(fd, order_only=True)
    finally:
        os.close(fd)


def _write(destination: Path, data: bytes) -> None:
    fd = os.open(destination, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444)
    try:
        durable.write_all(fd, memoryview(data))
        durable.sync_file(fd, order_only=True)
    finally:
        os.close(fd)
