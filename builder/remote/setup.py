"""Making a remote store, and proving what its server can do. Every probe is deleted again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from builder.remote import layout
from builder.remote.connect import FORMAT, require_store
from builder.remote.folder import FolderTransport
from builder.remote.transport import NoRemoteStore, RemoteError, Transport
from builder.store import seals
from builder.store.disk import durable

PROBES = "v1/tmp/"
_BYTES = 300_000


class NotEmpty(RemoteError):
    """remote {remote}: something is at {url}, and it is not a store."""

    hint = "A store is made only where nothing is. Choose another prefix or folder."


class CannotKeep(RemoteError):
    """remote {remote}: a store cannot be made at {url}: {what}."""


@dataclass(frozen=True)
class Check:
    """One thing that a remote should do. `ok` None: it was not tried. `needed` for what."""

    what: str
    ok: bool | None
    said: str
    needed: str


def init(transport: Transport) -> tuple[Check, ...]:
    """Makes a store where nothing is, after trying what the server can do. Does nothing where there is one.

    Raises RemoteError.
    """
    if isinstance(transport, FolderTransport) and transport.root.parent.is_dir():
        with durable.explained(transport.root):
            transport.root.mkdir(exist_ok=True)
    with suppress(NoRemoteStore):
        require_store(transport)
        return probe(transport)
    if transport.can_list and next(iter(transport.list(layout.ROOT)), None) is not None:
        raise NotEmpty(remote=transport.name, url=transport.url)
    found = probe(transport)
    for check in found:
        if check.what in ("write", "read") and not check.ok:
            raise CannotKeep(remote=transport.name, url=transport.url, what=f"{check.what}: {check.said}")
    said = {
        "format": FORMAT,
        "id": os.urandom(16).hex(),
        "creates": all(check.ok for check in found if check.what in ("create", "replace")),
    }
    transport.create(layout.FORMAT, seals.sealed(json.dumps(said, sort_keys=True) + "\n"))
    require_store(transport)
    return found


def probe(transport: Transport) -> tuple[Check, ...]:
    """Tries everything that pushing, pulling and gc need. Writes and deletes a few small objects."""
    path = f"{PROBES}{os.urandom(16).hex()}"
    data, other = os.urandom(_BYTES), os.urandom(1000)
    if not transport.can_write:
        return (_tried("read", "pull", lambda: transport.read(layout.FORMAT) is not None),)
    try:
        return (
            _tried("write", "push", lambda: _writes(transport, path, data)),
            _tried("read", "pull", lambda: transport.read(path) == data),
            _tried("list", "push and status with one request", lambda: _lists(transport, path)),
            _tried("create", "two writers at once", lambda: not transport.create(path, other)),
            _tried("replace", "remote gc", lambda: _replaces(transport, path, data, other)),
            _tried("delete", "remote gc", lambda: _deletes(transport, path)),
        )
    finally:
        with suppress(RemoteError):
            transport.delete([path])


def _tried(what: str, needed: str, attempt: Callable[[], bool]) -> Check:
    try:
        ok = attempt()
    except RemoteError as error:
        return Check(what, False, error.message.rstrip("."), needed)
    return Check(what, ok, "works" if ok else "the server says yes and does something else", needed)


def _writes(transport: Transport, path: str, data: bytes) -> bool:
    transport.upload(path, [data])
    return True


def _lists(transport: Transport, path: str) -> bool:
    found = {entry.path: entry.size for entry in transport.list(PROBES)}
    return found.get(path) == _BYTES


def _replaces(transport: Transport, path: str, data: bytes, other: bytes) -> bool:
    """What is there is replaced only by whoever knows what is there."""
    stale = transport.replace(path, other, data)
    return not stale and transport.replace(path, data, other) and transport.read(path) == other


def _deletes(transport: Transport, path: str) -> bool:
    transport.delete([path])
    return transport.head(path) is None
