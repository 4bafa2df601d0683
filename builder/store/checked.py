"""Small text files that know their own hash, so that a flipped byte is seen.

The last line is `# b3 <BLAKE3 of all bytes above it>`; `sed '$d' FILE | b3sum` recomputes it.
"""

from __future__ import annotations

from pathlib import Path

from builder.keys import digest_bytes
from builder.store import durable, tmp
from builder.store.layout import Store

_MARK = b"# b3 "


def seal(text: str) -> bytes:
    """The file's bytes for a text that ends with a newline."""
    body = text.encode()
    return body + _MARK + digest_bytes(body).encode() + b"\n"


def unseal(data: bytes) -> str | None:
    """The text, or None when the bytes are not exactly what `seal` made."""
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
    """The text of a checked file; None when it is missing, unreadable or damaged."""
    try:
        return unseal(path.read_bytes())
    except OSError:
        return None


def write(store: Store, path: Path, text: str) -> None:
    """Writes or replaces a checked file in the store, durably and atomically.

    Raises StoreError; then `path` is what it was before.
    """
    with durable.explained(store.root), tmp.new_file(store) as staged:
        durable.write_all(staged.fd, memoryview(seal(text)))
        staged.keep_as(path)
