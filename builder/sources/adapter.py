"""Reads an adapter: which tensors it has, under mlx-lm's names, and the digest of each block's slice.

Its bytes are read by `slice_digests` and `check_finite` alone: a full fine-tune is as large as its base.

Two layouts. mlx-lm: adapter_config.json + adapters.safetensors, fine_tune_type lora, dora or full
(mlx_lm.tuner.utils.load_adapters). PEFT: adapter_config.json + adapter_model.safetensors (`peft` translates).
mlx is imported only by `load_tensors`.
"""

from __future__ import annotations

import json
import mmap
import reprlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from builder.errors import SourceInvalid, SourceMissing
from builder.keys import Key, make_key
from builder.sources import peft
from builder.sources.safetensors import SafetensorsFile, TensorInfo, digest_tensor, read_header
from builder.spec import Adapter

if TYPE_CHECKING:
    import mlx.core as mx

CONFIG = "adapter_config.json"
_MLX, _PEFT = "adapters.safetensors", "adapter_model.safetensors"
_PICKLES = ("adapter_model.bin", "adapters.npz", "adapter_model.pt", "adapters.pt")
_LORA_PARTS = ("lora_a", "lora_b", "m")
_FLOATING = ("F32", "F16", "BF16")
_MAX_CONFIG = 10_000_000
_PIECE = 1 << 24  # bytes of a tensor that are looked at at once


@dataclass(frozen=True)
class AdapterTensor:
    """One tensor under its mlx-lm name; `shape` and `transpose` say how it is used, not how it is stored.

    `source_names`: the stored tensor, or those of all experts, which are stacked in this order.
    """

    name: str
    path: str
    part: str
    source_names: tuple[str, ...]
    transpose: bool
    dtype: str
    shape: tuple[int, ...]

    @property
    def source_name(self) -> str:
        """The first, for messages."""
        return self.source_names[0]


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
    """adapter_config.json and the weights file. Raises SourceMissing, SourceInvalid (none, two, pickles)."""
    table = _table(adapter)
    if not adapter.path.is_dir():
        raise SourceMissing(table=table, path=adapter.path)
    config = adapter.path / CONFIG
    if not config.is_file():
        raise SourceMissing(table=table, path=config)
    found = [name for name in (_MLX, _PEFT) if (adapter.path / name).is_file()]
    if len(found) > 1:
        _refuse(adapter, adapter.path, f"holds both {_MLX} and {_PEFT}; remove one of them")
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
    """Whether an adapter is in PEFT's layout. Raises SourceMissing, SourceInvalid."""
    return adapter_files(adapter)[1].name == _PEFT


def read_adapter(adapter: Adapter) -> AdapterInfo:
    """Header and config of an adapter. Raises SourceMissing, SourceInvalid."""
    config_path, weights = adapter_files(adapter)
    config = _read_config(config_path, _table(adapter))
    file = read_header(weights, _table(adapter))
    if not file.tensors:
        _refuse(adapter, weights, "holds no tensors")
    info = _read_peft(adapter, config, file) if weights.name == _PEFT else _read_mlx(adapter, config, file)
    _check_tensors(adapter, info)
    return info


def slice_digests(info: AdapterInfo, block_of: Callable[[str], str]) -> dict[str, Key]:
    """block -> the identity of what this adapter changes in it: only a changed block gets a new one."""
    by_block: dict[str, list[object]] = {}
    where = {tensor.name: tensor for tensor in info.file.tensors}
    for tensor in sorted(info.tensors, key=lambda tensor: tensor.name):
        digests = [digest_tensor(info.file, where[name]) for name in tensor.source_names]
        by_block.setdefault(block_of(f"{tensor.path}.weight"), []).append(
            [
                tensor.name,
                tensor.dtype,
                tensor.shape,
                tensor.transpose,
                digests[0] if len(digests) == 1 else digests,
                info.scales.get(tensor.path),
            ]
        )
    kind = info.fine_tune_type
    return {block: make_key("adapter-slice/1", kind, entries) for block, entries in by_block.items()}


def load_tensors(info: AdapterInfo) -> dict[str, mx.array]:
    """All tensors under their mlx-lm names, lazy, transposed or stacked where the layout needs it."""
    import mlx.core as mx

    stored = mx.load(str(info.file.path))
    assert isinstance(stored, dict)
    found = {}
    for tensor in info.tensors:
        parts = [stored[name] for name in tensor.source_names]
        array = parts[0] if len(parts) == 1 else mx.stack(parts)
        found[tensor.name] = array.T if tensor.transpose else array
    return found


