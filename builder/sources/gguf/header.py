"""Reads the header of an untrusted GGUF file. Pure Python. No tensor is loaded.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, NoReturn

from builder.errors import SourceInvalid, SourceMissing, unreadable

MAX_COUNT = 10_000_000  # entries of an array, tensors and keys: far more than any model has
MAX_STRING = 100_000_000

# id -> name, elements per block, bytes per block. Only these can be imported.
TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    8: ("Q8_0", 32, 34),
    30: ("BF16", 1, 2),
}
_NAMES = {
    6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K",
    15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
_SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class GgufTensor:
    """One tensor. `shape` is in numpy order (rows first), `start` is the offset in the file in bytes."""

    name: str
    shape: tuple[int, ...]
    type: str
    start: int
    nbytes: int


@dataclass(frozen=True)
class GgufFile:
    """A file with its metadata and its tensors by name."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def read_gguf_header(path: Path, table: str) -> GgufFile:
    """The metadata and tensors of a GGUF file. `table` is the declaration named in errors.

    Raises SourceMissing. Raises SourceInvalid unless the file is a valid little-endian GGUF of version 2 or 3
    and each tensor has a type of TYPES.
    """
    if not path.is_file():
        raise SourceMissing(table=table, path=path)
    try:
        size = path.stat().st_size
        handle = path.open("rb")
    except OSError as error:
        raise unreadable(table, path, error) from error
    with handle as file:
        reader = _Reader(file, path, table, size)
        if file.read(4) != b"GGUF":
            reader.refuse("is not a GGUF file")
        version = reader.number("I")
        if version not in (2, 3):
            what = "is big-endian" if version in (2 << 24, 3 << 24) else f"is GGUF version {version}"
            reader.refuse(f"{what}; little-endian versions 2 and 3 can be read")
        tensor_count, key_count = reader.count("tensors"), reader.count("keys")
        metadata: dict[str, Any] = {}
        for _ in range(key_count):
            key = reader.string()
            if key in metadata:
                reader.refuse(f'names the key "{key[:80]}" twice')
            metadata[key] = reader.value(reader.number("I"))
        raw = [reader.tensor() for _ in range(tensor_count)]
        return GgufFile(path, metadata, reader.placed(raw, metadata))


class _Reader:
    """Reads numbers and strings. Refuses what does not fit into the file with SourceInvalid."""

    def __init__(self, file: Any, path: Path, table: str, size: int) -> None:
        self.file, self.path, self.table, self.size = file, path, table, size

    def refuse(self, what: str, hint: str | None = None) -> NoReturn:
        raise SourceInvalid(table=self.table, path=self.path, what=what, hint=hint)

    def take(self, count: int) -> bytes:
        data: bytes = self.file.read(count) if count <= self.size else b""
        if len(data) != count:
            self.refuse("is truncated or lies about its sizes")
        return data

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def count(self, what: str) -> int:
        number = int(self.number("Q"))
        if number > MAX_COUNT:
            self.refuse(f"claims to hold {number} {what}")
        return number

    def string(self) -> str:
        length = int(self.number("Q"))
        if length > MAX_STRING:
            self.refuse(f"claims to hold a string of {length} bytes")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError:
            self.refuse("holds a string that is not UTF-8")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY or depth > 3:
            self.refuse(f"holds a value of unknown type {kind}")
        inner, length = self.number("I"), self.count("array entries")
        if inner in _SCALARS:
            code = _SCALARS[inner]
            return list(struct.unpack(f"<{length}{code}", self.take(length * struct.calcsize("<" + code))))
        return [self.value(inner, depth + 1) for _ in range(length)]

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name, dims = self.string(), self.number("I")
        if not name or not name.isprintable():
            self.refuse(f"names a tensor {name[:80]!a}")
        if dims > 4:
            self.refuse(f'gives tensor "{name[:80]}" {dims} dimensions')
        shape = tuple(int(self.number("Q")) for _ in range(dims))
        return name, shape[::-1], self.number("I"), self.number("Q")

    def placed(
        self, raw: list[tuple[str, tuple[int, ...], int, int]], metadata: Mapping[str, Any]
    ) -> dict[str, GgufTensor]:
        """The tensors with absolute offsets, checked against the end of the file and against each other."""
        align = metadata.get("general.alignment", 32)
        if not isinstance(align, int) or align <= 0 or align > 1 << 20:
            self.refuse(f"has an alignment of {align!r}")
        data = -(-self.file.tell() // align) * align
        found: dict[str, GgufTensor] = {}
        for name, shape, kind, offset in raw:
            if kind not in TYPES:
                self.refuse(
                    f'holds tensor "{name[:80]}" of type {_NAMES.get(kind, kind)}, which cannot be imported',
                    "Use a GGUF in F32, F16, BF16, Q8_0, Q4_0 or Q4_1, or better the original safetensors.",
                )
            label, block, width = TYPES[kind]
            if prod(shape) % block or (shape and shape[-1] % block):
                self.refuse(f'gives tensor "{name[:80]}" a shape that {label} cannot have')
            nbytes = prod(shape) // block * width
            if data + offset + nbytes > self.size:
                self.refuse(f'is truncated: tensor "{name[:80]}" lies beyond its end')
            if name in found:
                self.refuse(f'names tensor "{name[:80]}" twice')
            found[name] = GgufTensor(name, shape, label, data + offset, nbytes)
        self.check_overlap(found)
        return found

    def check_overlap(self, tensors: Mapping[str, GgufTensor]) -> None:
        """Refuses two tensors that share a byte. Padding may lie between tensors."""
        ordered = sorted((t for t in tensors.values() if t.nbytes), key=lambda t: t.start)
        for one, other in pairwise(ordered):
            if one.start + one.nbytes > other.start:
                self.refuse(f'has tensors "{one.name[:80]}" and "{other.name[:80]}" overlap')
