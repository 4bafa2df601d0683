"""Where the files of a model hold its weights, so that they can be read without mlx.

mlx reads each expert by itself and copies all of them into their stack, in memory that is new each time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from builder.engine.arrays import dtype_code
from builder.engine.stored import Place, Stored
from builder.engine.tracing import Trace
from builder.errors import BuildError
from builder.weights.pieces import Piece, rooms
from builder.weights.safetensors import SafetensorsFile, read_header
from builder.weights.structure import TensorSpec

FILES = "model*.safetensors"  # those that mlx-lm reads
_LEAVES = ("weight", "scales", "biases")


def placed(stored: Mapping[str, Stored], trace: Trace, directory: Path) -> Mapping[str, Stored]:
    """Stored weights by path, those with places whose bytes are those of the files."""
    if not any(len(each.shape) == 3 for each in stored.values()):
        return stored
    specs = {
        f"{path}.{leaf}": TensorSpec(f"{path}.{leaf}", dtype_code(array), tuple(array.shape))
        for path, each in stored.items()
        for leaf, array in zip(_LEAVES, each.arrays, strict=False)
        if trace.made.get(f"{path}.{leaf}") is array
    }
    found: dict[str, list[Piece]] = {}
    for room in rooms(trace.joined(), specs.values(), _files(directory)).values():
        for piece in room.pieces:
            found.setdefault(piece.parameter, []).append(piece)
    return {path: replace(each, places=_places(path, each, found)) for path, each in stored.items()}


def _places(path: str, stored: Stored, found: dict[str, list[Piece]]) -> tuple[tuple[Place, ...], ...]:
    """The places of all arrays of a weight, each as one piece, or as one for each expert. Else none."""
    names = [f"{path}.{leaf}" for leaf, _ in zip(_LEAVES, stored.arrays, strict=False)]
    pieces = [sorted(found.get(name, ()), key=lambda piece: piece.at) for name in names]
    counts = (1, *stored.shape[:-2])
    if any(len(each) not in counts for each in pieces):
        return ()
    return tuple(tuple(Place(p.path, p.start, p.end) for p in each) for each in pieces)


def _files(directory: Path) -> Sequence[SafetensorsFile]:
    """The files by their headers. Tensors that several files hold are left out."""
    files = []
    for path in sorted(directory.glob(FILES)):
        with suppress(BuildError):
            files.append(read_header(path, "model"))
    times = Counter(tensor.name for file in files for tensor in file.tensors)
    return [
        SafetensorsFile(file.path, tuple(t for t in file.tensors if times[t.name] == 1)) for file in files
    ]