def check_finite(info: AdapterInfo, adapter: Adapter) -> None:
    """Raises SourceInvalid naming the first tensor that holds NaN or infinity, and for an adapter of zeros.

    Reads a piece at a time.
    """
    where = {tensor.name: tensor for tensor in info.file.tensors}
    changes = info.fine_tune_type == "full"
    for tensor in info.tensors:
        for finite, zero in (p for name in tensor.source_names for p in _pieces(info.file.path, where[name])):
            if not finite:
                _refuse(adapter, info.file.path, f'tensor "{tensor.name}" holds NaN or infinity')
            changes |= tensor.part not in _LORA_PARTS or (not zero and tensor.part != "lora_a")
    if not changes:
        raise SourceInvalid(
            table=_table(adapter),
            path=info.file.path,
            what="changes nothing: every lora_b is zero, as before training",
            hint="Was it saved before the first step? For the plain base, declare a model without adapter.",
        )


def _pieces(path: Path, tensor: TensorInfo) -> Iterator[tuple[bool, bool]]:
    """Per piece of a floating tensor: whether no exponent is all ones (IEEE 754's NaN and infinity), and
    whether all of it is zero."""
    import numpy as np

    kinds = {"F32": ("<u4", 0x7F800000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}
    kind, exponent = kinds[tensor.dtype]
    if tensor.start == tensor.end:
        return
    with path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        for start in range(tensor.start, tensor.end, _PIECE):
            bits = np.frombuffer(mapped[start : min(start + _PIECE, tensor.end)], kind)
            magnitude = bits & (2 ** (8 * bits.itemsize - 1) - 1)
            yield not bool((magnitude >= exponent).any()), not magnitude.any()


# -- mlx-lm ----------------------------------------------------------------------------------------------


def _read_mlx(adapter: Adapter, config: Mapping[str, Any], file: SafetensorsFile) -> AdapterInfo:
    kind = config.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora", "full"):
        what = f"fine_tune_type {reprlib.repr(kind)} is not one of lora, dora, full"
        _refuse(adapter, adapter.path / CONFIG, what)
    tensors = tuple(_as_stored(info) for info in file.tensors)
    scales: dict[str, float] = {}
    if kind != "full":
        scale = _mlx_scale(adapter, config)
        parts = {"lora_a", "lora_b"} | ({"m"} if kind == "dora" else set())
        for tensor in tensors:
            if tensor.part not in parts:
                what = f'tensor "{tensor.name}" is not part of a {kind} adapter ({", ".join(sorted(parts))})'
                _refuse(adapter, file.path, what)
            scales[tensor.path] = scale
        _check_pairs(adapter, file.path, kind, tensors)
        _check_ranks(adapter, file.path, tensors, lambda _: config["lora_parameters"].get("rank"))
    return AdapterInfo(adapter.name, "mlx-lm", kind, file, tensors, scales)


def _as_stored(info: TensorInfo) -> AdapterTensor:
    path, _, part = info.name.rpartition(".")
    return AdapterTensor(info.name, path, part, (info.name,), False, info.dtype, info.shape)


def _mlx_scale(adapter: Adapter, config: Mapping[str, Any]) -> float:
    parameters = config.get("lora_parameters")
    where = adapter.path / CONFIG
    if not isinstance(parameters, dict):
        _refuse(adapter, where, "has no lora_parameters")
    if "scale" not in parameters:
        hint = " (it has alpha: mlx-lm wants scale = alpha / rank)" if "alpha" in parameters else ""
        _refuse(adapter, where, f"lora_parameters has no scale{hint}")
    try:
        return peft.finite(parameters["scale"], "lora_parameters.scale")
    except peft.Unfit as error:
        _refuse(adapter, where, str(error))


# -- PEFT ------------------------------------------------------------------------------------------------


def _read_peft(adapter: Adapter, config: Mapping[str, Any], file: SafetensorsFile) -> AdapterInfo:
    where = adapter.path / CONFIG
    try:
        peft.check_config(config)
        where = file.path
        places = [(info, peft.place(info.name, len(info.shape), config)) for info in file.tensors]
        where = adapter.path / CONFIG
        paths = sorted({place.path for _, place in places if place.part in _LORA_PARTS})
        scales = {path: peft.scale(config, path) for path in paths}
    except peft.Unfit as error:
        _refuse(adapter, where, str(error))
    kind = "dora" if config.get("use_dora") else "lora"
    tensors = tuple(_from_peft(info, place) for info, place in places)
    _check_pairs(adapter, file.path, kind, tensors)
    _check_ranks(adapter, file.path, tensors, lambda path: peft.rank(config, path))
    _check_peft_paths(adapter, file.path, kind, tensors)
    return AdapterInfo(adapter.name, "peft", kind, file, tensors, scales)


def _from_peft(info: TensorInfo, place: peft.Place) -> AdapterTensor:
    name, shape = f"{place.path}.{place.part}", info.shape[::-1] if place.transpose else info.shape
    return AdapterTensor(name, place.path, place.part, (info.name,), place.transpose, info.dtype, shape)


def _check_peft_paths(adapter: Adapter, file: Path, kind: str, tensors: tuple[AdapterTensor, ...]) -> None:
    """Raises SourceInvalid for a path with a LoRA and a saved weight, and for DoRA on an embedding.

    PEFT measures DoRA's magnitude of an embedding per dimension, mlx-lm per token.
    """
    adapted = {tensor.path for tensor in tensors if tensor.part in _LORA_PARTS}
    for tensor in tensors:
        if tensor.part not in _LORA_PARTS and tensor.path in adapted:
            what = (
                f'holds a LoRA of "{tensor.path}" and also its whole {tensor.part} ("{tensor.source_name}")'
            )
            raise SourceInvalid(
                table=_table(adapter),
                path=file,
                what=what,
                hint="Save the adapter again with save_embedding_layers=False.",
            )
        if kind == "dora" and ".lora_embedding_" in tensor.source_name:
            _refuse(adapter, file, f'tensor "{tensor.source_name}" is DoRA on an embedding, not supported')


# -- both ------------------------------------------------------------------------------------------------


def _check_tensors(adapter: Adapter, info: AdapterInfo) -> None:
    """Raises SourceInvalid for a name that occurs twice after translation, or a type that is no float."""
    seen: set[str] = set()
    for tensor in info.tensors:
        if tensor.name in seen:
            what = f'tensor "{tensor.source_name}" names "{tensor.name}" a second time'
            _refuse(adapter, info.file.path, what)
        seen.add(tensor.name)
        if tensor.dtype not in _FLOATING:
            what = f'tensor "{tensor.source_name}" is {tensor.dtype}, not one of {", ".join(_FLOATING)}'
            _refuse(adapter, info.file.path, what)


def _check_pairs(adapter: Adapter, file: Path, kind: str, tensors: tuple[AdapterTensor, ...]) -> None:
    """Every path has its lora_a and lora_b, and its magnitude m exactly if it is DoRA."""
    by_path: dict[str, dict[str, AdapterTensor]] = {}
    for tensor in tensors:
        if tensor.part in _LORA_PARTS:
            by_path.setdefault(tensor.path, {})[tensor.part] = tensor
    needed = _LORA_PARTS if kind == "dora" else _LORA_PARTS[:2]
    for path, parts in sorted(by_path.items()):
        for part in needed:
            if part not in parts:
                first = next(iter(parts.values())).name
                _refuse(adapter, file, f'tensor "{first}" has no {path}.{part} beside it')
        if "m" in parts and kind != "dora":
            _refuse(adapter, file, f'tensor "{path}.m" is a DoRA magnitude, but the adapter says it is LoRA')


def _check_ranks(
    adapter: Adapter, file: Path, tensors: tuple[AdapterTensor, ...], declared: Callable[[str], object]
) -> None:
    """lora_a is (in, r) and lora_b (r, out), or (experts, r, in) and (experts, out, r), of the declared r."""
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    for path in sorted({tensor.path for tensor in tensors if tensor.part == "lora_a"}):
        a, b = shapes[f"{path}.lora_a"], shapes[f"{path}.lora_b"]
        if len(a) != len(b) or len(a) not in (2, 3) or a[:-2] != b[:-2]:
            _refuse(adapter, file, f'tensors of "{path}" have shapes {a} and {b}, which do not fit together')
        ranks = (a[1], b[0]) if len(a) == 2 else (a[1], b[2])
        if ranks[0] != ranks[1]:
            _refuse(adapter, file, f'tensors of "{path}" have ranks {ranks[0]} and {ranks[1]}')
        if (rank := declared(path)) is not None and rank != ranks[0]:
            what = f'tensors of "{path}" have rank {ranks[0]}, but {CONFIG} says {reprlib.repr(rank)}'
            _refuse(adapter, file, what)


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


def _table(adapter: Adapter) -> str:
    return f"adapter.{adapter.name}"


def _refuse(adapter: Adapter, path: Path, what: str) -> NoReturn:
    raise SourceInvalid(table=_table(adapter), path=path, what=what)
