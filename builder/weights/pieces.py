"""Where the bytes of a model's parameters lie in the files of its checkpoint, and how to read them. Pure.

A parameter whose bytes are those of tensors of the checkpoint, one after the other, is read straight into its
place: one tensor as it is, or the experts of a layer in one stack (builder.engine.tracing says which).
A span is read with one sweep of the disk. It may hold pieces of many parameters, and bytes that nobody wants.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from pathlib import Path

from builder.weights.safetensors import SafetensorsFile, TensorInfo
from builder.weights.structure import TensorSpec, block_of

GAP = 1 << 20  # unwanted bytes that are read, rather than to begin again behind them


@dataclass(frozen=True)
class Piece:
    """The bytes from `start` to `end` of a file are those of a parameter from `at` on."""

    path: Path
    start: int
    end: int
    block: str
    parameter: str
    at: int


@dataclass(frozen=True)
class Rows:
    """The bytes of some whole rows of a parameter, from byte `at` of it on. Who gets them may change them."""

    block: str
    parameter: str
    at: int
    data: memoryview


@dataclass(frozen=True)
class Span:
    """The bytes from `start` to `end` of a file, with the pieces in them, in their order."""

    path: Path
    start: int
    end: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Room:
    """The parameters of one block that are read into their place: name -> bytes, and the spans to read."""

    sizes: Mapping[str, int]
    pieces: tuple[Piece, ...]

    @property
    def nbytes(self) -> int:
        return sum(self.sizes.values())

    @property
    def units(self) -> Mapping[str, int]:
        """Parameter -> the most bytes of which all its pieces are multiples, begin and end."""
        found: dict[str, int] = {}
        for piece in self.pieces:
            size = piece.end - piece.start
            found[piece.parameter] = gcd(found.get(piece.parameter, 0), piece.at, size)
        return found


def rooms(
    sources: Mapping[str, Sequence[str]], parameters: Iterable[TensorSpec], files: Iterable[SafetensorsFile]
) -> dict[str, Room]:
    """Block -> what is read for it. sources: parameter -> the tensors that it is made of, in their order.

    A parameter is left out if the files do not hold these tensors, with as many bytes and of the same type.
    """
    places = {tensor.name: (file.path, tensor) for file in files for tensor in file.tensors}
    sizes: dict[str, dict[str, int]] = {}
    pieces: dict[str, list[Piece]] = {}
    for parameter in parameters:
        found = [places[name] for name in sources.get(parameter.name, ()) if name in places]
        nbytes = sum(tensor.end - tensor.start for _, tensor in found)
        if not found or nbytes != parameter.nbytes or any(t.dtype != parameter.dtype for _, t in found):
            continue
        block, at = block_of(parameter.name), 0
        for path, tensor in found:
            piece = Piece(path, tensor.start, tensor.end, block, parameter.name, at)
            pieces.setdefault(block, []).append(piece)
            at += tensor.end - tensor.start
        sizes.setdefault(block, {})[parameter.name] = at
    return {block: Room(sizes[block], tuple(pieces[block])) for block in sizes}


def spans(pieces: Iterable[Piece]) -> list[Span]:
    """The pieces in the order of the files, those that lie near to one another in one span."""
    found: list[list[Piece]] = []
    for piece in sorted((p for p in pieces if p.end > p.start), key=lambda p: (p.path, p.start)):
        last = found[-1][-1] if found else None
        if last is not None and last.path == piece.path and piece.start - last.end <= GAP:
            found[-1].append(piece)
        else:
            found.append([piece])
    return [Span(group[0].path, group[0].start, group[-1].end, tuple(group)) for group in found]


def whole(path: Path, size: int, pieces: Iterable[Piece]) -> Span:
    """A file from its first byte to its last, for those who hash it too."""
    inside = sorted((p for p in pieces if p.path == path), key=lambda p: p.start)
    return Span(path, 0, size, tuple(inside))


def open_blocks(order: Sequence[Span]) -> dict[str, frozenset[str]]:
    """The blocks in the order in which their last pieces are read: block -> those that are begun right
    before that and not complete, itself included.
    """
    pieces = [piece for span in order for piece in span.pieces]
    last = {piece.block: number for number, piece in enumerate(pieces)}
    begun: set[str] = set()
    found: dict[str, frozenset[str]] = {}
    for number, piece in enumerate(pieces):
        begun.add(piece.block)
        if last[piece.block] == number:
            found[piece.block] = frozenset(begun)
            begun.discard(piece.block)
    return found


def open_bytes(opened: Mapping[str, Collection[str]], sizes: Mapping[str, int]) -> int:
    """The most bytes of blocks that are begun and not complete. opened: what `open_blocks` gives.

    A block counts as a whole from its first piece on. sizes: bytes of each block.
    """
    return max((sum(map(sizes.__getitem__, each)) for each in opened.values()), default=0)


def missing(files: Iterable[SafetensorsFile], pieces: Iterable[Piece]) -> int:
    """Bytes of the files that no piece holds: mlx reads them, or nobody does."""
    held = sum(piece.end - piece.start for piece in pieces)
    return sum(_bytes(file.tensors) for file in files) - held


def _bytes(tensors: Iterable[TensorInfo]) -> int:
    return sum(tensor.end - tensor.start for tensor in tensors)
