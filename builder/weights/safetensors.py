"""Reads the header of an untrusted safetensors file. Pure Python. No tensor is loaded.

Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import io
import json
import mmap
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import blake3

from builder.errors import SourceInvalid, SourceMissing
from builder.keys import Digest, hash_threads
from builder.weights.structure import ITEM_SIZE

MAX_HEADER = 100_000_000  # the limit of the reference implementation
# No real tensor exceeds these limits. They keep products of counts and searches in names cheap.
MAX_DIMS, MAX_NUMBER, MAX_NAME = 64, 1 << 63, 1000


@dataclass(frozen=True)
class TensorInfo:
    """One tensor. `dtype` is a safetensors code such as "BF16".

    Its bytes are those from `start` to `end` (exclusive) of the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class SafetensorsFile:
    """A file and its tensors, in file order."""

    path: Path
    tensors: tuple[TensorInfo, ...]


def read_header(path: Path, table: str) -> SafetensorsFile:
    """The tensors of a file, in file order. `table` is the declaration named in errors.

    Raises SourceMissing, and SourceInvalid for anything that is not a valid safetensors file.
    """
    if not path.is_file():
        raise SourceMissing(table=table, path=path)
    return _parsed(path, table, *_read_text(path, table))


def header_of(content: bytes, path: Path, table: str) -> SafetensorsFile:
    """The same of a file that is in memory. `path` says where it came from. Raises SourceInvalid."""
    return _parsed(path, table, len(content), _header_text(io.BytesIO(content), len(content), path, table))


def _parsed(path: Path, table: str, size: int, text: bytes) -> SafetensorsFile:
    length = len(text)
    try:
        header = json.loads(text, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        _refuse(path, table, f"has a header that is not JSON ({str(error)[:80]})")
    if not isinstance(header, dict):
        _refuse(path, table, "has a header that is not a table")
    header.pop("__metadata__", None)
    tensors = [_tensor(name, entry, 8 + length, path, table) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.end))
    _check_layout(tensors, 8 + length, size, path, table)
    return SafetensorsFile(path, tuple(tensors))


def _read_text(path: Path, table: str) -> tuple[int, bytes]:
    """The size of the file in bytes, and the bytes of its header."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            return size, _header_text(file, size, path, table)
    except OSError as error:
        _refuse(path, table, f"cannot be read ({error.strerror})")


def _header_text(file: BinaryIO, size: int, path: Path, table: str) -> bytes:
    head = file.read(8)
    length = int.from_bytes(head, "little")
    if len(head) < 8 or length > min(size - 8, MAX_HEADER):
        _refuse(path, table, "is not a safetensors file (its header does not fit)")
    text = file.read(length)
    if len(text) < length:
        _refuse(path, table, "became shorter while it was read")
    return text


def digest_tensor(file: SafetensorsFile, tensor: TensorInfo) -> Digest:
    """BLAKE3 of a tensor's bytes. Raises OSError."""
    if tensor.start == tensor.end:
        return Digest(blake3.blake3(b"").hexdigest())
    with file.path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        view = memoryview(mapped)
        piece = view[tensor.start : tensor.end]
        digest = blake3.blake3(piece, max_threads=hash_threads(len(piece))).hexdigest()
        piece.release()
        view.release()
    return Digest(digest)


def _tensor(name: str, entry: Any, data: int, path: Path, table: str) -> TensorInfo:
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        _refuse(path, table, f"names a tensor {name[:80]!a}")
    try:
        dtype, shape = entry["dtype"], entry["shape"]
        start, end = entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        _refuse(path, table, f'tensor "{name}" lacks dtype, shape or data_offsets')
    if not isinstance(dtype, str) or dtype not in ITEM_SIZE:
        _refuse(path, table, f'tensor "{name}" has unknown dtype {str(dtype)[:40]!r}')
    numbers = [start, end, *shape] if isinstance(shape, list) and len(shape) <= MAX_DIMS else [None]
    if any(type(number) is not int or not 0 <= number < MAX_NUMBER for number in numbers):
        _refuse(path, table, f'tensor "{name}" has a shape or offsets that are not counts')
    if end - start != prod(shape) * ITEM_SIZE[dtype]:
        _refuse(path, table, f'tensor "{name}" has offsets that do not match its shape')
    return TensorInfo(name, dtype, tuple(shape), data + start, data + end)


def _check_layout(tensors: list[TensorInfo], data: int, size: int, path: Path, table: str) -> None:
    at = data
    for tensor in tensors:
        if tensor.start != at:
            _refuse(path, table, f'tensor "{tensor.name}" overlaps another or leaves a gap')
        at = tensor.end
    if at > size:
        _refuse(path, table, f"is truncated: its header says {at} bytes, but it has {size}")
    if at < size:
        _refuse(path, table, f"has {size - at} bytes after its last tensor")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name occurs twice")
    return table


def _refuse(path: Path, table: str, what: str) -> NoReturn:
    raise SourceInvalid(table=table, path=path, what=what)
