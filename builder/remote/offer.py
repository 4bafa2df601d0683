"""What a remote offers of what is wanted: its texts, read and checked. Nothing is written.

A text counts only if it is sound, belongs to its key, was made on a device that we take, and is signed where
signatures are required. A record counts with its blob, a manifest with all of its blobs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from builder.keys import Digest, Key, digest_bytes
from builder.remote import layout
from builder.remote.contents import Contents
from builder.remote.signing import is_signed
from builder.store import records, seals
from builder.store.disk.names import alike
from builder.store.layout import is_file_name
from builder.store.types import Blob, Manifest, Record, Scalar
from builder.store.views import MANIFEST

_EVERYWHERE = ("config", "structure")  # what no device computes


@dataclass(frozen=True)
class Wanted:
    """The keys of what would be taken from a remote."""

    manifests: frozenset[Key] = frozenset()
    records: frozenset[Key] = frozenset()
    results: frozenset[Key] = frozenset()

    def __or__(self, other: Wanted) -> Wanted:
        return Wanted(
            self.manifests | other.manifests, self.records | other.records, self.results | other.results
        )

    def __bool__(self) -> bool:
        return bool(self.manifests or self.records or self.results)


@dataclass(frozen=True)
class Rules:
    """Whose bytes are taken. `device`: only those of this kind. `trusted`: what must be signed by one of
    these.

    None: no rule.
    """

    device: str | None = None
    trusted: Mapping[str, bytes] | None = None


@dataclass(frozen=True)
class Offer:
    """What is there and may be taken, with the exact text of each. `refused`: why something may not be."""

    manifests: Mapping[Key, tuple[Manifest, str]] = field(default_factory=dict)
    records: Mapping[Key, tuple[Record, str]] = field(default_factory=dict)
    results: Mapping[Key, str] = field(default_factory=dict)
    refused: tuple[str, ...] = ()


def offer_of(contents: Contents, wanted: Wanted, rules: Rules, has: Callable[[Blob], bool]) -> Offer:
    """Reads the wanted texts. `has`: whether a blob is here already. Raises RemoteError."""
    paths = {layout.manifest(key): key for key in wanted.manifests}
    paths |= {layout.record(key): key for key in wanted.records}
    paths |= {layout.result(key): key for key in wanted.results}
    read = contents.read(paths)
    sound, refused = _checked(contents, read, rules)
    manifests: dict[Key, tuple[Manifest, str]] = {}
    actions: dict[Key, tuple[Record, str]] = {}
    results: dict[Key, str] = {}
    for path, text in sound.items():
        key = paths[path]
        if path.startswith(layout.TARGETS):
            manifest = records.parse_manifest(text, key)
            if manifest is not None and _is_harmless(manifest):
                manifests[key] = manifest, text
                continue
        elif path.startswith(layout.ACTIONS):
            record = records.parse_record(text, key)
            if record is not None:
                actions[key] = record, text
                continue
        elif (made := _result(text, key)) is not None:
            if rules.device in (None, _measured_on(made) or rules.device):
                results[key] = text
            continue
        refused.append(f"{path} does not say what it must")
    other = [
        k for k, (r, _) in actions.items() if r.kind not in _EVERYWHERE and not _fits(r.provenance, rules)
    ]
    other += [key for key, (manifest, _) in manifests.items() if not _fits(manifest.toolchain, rules)]
    if other:
        refused.append(f"{len(other)} of other devices ([build] device)")
    whole = [b for manifest, _ in manifests.values() for b in (e.blob for e in manifest.files)]
    missing = _missing(contents, [*(r.blob for r, _ in actions.values()), *whole], has)
    return Offer(
        {
            key: (manifest, text)
            for key, (manifest, text) in manifests.items()
            if key not in other and missing.isdisjoint(manifest.digests)
        },
        {
            key: (record, text)
            for key, (record, text) in actions.items()
            if key not in other and record.blob.digest not in missing
        },
        results,
        tuple(refused),
    )


def device_of(made: Mapping[str, Scalar]) -> str | None:
    """The kind of device that a record or a manifest says it was made on. None where it does not say."""
    said = made.get("device")
    if isinstance(said, str):
        return said
    return "metal" if str(made.get("machine", "")).startswith("Darwin") else None


def is_trusted(contents: Contents, path: str, data: bytes, trusted: Mapping[str, bytes]) -> bool:
    """Whether one of the keys has signed the text. Raises RemoteError."""
    names = {layout.signature(digest_bytes(data), signer): key for signer, key in trusted.items()}
    found = contents.read(names)
    return any(is_signed(envelope, path, data, names[name]) for name, envelope in found.items())


def _checked(contents: Contents, read: Mapping[str, bytes], rules: Rules) -> tuple[dict[str, str], list[str]]:
    """The texts that are whole and signed where they must be, and why others are not taken."""
    sound = {path: text for path, data in read.items() if (text := seals.unsealed(data)) is not None}
    refused = [f"{path} is damaged" for path in read.keys() - sound.keys()]
    if rules.trusted is None:
        return sound, refused
    signed = _signed(contents, {path: read[path] for path in sound}, rules.trusted)
    if unsigned := sound.keys() - signed:
        which = sorted(unsigned)[0]
        refused.append(f"{which} and {len(unsigned) - 1} more are not signed by a key that is trusted")
    return {path: text for path, text in sound.items() if path in signed}, refused


def _signed(contents: Contents, read: Mapping[str, bytes], trusted: Mapping[str, bytes]) -> set[str]:
    names = {
        layout.signature(digest_bytes(data), signer): (path, key)
        for path, data in read.items()
        for signer, key in trusted.items()
    }
    found = contents.read(names)
    return {
        path
        for name, envelope in found.items()
        for path, key in [names[name]]
        if is_signed(envelope, path, read[path], key)
    }


def _missing(contents: Contents, blobs: Iterable[Blob], has: Callable[[Blob], bool]) -> set[Digest]:
    """The blobs that are neither here nor, with the right size, in the remote."""
    todo = {blob for blob in blobs if not has(blob)}
    contents.ask_again(layout.blob(blob.digest) for blob in todo)  # a text that is there names them
    return {blob.digest for blob in todo if contents.size(layout.blob(blob.digest)) != blob.size}


def _fits(made: Mapping[str, Scalar], rules: Rules) -> bool:
    return rules.device is None or device_of(made) == rules.device


def _is_harmless(manifest: Manifest) -> bool:
    """Whether no file of a manifest could lie elsewhere than in its view, or take another one's place."""
    names = [entry.name for entry in manifest.files]
    return (
        all(is_file_name(name) and name.partition("/")[0] != MANIFEST for name in names)
        and len(set(names)) == len(names)
        and alike(names) is None
        and manifest.kind in ("target", "learned", "base", "adapter")
    )


def _result(text: str, key: Key) -> Mapping[str, object] | None:
    """How a result of that key was measured; None for what is no result of it."""
    try:
        said = json.loads(text)
        return dict(said["made"]) if said["key"] == key else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _measured_on(made: Mapping[str, object]) -> str | None:
    """The kind of device that a result says it was measured on. None where it does not say."""
    said = str(made.get("device", ""))
    if not said.startswith("gpu"):
        return said or None
    return "metal" if str(made.get("machine", "")).startswith("Darwin") else "cuda"
