"""The canonical safetensors encoding: sorted names, no gaps, a header padded to 8 bytes.

The same tensors give the same bytes on every platform. mx.save_safetensors does not promise that, because it
orders tensors by hash map. Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate

from builder.weights.structure import TensorSpec

_METADATA = {"format": "mlx"}
_Entry = tuple[str, str, tuple[int, ...], int]  # name, dtype, shape, bytes


@dataclass(frozen=True)
class RawTensor:
    """The row-major bytes of a tensor, with its safetensors dtype code ("BF16") and its shape."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes | memoryview

    @property
    def nbytes(self) -> int:
        return memoryview(self.data).nbytes


def encode(tensors: Mapping[str, RawTensor]) -> list[bytes | memoryview]:
    """The file as chunks in order: length and header, then the bytes of each tensor. No tensor is copied."""
    names = sorted(tensors)
    entries = [(name, tensors[name].dtype, tensors[name].shape, tensors[name].nbytes) for name in names]
    return [_header(entries), *(tensors[name].data for name in names)]


def encoded_size(tensors: Iterable[TensorSpec]) -> int:
    """How many bytes `encode` makes of tensors with these names, dtypes and shapes."""
    entries = _entries(tensors)
    return len(_header(entries)) + sum(nbytes for *_, nbytes in entries)


def offsets(tensors: Iterable[TensorSpec]) -> dict[str, int]:
    """Name -> where the bytes of each tensor begin in the file that `encode` makes of such tensors."""
    entries = _entries(tensors)
    starts = accumulate((nbytes for *_, nbytes in entries), initial=len(_header(entries)))
    return {name: start for (name, *_), start in zip(entries, starts, strict=False)}


def _entries(tensors: Iterable[TensorSpec]) -> list[_Entry]:
    return [(t.name, t.dtype, t.shape, t.nbytes) for t in sorted(tensors, key=lambda t: t.name)]


def _header(entries: list[_Entry]) -> bytes:
    table: dict[str, object] = {"__metadata__": _METADATA}
    offset = 0
    for name, dtype, shape, nbytes in entries:
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + nbytes]}
        offset += nbytes
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
