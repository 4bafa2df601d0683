"""Rounds the weights of one block, and says how many of them could not be rounded for their own inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from builder.engine.arrays import Values, raw
from builder.engine.blas import numpy_on_one_thread
from builder.engine.block import Block, Shard
from builder.engine.finite import check_finite
from builder.engine.recipe import is_plain
from builder.engine.rounding.factors import Factors, factored
from builder.engine.rounding.moments import Seen, Sum
from builder.engine.rounding.stacks import packed, round_stack
from builder.engine.rounding.weight import SWEEPS, as_numpy, compiles, round_factored
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
    inputs = _inputs(block, own, values, seen, count)
    with numpy_on_one_thread():
        make: Make = partial(_by_loops, factored(inputs)) if compiles() else partial(_by_mlx, inputs)
        for path, how in own.items():
            shard |= _quantized(block, path, values, how, make, count)
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


Tensors = tuple[mx.array, mx.array, mx.array]  # packed codes, scales and biases of a stack of weights
Inputs = Iterator[tuple[Sum | None, int]]  # what each weight is given, and its columns
Make = Callable[[mx.array, Quantization, bool], Tensors]  # takes the inputs of a stack from all of them


def _quantized(
    block: Block, path: str, values: Values, how: Quantization, make: Make, count: _Count
) -> dict[str, RawTensor]:
    """The tensors of one quantized path, under full names."""
    name = f"{path}.weight"
    weight = values.array(name)
    if not _calibrated(block, path, how):
        count.plain += 1
        made = block.quantized(path, values, how)
        mx.eval(made)
        return {tensor: raw(array) for tensor, array in made.items()}
    stack = weight.reshape(-1, *weight.shape[-2:])
    codes, scales, biases = make(stack, how, _is_linear(block, path))  # no gain for embeddings
    shape = weight.shape[:-1]
    made = {
        name: codes.reshape(*shape, -1),
        f"{path}.scales": scales.reshape(*shape, -1).astype(weight.dtype),
        f"{path}.biases": biases.reshape(*shape, -1).astype(weight.dtype),
    }
    rest = {n: values.array(n) for n in values if n.rpartition(".")[0] == path and n != name}
    mx.eval(made, rest)
    return {tensor: raw(array) for tensor, array in {**made, **rest}.items()}


def _calibrated(block: Block, path: str, how: Quantization) -> bool:
    return how.mode == "affine" and is_plain(block.modules[path])


def _is_linear(block: Block, path: str) -> bool:
    return not isinstance(block.modules[path], nn.Embedding)


def _by_loops(factors: Iterator[Factors], stack: mx.array, how: Quantization, again: bool) -> Tensors:
    codes, scales, biases = [], [], []
    for part, known in zip(stack, islice(factors, len(stack)), strict=True):
        rounded = round_factored(as_numpy(part), known, how, stack.dtype, again=again)
        codes.append(rounded.packed(how.bits))
        scales.append(rounded.scales)
        biases.append(rounded.biases)
    return mx.array(np.stack(codes)), mx.array(np.stack(scales)), mx.array(np.stack(biases))


def _by_mlx(inputs: Inputs, stack: mx.array, how: Quantization, again: bool) -> Tensors:
    moments = (known.mean if known else None for known, _ in islice(inputs, len(stack)))
    made = round_stack(stack, moments, how, stack.dtype, SWEEPS if again else 0)
    return packed(made.codes, how.bits), made.scales, made.biases


def _inputs(
    block: Block, own: Mapping[str, Quantization], values: Values, seen: Seen, count: _Count
) -> Inputs:
    """What each weight of a block is given that is rounded for it, in the order of `own`."""
    for path, how in own.items():
        if not _calibrated(block, path, how):
            continue
        shape, linear = values.array(f"{path}.weight").shape, _is_linear(block, path)
        sums = _of_experts(path, shape, seen, count) if len(shape) == 3 else iter([seen.plain.get(path)])
        for known in sums:
            count.blind += linear and (known is None or known.total is None)
            yield known, shape[-1]


def _of_experts(path: str, shape: tuple[int, ...], seen: Seen, count: _Count) -> Iterator[Sum]:
    """What each expert is given, or what all are given together where it saw too few."""
    sums = seen.experts.get(path, {})
    everything = Sum()
    for each in sums.values():
        if each.total is not None:
            everything.total = each.total if everything.total is None else everything.total + each.total
            everything.count += each.count
    for number in range(shape[0]):
        own = sums.get(number)
        if own is None or own.count < LEAST * shape[-1]:
            count.unseen += 1
            own = everything
        yield own
