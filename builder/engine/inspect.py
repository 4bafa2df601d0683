"""Reads the structure of a base: what mlx-lm makes of its config and tensor names. No weight is evaluated."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from builder.console.words import one_line
from builder.engine.arrays import dtype_code
from builder.engine.conversion import changed_before
from builder.engine.loading import adaptable_paths, load, quantized_modules
from builder.engine.tracing import Trace, shortest
from builder.errors import BuildError
from builder.spec.quantizers import RECIPES
from builder.spec.types import DTYPES, Quantization
from builder.weights.structure import Origin, Parameter, Quantizable, Structure, TensorSpec

_EMBEDDINGS = (nn.Embedding, nn.QuantizedEmbedding)
_HEADS = ("lm_head.weight", "embed_out.weight", "output.weight", "head.weight")
_SPECIAL = re.compile(r"\.\d+|per_layer|wpe|position")  # no embedding of tokens, no output head
_ROWS = 4096  # of two tensors that are compared at once


class TiedHeadDiffers(BuildError):
    """{path}: config.json ties the output head to the embedding, but "{head}" differs from "{embedding}". mlx-lm would drop that head."""  # noqa: E501

    exit_code = 2
    hint = "transformers keeps such a head. Set `tie_word_embeddings` to false in config.json of the base."


def inspect(directory: Path, *, dequantize: bool = False, trust_remote_code: bool = False) -> Structure:
    """The structure of the model in `directory`. Raises what `load` raises, and TiedHeadDiffers."""
    trace = Trace()
    loaded = load(directory, dequantize=dequantize, trust_remote_code=trust_remote_code, around=trace.around)
    model, config = loaded.model, loaded.config
    origins = trace.origins()
    dropped = trace.dropped(origins)
    embedding = tied_embedding(model, origins)
    _check_head(directory, embedding, origins, dropped, trace)
    castable = getattr(model, "cast_predicate", lambda _: True)
    parameters = tuple(
        Parameter(TensorSpec(name, dtype_code(value), tuple(value.shape)), bool(castable(name)))
        for name, value in tree_flatten(model.parameters())
    )
    recipes, errors = _recipes(model)
    return Structure(
        model_type=str(config.get("model_type", "")),
        parameters=parameters,
        quantizable=tuple(_quantizable(model, recipes)),
        adaptable=adaptable_paths(model),
        default_dtype=default_dtype(config),
        quantized=bool(quantized_modules(model)),
        recipe_errors=errors,
        repairs=loaded.repairs,
        origins=origins,
        dropped=shortest(dropped, trace.given.keys() - dropped),
        tied=embedding,
        changed_before=changed_before(trace.given, trace.sanitize) - origins.keys(),
    )


def tied_embedding(model: nn.Module, origins: Mapping[str, Origin]) -> str:
    """The path of the embedding that is also the output head, or empty for a model with a head of its own."""
    embeddings = {p: m.weight.shape[0] for p, m in model.named_modules() if isinstance(m, _EMBEDDINGS)}
    if not embeddings:
        return ""
    path: str = max(embeddings, key=lambda p: (_SPECIAL.search(p) is None, embeddings[p]))
    weight = origins.get(f"{path}.weight", Origin((f"{path}.weight",)))
    for other, module in model.named_modules():
        wide = "weight" in module and module.weight.ndim == 2 and module.weight.shape[0] == embeddings[path]
        if wide and not _SPECIAL.search(other) and not isinstance(module, _EMBEDDINGS):
            head = origins.get(f"{other}.weight")
            return path if head is not None and head.sources == weight.sources else ""
    return path


def _check_head(
    directory: Path, tied: str, origins: Mapping[str, Origin], dropped: Iterable[str], trace: Trace
) -> None:
    """Raises TiedHeadDiffers for a head that mlx-lm drops and that is not the embedding."""
    heads = [name for name in dropped if name.endswith(_HEADS) and ".layers." not in name]
    if not tied or not heads:
        return
    weight = f"{tied}.weight"
    source = origins[weight].sources[0] if weight in origins else weight
    for head in heads:
        if not same_values(trace.given[head], trace.given.get(source)):
            raise TiedHeadDiffers(path=directory, head=head, embedding=source)


def same_values(one: mx.array, other: mx.array | None) -> bool:
    """Whether two tensors hold the same numbers, maybe in different types."""
    if other is None or one.shape != other.shape:
        return False
    rows = range(0, one.shape[0], _ROWS)
    return all(mx.array_equal(one[r : r + _ROWS], other[r : r + _ROWS]).item() for r in rows)


def default_dtype(config: Mapping[str, Any]) -> str | None:
    """The dtype that mlx_lm.convert casts to by default: `torch_dtype`, else `text_config.dtype`, or None."""
    dtype = config.get("torch_dtype") or (config.get("text_config") or {}).get("dtype")
    return dtype if dtype in DTYPES else None


def quantizable_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules that mlx.nn.quantize would offer to its predicate, by path, in the order of mlx."""
    leaves = tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module)
    return [(path, module) for path, module in leaves if hasattr(module, "to_quantized")]


Predicate = Callable[[str, nn.Module], "bool | dict[str, Any]"]


def _recipes(model: nn.Module) -> tuple[dict[str, Predicate], dict[str, str]]:
    from mlx_lm.convert import mixed_quant_predicate_builder

    predicates: dict[str, Predicate] = {}
    errors: dict[str, str] = {}
    for recipe in RECIPES:
        try:
            predicate = mixed_quant_predicate_builder(recipe, model, 64)
            for path, module in quantizable_modules(model):
                predicate(path, module)
            predicates[recipe] = predicate
        except Exception as error:  # mlx-lm raises many kinds of errors for models that do not fit
            errors[recipe] = one_line(error)
    return predicates, errors


def _quantizable(model: nn.Module, recipes: Mapping[str, Predicate]) -> list[Quantizable]:
    own = getattr(model, "quant_predicate", None)
    found = []
    for path, module in quantizable_modules(model):
        rule = own(path, module) if own is not None else True
        bits = {name: predicate(path, module)["bits"] for name, predicate in recipes.items()}  # type: ignore[index]
        found.append(Quantizable(path, as_quantization(rule), bits))
    return found


def as_quantization(rule: bool | Mapping[str, Any]) -> bool | Quantization:
    """The answer of a quantization predicate as a value. Missing fields get `to_quantized`'s defaults."""
    if not isinstance(rule, Mapping):
        return bool(rule)
    mode = rule.get("mode", "affine")
    bits = {"affine": 4, "mxfp4": 4, "nvfp4": 4, "mxfp8": 8}[mode]
    group = {"affine": 64, "mxfp4": 32, "nvfp4": 16, "mxfp8": 32}[mode]
    return Quantization(rule.get("bits") or bits, rule.get("group_size") or group, mode)
