"""Rounds the weights of one block, and says how many of them could not be rounded for their own inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from builder.engine.arrays import Values, raw
from builder.engine.blas import numpy_on_one_thread
from builder.engine.block import Block, Shard, check_finite
from builder.engine.rounding.moments import Floats, Seen, Sum
from builder.engine.rounding.stacks import packed, round_stack
from builder.engine.rounding.weight import SWEEPS, as_numpy, compiles, round_weight
from builder.engine.survival import measure, to_text
from builder.errors import EngineError
from builder.spec.types import Quantization
from builder.weights.shards import RawTensor
from builder.weights.structure import block_of

LEAST = 0.25  # tokens that an expert must see for each column


@dataclass(frozen=True)
class Made:
    """One rounded block: its tensors, what was measured of the adapter, and how many weights were special.

    `plain` counts weights that mlx rounded. `unseen` counts experts that saw too few tokens. `blind` counts
    weights of whose inputs nothing is known: the text did not reach them, or the model uses them otherwise.
    """

    shard: Shard
    survival: str
    plain: int
    unseen: int
    blind: int = 0


@dataclass
class _Count:
    plain: int = 0
    unseen: int = 0
    blind: int = 0


def rounded(
    block: Block,
    values: Values,
    quantization: Mapping[str, Quantization],
    seen: Seen,
    target: str,
    *,
    survival: bool,
) -> Made:
    """The tensors of one block. `seen`: what its linear layers were given. Raises NotFinite, EngineError."""
    count = _Count()
    _check_inputs(seen, target)
    check_finite({name: values.array(name) for name in values}, target)
    shard: dict[str, RawTensor] = {}
    own = {p: q for p, q in quantization.items() if block_of(f"{p}.weight") == block.name}
    own = {path: how for path, how in own.items() if f"{path}.weight" in values}
    for path, how in own.items():
        shard |= _quantized(block, path, values, how, seen, count)
    for name in values:
        if name.rpartition(".")[0] not in own:
            shard[name] = raw(values.array(name))
    measured = []
    for path, how in own.items() if survival else ():
        before = block.parameters[f"{path}.weight"] if path in block.layers else None
        measured.append(measure(path, before, values.array(f"{path}.weight"), shard, how))
    return Made(shard, to_text(measured) if measured else "", count.plain, count.unseen, count.blind)


def _check_inputs(seen: Seen, target: str) -> None:
    """Raises EngineError where a model computes NaN or infinity for the text."""
    sums = [*seen.plain.items(), *((p, each) for p, stack in seen.experts.items() for each in stack.values())]
    traces = [(path, mx.diagonal(each.total).sum()) for path, each in sums if each.total is not None]
    mx.eval([trace for _, trace in traces])
    for path, trace in traces:
        if not np.isfinite(trace.item()):
            raise EngineError(
                target=target,
                what=f"the inputs of {path} are not finite",
                hint="The model computes NaN or infinity for the calibration text.",
            )


def _quantized(
    block: Block, path: str, values: Values, how: Quantization, seen: Seen, count: _Count
) -> dict[str, RawTensor]:
    """The tensors of one quantized path, under full names."""
    name = f"{path}.weight"
    weight = values.array(name)
    if how.mode != "affine" or not block.is_plain(path):
        count.plain += 1
        made = block.quantized(path, values, how)
        mx.eval(made)
        return {tensor: raw(array) for tensor, array in made.items()}
    if weight.ndim == 3:
        inputs = _of_experts(path, weight, seen, count)
    else:
        inputs = iter([seen.plain[path].mean if path in seen.plain else None])
    linear = not isinstance(block.modules[path], nn.Embedding)
    if linear:
        inputs = _counted(inputs, count)
    make = _by_loops if compiles() else _by_mlx
    codes, scales, biases = make(
        weight.reshape(-1, *weight.shape[-2:]), inputs, how, linear
    )  # not again: no gain for embeddings
    shape = weight.shape[:-1]
    made = {
        name: codes.reshape(*shape, -1),
        f"{path}.scales": scales.reshape(*shape, -1).astype(weight.dtype),
        f"{path}.biases": biases.reshape(*shape, -1).astype(weight.dtype),
    }
    rest = {n: values.array(n) for n in values if n.rpartition(".")[0] == path and n != name}
    mx.eval(made, rest)
    return {tensor: raw(array) for tensor, array in {**made, **rest}.items()}


Tensors = tuple[mx.array, mx.array, mx.array]  # packed codes, scales and biases of a stack of weights
Inputs = Iterator[Floats | None]  # the moments of the inputs of each weight of a stack


def _by_loops(weight: mx.array, inputs: Inputs, how: Quantization, again: bool) -> Tensors:
    codes, scales, biases = [], [], []
    for part, moments in zip(weight, inputs, strict=True):
        rounded = round_weight(as_numpy(part), moments, how, weight.dtype, again=again)
        codes.append(rounded.packed(how.bits))
        scales.append(rounded.scales)
        biases.append(rounded.biases)
    return mx.array(np.stack(codes)), mx.array(np.stack(scales)), mx.array(np.stack(biases))


def _by_mlx(weight: mx.array, inputs: Inputs, how: Quantization, again: bool) -> Tensors:
    with numpy_on_one_thread():
        made = round_stack(weight, inputs, how, weight.dtype, SWEEPS if again else 0)
    return packed(made.codes, how.bits), made.scales, made.biases


def _counted(inputs: Inputs, count: _Count) -> Inputs:
    for known in inputs:
        count.blind += known is None
        yield known


def _of_experts(path: str, weight: mx.array, seen: Seen, count: _Count) -> Inputs:
    """The moments of the inputs of each expert, or of all inputs where it saw too few."""
    sums = seen.experts.get(path, {})
    everything = Sum()
    for each in sums.values():
        if each.total is not None:
            everything.total = each.total if everything.total is None else everything.total + each.total
            everything.count += each.count
    for number in range(weight.shape[0]):
        own = sums.get(number)
        if own is None or own.count < LEAST * weight.shape[-1]:
            count.unseen += 1
            own = everything
        yield own.mean
