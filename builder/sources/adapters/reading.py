"""Reads which tensors an adapter has, under mlx-lm's names, from its config and its header.

There are two layouts. mlx-lm: adapter_config.json and adapters.safetensors, with fine_tune_type lora, dora or
full (mlx_lm.tuner.utils.load_adapters). PEFT: adapter_config.json and adapter_model.safetensors, which
`builder.sources.adapters.peft` translates.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from builder.errors import SourceInvalid, SourceMissing
from builder.sources.adapters import peft
from builder.sources.adapters.checks import check_dora, check_pairs, check_ranks, check_tensors
from builder.sources.adapters.mlx import per_module
from builder.sources.adapters.types import CONFIG, AdapterInfo, AdapterTensor, refuse, table_of
from builder.spec.types import Adapter
from builder.weights import lora
from builder.weights.safetensors import SafetensorsFile, TensorInfo, read_header

_MLX, _PEFT = "adapters.safetensors", "adapter_model.safetensors"
_PICKLES = ("adapter_model.bin", "adapters.npz", "adapter_model.pt", "adapters.pt")
_MAX_CONFIG = 10_000_000


def adapter_files(adapter: Adapter) -> tuple[Path, Path]:
    """The paths of adapter_config.json and of the weights file.

    Raises SourceMissing, and SourceInvalid for no weights file, for two of them, and for pickles.
    """
    table = table_of(adapter)
    if not adapter.path.is_dir():
        raise SourceMissing(table=table, path=adapter.path)
    config = adapter.path / CONFIG
    if not config.is_file():
        raise SourceMissing(table=table, path=config)
    found = [name for name in (_MLX, _PEFT) if (adapter.path / name).is_file()]
    if len(found) > 1:
        refuse(adapter, adapter.path, f"holds both {_MLX} and {_PEFT}; remove one of them")
    if found:
        return config, adapter.path / found[0]
    if pickle := next((name for name in _PICKLES if (adapter.path / name).exists()), None):
        raise SourceInvalid(
            table=table,
            path=adapter.path,
            what=f"holds {pickle} but no safetensors file",
            hint="Pickles run code when loaded: save the adapter as safetensors.",
        )
    raise SourceInvalid(table=table, path=adapter.path, what=f"holds neither {_MLX} nor {_PEFT}")


def is_peft(adapter: Adapter) -> bool:
    """Whether an adapter has the layout of PEFT. Raises SourceMissing, SourceInvalid."""
    return adapter_files(adapter)[1].name == _PEFT


def read_adapter(adapter: Adapter) -> AdapterInfo:
    """The tensors and scales of an adapter, checked. Raises SourceMissing, SourceInvalid."""
    config_path, weights = adapter_files(adapter)
    config = _read_config(config_path, table_of(adapter))
    file = read_header(weights, table_of(adapter))
    if not file.tensors:
        refuse(adapter, weights, "holds no tensors")
    info = _read_peft(adapter, config, file) if weights.name == _PEFT else _read_mlx(adapter, config, file)
    check_tensors(adapter, info)
    return info


# -- mlx-lm ----------------------------------------------------------------------------------------------


def _read_mlx(adapter: Adapter, config: Mapping[str, Any], file: SafetensorsFile) -> AdapterInfo:
    kind = config.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora", "full"):
        what = f"fine_tune_type {reprlib.repr(kind)} is not one of lora, dora, full"
        refuse(adapter, adapter.path / CONFIG, what)
    tensors = tuple(_as_stored(info) for info in file.tensors)
    scales: dict[str, float] = {}
    if kind != "full":
        scale = _mlx_scale(adapter, config)
        parts = {"lora_a", "lora_b"} | ({"m"} if kind == "dora" else set())
        for tensor in tensors:
            if tensor.part not in parts:
                what = f'tensor "{tensor.name}" is not part of a {kind} adapter ({", ".join(sorted(parts))})'
                refuse(adapter, file.path, what)
            scales[tensor.path] = scale
        check_pairs(adapter, file.path, kind, tensors)
        ranks = per_module(adapter, config, "rank", scales) or {}
        rank = config["lora_parameters"].get("rank")
        check_ranks(adapter, file.path, tensors, lambda path: ranks.get(path, rank))
        scales |= per_module(adapter, config, "scale", scales) or {}
    return AdapterInfo(adapter.name, "mlx-lm", kind, file, tensors, scales, config)


def _as_stored(info: TensorInfo) -> AdapterTensor:
    path, _, part = info.name.rpartition(".")
    return AdapterTensor(info.name, path, part, (info.name,), False, info.dtype, info.shape)


def _mlx_scale(adapter: Adapter, config: Mapping[str, Any]) -> float:
    parameters = config.get("lora_parameters")
    where = adapter.path / CONFIG
    if not isinstance(parameters, dict):
        refuse(adapter, where, "has no lora_parameters")
    if "scale" not in parameters:
        hint = " (it has alpha: mlx-lm wants scale = alpha / rank)" if "alpha" in parameters else ""
        refuse(adapter, where, f"lora_parameters has no scale{hint}")
    try:
        return peft.finite(parameters["scale"], "lora_parameters.scale")
    except peft.Unfit as error:
        refuse(adapter, where, str(error))


# -- PEFT ------------------------------------------------------------------------------------------------


def _read_peft(adapter: Adapter, config: Mapping[str, Any], file: SafetensorsFile) -> AdapterInfo:
    where = adapter.path / CONFIG
    try:
        peft.check_config(config)
        where = file.path
        places = [(info, peft.place(info.name, len(info.shape), config)) for info in file.tensors]
        where = adapter.path / CONFIG
        peft.parameters(config, "")
        paths = sorted({place.path for _, place in places if place.part in lora.PARTS})
        scales = {path: peft.scale(config, path) for path in paths}
    except peft.Unfit as error:
        refuse(adapter, where, str(error))
    kind = "dora" if config.get("use_dora") else "lora"
    tensors = tuple(_from_peft(info, place) for info, place in places)
    check_pairs(adapter, file.path, kind, tensors)
    # The pairs of target_parameters hold the ranks of all experts. `placed` knows how many experts there are.
    check_ranks(
        adapter,
        file.path,
        tensors,
        lambda path: None if peft.parameters(config, peft.unwrapped(path)) else peft.rank(config, path),
    )
    if kind == "dora":
        check_dora(adapter, file.path, tensors)
    return AdapterInfo(adapter.name, "peft", kind, file, tensors, scales, config)


def _from_peft(info: TensorInfo, place: peft.Place) -> AdapterTensor:
    name, shape = f"{place.path}.{place.part}", info.shape[::-1] if place.transpose else info.shape
    return AdapterTensor(
        name,
        place.path,
        place.part,
        (info.name,),
        place.transpose,
        info.dtype,
        shape,
        embedding=place.embedding,
    )


def _read_config(path: Path, table: str) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > _MAX_CONFIG:
            raise ValueError("it is too large for a configuration")
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise SourceInvalid(table=table, path=path, what=f"is not JSON ({str(error)[:80]})") from error
    if not isinstance(config, dict):
        raise SourceInvalid(table=table, path=path, what="is not a JSON object")
    return config
