"""Pushing: what is planned from what is here and there, and doing it. What is visible is whole at any moment.

The order: a lease, blobs, a second look at all blobs, signatures, records, results, manifests, and last
the root that keeps all of it. What lies under a key first stays. A killed push leaves garbage, which
`remote gc` deletes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import blake3

from builder.console.events import Emit, Note
from builder.console.words import duration
from builder.errors import StoreError
from builder.keys import Key, digest_bytes
from builder.remote import layout
from builder.remote.contents import Contents, look, several, together
from builder.remote.leases import Held, lease
from builder.remote.pull import Progress
from builder.remote.same import Text, verdict
from builder.remote.signing import Signer
from builder.remote.transport import RemoteError, RemoteReadOnly, RemoteUnreachable, Transport
from builder.store import blobs
from builder.store.disk import durable
from builder.store.layout import Store
from builder.store.types import Blob

PAUSES = (5.0, 20.0, 60.0)  # seconds before a blob or a text is tried again
_RENEW_S = 86400.0  # a root that is older is written again
_LOOKS = 3  # at the remote, for blobs that vanished meanwhile
_CHUNK = 1 << 22

_Done = TypeVar("_Done")


class NotWhole(RemoteError):
    """remote {remote} does not keep what it was sent: {what}."""


@dataclass(frozen=True)
class Bundle:
    """One target as it is here: its texts with their exact bytes, and all blobs that they name.

    Without a `root`: texts alone, which no target keeps yet.
    """

    name: str
    key: Key
    texts: tuple[Text, ...]
    blobs: frozenset[Blob]
    root: bytes

    @property
    def keys(self) -> frozenset[Key]:
        return frozenset({*([self.key] if self.root else []), *(text.key for text in self.texts)})


@dataclass(frozen=True)
class PushPlan:
    """What is to be sent. `create`: texts that are not there. `exchange`: with the text in their place,
    which is worth nothing. `sign`: texts there or to be there, with their bytes. `kept`: what the remote
    says otherwise.
    """

    bundles: tuple[Bundle, ...] = ()
    blobs: tuple[Blob, ...] = ()
    create: tuple[Text, ...] = ()
    exchange: tuple[tuple[Text, bytes], ...] = ()
    sign: tuple[tuple[str, bytes], ...] = ()
    roots: tuple[tuple[str, bytes], ...] = ()
    kept: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        return sum(blob.size for blob in self.blobs)

    @property
    def is_empty(self) -> bool:
        return not (self.blobs or self.create or self.exchange or self.sign or self.roots)


def plan_push(contents: Contents, bundles: Sequence[Bundle], signer: Signer | None) -> PushPlan:
    """Compares what is here with what is there. Reads texts, writes nothing. Raises RemoteError."""
    wanted = {blob for bundle in bundles for blob in bundle.blobs}
    contents.ask(layout.blob(blob.digest) for blob in wanted)
    there = contents.read(text.path for bundle in bundles for text in bundle.texts)
    pushed_before = [each for each in bundles if each.root and layout.manifest(each.key) in there]
    contents.ask_again(layout.blob(blob.digest) for bundle in pushed_before for blob in bundle.blobs)
    missing: dict[Blob, None] = {}
    create: dict[str, Text] = {}
    exchange: dict[str, tuple[Text, bytes]] = {}
    sign: dict[str, bytes] = {}
    roots: dict[str, bytes] = {}
    kept: list[str] = []
    pushed: list[Bundle] = []
    for bundle in bundles:
        said = {text: verdict(text, there.get(text.path), contents) for text in bundle.texts}
        if any(text.key == bundle.key and what == "differs" for text, what in said.items()):
            kept.append(f"{bundle.name}: the remote has other bytes of this target, and they stay")
            continue
        pushed.append(bundle)
        for text, what in said.items():
            found = there.get(text.path)
            if what == "missing" or found is None:
                create[text.path], sign[text.path] = text, text.data
            elif what == "worthless":
                exchange[text.path], sign[text.path] = (text, found), text.data
            elif what == "same":
                sign[text.path] = found
            elif what == "differs":
                kept.append(
                    f"{bundle.name}: the remote has another {text.kind} {text.key[:12]}, and it stays"
                )
        for blob in sorted(bundle.blobs, key=lambda blob: blob.digest):
            if contents.size(layout.blob(blob.digest)) != blob.size:
                missing[blob] = None
        if not bundle.root:
            continue
        path = layout.root(bundle.key, digest_bytes(bundle.root))
        there_since = contents.entry(path)
        if there_since is None or time.time() - there_since.modified > _RENEW_S:
            roots[path] = bundle.root  # written again too: the last push counts
    return PushPlan(
        tuple(pushed),
        tuple(missing),
        tuple(create.values()),
        tuple(exchange.values()),
        _unsigned(contents, sign, signer),
        tuple(roots.items()),
        tuple(kept),
    )


def push(
    store: Store,
    transport: Transport,
    bundles: Sequence[Bundle],
    signer: Signer | None,
    emit: Emit,
    *,
    read_back: bool = False,
) -> PushPlan:
    """Sends what the remote does not have; what was sent. `read_back`: what was sent is read again and
    hashed.

    Raises RemoteError, StoreError. What was sent before an error is not sent again.
    """
    if not transport.can_write:
        raise RemoteReadOnly(remote=transport.name, what=f"{transport.url} is a web server")
    first = plan_push(look(transport), bundles, signer)
    if first.is_empty:
        return first
    keys = {key for bundle in bundles for key in bundle.keys}
    digests = {blob.digest for bundle in bundles for blob in bundle.blobs}
    with lease(transport, keys, digests, emit) as held:
        plan = plan_push(look(transport), bundles, signer)  # under the lease: from here on nothing vanishes
        _send_blobs(store, transport, plan.blobs, emit, read_back=read_back)
        plan = _looked_again(store, held, plan, bundles, signer, emit)
        _send_texts(transport, plan, signer, emit)
        held.require()
        for path, data in plan.roots:
            _patiently(transport, emit, partial(transport.write, path, data))
    return replace(plan, blobs=first.blobs)


def _looked_again(
    store: Store,
    held: Held,
    plan: PushPlan,
    bundles: Sequence[Bundle],
    signer: Signer | None,
    emit: Emit,
) -> PushPlan:
    """Before a text becomes visible: are all blobs there, with the right size? What is not is sent again."""
    if not (plan.create or plan.exchange or plan.blobs):
        return plan
    sent = [layout.blob(blob.digest) for bundle in bundles for blob in bundle.blobs]
    for again in range(_LOOKS):
        if again:
            _send_blobs(store, held.transport, plan.blobs, emit, read_back=False)
        contents = look(held.transport)
        contents.ask_again(sent)
        plan = plan_push(contents, bundles, signer)
        if not plan.blobs:
            held.require()
            return plan
    raise NotWhole(remote=held.transport.name, what=f"blob {plan.blobs[0].digest[:12]} is not there")


# -- sending -------------------------------------------------------------------------------------------------


def _send_blobs(
    store: Store, transport: Transport, todo: Sequence[Blob], emit: Emit, *, read_back: bool
) -> None:
    progress = Progress(transport.name, "push", sum(blob.size for blob in todo), emit)

    def one(blob: Blob) -> None:
        path = layout.blob(blob.digest)
        place = blobs.path(store, blob.digest)
        _patiently(transport, emit, lambda: transport.upload(path, _hashed(place, blob, progress)))
        if read_back:
            _check_kept(transport, path, blob)

    several(one, todo, progress.stop)


def _send_texts(transport: Transport, plan: PushPlan, signer: Signer | None, emit: Emit) -> None:
    """Signatures first, so that whatever is visible is signed. Then records, results, and manifests last."""
    signed = dict(plan.sign) if signer else {}

    def sign(path: str) -> None:
        assert signer is not None
        place = layout.signature(digest_bytes(signed[path]), signer.id)
        envelope = signer.sign(path, signed[path])
        _patiently(transport, emit, lambda: transport.write(place, envelope))

    late: list[Text] = []

    def create(text: Text) -> None:
        if not _patiently(transport, emit, partial(transport.create, text.path, text.data)):
            late.append(text)  # somebody was faster, or our own first try came through

    together(sign, list(signed))
    together(create, [text for text in plan.create if not text.is_manifest])
    for text, former in plan.exchange:
        if not text.is_manifest:
            transport.replace(text.path, former, text.data)
    for text, former in plan.exchange:
        if text.is_manifest:
            transport.replace(text.path, former, text.data)
    together(create, [text for text in plan.create if text.is_manifest])
    if not late:
        return
    contents = look(transport)
    for text in late:
        if verdict(text, transport.read(text.path), contents) == "differs":
            what = f"somebody was faster with other bytes of {text.kind} {text.key[:12]}, and they stay"
            emit(Note(f"{transport.name}: {what}"))


def _patiently(transport: Transport, emit: Emit, send: Callable[[], _Done]) -> _Done:
    """Tries again after a while where the remote could not be reached. Raises RemoteError."""
    for pause in PAUSES:
        try:
            return send()
        except RemoteUnreachable as error:
            emit(Note(f"{error.message.rstrip('.')}: tried again in {duration(pause)}"))
            time.sleep(pause)
    return send()


def _hashed(place: Path, blob: Blob, progress: Progress) -> Iterator[bytes]:
    """The bytes of a blob, hashed while they are read. Raises StoreError instead of ending with other
    bytes.
    """
    hasher, size = blake3.blake3(), 0
    with durable.explained(place), place.open("rb", buffering=0) as file:
        while data := file.read(_CHUNK):
            hasher.update(data)
            size += len(data)
            progress.add(len(data))
            yield data
    if hasher.hexdigest() != blob.digest or size != blob.size:
        hint = "Nothing of it was pushed. Run `doit verify --repair`."
        raise StoreError(path=place, what="its bytes do not match its name", hint=hint)


def _check_kept(transport: Transport, path: str, blob: Blob) -> None:
    hasher = blake3.blake3()
    for chunk in transport.stream(path) or ():
        hasher.update(chunk)
    if hasher.hexdigest() != blob.digest:
        transport.delete([path])
        raise NotWhole(remote=transport.name, what=f"blob {blob.digest[:12]} came back with other bytes")


def _unsigned(
    contents: Contents, texts: Mapping[str, bytes], signer: Signer | None
) -> tuple[tuple[str, bytes], ...]:
    if signer is None:
        return ()
    names = {path: layout.signature(digest_bytes(data), signer.id) for path, data in texts.items()}
    contents.ask(names.values())
    return tuple((path, texts[path]) for path, name in names.items() if contents.entry(name) is None)
