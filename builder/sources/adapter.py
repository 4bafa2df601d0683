"""Reads an adapter: which tensors it has, under mlx-lm's names, and the digest of each block's slice.

Two layouts. mlx-lm: adapter_config.json + adapters.safetensors, fine_tune_type lora, dora or full
(mlx_lm.tuner.utils.load_adapters). PEFT: adapter_config.json + adapter_model.safetensors, where lora_A is
(r, in) and lora_B (out, r), both transposed against mlx-lm, and the scale is alpha / r, or alpha / sqrt(r)
with use_rslora (peft.LoraConfig). mlx is imported only by `load_tensors`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from builder.errors import SourceInvalid, SourceMissing
from builder.keys import Digest, Key, make_key
from builder.sources.safetensors import SafetensorsFile, TensorInfo, digest_tensor, read_header
from builder.spec import Adapter

if TYPE_CHECKING:
    import mlx.core as mx

CONFIG = "adapter_config.json"
_MLX, _PEFT = "adapters.safetensors", "adapter_model.safetensors"
_PICKLES = ("adapter_model.bin", "adapters.npz", "adapter_model.pt", "adapters.pt")
# An embedding's lora_embedding_A is (r, tokens) and lora_embedding_B (dims, r).
_TRANSPOSED = {
    "lora_A": "lora_a",
    "lora_B": "lora_b",
    "lora_embedding_A": "lora_a",
    "lora_embedding_B": "lora_b",
}
_MAX_CONFIG = 10_000_000


@dataclass(frozen=True)
class AdapterTensor:
    """One tensor under its mlx-lm name; `shape` and `transpose` say how it is used, not how it is stored."""

    name: str
    path: str
    part: str
    source_name: str
    transpose: bool
    dtype: str
    shape: tuple[int, ...]
    digest: Digest


@dataclass(frozen=True)
class AdapterInfo:
    """A whole adapter. `scales`: the factor of each LoRA path (empty for a full fine-tune)."""

    name: str
    layout: Literal["mlx-lm", "peft"]
    fine_tune_type: str
    file: SafetensorsFile
    tensors: tuple[AdapterTensor, ...]
    scales: Mapping[str, float]


def adapter_files(adapter: Adapter) -> tuple[Path, Path]:
    """adapter_config.json and the weights file. Raises SourceMissing, SourceInvalid (pickles)."""
    table = _table(adapter)
    if not adapter.path.is_dir():
        raise SourceMissing(table=table, path=adapter.path)
    config = adapter.path / CONFIG
    if not config.is_file():
        raise SourceMissing(table=table, path=config)
    for name in (_MLX, _PEFT):
        if (adapter.path / name).is_file():
            return config, adapter.path / name
    if pickle := next((name for name in _PICKLES if (adapter.path / name).exists()), None):
        raise SourceInvalid(
            table=table,
            path=adapter.path,
            what=f"holds {pickle} but no safetensors file",
            hint="Pickles run code when loaded: save the adapter as safetensors.",
        )
    raise SourceInvalid(table=table, path=adapter.path, what=f"holds neither {_MLX} nor {_PEFT}")


def read_adapter(adapter: Adapter) -> AdapterInfo:
    """Header, config and digests of an adapter. Raises SourceMissing, SourceInvalid."""
    config_path, weights = adapter_files(adapter)
    config = _read_config(config_path, _table(adapter))
    file = read_header(weights, _table(adapter))
    if not file.tensors:
        _refuse(adapter, weights, "holds no tensors")
    if weights.name == _PEFT:
        return _read_peft(adapter, config, file)
    return _read_mlx(adapter, config, file)


def slice_digests(info: AdapterInfo, block_of: Callable[[str], str]) -> dict[str, Key]:
    """block -> the identity of what this adapter changes in it: only a changed block gets a new one."""
    by_block: dict[str, list[object]] = {}
    for tensor in sorted(info.tensors, key=lambda tensor: tensor.name):
        by_block.setdefault(block_of(f"{tensor.path}.weight"), []).append(
            [
                tensor.name,
                tensor.dtype,
                tensor.shape,
                tensor.transpose,
                tensor.digest,
                info.scales.get(tensor.path),
            ]
        )
    kind = info.fine_tune_type
    return {block: make_key("adapter-slice/1", kind, entries) for block, entries in by_block.items()}


def load_tensors(info: AdapterInfo) -> dict[str, mx.array]:
    """All tensors under their mlx-lm names, lazy, transposed where the layout needs it."""
    import mlx.core as mx

    stored = mx.load(str(info.file.path))
    assert isinstance(stored, dict)
    return {
        tensor.name: stored[tensor.source_name].T if tensor.transpose else stored[tensor.source_name]
        for tensor in info.tensors
    }


def check_finite(info: AdapterInfo, adapter: Adapter) -> None:
    """Raises SourceInvalid naming the first tensor that holds NaN or infinity."""
    import mlx.core as mx

    for name, array in load_tensors(info).items():
        if mx.issubdtype(array.dtype, mx.floating) and not mx.isfinite(array).all().item():
            _refuse(adapter, info.file.path, f'tensor "{name}" holds NaN or infinity')


# -- mlx-lm ----------------------------------------------------------------------------------------------


def _read_mlx(adapter: Adapter, config: Mapping[str, Any], file: SafetensorsFile) -> AdapterInfo:
    kind = config.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora", "full"):
        _refuse(adapter, adapter.path / CONFIG, f"fine_tune_type {kind!r} is none of lora, dora, full")
    tensors = tuple(_as_stored(info, digest_tensor(file, info)) for info in file.tensors)
    scales: dict[str, float] = {}
    if kind != "full":
        scale = _mlx_scale(adapter, config)
        parts = {"lora_a", "lora_b"} | ({"m"} if kind == "dora" else set())
        for tensor in tensors:
            if tensor.part not in parts:
                what = f'tensor "{tensor.name}" is no part of a {kind} adapter ({", ".join(sorted(parts))})'
                _refuse(adapter, file.path, what)
            scales[tensor.path] = scale
        _check_pairs(adapter, file.path, tensors)
    return AdapterInfo(adapter.name, "mlx-lm", kind, file, tensors, scales)


def _as_stored(info: TensorInfo, digest: Digest) -> AdapterTensor:
    path, _, part = info.name.rpartition(".")
    return AdapterTensor(info.name, path, part, info.name, False, info.dtype, info.shape, digest)


def _mlx_scale(adapter: Adapter, config: Mapping[str, Any]) -> float:
    parameters = config.get("lora_parameters")
    where = adapter.path / CONFIG
    if not isinstance(parameters, dict):
        _refuse(adapter, where, "has no lora_parameters")
    if "scale" not in parameters:
        hint = " (it has alpha: mlx-lm wants scale = alpha / rank)" if "alpha" in parameters else ""
        _refuse(adapter, where, f"lora_parameters has no scale{hint}")
    return _number(adapter, parameters["scale"], "lora_parameters.scale")


# -- PEFT ------------------------------------------------------------------------------------------------


def _read_peft(adapter: Adapter, config: Mapping[str, Any], file: SafetensorsFile) -> AdapterInfo:
    _check_peft(adapter, config)
    tensors = tuple(_from_peft(adapter, file, info) for info in file.tensors)
    scales = {
        tensor.path: _peft_scale(adapter, config, tensor.path)
        for tensor in tensors
        if tensor.part in ("lora_a", "lora_b", "m")
    }
    _check_pairs(adapter, file.path, tensors)
    kind = "dora" if config.get("use_dora") else "lora"
    return AdapterInfo(adapter.name, "peft", kind, file, tensors, scales)


def _check_peft(adapter: Adapter, config: Mapping[str, Any]) -> None:
    """Raises SourceInvalid for what a LoRA layer of mlx-lm cannot represent."""
    where = adapter.path / CONFIG
    if (kind := config.get("peft_type")) != "LORA":
        _refuse(adapter, where, f"peft_type {kind!r} is not LORA, the only kind that can be fused here")
    if config.get("fan_in_fan_out"):
        _refuse(adapter, where, "fan_in_fan_out = true is not supported (Conv1D weights)")
    if config.get("bias", "none") != "none":
        _refuse(adapter, where, f"bias = {config['bias']!r} is not supported, only none")
    for name in ("trainable_token_indices", "layer_replication", "megatron_config", "lora_bias"):
        if config.get(name):
            _refuse(adapter, where, f"{name} is not supported")


def _from_peft(adapter: Adapter, file: SafetensorsFile, info: TensorInfo) -> AdapterTensor:
    """PEFT's name and orientation to mlx-lm's."""
    path, _, part = info.name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
    digest = digest_tensor(file, info)
    if part in _TRANSPOSED and len(info.shape) == 2:
        name = _TRANSPOSED[part]
        return AdapterTensor(
            f"{path}.{name}", path, name, info.name, True, info.dtype, info.shape[::-1], digest
        )
    if part == "lora_magnitude_vector":
        return AdapterTensor(f"{path}.m", path, "m", info.name, False, info.dtype, info.shape, digest)
    if ".modules_to_save." not in info.name:
        _refuse(adapter, file.path, f'tensor "{info.name}" is of a kind that cannot be fused here')
    plain = info.name.removeprefix("base_model.model.")
    plain = plain.replace(".modules_to_save.default.", ".").replace(".modules_to_save.", ".")
    path, _, leaf = plain.rpartition(".")
    return AdapterTensor(plain, path, leaf, info.name, False, info.dtype, info.shape, digest)


def _peft_scale(adapter: Adapter, config: Mapping[str, Any], path: str) -> float:
    """alpha / r (or alpha / sqrt(r)) with the patterns of rank_pattern and alpha_pattern."""
    rank = _by_pattern(config.get("rank_pattern"), path, config.get("r"))
    alpha = _by_pattern(config.get("alpha_pattern"), path, config.get("lora_alpha"))
    number = _number(adapter, rank, "r")
    if number <= 0:
        _refuse(adapter, adapter.path / CONFIG, f"r = {rank!r} is not a rank")
    return _number(adapter, alpha, "lora_alpha") / (math.sqrt(number) if config.get("use_rslora") else number)


def _by_pattern(patterns: Any, path: str, default: Any) -> Any:
    """peft.utils.get_pattern_key: a pattern names the end of a path, at a dot."""
    for pattern, value in (patterns or {}).items() if isinstance(patterns, dict | None) else ():
        try:
            if re.match(rf"(.*\.)?({pattern})$", path):
                return value
        except re.error:
            continue
    return default


# -- both ------------------------------------------------------------------------------------------------


def _check_pairs(adapter: Adapter, file: Path, tensors: tuple[AdapterTensor, ...]) -> None:
    """Every lora_a has its lora_b, of the same rank; a DoRA magnitude has both."""
    by_path: dict[str, dict[str, AdapterTensor]] = {}
    for tensor in tensors:
        if tensor.part in ("lora_a", "lora_b", "m"):
            by_path.setdefault(tensor.path, {})[tensor.part] = tensor
    for path, parts in sorted(by_path.items()):
        for part in ("lora_a", "lora_b"):
            if part not in parts:
                first = next(iter(parts.values())).name
                _refuse(adapter, file, f'tensor "{first}" has no {path}.{part} beside it')
        a, b = parts["lora_a"].shape, parts["lora_b"].shape
        if len(a) == 2 and len(b) == 2 and a[1] != b[0]:
            _refuse(adapter, file, f'tensors of "{path}" have ranks {a[1]} and {b[0]}')


def _read_config(path: Path, table: str) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > _MAX_CONFIG:
            raise ValueError("it is larger than any configuration")
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise SourceInvalid(table=table, path=path, what=f"is not JSON ({str(error)[:80]})") from error
    if not isinstance(config, dict):
        raise SourceInvalid(table=table, path=path, what="is not a JSON object")
    return config


def _number(adapter: Adapter, value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        _refuse(adapter, adapter.path / CONFIG, f"{name} = {value!r} is not a finite number")
    return float(value)


def _table(adapter: Adapter) -> str:
    return f"adapter.{adapter.name}"


def _refuse(adapter: Adapter, path: Path, what: str) -> NoReturn:
    raise SourceInvalid(table=_table(adapter), path=path, what=what)
