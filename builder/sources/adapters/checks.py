"""Checks that the tensors of an adapter go together: pairs, ranks, dtypes and names. Reads only headers."""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from pathlib import Path

from builder.sources.adapters.types import CONFIG, AdapterInfo, AdapterTensor, refuse
from builder.spec.types import Adapter
from builder.weights import lora

_FLOATING = ("F32", "F16", "BF16")


def check_tensors(adapter: Adapter, info: AdapterInfo) -> None:
    """Raises SourceInvalid for a name that occurs twice after translation, and for an integer dtype."""
    seen: set[str] = set()
    for tensor in info.tensors:
        if tensor.name in seen:
            what = f'tensor "{tensor.source_name}" names "{tensor.name}" a second time'
            refuse(adapter, info.file.path, what)
        seen.add(tensor.name)
        if tensor.dtype not in _FLOATING:
            what = f'tensor "{tensor.source_name}" is {tensor.dtype}, not one of {", ".join(_FLOATING)}'
            refuse(adapter, info.file.path, what)


def check_pairs(adapter: Adapter, file: Path, kind: str, tensors: tuple[AdapterTensor, ...]) -> None:
    """Raises SourceInvalid unless each path has lora_a and lora_b, and m (magnitude) for DoRA only."""
    by_path: dict[str, dict[str, AdapterTensor]] = {}
    for tensor in tensors:
        if tensor.part in lora.PARTS:
            by_path.setdefault(tensor.path, {})[tensor.part] = tensor
    needed = lora.PARTS if kind == "dora" else lora.PAIR
    for path, parts in sorted(by_path.items()):
        for part in needed:
            if part not in parts:
                first = next(iter(parts.values())).name
                refuse(adapter, file, f'tensor "{first}" has no {path}.{part} beside it')
        if "m" in parts and kind != "dora":
            refuse(adapter, file, f'tensor "{path}.m" is a DoRA magnitude, but the adapter says it is LoRA')


def check_ranks(
    adapter: Adapter, file: Path, tensors: tuple[AdapterTensor, ...], declared: Callable[[str], object]
) -> None:
    """Raises SourceInvalid unless the shapes of each pair agree, and agree with the rank that is declared.

    A pair is lora_a (in, r) and lora_b (r, out), or (experts, r, in) and (experts, out, r). `declared` gives
    the rank of a path, or None where the config names none.
    """
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    for path in sorted({tensor.path for tensor in tensors if tensor.part == "lora_a"}):
        a, b = shapes[f"{path}.lora_a"], shapes[f"{path}.lora_b"]
        if len(a) != len(b) or len(a) not in (2, 3) or a[:-2] != b[:-2]:
            refuse(adapter, file, f'tensors of "{path}" have shapes {a} and {b}, which do not fit together')
        ranks = (a[1], b[0]) if len(a) == 2 else (a[1], b[2])
        if ranks[0] != ranks[1]:
            refuse(adapter, file, f'tensors of "{path}" have ranks {ranks[0]} and {ranks[1]}')
        if (rank := declared(path)) is not None and rank != ranks[0]:
            what = f'tensors of "{path}" have rank {ranks[0]}, but {CONFIG} says {reprlib.repr(rank)}'
            refuse(adapter, file, what)


def check_dora(adapter: Adapter, file: Path, tensors: tuple[AdapterTensor, ...]) -> None:
    """Raises SourceInvalid for DoRA of PEFT on an embedding.

    Its magnitudes differ: PEFT has one per dimension, mlx-lm has one per token.
    """
    for tensor in tensors:
        if tensor.embedding:
            refuse(adapter, file, f'tensor "{tensor.source_name}" is DoRA on an embedding, not supported')
