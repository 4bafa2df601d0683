"""Two free checks that nobody edited what the store wrote: a blob's seal, and the last line of a text.

A blob is sealed by its mtime: the microseconds follow from its digest. `stat` is enough to see that somebody
wrote to the file, also through a hard link in a view: a write sets the mtime to the present, whose
microseconds match the digest once in a million. The seconds stay true. A file system with coarse times (a
multiple of 10 ms) tells nothing, and nothing is concluded. A broken seal does not prove damage either (a
copied store has new mtimes): the bytes are hashed, and sealed again.

A small text ends with the line `# b3 <BLAKE3 of all bytes above it>`; `sed '$d' FILE | b3sum` recomputes it.
"""

from __future__ import annotations

import os
from pathlib import Path

from builder.keys import Digest, digest_bytes
from builder.store import tmp
from builder.store.disk import durable
from builder.store.layout import Store

_SECOND = 1_000_000_000
_COARSE = 10_000_000
_MARK = b"# b3 "

# -- blobs ---------------------------------------------------------------------------------------------------


def intact(mtime_ns: int, digest: Digest) -> bool:
    """Whether a file with this mtime can still be the one that was sealed."""
    part = mtime_ns % _SECOND
    return part == _fraction(digest) or part % _COARSE == 0


def close(file: int | str, status: os.stat_result, digest: Digest) -> None:
    """Seals a file (path or descriptor) whose bytes are known to be `digest`. Raises OSError."""
    second = status.st_mtime_ns // _SECOND
    os.utime(file, ns=(status.st_atime_ns, second * _SECOND + _fraction(digest)))


def _fraction(digest: Digest) -> int:
    return (int(digest[:8], 16) % 999_999 + 1) * 1000


# -- small texts ---------------------------------------------------------------------------------------------


def sealed(text: str) -> bytes:
    """The file's bytes for a text that ends with a newline."""
    body = text.encode()
    return body + _MARK + digest_bytes(body).encode() + b"\n"


def unsealed(data: bytes) -> str | None:
    """The text, or None when the bytes are not exactly what `sealed` made."""
    start = data.rfind(_MARK)
    if start < 0:
        return None
    body = data[:start]
    if data[start:] != _MARK + digest_bytes(body).encode() + b"\n":
        return None
    try:
        return body.decode()
    except UnicodeDecodeError:
        return None


def read(path: Path) -> str | None:
    """The text of a sealed text; None when it is missing, unreadable or damaged."""
    try:
        return unsealed(path.read_bytes())
    except OSError:
        return None


def write(store: Store, path: Path, text: str, *, order_only: bool = False) -> None:
    """Writes or replaces a sealed text in the store, durably (or `order_only`) and atomically.

    Raises StoreError; then `path` is what it was before.
    """
    with durable.explained(store.root), tmp.new_file(store) as staged:
        durable.write_all(staged.fd, memoryview(sealed(text)))
        staged.keep_as(path, order_only=order_only)
