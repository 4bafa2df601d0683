"""A remote store in a folder: on a network disk, an external disk, or the same machine.

Every file is written beside its place, synced, renamed, and its folder synced. A killed writer leaves a file
in v1/tmp, which `remote gc` deletes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from builder.remote.transport import (
    LARGEST_TEXT,
    Entry,
    NoRemoteStore,
    RemoteError,
    RemoteFull,
    RemoteRefused,
    RemoteUnreachable,
)
from builder.store.disk import durable

TMP = "v1/tmp/"
_ABSENT = "The folder does not exist. Is its disk mounted? `builder remote init {remote}` makes a new store."
_CHUNK = 1 << 22
_FULL = (errno.ENOSPC, errno.EDQUOT)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class FolderTransport:
    """See `Transport`."""

    can_write = True
    can_list = True
    forks = True

    def __init__(self, name: str, url: str, root: Path) -> None:
        self.name, self.url, self.root = name, url, root

    def require(self) -> None:
        """Raises NoRemoteStore where the folder is missing: its disk may not be mounted."""
        with self._explained():
            if not self.root.is_dir():
                raise NoRemoteStore(remote=self.name, url=self.url, hint=_ABSENT.format(remote=self.name))

    def read(self, path: str) -> bytes | None:
        with self._explained():
            try:
                with (self.root / path).open("rb") as file:
                    data = file.read(LARGEST_TEXT + 1)
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                return None
        return data if len(data) <= LARGEST_TEXT else None

    def stream(self, path: str) -> Iterator[bytes] | None:
        with self._explained():
            try:
                file = (self.root / path).open("rb")
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                return None

        def chunks() -> Iterator[bytes]:
            with file, self._explained():
                while data := file.read(_CHUNK):
                    yield data

        return chunks()

    def head(self, path: str) -> Entry | None:
        with self._explained():
            try:
                status = (self.root / path).stat()
            except (FileNotFoundError, NotADirectoryError):
                return None
        return Entry(path, status.st_size, status.st_mtime)

    def list(self, prefix: str) -> Iterator[Entry]:
        with self._explained():
            yield from self._walk(prefix.rstrip("/"))

    def _walk(self, folder: str) -> Iterator[Entry]:
        try:
            entries = sorted(os.scandir(self.root / folder), key=lambda entry: entry.name)
        except FileNotFoundError:
            return
        for entry in entries:
            path = f"{folder}/{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(path)
            elif entry.is_file(follow_symlinks=False):
                with suppress(FileNotFoundError):  # just deleted
                    status = entry.stat()
                    yield Entry(path, status.st_size, status.st_mtime)

    def write(self, path: str, data: bytes) -> None:
        self.upload(path, [data])

    def upload(self, path: str, chunks: Iterable[bytes | memoryview]) -> None:
        with self._staged(chunks) as staged, self._explained():
            durable.move_into_place(staged, self.root / path)

    def create(self, path: str, data: bytes) -> bool:
        final = self.root / path
        if final.exists():
            return False
        with self._staged([data]) as staged, self._explained():
            durable.make_folder(final.parent)
            try:
                os.link(staged, final)  # unlike a rename, a link never replaces
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                if final.exists():
                    return False
                staged.rename(final)  # a disk without links: `remote check` says so
            durable.sync_folder(final.parent)
        return True

    def replace(self, path: str, former: bytes, data: bytes) -> bool:
        """Two clients at the same moment may both be told that they did it. The last one did."""
        if self.read(path) != former:
            return False
        self.write(path, data)
        return True

    def delete(self, paths: Sequence[str]) -> None:
        with self._explained():
            for path in paths:
                (self.root / path).unlink(missing_ok=True)
            for folder in {(self.root / path).parent for path in paths}:
                with suppress(OSError):
                    durable.sync_folder(folder)

    @contextmanager
    def _staged(self, chunks: Iterable[bytes | memoryview]) -> Iterator[Path]:
        """A synced file with these bytes, which is gone afterwards unless it was renamed."""
        with self._explained():
            durable.make_folder(self.root / TMP)
        path = self.root / TMP / os.urandom(16).hex()
        try:
            with self._explained():
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o664)
            try:
                for chunk in chunks:
                    with self._explained():
                        durable.write_all(fd, memoryview(chunk))
                with self._explained():
                    durable.sync_file(fd)
            finally:
                os.close(fd)
            yield path
        finally:
            with suppress(OSError):
                path.unlink(missing_ok=True)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            what = os.strerror(error.errno) if error.errno else str(error)
            place = f"{what} ({error.filename})" if error.filename else what
            kind: type[RemoteError] = RemoteUnreachable
            if error.errno in _FULL:
                kind = RemoteFull
            elif error.errno in _DENIED:
                kind = RemoteRefused
            raise kind(remote=self.name, what=place) from error
