"""One lazy pass over a model: every block is fused, cast and quantized for all variants, then let go.

The whole graph is built first (mlx is lazy, so this costs no memory), then `take` evaluates one block of
it. Memory is a block, not a model, as long as nobody else holds the arrays: `take` and `skip` drop theirs.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from builder.engine.inspect import as_quantization
from builder.engine.loading import LoadedAdapter, cast, dtypes_of, fuse
from builder.errors import BuildError
from builder.spec import Quantization, Variant
from builder.structure import TensorSpec, block_of


class LayoutChanged(BuildError):
    """{target}: mlx-lm now lays this model out differently than when the base was inspected: {what}"""

    exit_code = 2
    hint = "mlx-lm was upgraded: run `doit -a base:{base}` to inspect the base again."


class NotFinite(BuildError):
    """{target}: tensor "{tensor}" holds NaN or infinity; quantizing it is undefined."""

    exit_code = 2
    hint = "The checkpoint or the adapter is damaged (a diverged training run, a bad download)."


@dataclass(frozen=True)
class Request:
    """One variant to make in this pass: what the plan resolved, and what it was resolved from."""

    variant: Variant
    dtype: str | None
    quantization: Mapping[str, Quantization]

    @property
    def name(self) -> str:
        return self.variant.name


class Stream:
    """A lazily fused model, cut into blocks, for several variants at once."""

    def __init__(
        self,
        model: nn.Module,
        config: dict[str, Any],
        requests: Sequence[Request],
        adapter: LoadedAdapter | None = None,
    ) -> None:
        """Builds the graph; evaluates nothing. Raises AdapterMismatch, LayoutChanged."""
        own = dtypes_of(model)
        if adapter is not None:
            model = fuse(model, adapter)
        self._keep_vision = "vision_tower" in getattr(model, "model", {})
        self._config: dict[str, dict[str, Any]] = {}
        self._blocks: dict[str, dict[str, dict[str, mx.array]]] = {}
        casts: dict[str | None, nn.Module] = {}
        for request in requests:
            if request.dtype not in casts:
                casts[request.dtype] = cast(clone(model), request.dtype, own)
            made, made_config = _variant(casts[request.dtype], config, request)
            self._config[request.name] = with_dtype(made_config, request.variant.dtype)
            self._blocks[request.name] = by_block(made)
        del model, casts
        gc.collect()  # modules refer to themselves in cycles: without this every array stays alive

    def config(self, variant: str) -> bytes:
        """config.json of one variant, as mlx_lm.utils.save_config writes it."""
        from mlx_lm.utils import _encode_tagged_floats

        config = dict(self._config[variant])
        config.pop("_name_or_path", None)
        if not self._keep_vision:
            config.pop("vision_config", None)
        if "quantization" in config:
            config["quantization_config"] = config["quantization"]
        return json.dumps(_encode_tagged_floats(dict(sorted(config.items()))), indent=4).encode()

    def check(self, variant: str, block: str, tensors: Sequence[TensorSpec], base: str) -> None:
        """Raises LayoutChanged if the block does not hold what the plan says."""
        found = {name: tuple(a.shape) for name, a in self._blocks[variant].get(block, {}).items()}
        wanted = {tensor.name: tensor.shape for tensor in tensors}
        if found != wanted:
            odd = sorted(set(found.items()) ^ set(wanted.items()))[0][0]
            raise LayoutChanged(target=variant, base=base, what=f'block "{block}", tensor "{odd}"')

    def take(self, block: str, variants: Collection[str], target: str) -> dict[str, dict[str, mx.array]]:
        """The evaluated tensors of one block for each of `variants`; the stream forgets the block.

        Raises NotFinite.
        """
        taken = {variant: self._blocks[variant][block] for variant in variants}
        self.skip(block)
        mx.eval(list(taken.values()))
        for tensors in taken.values():
            check_finite(tensors, target)
        return taken

    def skip(self, block: str) -> None:
        """Let a block go without reading it."""
        for blocks in self._blocks.values():
            blocks.pop(block, None)


def check_finite(tensors: Mapping[str, mx.array], target: str) -> None:
    """Raises NotFinite naming the first floating tensor that holds NaN or infinity."""
    floating = {n: a for n, a in sorted(tensors.items()) if mx.issubdtype(a.dtype, mx.floating)}
    flags = [mx.isfinite(array).all() for array in floating.values()]
    mx.eval(flags)
    for name, flag in zip(floating, flags, strict=True):
        if not flag.item():
            raise NotFinite(target=target, tensor=name)


def clone(model: nn.Module) -> nn.Module:
    """A structural copy of a module tree that shares every array."""
    shared = {id(array): array for _, array in tree_flatten(model) if isinstance(array, mx.array)}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, mx.array):
                shared[id(value)] = value
    return copy.deepcopy(model, shared)


def by_block(model: nn.Module) -> dict[str, dict[str, mx.array]]:
    blocks: dict[str, dict[str, mx.array]] = {}
    for name, array in tree_flatten(model.parameters()):
        blocks.setdefault(block_of(name), {})[name] = array
    return blocks


def _variant(model: nn.Module, config: dict[str, Any], request: Request) -> tuple[nn.Module, dict[str, Any]]:
    """The model as this variant stores it, through mlx_lm.utils.quantize_model, and its config."""
    variant = request.variant
    if not variant.is_quantized:
        return model, copy.deepcopy(config)
    from mlx_lm.utils import quantize_model

    default = variant.quantization
    seen: dict[str, Quantization] = {}
    predicate = _predicate(model, variant, seen)
    group = default.group_size if default else variant.group_size
    with contextlib.redirect_stdout(io.StringIO()):  # it prints bits per weight
        made, made_config = quantize_model(
            clone(model),
            config,
            group,
            default.bits if default else None,
            mode=default.mode if default else "affine",
            quant_predicate=predicate,
        )
    if default is None:  # a recipe: mlx_lm.convert leaves bits at the mode's default
        made_config["quantization"]["group_size"] = group
    if seen != request.quantization:
        odd = sorted(set(seen.items()) ^ set(request.quantization.items()), key=str)[0][0]
        raise LayoutChanged(target=variant.name, base="NAME", what=f'quantization of "{odd}"')
    return made, made_config


def _predicate(
    model: nn.Module, variant: Variant, seen: dict[str, Quantization]
) -> Callable[[str, nn.Module], bool | dict[str, Any]]:
    """Overrides first, then the recipe or the model's own quant_predicate; notes each decision in `seen`."""
    from mlx_lm.convert import mixed_quant_predicate_builder

    inner: Any
    if variant.recipe:
        inner = mixed_quant_predicate_builder(variant.recipe, model, variant.group_size)
    else:
        inner = getattr(model, "quant_predicate", None) or (lambda path, module: True)

    def decide(path: str, module: nn.Module) -> bool | dict[str, Any]:
        override = next((o for o in variant.overrides if fnmatchcase(path, o.pattern)), None)
        if override is None:
            answer = inner(path, module)
        elif override.quantization is None:
            answer = False
        else:
            how = override.quantization
            answer = {"group_size": how.group_size, "bits": how.bits, "mode": how.mode}
        value = as_quantization(answer)
        if isinstance(value, Quantization):
            seen[path] = value
        elif value and variant.quantization is not None:
            seen[path] = variant.quantization
        return answer

    return decide


def with_dtype(config: dict[str, Any], dtype: str | None) -> dict[str, Any]:
    """config.json says the dtype that was asked for, under whichever key it uses.

    (mlx_lm.convert --dtype leaves the old one, and the next convert casts back.)
    """
    if dtype is None:
        return config
    for table in (config, config.get("text_config") or {}):
        for name in ("torch_dtype", "dtype"):
            if name in table:
                table[name] = dtype
    return config
