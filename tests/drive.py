"""A Mac's disk on Linux: counts which flushes the store asks for, in which order with the renames.

`fcntl.F_FULLFSYNC` exists, and F_BARRIERFSYNC works unless `barrier` is False. Nothing is flushed faster or
slower: the fsync behind them is left out.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

FULL, BARRIER = 51, 85  # sys/fcntl.h of macOS


class Drive:
    """`log`: (full, barrier, fsync or rename; path from the store's folder, a renamed file's new one)."""

    def __init__(self, root: Path, *, barrier: bool = True, full: bool = True) -> None:
        self.root = root
        self.log: list[tuple[str, str]] = []
        self._works = {FULL: full, BARRIER: barrier}
        self._names = {FULL: "full", BARRIER: "barrier"}
        self._lock = threading.Lock()

    @property
    def counts(self) -> Counter[str]:
        return Counter(what for what, _ in self.log)

    def note(self, what: str, path: str) -> None:
        with self._lock:
            self.log.append((what, os.path.relpath(path, self.root)))

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        control, fsync, rename = fcntl.fcntl, os.fsync, os.rename

        def fake_control(fd: int, command: int, *rest: Any) -> Any:
            if command not in self._works:
                return control(fd, command, *rest)
            if not self._works[command]:
                raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
            self.note(self._names[command], path_of(fd))
            return 0

        def fake_fsync(fd: int) -> None:
            self.note("fsync", path_of(fd))
            fsync(fd)

        def fake_rename(source: Any, target: Any, **more: Any) -> None:
            rename(source, target, **more)
            self.note("rename", os.fspath(target))

        monkeypatch.setattr(fcntl, "F_FULLFSYNC", FULL, raising=False)
        monkeypatch.setattr(fcntl, "fcntl", fake_control)
        monkeypatch.setattr(os, "fsync", fake_fsync)
        monkeypatch.setattr(os, "rename", fake_rename)


def path_of(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115
