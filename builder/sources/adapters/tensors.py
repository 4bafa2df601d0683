"""Reads the bytes of an adapter: for the digest of each block's slice, for arrays, and to look for NaN.

Nothing else reads them, because a full fine-tune is as large as its base. Only `load_tensors` imports mlx.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from builder.errors import SourceInvalid, unreadable
from builder.keys import Key, make_key
from builder.sources.adapters.types import WHOLE, AdapterInfo, AdapterTensor, refuse, table_of
from builder.spec.types import Adapter
from builder.weights import lora
from builder.weights.safetensors import TensorInfo, digest_tensor

if TYPE_CHECKING:
    import mlx.core as mx

_PIECE = 1 << 18  # bytes of a tensor that are looked at together, so that they stay in the CPU's cache


def slice_digests(info: AdapterInfo, block_of: Callable[[str], str]) -> dict[str, Key]:
    """Block -> the identity of what this adapter changes in the block. Raises OSError.

    A new adapter that changes one block gives a new identity to that block only.
    """
    by_block: dict[str, list[object]] = {}
    where = {tensor.name: tensor for tensor in info.file.tensors}
    for tensor in sorted(info.tensors, key=lambda tensor: tensor.name):
        digests = [digest_tensor(info.file, where[name]) for name in tensor.source_names]
        entry = [
            tensor.name,
            tensor.dtype,
            tensor.shape,
            tensor.transpose,
            digests[0] if len(digests) == 1 else digests,
            info.scales.get(tensor.path),
        ]
        if tensor.through or tensor.cut != WHOLE:
            cut = [tensor.cut.experts, tensor.cut.swapped, tensor.cut.rows]
            entry += [cut, tensor.through, tensor.embedding, tensor.flip]
        for block in sorted({block_of(name) for name in tensor.places}):
            by_block.setdefault(block, []).append(entry)
    kind = info.fine_tune_type
    return {block: make_key("adapter-slice/1", kind, entries) for block, entries in by_block.items()}


def load_tensors(info: AdapterInfo) -> dict[str, mx.array]:
    """The tensors that have a place in mlx-lm's model, under their names there.

    They are lazy, and transposed, cut or stacked where mlx-lm needs that.
    """
    stored = _load(info)
    return {tensor.name: _array(tensor, stored) for tensor in info.tensors if not tensor.through}


def load_merges(info: AdapterInfo) -> dict[str, lora.Merge]:
    """What the other tensors do to tensors of the checkpoint, by the names of those. Lazy."""
    by_tensor: dict[str, list[AdapterTensor]] = {}
    for tensor in info.tensors:
        if tensor.through:
            by_tensor.setdefault(tensor.through, []).append(tensor)
    stored = _load(info) if by_tensor else {}
    found = {}
    for name, tensors in by_tensor.items():
        arrays = {tensor.part: _array(tensor, stored) for tensor in tensors}
        parts = {part: array for part, array in arrays.items() if part in lora.PARTS}
        whole = next((array for part, array in arrays.items() if part not in lora.PARTS), None)
        first = next((tensor for tensor in tensors if tensor.part in lora.PARTS), tensors[0])
        found[name] = lora.Merge(
            first.path,
            whole,
            parts,
            info.scales.get(first.path, 1.0),
            first.embedding,
            first.flip,
            first.reaches,
        )
    return found


def _load(info: AdapterInfo) -> dict[str, mx.array]:
    import mlx.core as mx

    stored = mx.load(str(info.file.path))
    assert isinstance(stored, dict)
    return stored


def _array(tensor: AdapterTensor, stored: dict[str, mx.array]) -> mx.array:
    import mlx.core as mx

    parts = [stored[name] for name in tensor.source_names]
    array = parts[0] if len(parts) == 1 else mx.stack(parts)
    if tensor.cut.experts:
        return _of_experts(array, tensor)
    if tensor.cut.rows is not None and tensor.part == "lora_b":
        first, end, step = tensor.cut.rows
        array = array[first:end:step]
    return array.T if tensor.transpose else array


def _of_experts(array: mx.array, tensor: AdapterTensor) -> mx.array:
    """PEFT's pair of all experts, lora_A (r * experts, in) and lora_B (out, r * experts), as mlx-lm's.

    mlx-lm has (experts, r, in) and (experts, out, r). PEFT's ParamWrapper numbers the experts first in
    lora_A, and last in lora_B.
    """
    count = tensor.cut.experts
    if (tensor.part == "lora_a") != tensor.cut.swapped:  # stored as lora_A
        pair = array.reshape(count, -1, array.shape[-1])
    else:
        pair = array.reshape(array.shape[0], -1, count).transpose(2, 0, 1)
    if tensor.cut.swapped:
        pair = pair.swapaxes(-1, -2)
    if tensor.part == "lora_b" and tensor.cut.rows is not None:
        first, end, step = tensor.cut.rows
        pair = pair[:, first:end:step]
    return pair


def check_finite(info: AdapterInfo, adapter: Adapter) -> None:
    """Raises SourceInvalid for the first tensor that holds NaN or infinity, and for an adapter of zeros.

    Reads some bytes at a time.
    """
    where = {tensor.name: tensor for tensor in info.file.tensors}
    changes = info.fine_tune_type == "full"
    path = info.file.path
    try:
        for tensor in info.tensors:
            for finite, zero in (p for name in tensor.source_names for p in _pieces(path, where[name])):
                if not finite:
                    refuse(adapter, path, f'tensor "{tensor.name}" holds NaN or infinity')
                changes |= tensor.part not in lora.PARTS or (not zero and tensor.part != "lora_a")
    except OSError as error:
        raise unreadable(table_of(adapter), path, error) from error
    if not changes:
        raise SourceInvalid(
            table=table_of(adapter),
            path=info.file.path,
            what="changes nothing: every lora_b is zero, as before training",
            hint="Was it saved before the first step? For the plain base, declare a model without adapter.",
        )


def _pieces(path: Path, tensor: TensorInfo) -> Iterator[tuple[bool, bool]]:
    """For each piece of a floating tensor: whether all numbers are finite, and whether all are zero.

    A number is NaN or infinite if all bits of its exponent are ones (IEEE 754).
    """
    import numpy as np

    kinds = {"F32": ("<u4", 0x7F800000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}
    kind, exponent = kinds[tensor.dtype]
    piece = np.empty(_PIECE, np.uint8)
    with path.open("rb", buffering=0) as file:
        file.seek(tensor.start)
        for start in range(tensor.start, tensor.end, _PIECE):
            part = piece[: min(_PIECE, tensor.end - start)]
            if file.readinto(part.data) != len(part):
                raise OSError("it became shorter while it was read")
            bits = part.view(kind)
            largest = int((bits & (2 ** (8 * bits.itemsize - 1) - 1)).max())
            yield largest < exponent, largest == 0
