"""What one run has found in the store, so that a thousand built targets are looked at within a second.

The answers are those of `records`, `blobs` and `views`, only cheaper: a parsed manifest is remembered in the
stat cache by the digest of its text (parsing TOML costs 3 ms, reading JSON 0.1 ms), a blob that many targets
share is asked for once in a run, and a view's hard link is recognized by its inode, without another stat.
In doubt the answer is no, and the caller asks in the slow way.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from builder.keys import Digest, Key, digest_bytes
from builder.store import records, seals
from builder.store.layout import Store
from builder.store.statcache import StatCache
from builder.store.types import Manifest, Scalar
from builder.store.views import MANIFEST, strangers

_KIND = "brief/1"


class Brief(NamedTuple):
    """What a manifest says, as far as most readers need it. `files`: [name, digest, size] of each."""

    created: str
    measures: Mapping[str, Scalar]
    files: Sequence[tuple[str, Digest, int]]

    @property
    def size(self) -> int:
        return sum(size for _, _, size in self.files)


class Seen:
    """One run's view of a store. Remembers only what is there, never that something is not."""

    def __init__(self, store: Store, cache: StatCache) -> None:
        self._store = store
        self._cache = cache
        self._blobs = str(store.blobs)
        self._briefs: dict[Key, Brief] = {}
        self._texts: dict[Key, bytes] = {}  # of the manifests that were read
        self._places: dict[str, tuple[int, int, int]] = {}  # digest -> size, device, inode

    def brief(self, key: Key) -> Brief | None:
        """The manifest of a target, in brief."""
        if key in self._briefs:
            return self._briefs[key]
        brief = self._read(key)
        if brief is not None:
            self._briefs[key] = brief
        return brief

    def _read(self, key: Key) -> Brief | None:
        data = records.manifest_bytes(self._store, key)
        text = seals.unsealed(data) if data is not None else None
        if data is None or text is None:
            return None
        self._texts[key] = data
        digest = digest_bytes(text.encode())
        known = self._cache.get(_KIND, digest)
        if known is not None:
            created, measures, files = json.loads(known)
            return Brief(created, measures, files)
        manifest = records.parse_manifest(text, key)
        if manifest is None:
            return None
        made = brief_of(manifest)
        self._cache.put(_KIND, digest, json.dumps(made).encode())
        return made

    def shows(self, name: str, key: Key) -> bool:
        """Whether target `name` is built at this key: manifest, all blobs and the view, each unedited."""
        brief = self.brief(key)
        if brief is None:
            return False
        folder = f"{self._store.models}/{name}"
        try:
            with open(f"{folder}/{MANIFEST}", "rb") as file:  # noqa: PTH123 a thousand times
                same, device = file.read() == self._texts[key], os.fstat(file.fileno()).st_dev
            with os.scandir(folder) as entries:
                inodes = {entry.name: entry.inode() for entry in entries}
        except OSError:
            return False
        if not same:
            return False
        return self._same(folder, device, inodes, brief.files)

    def _same(
        self, folder: str, device: int, inodes: dict[str, int], files: Sequence[tuple[str, Digest, int]]
    ) -> bool:
        for name, digest, size in files:
            place = self._places.get(digest) or self._find(digest)
            if place is None or place[0] != size:
                return False
            inode = inodes.pop(name, None)
            if inode is None and "/" not in name:
                return False
            linked = inode == place[2] and device == place[1]
            if not linked and not _sound(f"{folder}/{name}", digest, size):
                return False
        return not strangers((), inodes)  # what is left of them

    def _find(self, digest: Digest) -> tuple[int, int, int] | None:
        status = _stat(f"{self._blobs}/{digest[:2]}/{digest}", digest)
        if status is None:
            return None
        place = (status.st_size, status.st_dev, status.st_ino)
        self._places[digest] = place
        return place


def brief_of(manifest: Manifest) -> Brief:
    files = [(entry.name, entry.blob.digest, entry.blob.size) for entry in manifest.files]
    return Brief(manifest.created, dict(manifest.measures), files)


def _sound(path: str, digest: Digest, size: int) -> bool:
    status = _stat(path, digest)
    return status is not None and status.st_size == size


def _stat(path: str, digest: Digest) -> Any:
    """The stat of a regular file whose seal is that of the digest; None otherwise."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) and seals.intact(status.st_mtime_ns, digest) else None
