"""What a base will look like, by the headers of its files: for a plan before the first run, in milliseconds.

Nothing is hashed, downloaded or loaded, so this is an estimate. mlx-lm may rename, join or drop tensors when
it loads a model. That changes sizes by little.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from builder.errors import BuildError
from builder.keys import Digest
from builder.plan.planning import make_plan
from builder.plan.types import Sources, TargetPlan
from builder.project.project import Project
from builder.sources import base as bases
from builder.sources import contents
from builder.sources.facts import AdapterFacts, BaseFacts, BaseIdentity, Calibration, Unknown
from builder.sources.gguf.header import read_gguf_header
from builder.sources.gguf.location import resolve_gguf
from builder.sources.gguf.names import hub_name
from builder.spec.quantizers import RECIPES
from builder.spec.types import Base, GgufSource
from builder.store.types import Blob, FileEntry
from builder.weights.safetensors import read_header
from builder.weights.structure import Parameter, Quantizable, Structure, TensorSpec

_NONE = Digest("0" * 64)
_LAYER = re.compile(r"\.(\d+)\.")
_DROPPED = re.compile(r"rotary_emb\.inv_freq$|rope_freqs\.weight$")


def estimated(project: Project, names: Iterable[str]) -> dict[str, TargetPlan]:
    """Plans of targets whose bases were not read yet. Their keys mean nothing, their sizes are close.

    A target of which headers tell nothing is left out: learned quantizers, and what is not downloaded.
    A calibration text changes no size.
    """
    spec = project.spec
    wanted = {name for name in names if spec.target(name).variant.learned is None}
    used = {spec.target(name).model.base for name in wanted}
    found = {name: facts for name in used if (facts := base_from_headers(project, spec.bases[name]))}
    known = {model.base: found.get(model.base, Unknown("")) for model in spec.models.values()}
    adapters = {name: _adapter(project, name) for name in spec.adapters}
    calibrations = {
        name: Calibration(_NONE, "") if variant.text else Unknown("")
        for name, variant in spec.variants.items()
    }
    plans = make_plan(spec, Sources(known, adapters, "", calibrations)).resolved()
    return {plan.name: plan for plan in plans if plan.name in wanted}


def base_from_headers(project: Project, base: Base) -> BaseFacts | None:
    """The facts of a base as its headers tell them. None where they cannot be read: the run says why."""
    with suppress(BuildError, OSError, ValueError, KeyError, TypeError, AttributeError):
        if isinstance(base.source, GgufSource):
            return _facts(_gguf(base, base.source), [])
        directory = bases.locate(base)
        if directory is None:
            return None
        files = bases.list_files(base, directory)
        config = json.loads((directory / contents.CONFIG).read_text(encoding="utf-8"))
        shards = [path for path in files.weights if path.suffix == ".safetensors"]
        tensors = [
            TensorSpec(tensor.name, tensor.dtype, tensor.shape)
            for path in shards
            for tensor in read_header(path, f"base.{base.name}").tensors
        ]
        copied = [FileEntry(path.name, Blob(_NONE, path.stat().st_size)) for path in files.copied]
        return _facts(_structure(tensors, config, base), copied)
    return None


def _facts(structure: Structure, copied: list[FileEntry]) -> BaseFacts:
    return BaseFacts(BaseIdentity(_NONE, _NONE, _NONE, _NONE, tuple(copied)), structure)


def _gguf(base: Base, source: GgufSource) -> Structure:
    """An import stores everything in float16."""
    file = read_gguf_header(
        resolve_gguf(source.package, source.path, f"base.{base.name}"), f"base.{base.name}"
    )
    tensors = [TensorSpec(hub_name(tensor.name), "F16", tensor.shape) for tensor in file.tensors.values()]
    return _structure(tensors, {"model_type": "llama"}, base)


def _structure(tensors: Iterable[TensorSpec], config: Mapping[str, Any], base: Base) -> Structure:
    by_name = {tensor.name: tensor for tensor in tensors if not _DROPPED.search(tensor.name)}
    if config.get("tie_word_embeddings"):
        by_name.pop("lm_head.weight", None)
    packed = [name.removesuffix(".scales") for name in by_name if name.endswith(".scales")]
    if packed and base.dequantize:
        by_name = _unpacked(by_name, config)
        packed = []
    matrices = [
        name.removesuffix(".weight")
        for name, tensor in by_name.items()
        if name.endswith(".weight") and len(tensor.shape) >= 2 and "norm" not in name.rsplit(".", 2)[-2]
    ]
    layers = 1 + max((int(m[1]) for name in by_name if (m := _LAYER.search(name))), default=0)
    return Structure(
        model_type=str(config.get("model_type", "")),
        parameters=tuple(Parameter(tensor) for tensor in by_name.values()),
        quantizable=tuple(Quantizable(path, True, _recipes(path, layers)) for path in matrices),
        adaptable=frozenset(matrices),
        default_dtype=config.get("torch_dtype") or config.get("dtype"),
        quantized=bool(packed),
        recipe_errors={},
    )


def _unpacked(tensors: Mapping[str, TensorSpec], config: Mapping[str, Any]) -> dict[str, TensorSpec]:
    """The tensors after `dequantize`: each matrix has as many columns as its words have bits for."""
    how = config.get("quantization") or config["quantization_config"]
    found = {}
    for name, tensor in tensors.items():
        path, _, leaf = name.rpartition(".")
        scales = tensors.get(f"{path}.scales")
        if scales is None:
            found[name] = tensor
        elif leaf == "weight":
            bits = how.get(path, how)["bits"] if isinstance(how.get(path, how), dict) else how["bits"]
            shape = (*tensor.shape[:-1], tensor.shape[-1] * 32 // bits)
            found[name] = TensorSpec(name, scales.dtype if scales.dtype != "U8" else "BF16", shape)
    return found


def _recipes(path: str, layers: int) -> dict[str, int]:
    """The bits that mlx-lm's mixed recipes give a path. The head and some v_proj and down_proj get more."""
    match = _LAYER.search(f".{path}.")
    layer = int(match[1]) if match else 0
    first = layers // 8
    is_chosen = layer < first or layer >= 7 * layers // 8 or (layer - first) % 3 == 2
    leaf = path.rsplit(".", 1)[-1]
    more = leaf in ("lm_head", "output") or (
        leaf in ("v_proj", "down_proj", "attn_v", "ffn_down") and is_chosen
    )
    return {recipe: int(recipe.split("_")[2 if more else 1]) for recipe in RECIPES}


def _adapter(project: Project, name: str) -> AdapterFacts | Unknown:
    """An adapter as it is known; one that is not read yet changes keys only, and no size."""
    with suppress(BuildError, OSError):
        facts = project.sources.adapter_facts(project.spec.adapters[name])
        if isinstance(facts, AdapterFacts):
            return facts
    return AdapterFacts(_NONE, {}, frozenset())
