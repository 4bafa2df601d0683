"""The names of what lies in a remote store. Texts and blobs have the bytes and the names of the local store.

v1/format                        written first: what the server can do. Without it, there is no store
v1/blobs/ab/<digest>             bytes
v1/actions/ab/<key>              record
v1/targets/<key>.toml            manifest
v1/evals/ab/<key>.json           result
v1/signatures/ab/<digest>.<id>   signature of the text with that digest, by the key with that id
v1/roots/<key>/<digest>.json     what a pushed target consists of. gc keeps what roots lead to
v1/leases/<id>.json              what a running push is about to rely on
v1/gc.json                       a gc is running
"""

from __future__ import annotations

from builder.keys import Digest, Key, is_digest

ROOT = "v1/"
FORMAT = "v1/format"
GC = "v1/gc.json"
BLOBS, ACTIONS, TARGETS, EVALS = "v1/blobs/", "v1/actions/", "v1/targets/", "v1/evals/"
SIGNATURES, ROOTS, LEASES = "v1/signatures/", "v1/roots/", "v1/leases/"


def blob(digest: Digest) -> str:
    return f"{BLOBS}{_hex(digest)[:2]}/{digest}"


def record(key: Key) -> str:
    return f"{ACTIONS}{_hex(key)[:2]}/{key}"


def manifest(key: Key) -> str:
    return f"{TARGETS}{_hex(key)}.toml"


def result(key: Key) -> str:
    return f"{EVALS}{_hex(key)[:2]}/{key}.json"


def signature(text: Digest, signer: str) -> str:
    return f"{SIGNATURES}{_hex(text)[:2]}/{text}.{signer}"


def root(target: Key, content: Digest) -> str:
    return f"{roots(target)}{_hex(content)[:32]}.json"


def roots(target: Key) -> str:
    """The folder of the roots of one target."""
    return f"{ROOTS}{_hex(target)}/"


def lease(name: str) -> str:
    return f"{LEASES}{name}.json"


def named(path: str) -> str | None:
    """The key or digest that the name of a blob, a record, a manifest or a result stands for."""
    name = path.rpartition("/")[2].partition(".")[0]
    return name if is_digest(name) else None


def _hex(text: str) -> str:
    if not is_digest(text):
        raise ValueError(f"not a key or digest: {text!r}")
    return text
