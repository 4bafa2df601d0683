"""A GGUF in several files, as llama.cpp splits it: the first describes the model, each other has a block.

llama.cpp is given the first file and finds the others by their names. So a block is one file, one blob of the
store, and two models that share a block share its bytes.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from builder.weights.shards import RawTensor
from builder.weights.structure import TensorSpec

TYPES: Mapping[str, int] = {  # type -> its number in a file
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "BF16": 30,
    "Q2_K": 10, "Q3_K": 11, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14, "IQ4_NL": 20, "IQ4_XS": 23,
}  # fmt: skip
NUMBER = "split.no"
COUNT = "split.count"
TENSORS = "split.tensors.count"
_ALIGNMENT = 32
_UINT16 = 2


def file_name(number: int, count: int) -> str:
    """The name of a file of a split GGUF. `number` counts from 0, and 0 is the first file."""
    return f"model-{number + 1:05d}-of-{count:05d}.gguf"


def number_of(name: str) -> int:
    """The number in such a name."""
    return int(name.split("-")[1]) - 1


def count_of(name: str) -> int:
    """How many files there are, by such a name."""
    return int(name.removesuffix(".gguf").split("-")[3])


class Extent(NamedTuple):
    """Where the bytes of a tensor begin in its file, and how many they are."""

    start: int
    nbytes: int


@dataclass(frozen=True)
class _Laid:
    header: bytes
    extents: Mapping[str, Extent]
    size: int


def encode(tensors: Mapping[str, RawTensor], number: int) -> list[bytes | memoryview]:
    """A file with these tensors, whose types are types of GGUF, as chunks in order."""
    laid = _lay([TensorSpec(name, each.dtype, each.shape) for name, each in tensors.items()], number)
    chunks: list[bytes | memoryview] = [laid.header]
    for name, extent in laid.extents.items():
        chunks += [tensors[name].data, bytes(-extent.nbytes % _ALIGNMENT)]
    return chunks


def encoded_size(tensors: Iterable[TensorSpec], number: int) -> int:
    """How many bytes `encode` makes of such tensors."""
    return _lay(tensors, number).size


def extents(tensors: Iterable[TensorSpec], number: int) -> Mapping[str, Extent]:
    """Where `encode` puts the bytes of each tensor."""
    return _lay(tensors, number).extents


def _lay(tensors: Iterable[TensorSpec], number: int) -> _Laid:
    ordered = sorted(tensors, key=lambda tensor: tensor.name)
    header = b"GGUF" + struct.pack("<IQQ", 3, len(ordered), 1)
    header += _text(NUMBER) + struct.pack("<IH", _UINT16, number)
    offset, offsets = 0, {}
    for tensor in ordered:
        shape = tensor.shape[::-1]
        header += _text(tensor.name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        header += struct.pack("<IQ", TYPES[tensor.dtype], offset)
        offsets[tensor.name] = Extent(offset, tensor.nbytes)
        offset += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    header += bytes(-len(header) % _ALIGNMENT)
    placed = {name: Extent(len(header) + start, size) for name, (start, size) in offsets.items()}
    return _Laid(header, placed, len(header) + offset)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
