"""What a remote store has: from one listing of all of it, or by asking for each name where it cannot be
listed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TypeVar

from builder.remote import layout
from builder.remote.transport import Entry, RemoteRefused, Transport

_Asked = TypeVar("_Asked")
_Answer = TypeVar("_Answer")

THREADS = 16  # small requests that travel at once
AT_ONCE = 3  # blobs that travel at once


@dataclass
class Contents:
    """One look at a remote. `entries` None: it could not be listed, and each name is asked for once.

    A listing may lack what is there: that of SeaweedFS does, once it was killed while a folder was made.
    So what must be there is asked for by name before it counts as missing (`ask_again`).
    """

    transport: Transport
    entries: Mapping[str, Entry] | None
    _asked: dict[str, Entry | None] = field(default_factory=dict)

    def entry(self, path: str) -> Entry | None:
        """An object, or None where there is none. Raises RemoteError."""
        if self.entries is not None:
            return self.entries.get(path) or self._asked.get(path)
        if path not in self._asked:
            self._asked[path] = self.transport.head(path)
        return self._asked[path]

    def size(self, path: str) -> int | None:
        found = self.entry(path)
        return found.size if found else None

    def ask(self, paths: Iterable[str]) -> None:
        """Looks at several objects at once, where there is no listing. Raises RemoteError."""
        if self.entries is None:
            self.ask_again(paths)

    def ask_again(self, paths: Iterable[str]) -> None:
        """Looks at several objects at once that a listing lacks. Raises RemoteError."""
        listed = self.entries or {}
        todo = [path for path in dict.fromkeys(paths) if path not in self._asked and path not in listed]
        for path, found in zip(todo, together(self.transport.head, todo), strict=True):
            self._asked[path] = found

    def read(self, paths: Iterable[str]) -> dict[str, bytes]:
        """The small objects that are there, several at once. Raises RemoteError."""
        todo = [path for path in dict.fromkeys(paths) if self.entries is None or path in self.entries]
        found = zip(todo, together(self.transport.read, todo), strict=True)
        return {path: data for path, data in found if data is not None}


def look(transport: Transport) -> Contents:
    """Lists a remote. One that may not be listed is asked for each name. Raises RemoteError."""
    if not transport.can_list:
        return Contents(transport, None)
    try:
        return Contents(transport, listed(transport))
    except RemoteRefused:
        return Contents(transport, None)


def listed(transport: Transport) -> dict[str, Entry]:
    """Everything that a remote has, by path. Raises RemoteError."""
    return {entry.path: entry for entry in transport.list(layout.ROOT)}


def together(ask: Callable[[_Asked], _Answer], paths: list[_Asked]) -> list[_Answer]:
    """The answers to several small requests, which travel at once."""
    if len(paths) < 2:
        return [ask(path) for path in paths]
    with ThreadPoolExecutor(min(THREADS, len(paths)), "remote") as pool:
        return list(pool.map(ask, paths))


def several(do: Callable[[_Asked], None], todo: Iterable[_Asked], stop: Callable[[], None]) -> None:
    """Does something to several blobs at once. After an error or Ctrl-C nothing more is begun, and `stop`
    ends what is under way.
    """
    with ThreadPoolExecutor(AT_ONCE, "blob") as pool:
        jobs = [pool.submit(do, each) for each in todo]
        try:
            wait(jobs, return_when=FIRST_EXCEPTION)
            for job in jobs:
                if job.done():
                    job.result()
        except BaseException:
            stop()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
