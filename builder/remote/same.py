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
# missing: nothing is there. same: it says what ours says. differs: it says something else that is true too.
# worthless: it is damaged, or names blobs that are not there.
Verdict = Literal["missing", "same", "differs", "worthless"]
_MADE = ("made", "toolchain", "machine", "device", "blocks_reused")  # who made it and when: never the same


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
        return "same" if _same_record(mine, other) else "differs"
    made, held = records.parse_manifest(ours, text.key), records.parse_manifest(there, text.key)
    if made is None or held is None:
        return "worthless"
    if _same_manifest(made, held):
        return "same"
    return "differs" if _are_there(contents, [entry.blob for entry in held.files]) else "worthless"


def _same_record(one: Record, other: Record) -> bool:
    same = one.blob == other.blob and one.kind == other.kind
    return same and _plain(one.provenance) == _plain(other.provenance)


def _same_manifest(one: Manifest, other: Manifest) -> bool:
    return (
        one.files == other.files
        and one.kind == other.kind
        and dict(one.settings) == dict(other.settings)
        and _plain(one.measures) == _plain(other.measures)
    )


def _plain(values: Mapping[str, Scalar]) -> dict[str, Scalar]:
    return {name: value for name, value in values.items() if name not in _MADE}


def _are_there(contents: Contents, blobs: list[Blob]) -> bool:
    return all(contents.size(layout.blob(blob.digest)) == blob.size for blob in blobs)
