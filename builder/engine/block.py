"""One block of a model: its weights before fusing, and what each variant makes of them.

Weights are evaluated by `Block.shards`, and before it by `builder.engine.by_rows`. A weight is read once,
fused once and cast once per dtype. On a CPU, compiled kernels do the work for which they were shown to be
bit-identical to mlx. mlx does the rest.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from builder.engine import arrays
from builder.engine.arrays import Values, are_finite, as_stored, from_numpy, from_stored, raw
from builder.engine.by_rows import WIDEST, ByRows, quantized_tensors, row_bytes
from builder.engine.finite import NotFinite, check_finite
from builder.engine.fusing import DTYPES, THREADS, can_fuse, fuse, lend
from builder.engine.kernels import cpu as kernels
from builder.engine.kernels.cpu import Array, Empty
from builder.engine.recipe import NOWHERE, Places, Recipe, begins, exact
from builder.engine.survival import PathSurvival, measure, sample, sampled_losses
from builder.spec.types import Quantization
from builder.weights.shards import RawTensor

Shard = Mapping[str, RawTensor]


@dataclass
class Block:
    """The lazy parameters of one block under their full names, with its modules and its LoRA layers.

    `layers` maps an adapted path to the LoRA or DoRA layer that wraps its module. `own` are the dtypes of the
    base, also for parameters that an adapter replaces. `fixed` are the names that the model's cast_predicate
    excludes from casts. `unread` are the parameters that the base gives.
    """

    name: str
    parameters: dict[str, mx.array]
    modules: dict[str, nn.Module]
    own: Mapping[str, mx.Dtype]
    layers: dict[str, Any] = field(default_factory=dict)
    fixed: frozenset[str] = frozenset()
    unread: frozenset[str] = frozenset()
    placed: dict[str, Array] = field(default_factory=dict)  # stored values that were read for parameters
    compiled: bool = True  # whether there is enough work to load the kernels for
    survival: bool = False  # whether to measure how much of the adapter is left after quantizing
    empty: Empty = np.empty  # makes the arrays that kernels fill
    measured: dict[str, list[PathSurvival]] = field(default_factory=dict)  # by variant
    by_rows: Mapping[str, ByRows] = field(default_factory=dict)  # by path: weights that are not in memory
    _sampled: dict[str, Array] = field(default_factory=dict)  # rows of adapted weights, before they are fused
    _fused: Values | None = None  # kept for the next call of `shards`, with other variants

    def shards(
        self, recipes: Mapping[str, Recipe], target: str, places: Places = NOWHERE
    ) -> dict[str, Shard]:
        """The bytes of this block for each variant. Raises NotFinite.

        places: codes that kernels make lie as far behind the begin of a page as there, to be written from
        where they lie.
        """
        if self._fused is None:
            self._fused = self._fuse()
        by_dtype: dict[str, dict[str, Recipe]] = {}  # by name: an mx.Dtype cannot be compared with None
        for variant, recipe in recipes.items():
            by_dtype.setdefault(str(recipe.dtype), {})[variant] = recipe
        out: dict[str, dict[str, RawTensor]] = {variant: {} for variant in recipes}
        for wanted in by_dtype.values():
            dtype = next(iter(wanted.values())).dtype
            values = self._cast(self._fused, dtype)
            self._store(values, wanted, out, target, places)
            for variant in wanted:
                for weight in self.by_rows.values():
                    out[variant] |= weight.results(variant)
            if self.survival:
                self._measure(values, wanted, out)
        return dict(out)

    def take_by_rows(
        self, units: Mapping[str, int], recipes: Mapping[str, Recipe], target: str, places: Places = NOWHERE
    ) -> Mapping[str, ByRows]:
        """Lets weights be given row by row, each before `shards` is called, with no other recipes than these.

        Those that the kernels fuse and quantize exactly for each of `recipes`, in the dtype that they have.
        units: parameters that can be given so, and bytes of which they may be given multiples.
        """
        found: dict[str, ByRows] = {}
        for path in self.modules:
            if (name := f"{path}.weight") not in units or not self.compiled:
                continue
            weight, layer = self.parameters[name], self.layers.get(path)
            if units[name] % row_bytes(weight) or row_bytes(weight) > WIDEST:
                continue
            wanted = self._exact(path, weight.dtype, recipes)
            kept = all(self._wanted(name, recipe.dtype) == weight.dtype for recipe in recipes.values())
            if kept and wanted.keys() == recipes.keys() and (layer is None or can_fuse(layer, weight)):
                at = begins(name, wanted, places)
                found[path] = ByRows(path, weight, layer, wanted, at, target, self.survival, self.empty)
        self.by_rows = found
        return found

    def place(self, name: str, data: Array, *, copied: bool) -> None:
        """Takes the bytes of a parameter, which mlx then does not read. `copied`: into mlx, at once."""
        lazy = self.parameters[name]
        values = as_stored(data, lazy.dtype, tuple(lazy.shape))
        if copied:
            self.parameters[name] = from_stored(values, lazy.dtype)
            lend(self.layers, name, self.parameters[name])
        else:
            self.placed[name] = values

    def can_place(self, name: str) -> bool:
        """Whether a parameter may be given as bytes. An adapter's has no bytes in the base."""
        return name in self.unread and self.parameters[name].dtype in DTYPES

    def values(self, dtype: mx.Dtype | None) -> Values:
        """All parameters of the block, with the adapter fused into them, cast as `Recipe` says."""
        return self._cast(self._fuse(), dtype)

    def forget(self) -> None:
        """Lets the block's weights go. It cannot be used afterwards."""
        self.parameters.clear()
        self.placed.clear()
        self.layers.clear()
        self._fused = None

    def _measure(
        self, values: Values, recipes: Mapping[str, Recipe], out: Mapping[str, dict[str, RawTensor]]
    ) -> None:
        """Notes for each variant how much of the adapter's delta is left in each quantized path."""
        found = {v: {p: w.measured(v) for p, w in self.by_rows.items()} for v in recipes}
        for path in self.modules:
            name = f"{path}.weight"
            wanted = {v: r.quantization[path] for v, r in recipes.items() if path in r.quantization}
            if name not in values or not wanted:
                continue
            adapted = path in self.layers
            exact = self._exact(path, values.dtype(name), recipes)
            alike = not adapted or self.parameters[name].dtype == values.dtype(name)
            if exact and alike:
                settings = sorted({(how.bits, how.group_size) for how in exact.values()})
                kind, base = DTYPES[values.dtype(name)], self._sampled.get(path)
                stored = values.stored(name)
                rows = prod(stored.shape[:-1])
                made = sampled_losses(path, base, sample(stored), rows, kind, settings)
                losses = dict(zip(settings, made, strict=True))
                for variant, how in exact.items():
                    found[variant][path] = losses[how.bits, how.group_size]
            for variant in wanted.keys() - (exact.keys() if alike else ()):
                own = self._sampled.get(path)
                before = None if own is None else from_stored(own, self.parameters[name].dtype)
                after = values.array(name)
                found[variant][path] = measure(
                    path, before, after, out[variant], wanted[variant], sampled=True
                )
        for variant, recipe in recipes.items():
            self.measured[variant] = [found[variant][p] for p in recipe.quantization if p in found[variant]]

    # -- fuse ----------------------------------------------------------------------------------------

    def _fuse(self) -> Values:
        """All parameters of the block, with the adapter fused into them."""
        placed = {name: (array, self.parameters[name].dtype) for name, array in self.placed.items()}
        apart = {weight.name for weight in self.by_rows.values()}
        values = Values({n: a for n, a in self.parameters.items() if n not in apart}, placed)
        for path, layer in self.layers.items():
            if path in self.by_rows:
                continue
            if self.survival:
                self._sampled[path] = sample(values.stored(f"{path}.weight"))
            fuse(values, path, layer, self.empty, compiled=self.compiled)
        return values

    def _cast(self, values: Values, dtype: mx.Dtype | None) -> Values:
        """Casts as mlx_lm.convert does. Without `dtype`, casts DoRA's float32 back to the base's dtypes."""
        cast = Values(dict(values.arrays), dict(values.fused))
        for name in values:
            now, wanted = values.dtype(name), self._wanted(name, dtype)
            if mx.issubdtype(now, mx.floating) and now != wanted:
                cast.arrays[name] = values.array(name).astype(wanted)
                cast.fused.pop(name, None)
        return cast

    def _wanted(self, name: str, dtype: mx.Dtype | None) -> mx.Dtype:
        """The dtype that a floating parameter gets."""
        return self.own[name] if dtype is None or name in self.fixed else dtype

    # -- store ---------------------------------------------------------------------------------------

    def _store(
        self,
        values: Values,
        recipes: Mapping[str, Recipe],
        out: Mapping[str, dict[str, RawTensor]],
        target: str,
        places: Places,
    ) -> None:
        """Quantizes `values` for each variant, by kernels where they are exact. Puts bytes into `out`."""
        checked = self._store_compiled(values, recipes, out, target, places)
        left = {  # checked before mlx quantizes, because NaN and infinity do not show afterwards
            f"{path}.weight"
            for variant, recipe in recipes.items()
            for path in recipe.quantization
            if f"{path}.weight" in values and f"{path}.weight" not in out[variant]
        }
        check_finite({name: values.array(name) for name in left}, target)
        for variant, recipe in recipes.items():
            tensors: dict[str, mx.array] = {}
            for name in values:
                path, _, leaf = name.rpartition(".")
                if path not in recipe.quantization and name in values.fused:
                    if name not in checked and not are_finite(values.stored(name), values.dtype(name)):
                        raise NotFinite(target=target, tensor=name)
                    checked.add(name)
                    out[variant][name] = from_numpy(values.stored(name), DTYPES[values.dtype(name)])
                elif path not in recipe.quantization:
                    tensors[name] = values.array(name)
                elif leaf == "weight" and name not in out[variant]:
                    tensors |= self.quantized(path, values, recipe.quantization[path])
            mx.eval(tensors)
            check_finite({name: array for name, array in tensors.items() if name not in checked}, target)
            for name, array in tensors.items():
                out[variant].setdefault(name, raw(array))
            leaves = {n for n in values if n.rpartition(".")[0] in recipe.quantization} - set(out[variant])
            rest = {name: values.array(name) for name in leaves if name.rpartition(".")[2] != "weight"}
            mx.eval(rest)
            check_finite(rest, target)
            out[variant].update({name: raw(array) for name, array in rest.items()})

    def quantized(self, path: str, values: Values, how: Quantization) -> dict[str, mx.array]:
        """The tensors that `to_quantized` of the module at `path` makes, under full names."""
        module = copy.copy(self.modules[path])
        own = {leaf: values.array(f"{path}.{leaf}") for leaf in module if f"{path}.{leaf}" in values}
        module.update({leaf: arrays.in_rows(array) for leaf, array in own.items()})
        made = module.to_quantized(group_size=how.group_size, bits=how.bits, mode=how.mode)
        return {f"{path}.{leaf}": array for leaf, array in tree_flatten(made.parameters())}

    def _store_compiled(
        self,
        values: Values,
        recipes: Mapping[str, Recipe],
        out: Mapping[str, dict[str, RawTensor]],
        target: str,
        places: Places,
    ) -> set[str]:
        """Quantizes every path that the kernels quantize exactly, to all widths in one pass over the weight.

        Returns the names of the weights, which are finite. Raises NotFinite.
        """
        checked = set()
        for path in self.modules:
            name = f"{path}.weight"
            wanted = self._exact(path, values.dtype(name), recipes) if name in values else {}
            if not wanted:
                continue
            dtype = DTYPES[values.dtype(name)]
            at = begins(name, wanted, places)
            results = _compiled(values.stored(name), dtype, at, name, target, self.empty)
            checked.add(name)
            made = dict(zip(at, results, strict=True))
            for variant, how in wanted.items():
                out[variant] |= quantized_tensors(path, made[how.bits, how.group_size], dtype)
        return checked

    def _exact(self, path: str, now: mx.Dtype, recipes: Mapping[str, Recipe]) -> dict[str, Quantization]:
        return exact(path, self.modules[path], now, recipes) if self.compiled else {}


def _compiled(
    weight: Array,
    dtype: str,
    begins: Mapping[kernels.Setting, int],
    tensor: str,
    target: str,
    empty: Empty,
) -> list[kernels.QuantizedArrays]:
    try:
        return kernels.quantize_widths(
            weight, dtype, list(begins), begins=list(begins.values()), threads=THREADS, empty=empty
        )
    except kernels.NonFinite as error:
        raise NotFinite(target=target, tensor=tensor) from error
