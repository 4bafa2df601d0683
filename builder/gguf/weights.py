"""The tensors of a folder of mlx-lm, or of a block, read row by row: as float32, or as codes with scales."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from builder.gguf.settings import Unwritable
from builder.spec.types import Quantization
from builder.weights.safetensors import TensorInfo, read_header
from builder.weights.shards import RawTensor
from builder.weights.structure import TensorSpec

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

_PORTION = 1 << 24  # elements that are in memory at once
_ITEMS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "U32": "<u4"}


@dataclass(frozen=True)
class Affine:
    """How a weight is quantized: code times scale plus bias, with one scale for `group` elements of a row."""

    bits: int
    group: int


@dataclass(frozen=True)
class Weight:
    """One weight. `shape` is of its elements, rows last but one. `affine` None: not quantized."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    affine: Affine | None

    @property
    def columns(self) -> int:
        return self.shape[-1]

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])


def affine_weight(name: str, shape: tuple[int, ...], dtype: str, how: Quantization) -> Weight:
    """A quantized weight, from the shape of its words and the type of its scales. Raises Unwritable."""
    if how.mode != "affine":
        raise Unwritable(f'"{name.removesuffix(".weight")}" is quantized in mode {how.mode}')
    columns = shape[-1] * 32 // how.bits
    return Weight(name, (*shape[:-1], columns), dtype, Affine(how.bits, how.group_size))


class Rows(ABC):
    """Tensors that are read row by row."""

    def values(self, weight: Weight, unit: int = 1) -> Iterator[Array]:
        """Float32 [rows, columns] of a weight that is not quantized, in portions of whole units of rows."""
        for start, stop in _portions(weight, unit):
            yield _single(self.rows(weight.name, weight.rows, start, stop), weight.dtype)

    def codes(self, weight: Weight, unit: int = 1) -> Iterator[tuple[Array, Array, Array]]:
        """Codes uint8 [rows, columns], scales and biases float32 [rows, groups], in such portions."""
        assert weight.affine is not None
        path = weight.name.removesuffix(".weight")
        for start, stop in _portions(weight, unit):
            packed = self.rows(weight.name, weight.rows, start, stop)
            scales, biases = (
                _single(self.rows(f"{path}.{part}", weight.rows, start, stop), weight.dtype)
                for part in ("scales", "biases")
            )
            yield unpacked(packed, weight.affine.bits), scales, biases

    @abstractmethod
    def rows(self, name: str, count: int, start: int, stop: int) -> Array:
        """Some rows of a tensor that has `count` rows, as they are stored."""


class Held(Rows):
    """The tensors of one block, which are in memory."""

    def __init__(self, shard: Mapping[str, RawTensor]) -> None:
        self._shard = shard

    def rows(self, name: str, count: int, start: int, stop: int) -> Array:
        import numpy as np

        tensor = self._shard[name]
        return np.frombuffer(tensor.data, _ITEMS[tensor.dtype]).reshape(count, -1)[start:stop]


class Weights(Rows):
    """All weights of a folder. Raises Unwritable for a quantization that is not affine."""

    def __init__(self, folder: Path, label: str) -> None:
        self.config: Mapping[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self._where: dict[str, tuple[Path, TensorInfo]] = {}
        for file in sorted(folder.glob("*.safetensors")):
            for tensor in read_header(file, label).tensors:
                self._where[tensor.name] = (file, tensor)
        self._how = self.config.get("quantization") or {}
        quantized = {name.removesuffix(".scales") for name in self._where if name.endswith(".scales")}
        parts = {f"{path}.{part}" for path in quantized for part in ("scales", "biases")}
        self.found = {
            name: self._weight(name, quantized) for name in sorted(self._where) if name not in parts
        }

    @property
    def stored(self) -> tuple[TensorSpec, ...]:
        """All tensors as they are stored."""
        return tuple(TensorSpec(each.name, each.dtype, each.shape) for _, each in self._where.values())

    @property
    def quantization(self) -> dict[str, Quantization]:
        """Path -> how its weight is quantized."""
        found = {name.removesuffix(".weight"): weight.affine for name, weight in self.found.items()}
        return {path: Quantization(how.bits, how.group) for path, how in found.items() if how is not None}

    def _weight(self, name: str, quantized: set[str]) -> Weight:
        _, info = self._where[name]
        path = name.removesuffix(".weight")
        if path not in quantized:
            if info.dtype not in ("F32", "F16", "BF16"):
                raise Unwritable(f'tensor "{name}" is stored as {info.dtype}')
            return Weight(name, info.shape, info.dtype, None)
        own = self._how.get(path)
        said = {**self._how, **own} if isinstance(own, dict) else self._how
        how = Quantization(int(said["bits"]), int(said["group_size"]), said.get("mode", "affine"))
        return affine_weight(name, info.shape, self._where[f"{path}.scales"][1].dtype, how)

    def rows(self, name: str, count: int, start: int, stop: int) -> Array:
        import numpy as np

        file, info = self._where[name]
        item = np.dtype(_ITEMS[info.dtype])
        columns = (info.end - info.start) // item.itemsize // count
        at = info.start + start * columns * item.itemsize
        wanted = (stop - start) * columns
        return np.fromfile(file, dtype=item, count=wanted, offset=at).reshape(stop - start, columns)


def unpacked(packed: Array, bits: int) -> Array:
    """The codes of a row of mlx's uint32 words: a stream of bits, lowest first."""
    import numpy as np

    stream = np.unpackbits(packed.view(np.uint8), axis=-1, bitorder="little")
    fields = stream.reshape(packed.shape[0], -1, bits)
    places = (1 << np.arange(bits, dtype=np.uint8)).astype(np.uint8)
    codes: Array = (fields * places).sum(axis=-1, dtype=np.uint8)
    return codes


def _single(values: Array, dtype: str) -> Array:
    import numpy as np

    if dtype == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def _portions(weight: Weight, unit: int) -> Iterator[tuple[int, int]]:
    step = max(1, _PORTION // weight.columns // unit) * unit
    for start in range(0, weight.rows, step):
        yield start, min(start + step, weight.rows)
