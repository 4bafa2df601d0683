"""Publishing into a folder on this machine: a real folder of clones or copies, replaced as a whole.

A hidden file in the folder lists what was put there. So a later run knows what is there already, and that the
folder may be replaced. A folder without that list, or with a file that somebody added or changed, stays.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from builder.console.events import Emit, Sending
from builder.publish.bundle import Bundle, File, Plan, changes
from builder.publish.errors import PlaceFailed, PlaceRefused
from builder.spec.destinations import FolderPlace
from builder.store.disk import capability, durable, swap
from builder.store.disk.names import is_hidden

MARKER = ".modelkiln.json"
_FORMAT = 1
_PIECE = 1 << 24


def plan(place: FolderPlace, bundle: Bundle) -> Plan:
    """What is there, and what is not. Raises PlaceRefused for a folder that is somebody else's."""
    folder = place.path
    if not os.path.lexists(folder):
        return Plan(str(place), bundle, changes(bundle, {}, {}), exists=False)
    listed = _ours(place)
    there = {name: str(entry["sha256"]) for name, entry in listed.items()}
    sizes = {name: int(entry["size"]) for name, entry in listed.items()}
    return Plan(str(place), bundle, changes(bundle, there, sizes), exists=True)


def apply(place: FolderPlace, made: Plan, *, link: bool, emit: Emit) -> None:
    """Replaces the folder by the bundle, in one step. Raises PlaceRefused, PlaceFailed."""
    folder = place.path
    staged, spare = _beside(place)
    with _explained(place):
        durable.make_folder(folder.parent)
        staged.mkdir()
        try:
            _list(staged, {})
            _fill(staged, folder, made, link=link, emit=emit)
            durable.sync_folder(staged)
            if os.path.lexists(folder):
                _ours(place)  # once more: nobody has put anything there meanwhile
            swap.into_place(staged, folder, spare)
            durable.sync_folder(folder.parent)
        finally:
            clear(place)


def clear(place: FolderPlace) -> None:
    """Deletes what an interrupted run left beside the folder. Raises PlaceRefused, PlaceFailed."""
    with _explained(place):
        for left in _beside(place):
            _delete(place, left)


def _beside(place: FolderPlace) -> tuple[Path, Path]:
    """Where the new folder is made, and where the former one lies for an instant."""
    folder = place.path
    return (
        folder.with_name(f".{folder.name}.modelkiln"),
        folder.with_name(f".{folder.name}.modelkiln-former"),
    )


def _fill(staged: Path, former: Path, made: Plan, *, link: bool, emit: Emit) -> None:
    same = {*made.named("same")} if made.exists else set()
    total, done = made.bundle.size, 0
    listed: dict[str, Any] = {}
    for file in made.bundle.files:
        target = staged / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        kept = file.name in same and _linked(former / file.name, target)
        if not kept:
            _put(file, target, link=link)
        status = target.stat()
        listed[file.name] = {"sha256": file.sha256, "size": status.st_size, "mtime_ns": status.st_mtime_ns}
        done += file.size
        emit(Sending(former.name, done, total))
    _list(staged, listed)


def _put(file: File, target: Path, *, link: bool) -> None:
    """A clone where the disk can clone, a hard link where that is allowed, else a copy."""
    if isinstance(file.source, Path):
        ways = [capability.reflink, *([capability.hardlink] if link else [])]
        for way in ways:
            try:
                way(file.source, target)
            except OSError:
                target.unlink(missing_ok=True)
                continue
            if way is capability.reflink:
                durable.set_mode(target, 0o644)
            return
        with file.source.open("rb") as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy, _PIECE)
            copy.flush()
            durable.sync_file(copy.fileno(), order_only=True)
    else:
        target.write_bytes(file.source)


def _linked(former: Path, target: Path) -> bool:
    """Whether a file of the former folder, which is ours, is a file of the new one now."""
    try:
        capability.hardlink(former, target)
        return True
    except OSError:
        return False


def _ours(place: FolderPlace) -> Mapping[str, Mapping[str, Any]]:
    """The list of what was put there: name -> sha256, size and mtime. Raises PlaceRefused."""
    folder = place.path
    listed = _listed(folder)
    if listed is None:
        raise PlaceRefused(
            to=place, what="something is there that this program did not put there", hint=_AWAY
        )
    present = {
        str(path.relative_to(folder)): path
        for path in sorted(folder.rglob("*"))
        if not path.is_dir() and not is_hidden(path.name)
    }
    if added := [name for name in present if name not in listed]:
        raise PlaceRefused(
            to=place, what=f"{added[0]} is there, which this program did not put there", hint=_AWAY
        )
    for name, path in present.items():
        status = path.lstat()
        if (status.st_size, status.st_mtime_ns) != (listed[name]["size"], listed[name]["mtime_ns"]):
            raise PlaceRefused(to=place, what=f"{name} was changed since it was published", hint=_AWAY)
    return {name: listed[name] for name in present}


_AWAY = "Move it away, or name another folder."


def _listed(folder: Path) -> Mapping[str, Mapping[str, Any]] | None:
    if folder.is_symlink() or not folder.is_dir():
        return None
    try:
        said = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        files: Mapping[str, Mapping[str, Any]] = said["files"]
        ok = said["format"] == _FORMAT and all({"sha256", "size", "mtime_ns"} <= {*e} for e in files.values())
        return files if ok else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _list(folder: Path, files: Mapping[str, Any]) -> None:
    durable.replace_text(folder / MARKER, json.dumps({"format": _FORMAT, "files": files}, indent=1) + "\n")


def _delete(place: FolderPlace, folder: Path) -> None:
    """Deletes a folder that has our list. Raises PlaceRefused for any other."""
    if not os.path.lexists(folder):
        return
    if _listed(folder) is None and any(folder.iterdir()):
        raise PlaceRefused(to=place, what=f"{folder.name} beside it is in the way", hint="Move it away.")
    shutil.rmtree(folder)


@contextmanager
def _explained(place: FolderPlace) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = os.strerror(error.errno) if error.errno else str(error)
        raise PlaceFailed(to=place, what=what, hint="What was there before is still there.") from error
