"""Our engine beside mlx-lm's fuse and convert, on one checkpoint: every tensor, every byte, config.json."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import random
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import mlx.core as mx
import numpy as np

from builder.console.words import one_line
from builder.engine import stream as stream_module
from builder.engine.arrays import raw
from builder.engine.inspect import inspect
from builder.engine.kernels import agreement
from builder.engine.loading import LoadedAdapter, load_base
from builder.engine.merging import with_merges
from builder.engine.stream import Request, Stream
from builder.engine.tracing import Trace
from builder.errors import BuildError
from builder.plan.quantization import resolve
from builder.sources.adapters.places import placed, places_of
from builder.sources.adapters.reading import read_adapter
from builder.sources.adapters.tensors import load_merges, load_tensors
from builder.spec.types import Adapter, Quantization, Variant
from builder.weights import pieces
from builder.weights.pieces import Rows
from builder.weights.safetensors import read_header
from builder.weights.shards import RawTensor
from builder.weights.structure import Structure, TensorSpec, shard_tensors
from tests import reference
from tests.architectures import Architecture, checkpoint

Tensors = Mapping[str, RawTensor]


VARIANTS = (
    Variant("4bit", quantization=Quantization(4, 64)),
    Variant("mixed", recipe="mixed_4_6", group_size=32),
    Variant("f16", dtype="float16"),
)


def read_into_place(
    streamed: Stream, structure: Structure, base: Path, variants: Sequence[str] = ()
) -> set[str]:
    """Gives a stream all bytes that it takes, straight from the files, as a pass does.

    variants: weights that all of these quantize are given row by row, in any order. Returns their names.
    """
    given: set[str] = set()
    files = [read_header(path, "base") for path in sorted(base.glob("model*.safetensors"))]
    parameters = [parameter.tensor for parameter in structure.parameters]
    for block, room in pieces.rooms(streamed.sources, parameters, files).items():
        arrays = {name: np.empty(size, np.uint8) for name, size in room.sizes.items()}
        for piece in room.pieces:
            data = np.fromfile(piece.path, np.uint8, piece.end - piece.start, offset=piece.start)
            arrays[piece.parameter][piece.at : piece.at + len(data)] = data
        by_rows = streamed.by_rows(block, room.units, variants, "test") if variants else {}
        some = [
            Rows(block, name, at, arrays[name].data[at : at + 7 * row])
            for name, row in by_rows.items()
            for at in range(0, room.sizes[name], 7 * row)
        ]
        streamed.take_rows(random.Random(0).sample(some, len(some)))
        streamed.place(block, {name: array for name, array in arrays.items() if name not in by_rows})
        given |= by_rows.keys()
    return given


@dataclass(frozen=True)
class Made:
    """What became of one variant."""

    tensors: Tensors
    config: dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """One architecture. `variants`: those compared; `failures`: what mlx-lm itself cannot do, and its error.

    `differences` are ours: empty, or something is wrong. `changed_again`: equal to fuse and convert without
    the second `sanitize` between them, not to the two run one after the other.
    """

    architecture: Architecture
    tensors: int = 0
    adapted: int = 0
    variants: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()
    changed_again: bool = False


def compare(architecture: Architecture, folder: Path) -> Comparison:
    """Build, fuse a LoRA and make VARIANTS of one architecture, by us and by mlx-lm."""
    try:
        base = checkpoint(folder / "base", architecture)
    except (Exception, SystemExit) as error:
        refused(lambda: load_base(folder / "base"))
        return Comparison(architecture, failures=(f"load: {one_line(error)}",))
    gc.freeze()  # the stream collects garbage: it need not look at all of transformers each time
    structure = inspect(base)
    adapter = None if structure.quantized else lora(base, structure, folder / "adapter")
    source = fused(base, adapter, folder / "fused")
    theirs, failures = {}, []
    for variant in VARIANTS:
        if structure.quantized and variant.is_quantized:
            continue  # refused by the plan: it would keep the old bits
        try:
            theirs[variant.name] = converted(source, variant, folder / variant.name)
        except Exception as error:
            failures.append(f"{variant.name}: {one_line(error)}")
            refused(partial(stream, base, adapter, [variant]))
    made = [variant for variant in VARIANTS if variant.name in theirs]
    ours = stream(base, adapter, made, structure=structure)
    plain = stream(base, adapter, made[:1], structure=structure, compiled=False)
    found = differences(plain[made[0].name], ours[made[0].name])
    quantized = [variant for variant in made if variant.is_quantized]
    arrived = stream(base, adapter, quantized, structure=structure, by_rows=True) if quantized else {}
    found += [line for name in arrived for line in differences(arrived[name], ours[name])]
    again = {v.name: differences(ours[v.name], theirs[v.name]) for v in made}
    if any(again.values()):
        again = {
            v.name: differences(ours[v.name], fused_once(base, adapter, v, folder / v.name)) for v in made
        }
    else:
        theirs = {}
    found += [f"{name}: {line}" for name, lines in again.items() for line in lines]
    return Comparison(
        architecture,
        sum(len(variant.tensors) for variant in ours.values()),
        len(loaded(adapter).scales) if adapter else 0,
        tuple(v.name for v in made),
        tuple(failures),
        tuple(found),
        changed_again=bool(theirs),
    )


def refused(action: Callable[[], object]) -> None:
    """What mlx-lm cannot do ends in an error of ours with a message, not in a traceback."""
    try:
        action()
    except BuildError:
        return
    raise AssertionError("mlx-lm fails, and we do not")


def stream(
    base: Path,
    adapter: Path | LoadedAdapter | None,
    variants: Sequence[Variant],
    *,
    structure: Structure | None = None,
    dequantize: bool = False,
    compiled: bool = True,
    by_rows: bool = False,
) -> dict[str, Made]:
    """All variants by our engine, block by block; what the plan predicted of each block is checked.

    `compiled` False: without the CPU kernels, as on a GPU. by_rows: weights are computed as they come in.
    """
    if not compiled:
        with (
            mock.patch.object(agreement, "verify", lambda _: frozenset()),
            mock.patch.object(agreement, "fuse_agrees", lambda *_: False),
        ):
            return stream(base, adapter, variants, structure=structure, dequantize=dequantize)
    structure = structure or inspect(base, dequantize=dequantize)
    requests = [Request(v, v.dtype or structure.default_dtype, resolve(structure, v)[0]) for v in variants]
    trace = Trace()
    model, config = load_base(base, dequantize=dequantize, around=trace.around)
    change = loaded(adapter, structure, base) if isinstance(adapter, Path) else adapter
    with mock.patch.object(stream_module, "COMPILED_FROM", 0):  # the models here are too small to pay
        streamed = Stream(model, config, requests, change, trace=trace)
    del model, trace
    read_into_place(streamed, structure, base, [v.name for v in variants] if by_rows else ())
    tensors: dict[str, dict[str, RawTensor]] = {v.name: {} for v in variants}
    for block in structure.blocks:
        shards = streamed.take(block, [v.name for v in variants], "test")
        streamed.drop(block)
        for request in requests:
            shard = shards[request.name]
            assert specs(shard) == predicted(structure, block, request)
            tensors[request.name].update(shard)
    return {v.name: Made(tensors[v.name], json.loads(streamed.config(v.name))) for v in variants}


def loaded(folder: Path, structure: Structure | None = None, base: Path | None = None) -> LoadedAdapter:
    """`structure` and `base`: those of the base, where the adapter may have other names than mlx-lm."""
    declared = Adapter("a", "b", folder)
    info = read_adapter(declared)
    if structure is not None:
        info = placed(info, declared, places_of(structure))
    adapter = LoadedAdapter(info.name, info.fine_tune_type, load_tensors(info), info.scales)
    return with_merges(adapter, load_merges(info), base) if base else adapter


def specs(shard: Tensors) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, t.dtype, t.shape) for name, t in sorted(shard.items()))


def predicted(structure: Structure, block: str, request: Request) -> tuple[TensorSpec, ...]:
    return shard_tensors(structure.by_block[block], request.dtype, request.quantization)


def fused(base: Path, adapter: Path | None, out: Path) -> Path:
    """The base with the adapter in it, by mlx_lm.fuse."""
    with quiet():
        return reference.fuse(base, adapter, out) if adapter else base


def converted(source: Path, variant: Variant, out: Path) -> Made:
    """One variant of a directory, by mlx_lm.convert."""
    with quiet():
        reference.reference(source, None, out, **arguments(variant))
    made = read(out)
    shutil.rmtree(out)
    return made


def fused_once(base: Path, adapter: Path | None, variant: Variant, out: Path) -> Made:
    """One variant by the code of fuse and of convert, without writing the fused model and reading it again.

    That is what mlx-lm means where a model's `sanitize` changes a model that was sanitized before.
    """
    from mlx.utils import tree_unflatten
    from mlx_lm import utils

    with quiet():
        model, tokenizer, config = utils.load(
            str(base), adapter_path=adapter and str(adapter), return_config=True
        )
        layers = [(name, m.fuse()) for name, m in model.named_modules() if hasattr(m, "fuse")]
        model.update_modules(tree_unflatten(layers))
        with mock.patch.object(
            sys.modules["mlx_lm.convert"], "load", lambda *_, **__: (model, tokenizer, config)
        ):
            reference.reference(base, None, out, **arguments(variant))
    made = read(out)
    shutil.rmtree(out)
    return made


def arguments(variant: Variant) -> dict[str, Any]:
    """What mlx_lm.convert is called with for a variant without overrides."""
    how: dict[str, Any] = {"dtype": variant.dtype} if variant.dtype else {}
    if q := variant.quantization:
        how |= {"q_bits": q.bits, "q_group_size": q.group_size, "q_mode": q.mode}
    if variant.recipe:
        how |= {"quant_predicate": variant.recipe, "q_group_size": variant.group_size}
    return how


def read(folder: Path) -> Made:
    tensors = {name: raw(array) for name, array in reference.tensors(folder).items()}
    return Made(tensors, json.loads((folder / "config.json").read_text()))


def differences(ours: Made, theirs: Made) -> list[str]:
    """What differs, one line each; nothing when the variants are the same to the last bit."""
    found = [f"only ours: {name}" for name in sorted(ours.tensors.keys() - theirs.tensors.keys())]
    found += [f"only mlx-lm: {name}" for name in sorted(theirs.tensors.keys() - ours.tensors.keys())]
    for name in sorted(ours.tensors.keys() & theirs.tensors.keys()):
        mine, other = ours.tensors[name], theirs.tensors[name]
        if (mine.dtype, mine.shape) != (other.dtype, other.shape):
            found.append(f"{name}: {mine.dtype}{mine.shape}, mlx-lm {other.dtype}{other.shape}")
        elif mine.data != other.data:
            found.append(f"{name}: other bytes")
    if without_dtype(ours.config) != without_dtype(theirs.config):
        found.append(f"config.json: {ours.config} mlx-lm {theirs.config}")
    return found


def without_dtype(config: dict[str, Any]) -> dict[str, Any]:
    """config.json without the dtype, which mlx_lm.convert leaves as it was."""
    kept = {name: value for name, value in config.items() if name not in ("dtype", "torch_dtype")}
    return {name: without_dtype(value) if name == "text_config" else value for name, value in kept.items()}


class NoTokenizer:
    """Stands for the tokenizer, which neither fuse nor convert changes."""

    def save_pretrained(self, folder: Path) -> None:
        pass


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """mlx_lm's functions without a tokenizer and without what they print; all weights on the CPU."""
    with (
        mock.patch("mlx_lm.utils.load_tokenizer", lambda *_, **__: NoTokenizer()),
        mock.patch("mlx_lm.utils.create_model_card", lambda *_: None),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        yield


def lora(base: Path, structure: Structure, folder: Path, *, rank: int = 4, every: int = 3) -> Path:
    """A LoRA on the paths of `base` that can carry one, except each `every`-th, in mlx-lm's layout."""
    model, _ = load_base(base)
    tensors: dict[str, mx.array] = {}
    modules = {path: module for path, module in model.named_modules() if path in structure.adaptable}
    paths = [path for number, path in enumerate(sorted(modules)) if number % every != 1]
    for number, path in enumerate(paths):
        for part, shape in lora_shapes(modules[path], rank).items():
            key = mx.random.key(2 * number + (part == "lora_b"))
            scale = 0.1 if part == "lora_a" else 0.02
            tensors[f"{path}.{part}"] = mx.random.normal(shape, scale=scale, key=key)
    folder.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(folder / "adapters.safetensors"), tensors)
    settings = {"rank": rank, "scale": 2.0, "dropout": 0.0, "keys": paths}
    config = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def lora_shapes(module: Any, rank: int) -> dict[str, tuple[int, ...]]:
    """lora_a and lora_b of one module, as mlx_lm.tuner.lora makes them; none for a `to_lora` of its own."""
    import mlx.nn as nn

    if hasattr(module, "to_lora"):
        return {}
    *experts, out, wide = module.weight.shape
    if experts:
        return {"lora_a": (*experts, rank, wide), "lora_b": (*experts, out, rank)}
    if isinstance(module, nn.Embedding):
        return {"lora_a": (out, rank), "lora_b": (rank, wide)}
    return {"lora_a": (wide, rank), "lora_b": (rank, out)}
