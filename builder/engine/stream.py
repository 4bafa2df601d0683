"""One pass over a model: every block is fused, cast and quantized for all variants, then let go.

The weights are lazy until `take` asks for a block. `drop` lets go of a block. So memory holds a block and not
a model, as long as nothing else holds the arrays.
"""

from __future__ import annotations

import contextlib
import gc
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from builder.console.words import one_line
from builder.engine.block import Block, Shard
from builder.engine.by_rows import row_bytes
from builder.engine.config import with_dtype, written
from builder.engine.fusing import DTYPES, THREADS
from builder.engine.inspect import quantizable_modules
from builder.engine.kernels import cpu as kernels
from builder.engine.loading import LoadedAdapter, lora_layers, replacements
from builder.engine.pool import Pool
from builder.engine.pruning import prune_shard
from builder.engine.recipe import NOWHERE, Places, Recipe
from builder.engine.survival import to_text
from builder.engine.tracing import Trace
from builder.engine.variant_config import config_of
from builder.errors import EngineError
from builder.spec.types import Quantization, Variant
from builder.weights.experts import Pruned
from builder.weights.pieces import Rows
from builder.weights.structure import block_of

# Elements that mlx quantizes in the time that the kernels need to load (COMPILED_FROM), or to be compiled
# first on this machine (COMPILE_FROM: 5 s, which later builds do not spend again).
COMPILED_FROM = 30_000_000
COMPILE_FROM = 300_000_000
# Words in mlx's errors for too little memory: [malloc], [metal::malloc], cudaMalloc, Insufficient Memory ...
_MEMORY = re.compile(r"malloc|memory", re.IGNORECASE)


@dataclass(frozen=True)
class Request:
    """One variant to make in this pass, with the dtype and the quantization that the plan resolved for it.

    `pruned`: the experts that it leaves out. They are cut out of the bytes that a variant with all has.
    """

    variant: Variant
    dtype: str | None
    quantization: Mapping[str, Quantization]
    pruned: Pruned | None = None

    @property
    def name(self) -> str:
        return self.variant.name


class Stream:
    """A lazily loaded model and its adapter, cut into blocks, for several variants at once."""

    def __init__(
        self,
        model: nn.Module,
        config: dict[str, Any],
        requests: Sequence[Request],
        adapter: LoadedAdapter | None = None,
        *,
        configs: Collection[str] | None = None,
        survival: bool = False,
        trace: Trace | None = None,
    ) -> None:
        """Sorts everything by block. Evaluates nothing. Raises AdapterMismatch, LayoutChanged, Unquantizable.

        trace: of loading the model. It tells which bytes of the checkpoint `place` takes.
        configs: the variants for which `config` will be called. None: all. Each costs a walk through the
        model.
        """
        self._keep_vision = "vision_tower" in getattr(model, "model", {})
        self._configs = {
            request.name: with_dtype(
                config_of(model, config, request.variant, request.quantization), request.variant.dtype
            )
            for request in requests
            if configs is None or request.name in configs
        }
        self._recipes = {
            request.name: Recipe(getattr(mx, request.dtype) if request.dtype else None, request.quantization)
            for request in requests
        }
        self._pruned = {request.name: request.pruned for request in requests if request.pruned is not None}
        work, kinds = _work(model, requests)
        compiled = work >= COMPILED_FROM and (all(map(kernels.ready, kinds)) or work >= COMPILE_FROM)
        self._blocks = cut(model, adapter, compiled=compiled)
        self._pool = Pool()
        for block in self._blocks.values():
            block.survival, block.empty = survival, self._pool.empty
        self._copied = not (compiled and all(map(kernels.available, kinds)))
        self.sources = self._sources(model, trace) if trace is not None else {}
        del model
        gc.collect()  # modules are in reference cycles, so without this every array stays alive

    def config(self, variant: str) -> bytes:
        """config.json of one variant, as mlx_lm.utils.save_config writes it."""
        return written(self._configs[variant], self._pruned.get(variant), vision=self._keep_vision)

    def take(
        self, block: str, variants: Collection[str], target: str, places: Places = NOWHERE
    ) -> dict[str, Shard]:
        """The tensors of one block for each of `variants`, as bytes. The weights stay in memory until `drop`.

        `target` is named in errors. `places`: as for Block.shards. Raises NotFinite, and EngineError when
        memory does not suffice.
        """
        with _memory(target, block):
            made = self._blocks[block].shards(self._recipes_of(variants), target, places)
            return {v: prune_shard(s, p) if (p := self._pruned.get(v)) else s for v, s in made.items()}

    def by_rows(
        self,
        block: str,
        units: Mapping[str, int],
        variants: Collection[str],
        target: str,
        places: Places = NOWHERE,
    ) -> dict[str, int]:
        """The parameters of a block that `take_rows` will get, and the bytes of a row of each.

        `take` will be called when all rows of them are there, for `variants` or some of them. units: as for
        `Block.take_by_rows`.
        """
        if not self.on_cpu or self._copied:
            return {}
        found = self._blocks[block].take_by_rows(units, self._recipes_of(variants), target, places)
        return {each.name: row_bytes(each.weight) for each in found.values()}

    def take_rows(self, some: Sequence[Rows]) -> None:
        """Fuses and quantizes rows of weights, in the memory where they are.

        Raises NotFinite, and EngineError when memory does not suffice.
        """
        if not some:
            return
        weights = [self._blocks[r.block].by_rows[r.parameter.removesuffix(".weight")] for r in some]
        with _memory(weights[0].target, some[0].block):
            pairs = zip(weights, some, strict=True)
            work = [part for weight, rows in pairs for part in weight.work(rows.at, rows.data)]
            kernels.each(lambda number: work[number](), len(work), THREADS)

    def _recipes_of(self, variants: Collection[str]) -> dict[str, Recipe]:
        return {variant: self._recipes[variant] for variant in variants}

    def _sources(self, model: nn.Module, trace: Trace) -> dict[str, tuple[str, ...]]:
        """Parameter -> the tensors of the checkpoint whose bytes `place` takes for it, in their order."""
        now = dict(tree_flatten(model.parameters()))
        return {
            name: sources
            for name, sources in trace.joined().items()
            if now.get(name) is trace.made[name] and self._blocks[block_of(name)].can_place(name)
        }

    @property
    def on_cpu(self) -> bool:
        """Whether mlx computes on the CPU."""
        return bool(mx.default_device() == mx.Device(mx.cpu))

    def place(self, block: str, data: Mapping[str, Any]) -> None:
        """Gives a block the bytes of some of its parameters, as numpy arrays. mlx reads the others itself."""
        for name, array in data.items():
            self._blocks[block].place(name, array, copied=self._copied)

    def prefetch(self, block: str, but: Collection[str] = ()) -> None:
        """Starts reading the weights of a block, `but` those that `place` will get, and returns at once."""
        parameters = self._blocks[block].parameters
        mx.async_eval({name: parameters[name] for name in parameters if name not in but})  # type: ignore[no-untyped-call]

    def survival(self, block: str, variant: str) -> str:
        """What `take` measured for a variant of a block, as one line of JSON. Empty without a measure."""
        paths = self._blocks[block].measured.get(variant)
        return to_text(paths) if paths else ""

    def drop(self, block: str) -> None:
        """Lets a block go. On a GPU also frees its memory, which mlx would keep for its next arrays."""
        self._blocks.pop(block, None)
        self._pool.turn()
        if not self.on_cpu:
            mx.clear_cache()


