"""Identities: `Digest` is the hash of bytes, `Key` is the hash of an action's inputs.

Both are BLAKE3 (O'Connor et al., 2020), 32 bytes as 64 lower-case hex digits. A key is made from a canonical
encoding that is injective and length-safe. Every value is written as a type tag, the length of its payload
and the payload. So no two different inputs share an encoding. Mappings are sorted by the encoding of their
keys, so their order never matters. The domain string keeps keys of different kinds apart.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import NewType

import blake3

Digest = NewType("Digest", str)
Key = NewType("Key", str)

CHUNK = 1 << 22


def encode(value: object) -> bytes:
    """The canonical bytes of a value made of None, bool, int, float, str, bytes, lists, tuples and mappings.

    Raises TypeError for any other type: sets have no order, and objects have no stable text.
    """
    if type(value) is str:  # fast, because keys are mostly made of strings
        payload = value.encode("utf-8", "surrogatepass")
        return b"S%d:%b" % (len(payload), payload)
    match value:
        case None:
            return b"N0:"
        case bool():
            return b"B1:" + (b"1" if value else b"0")
        case int():
            return _tagged(b"I", str(value).encode())
        case float():
            return _tagged(b"F", struct.pack(">d", value))
        case str():
            return _tagged(b"S", value.encode("utf-8", "surrogatepass"))
        case bytes():
            return _tagged(b"Y", value)
        case tuple() | list():
            return _tagged(b"L", b"".join(encode(item) for item in value))
        case Mapping():
            pairs = sorted((encode(k), encode(v)) for k, v in value.items())
            return _tagged(b"M", b"".join(k + v for k, v in pairs))
    raise TypeError(f"no canonical encoding for {type(value).__name__}")


def _tagged(tag: bytes, payload: bytes) -> bytes:
    return tag + str(len(payload)).encode() + b":" + payload


def make_key(domain: str, *parts: object) -> Key:
    """The key of `parts` in `domain`, for example make_key("block/1", base_digest, block, ...)."""
    return Key(blake3.blake3(encode([domain, *parts])).hexdigest())


def named_key(domain: str, parts: Mapping[str, object]) -> Key:
    """The key of named parts: whatever is in the key has a name, so a change of the key can be explained."""
    return make_key(domain, parts)


def digest_bytes(data: bytes | memoryview) -> Digest:
    """The BLAKE3 digest of bytes in memory."""
    return Digest(blake3.blake3(data).hexdigest())


def hash_threads(size: int) -> int:
    """How many threads may hash `size` bytes: one for less than 256 MiB, so that planning starts no threads.

    `doit -n` forks after planning, and a forked pool of threads hangs.
    """
    return int(blake3.blake3.AUTO) if size >= 1 << 28 else 1


def is_digest(text: str) -> bool:
    """Whether a text has the form of a Digest or a Key."""
    return len(text) == 64 and all(c in "0123456789abcdef" for c in text)
