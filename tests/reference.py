"""The reference: mlx_lm.fuse, then mlx_lm.convert, by mlx-lm's own functions; and the comparison with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_unflatten


def fuse(base: Path, adapter: Path, out: Path) -> Path:
    """What `mlx_lm.fuse --model base --adapter-path adapter --save-path out` does (fuse.main)."""
    from mlx_lm.utils import load, save

    model, tokenizer, config = load(str(base), adapter_path=str(adapter), return_config=True)
    fused = [(name, module.fuse()) for name, module in model.named_modules() if hasattr(module, "fuse")]
    model.update_modules(tree_unflatten(fused))
    save(out, str(base), model, tokenizer, config, donate_model=False)
    return out


def reference(base: Path, adapter: Path | None, out: Path, **convert_arguments: Any) -> Path:
    """fuse, then `mlx_lm.convert`, which takes q_bits, q_group_size, q_mode, quant_predicate and dtype."""
    from mlx_lm.convert import convert

    source = fuse(base, adapter, out.with_name(out.name + "-fused")) if adapter else base
    quantize = bool({"q_bits", "quant_predicate", "q_mode"} & set(convert_arguments))
    convert(str(source), str(out), quantize=quantize, **convert_arguments)
    return out


def tensors(folder: Path) -> dict[str, mx.array]:
    found: dict[str, mx.array] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        found.update(mx.load(str(file)))
    return found


def assert_same_model(ours: Path, theirs: Path) -> None:
    """Same names, dtypes, shapes and bits; same config.json but for the dtype that convert leaves stale."""
    mine, reference_tensors = tensors(ours), tensors(theirs)
    assert mine.keys() == reference_tensors.keys()
    for name, array in mine.items():
        other = reference_tensors[name]
        assert (array.dtype, array.shape) == (other.dtype, other.shape), name
        assert bytes(memoryview(array.view(mx.uint8))) == bytes(memoryview(other.view(mx.uint8))), name
    configs = [json.loads((folder / "config.json").read_text()) for folder in (ours, theirs)]
    for config in configs:
        config.pop("torch_dtype", None)
        config.pop("dtype", None)
    assert configs[0] == configs[1]