@contextlib.contextmanager
def _memory(target: str, block: str) -> Iterator[None]:
    """Raises EngineError where memory does not suffice for a block."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or _MEMORY.search(str(error)):
            raise EngineError(
                target=target,
                what=f'memory does not suffice for block "{block}" ({one_line(error)})',
                hint="Build fewer variants at once, or on a machine with more memory.",
            ) from error
        raise


def _work(model: nn.Module, requests: Sequence[Request]) -> tuple[int, set[str]]:
    """How many elements to quantize, counted once for each variant, and the dtypes that kernels will meet."""
    weights = {path: module.weight for path, module in quantizable_modules(model) if "weight" in module}
    sizes = {path: weight.size for path, weight in weights.items()}
    kinds = {DTYPES[weight.dtype] for weight in weights.values() if weight.dtype in DTYPES}
    kinds |= {request.dtype for request in requests if request.dtype in kernels.KINDS}
    return sum(sizes.get(path, 0) for request in requests for path in request.quantization), kinds


def cut(model: nn.Module, adapter: LoadedAdapter | None, *, compiled: bool = True) -> dict[str, Block]:
    """Block name -> the block, with its parameters, modules and LoRA layers. Raises AdapterMismatch."""
    castable = getattr(model, "cast_predicate", lambda _: True)
    layers = lora_layers(model, adapter) if adapter else {}
    parameters: dict[str, dict[str, mx.array]] = {}
    for name, array in tree_flatten(model.parameters()):
        parameters.setdefault(block_of(name), {})[name] = array
    own = {block: {name: a.dtype for name, a in arrays.items()} for block, arrays in parameters.items()}
    replaced = replacements(model, adapter) if adapter else {}
    for name, array in replaced.items():
        parameters[block_of(name)][name] = array
    modules: dict[str, dict[str, nn.Module]] = {name: {} for name in parameters}
    for path, module in quantizable_modules(model):
        modules[block_of(f"{path}.weight")][path] = module
    return {
        name: Block(
            name,
            arrays,
            modules[name],
            own[name],
            {path: layer for path, layer in layers.items() if block_of(f"{path}.weight") == name},
            frozenset(parameter for parameter in arrays if not castable(parameter)),
            frozenset(arrays) - replaced.keys(),
            compiled=compiled,
        )
        for name, arrays in parameters.items()
    }
