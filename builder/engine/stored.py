"""The weights of a model as its files hold them, and as float32 when they are needed, without a copy between.

mlx on a CPU makes float32 of codes at 20 to 150 million elements a second, and of the whole weight at once.
The compiled kernels do it with more than 1,000 million on each core, matrix by matrix, bit for bit the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from builder.engine.arrays import from_stored
from builder.engine.kernels.agreement import dequantize_agrees
from builder.engine.kernels.cpu import available, dequantize_into, widen_into
from builder.engine.kernels.lora import fuse_lora

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Held = Sequence[Sequence[Array]]  # for each array of a stored weight its matrices, in numpy

PIECE = 1 << 21  # elements of a matrix that are float32 at a time, on each core
_HALF = {mx.bfloat16: "bfloat16", mx.float16: "float16"}


@dataclass(frozen=True)
class Delta:
    """What a LoRA adds to a stack of experts, in factors: lora_a [experts, rank, columns], lora_b [experts,
    rows, rank], float32."""

    lora_a: mx.array
    lora_b: mx.array
    scale: float


class Place(NamedTuple):
    """The bytes from `start` to `end` of a file."""

    path: Path
    start: int
    end: int


@dataclass(frozen=True)
class Stored:
    """The weight of a module as its file holds it, lazy: [..., rows, columns].

    Floats, or codes with `scales`. `setting` has bits and group size then. Floats of a stack may have a
    `delta`, which is added when they become float32, as mlx-lm's `fuse` adds it.
    places: where the bytes of each of `arrays` lie, one after the other. Empty where only mlx can read them.
    """

    weight: mx.array
    scales: mx.array | None = None
    biases: mx.array | None = None
    setting: tuple[int, int] = (0, 0)
    mode: str = ""
    delta: Delta | None = None
    places: tuple[tuple[Place, ...], ...] = ()

    @property
    def arrays(self) -> list[mx.array]:
        return [each for each in (self.weight, self.scales, self.biases) if each is not None]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight in float32."""
        *lead, columns = self.weight.shape
        return (*lead, columns if self.scales is None else columns * 32 // self.setting[0])

    def looked_up(self, rows: mx.array) -> mx.array:
        """Some rows of a matrix as float32, lazy, as an embedding gives them."""
        if self.scales is None:
            return self.weight[rows].astype(mx.float32)
        biases = None if self.biases is None else self.biases[rows]
        return _dequantized(self, self.weight[rows], self.scales[rows], biases)


def stored_in(module: Any) -> Stored:
    """The weight of a linear layer, an embedding or a stack of experts, quantized or not."""
    if "scales" not in module:
        return Stored(module.weight)
    setting = (module.bits, module.group_size)
    return Stored(module.weight, module.scales, module.get("biases"), setting, module.mode)


def stored_under(layer: Any) -> Stored | None:
    """The weight of a stack of experts in a LoRA layer, with the LoRA as its delta. None for other layers.

    The kernel that adds the delta gives what a build gives. mlx in a process that measures may not, because
    the BLAS there adds in another order (`builder.engine.blas`).
    """
    from mlx_lm.models.switch_layers import SwitchLinear
    from mlx_lm.tuner.lora import LoRASwitchLinear

    if type(layer) is not LoRASwitchLinear or type(layer.linear) is not SwitchLinear:
        return None
    weight, factors = layer.linear.weight, (layer.lora_a, layer.lora_b)
    experts, _, columns = weight.shape
    dtype = "float32" if weight.dtype == mx.float32 else _HALF.get(weight.dtype, "")
    if not dtype or any(each.dtype != mx.float32 for each in factors) or not available(dtype):
        return None
    return Stored(weight, delta=Delta(layer.lora_a.reshape(experts, -1, columns), layer.lora_b, layer.scale))


class Rows:
    """The rows of a stored weight, in memory, as float32 on request. Matrices of a stack follow one another.

    held: the matrices of each of `stored.arrays` as numpy has them. None: mlx reads them now.
    `parallel`: several threads may ask. Without our kernels only the main thread can, because mlx
    dequantizes.
    """

    def __init__(self, stored: Stored, held: Held | None = None) -> None:
        if held is None:
            mx.eval(stored.arrays)
            held = [matrices(as_numpy(each)) for each in stored.arrays]
        self._stored, self._held = stored, held
        self._kernel = _kernel(stored)
        self._wide = stored.shape[-2]
        if stored.delta is not None:
            mx.eval(stored.delta.lora_a, stored.delta.lora_b)
            self._factors = as_numpy(stored.delta.lora_a), as_numpy(stored.delta.lora_b)
        self.parallel = bool(self._kernel) or stored.scales is None

    def get(self, first: int, last: int, buffer: Floats) -> Floats:
        """Rows `first` to `last` (exclusive), in the first rows of `buffer` or where they are.

        They are rows of one matrix.
        """
        stored, made = self._stored, buffer[: last - first]
        number, first = divmod(first, self._wide)
        some = slice(first, first + len(made))
        raw, *others = (each[number][some] for each in self._held)  # codes have scales and biases
        if stored.delta is not None:
            raw = self._fused(raw, number)
        if stored.scales is None and stored.weight.dtype == mx.float32:
            return raw
        if stored.scales is not None and self._kernel:
            dequantize_into(made, raw, others[0], others[1], dtype=self._kernel, setting=stored.setting)
        elif stored.scales is not None:
            parts = zip((raw, *others), stored.arrays, strict=True)
            made[...] = np.array(_dequantized(stored, *(from_stored(p, each.dtype) for p, each in parts)))
        elif self._kernel:
            widen_into(made, raw, self._kernel)
        elif stored.weight.dtype == mx.bfloat16:
            np.left_shift(raw, 16, out=made.view(np.uint32), dtype=np.uint32)
        else:
            made[...] = raw.view(np.float16)
        return made

    def _fused(self, raw: Array, number: int) -> Array:
        """A whole matrix of the stack, with its delta."""
        assert self._stored.delta is not None
        a, b = (factor[number : number + 1] for factor in self._factors)
        dtype = self._kernel or "float32"
        made = fuse_lora(raw[None], dtype, a, b, self._stored.delta.scale, "switch")
        return made.reshape(raw.shape)


def _kernel(stored: Stored) -> str:
    """The dtype that our kernels must be told to make float32 of a stored weight. Empty: they cannot."""
    floats = stored.weight if stored.scales is None else stored.scales
    dtype = "float32" if floats.dtype == mx.float32 else _HALF.get(floats.dtype, "")
    if stored.scales is None:
        return dtype if dtype and floats.dtype != mx.float32 and available(dtype) else ""
    exact = stored.mode == "affine" and bool(dtype) and dequantize_agrees(dtype, stored.setting)
    return dtype if exact and stored.biases is not None else ""


def _dequantized(
    stored: Stored, weight: mx.array, scales: mx.array, biases: mx.array | None = None
) -> mx.array:
    bits, group = stored.setting
    made = mx.dequantize(weight, scales, biases, group_size=group, bits=bits, mode=stored.mode)
    return made.astype(mx.float32)


def as_numpy(array: mx.array) -> Array:
    """An evaluated array, without a copy. Numbers that numpy does not know as their bits."""
    if array.dtype in _HALF:
        array = array.view(mx.uint16)
        mx.eval(array)
    return np.asarray(memoryview(array))  # type: ignore[arg-type]


def matrices(array: Array) -> list[Array]:
    """The matrices [rows, columns] of an array of two or three dimensions."""
    return list(array.reshape(-1, *array.shape[-2:]))


def new_memory(shape: tuple[int, ...]) -> mx.array:
    """A new array whose memory numpy may write, because nothing else has it."""
    made = mx.zeros(shape, mx.float32)
    mx.eval(made)
    return made


def on_each_core(work: Callable[[int], None], numbers: Sequence[int], parallel: bool) -> None:
    """Calls `work` with each number, on a thread for each core if `parallel`. Raises the first exception."""
    if not parallel or len(numbers) < 2:
        for number in numbers:
            work(number)
        return
    with ThreadPoolExecutor(cores()) as pool:
        for _ in pool.map(work, numbers):
            pass


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
