"""A remote store in a bucket (S3, GCS, Azure) or behind a web server, by obstore.

A process that has used obstore must not fork: its threads would be missing in the child, which hangs.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from builder.console.words import one_line
from builder.remote.transport import (
    LARGEST_TEXT,
    Entry,
    Interrupted,
    RemoteError,
    RemoteFull,
    RemoteReadOnly,
    RemoteRefused,
    RemoteUnreachable,
)

PART = 16 << 20  # bytes of a part of an upload
PARTS = 4  # that travel at once
_PIECE = 4 << 20  # bytes of a piece of a download
_RESUMES = 6  # how often a download that stands still goes on, before it is an error
_PAUSE_S = 0.5
_DENIED = re.compile(r"\b40[13] |<Code>(AccessDenied|SignatureDoesNotMatch|InvalidAccessKeyId)")
_FULL = re.compile(r"\b507 |<Code>(StorageFull|QuotaExceeded|XMinioStorageFull)|[Nn]o space left")
_SILENT = re.compile(r"(https?://[^/\s]+)\S* in .* - (?:HTTP error: )?(.*)", re.DOTALL)
_STATUS = re.compile(r"status code: (\d+ [A-Za-z ]+)")
_CODE = re.compile(r"<Code>(\w+)</Code>")


class BucketTransport:
    """See `Transport`. `store` is an object store of obstore."""

    forks = False

    def __init__(self, name: str, url: str, store: Any, *, writes: bool, lists: bool = True) -> None:
        self.name, self.url, self._store = name, url, store
        self.can_write, self.can_list = writes, lists

    def read(self, path: str) -> bytes | None:
        import obstore

        with self._explained():
            try:
                found = obstore.get(self._store, path)
                return bytes(found.bytes()) if found.meta["size"] <= LARGEST_TEXT else None
            except FileNotFoundError:
                return None

    def stream(self, path: str) -> Iterator[bytes] | None:
        import obstore

        with self._explained():
            try:
                first = obstore.get(self._store, path)
            except FileNotFoundError:
                return None
        return self._resumed(path, first)

    def _resumed(self, path: str, found: Any) -> Iterator[bytes]:
        """The pieces of an object. A connection that is cut goes on where it was, by a range."""
        import obstore
        from obstore.exceptions import GenericError, NotSupportedError

        size, tag, done, failed = found.meta["size"], found.meta["e_tag"], 0, 0
        while True:
            try:
                if found is None:
                    options: Any = {"range": {"offset": done}, **({"if_match": tag} if tag else {})}
                    found = obstore.get(self._store, path, options=options)
                for piece in found.stream(min_chunk_size=_PIECE):
                    done, failed = done + len(piece), 0
                    yield bytes(piece)
                if done >= size:
                    return
                found = None
            except NotSupportedError:
                raise Interrupted(remote=self.name, path=path) from None
            except GenericError as error:
                found, failed = None, failed + 1
                if failed > _RESUMES:
                    raise self._told(error) from error
                time.sleep(_PAUSE_S * failed)
            except Exception as error:
                raise self._told(error) from error

    def head(self, path: str) -> Entry | None:
        import obstore

        with self._explained():
            try:
                return _entry(obstore.head(self._store, path))
            except FileNotFoundError:
                return None

    def list(self, prefix: str) -> Iterator[Entry]:
        import obstore

        with self._explained():
            for page in obstore.list(self._store, prefix.rstrip("/"), chunk_size=1000):
                yield from map(_entry, page)

    def write(self, path: str, data: bytes) -> None:
        import obstore

        with self._explained():
            obstore.put(self._store, path, data, mode="overwrite", use_multipart=False)

    def upload(self, path: str, chunks: Iterable[bytes | memoryview]) -> None:
        import obstore

        failed: list[BaseException] = []
        pieces = iter(chunks)
        begun: list[bytes | memoryview] = []
        for piece in pieces:
            begun.append(bytes(piece))
            if sum(map(len, begun)) > PART:
                break
        else:  # one request instead of three
            with self._explained():
                obstore.put(self._store, path, b"".join(begun), use_multipart=False)
            return

        def watched() -> Iterator[bytes | memoryview]:
            try:
                yield from begun
                yield from pieces
            except BaseException as error:  # it comes back through obstore, perhaps as another error
                failed.append(error)
                raise

        try:
            obstore.put(self._store, path, watched(), chunk_size=PART, max_concurrency=PARTS)
        except Exception as error:
            if failed:
                raise failed[0] from None
            raise self._told(error) from error

    def create(self, path: str, data: bytes) -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        with self._explained():
            try:
                obstore.put(self._store, path, data, mode="create")
            except (AlreadyExistsError, PreconditionError):
                return False
        return True

    def replace(self, path: str, former: bytes, data: bytes) -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        with self._explained():
            try:
                found = obstore.get(self._store, path)
                if bytes(found.bytes()) != former:
                    return False
                obstore.put(self._store, path, data, mode={"e_tag": found.meta["e_tag"]})
            except (FileNotFoundError, AlreadyExistsError, PreconditionError):
                return False
        return True

    def delete(self, paths: Sequence[str]) -> None:
        import obstore

        with self._explained():
            if paths:
                obstore.delete(self._store, list(paths))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except RemoteError:
            raise
        except Exception as error:  # obstore raises its own and builtin ones
            raise self._told(error) from error

    def _told(self, error: Exception) -> RemoteError:
        """The error in one line, without the paths and headers that obstore adds."""
        from obstore.exceptions import NotSupportedError, PermissionDeniedError, UnauthenticatedError

        text = str(error).partition("Debug source:")[0]
        status, code = _STATUS.search(text), _CODE.search(text)
        what = ", ".join(found[1].strip() for found in (status, code) if found) or one_line(text, 160)
        if not status and (silent := _SILENT.search(text)):
            what = f"no answer from {silent[1]} ({one_line(silent[2], 160)})"
        if isinstance(error, PermissionDeniedError | UnauthenticatedError) or _DENIED.search(text):
            return RemoteRefused(remote=self.name, what=what)
        if _FULL.search(text):
            return RemoteFull(remote=self.name, what=what)
        if isinstance(error, NotSupportedError | NotImplementedError):
            return RemoteReadOnly(remote=self.name, what="this kind of server takes no files")
        if code and code[1] == "NoSuchBucket":
            return RemoteError(remote=self.name, what=f"there is no bucket at {self.url}")
        return RemoteUnreachable(remote=self.name, what=what)


def _entry(meta: Any) -> Entry:
    return Entry(meta["path"], meta["size"], meta["last_modified"].timestamp())
