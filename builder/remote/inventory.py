"""What a remote holds at one moment: its objects, what keeps them, and the blobs that its texts name.

A listing may lack what is there (`builder.remote.contents`), so what must be there is asked for by name.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from builder.keys import Digest, Key, digest_bytes, is_digest
from builder.remote import layout
from builder.remote.contents import listed, together
from builder.remote.leases import Lease, Unreadable, leases_of
from builder.remote.transport import Entry, Transport
from builder.store import records, seals
from builder.store.types import Blob


@dataclass(frozen=True)
class Root:
    """What keeps a pushed target. `modified` by the server's clock: the last push that said it."""

    path: str
    target: str
    project: str
    key: Key
    keys: frozenset[Key]
    modified: float


@dataclass(frozen=True)
class Inventory:
    """What a remote holds at one moment, `now` by its server's clock. `names`: the blobs that a text
    names.
    """

    now: float
    entries: Mapping[str, Entry]
    roots: tuple[Root, ...]
    leases: tuple[Lease, ...]
    names: Mapping[str, frozenset[Blob]]
    texts: Mapping[str, Digest] = field(default_factory=dict)


def survey(transport: Transport, now: float | None = None) -> Inventory:
    """Reads what decides. `now`: by the server's clock; None: by ours, for a look. Raises RemoteError."""
    entries = listed(transport)
    entries |= _unlisted_roots(transport, entries)
    roots = _roots(transport, entries.values())
    entries |= _unlisted_texts(transport, entries, roots)
    leases = leases_of(transport, entries.values())
    paths = [path for path in entries if path.startswith((layout.TARGETS, layout.ACTIONS))]
    names: dict[str, frozenset[Blob]] = {}
    texts: dict[str, Digest] = {}
    for path, data in zip(paths, together(transport.read, paths), strict=True):
        if data is None:  # just deleted
            continue
        names[path] = _named_by(transport, path, data)
        texts[path] = digest_bytes(data)
    return Inventory(time.time() if now is None else now, entries, roots, leases, names, texts)


def _unlisted_roots(transport: Transport, entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """The roots of manifests that nothing seems to keep: a listing may lack a folder that is there
    (`contents.Contents`), which lists its own objects all the same.
    """
    kept = {path.rpartition("/")[0] + "/" for path in entries if path.startswith(layout.ROOTS)}
    manifests = [layout.named(path) for path in entries if path.startswith(layout.TARGETS)]
    folders = [folder for key in manifests if key and (folder := layout.roots(Key(key))) not in kept]
    found = together(lambda folder: list(transport.list(folder)), folders)
    return {entry.path: entry for listing in found for entry in listing}


def _unlisted_texts(
    transport: Transport, entries: Mapping[str, Entry], roots: Iterable[Root]
) -> dict[str, Entry]:
    """The manifests and records that a root names and a listing lacks: their blobs are needed."""
    known = {layout.named(path) for path in entries}
    keys = {key for root in roots for key in root.keys | {root.key}} - known
    paths = [place(key) for key in sorted(keys) for place in (layout.manifest, layout.record)]
    return {entry.path: entry for entry in together(transport.head, paths) if entry is not None}


def _roots(transport: Transport, entries: Iterable[Entry]) -> tuple[Root, ...]:
    """Raises Unreadable."""
    found = [entry for entry in entries if entry.path.startswith(layout.ROOTS)]
    read = together(transport.read, [entry.path for entry in found])
    roots = []
    for entry, data in zip(found, read, strict=True):
        if data is None:
            continue
        try:
            said = json.loads(seals.unsealed(data) or "")
            keys = frozenset(Key(key) for key in said["keys"] if is_digest(key))
            made = Root(entry.path, said["target"], said["project"], Key(said["key"]), keys, entry.modified)
        except (ValueError, KeyError, TypeError):
            raise Unreadable(remote=transport.name, path=entry.path) from None
        roots.append(made)
    return tuple(roots)


def _named_by(transport: Transport, path: str, data: bytes) -> frozenset[Blob]:
    """The blobs that a record or a manifest names. Raises Unreadable: nobody knows what a damaged one
    names.
    """
    key, text = Key(layout.named(path) or ""), seals.unsealed(data)
    if path.startswith(layout.ACTIONS):
        record = records.parse_record(text, key)
        if record is not None:
            return frozenset({record.blob})
    else:
        manifest = records.parse_manifest(text, key)
        if manifest is not None:
            return frozenset(entry.blob for entry in manifest.files)
    hint = (
        "Nothing was deleted. `builder push` writes it anew where the target is built, or delete that object."
    )
    raise Unreadable(remote=transport.name, path=path, hint=hint)
