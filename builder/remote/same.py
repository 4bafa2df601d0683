"""Whether a text that a remote has says the same as ours. What lies under a key first stays, unless it is
void.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from builder.keys import Key
from builder.remote import layout
from builder.remote.contents import Contents
from builder.store import records, seals
from builder.store.types import Blob, Manifest, Record, Scalar

Kind = Literal["record", "manifest", "result"]
# missing: nothing is there. same: it says what ours says. alike: it names the same bytes, with other figures.
# differs: it names other bytes, which are there too. worthless: it is damaged, or its bytes are not there.
Verdict = Literal["missing", "same", "alike", "differs", "worthless"]
_MADE = (  # who made it, when and how fast: never the same
    *("made", "toolchain", "machine", "device", "blocks_reused", "seconds", "peak_memory"),
)


@dataclass(frozen=True)
class Text:
    """A small text of the store: its exact bytes, and its path in a remote."""

    kind: Kind
    key: Key
    data: bytes

    @property
    def path(self) -> str:
        place = {"record": layout.record, "manifest": layout.manifest, "result": layout.result}
        return place[self.kind](self.key)

    @property
    def is_manifest(self) -> bool:
        return self.kind == "manifest"


def verdict(text: Text, found: bytes | None, contents: Contents) -> Verdict:
    """What `found`, which lies in the place of a text, is worth. Raises RemoteError."""
    if found is None:
        return "missing"
    there = seals.unsealed(found)
    if there is None:
        return "worthless"
    ours = seals.unsealed(text.data)
    if text.kind == "result":  # it has no blobs: the first one stays
        return "same" if ours == there else "differs"
    if text.kind == "record":
        mine, other = records.parse_record(ours, text.key), records.parse_record(there, text.key)
        if mine is None or other is None or not _are_there(contents, [other.blob]):
            return "worthless"
        if mine.blob != other.blob:
            return "differs"
        return "same" if _same_record(mine, other) else "alike"
    made, held = records.parse_manifest(ours, text.key), records.parse_manifest(there, text.key)
    if made is None or held is None:
        return "worthless"
    if made.files == held.files:
        return "same" if _same_manifest(made, held) else "alike"
    return "differs" if _are_there(contents, [entry.blob for entry in held.files]) else "worthless"


def _same_record(one: Record, other: Record) -> bool:
    return one.kind == other.kind and _plain(one.provenance) == _plain(other.provenance)


def _same_manifest(one: Manifest, other: Manifest) -> bool:
    return (
        one.kind == other.kind
        and dict(one.settings) == dict(other.settings)
        and _plain(one.measures) == _plain(other.measures)
    )


def _plain(values: Mapping[str, Scalar]) -> dict[str, Scalar]:
    return {name: value for name, value in values.items() if name not in _MADE}


def _are_there(contents: Contents, blobs: list[Blob]) -> bool:
    contents.ask_again(layout.blob(blob.digest) for blob in blobs)
    return all(contents.size(layout.blob(blob.digest)) == blob.size for blob in blobs)
