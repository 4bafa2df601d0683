"""A target that is a GGUF: its first file, and what the tensors of a block become in the others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

from builder.build.ledger import Ledger
from builder.gguf import layout, splits
from builder.gguf.architecture import Architecture, GgufRefused, architecture
from builder.gguf.formats import Quantize, by_package, data
from builder.gguf.layout import Made
from builder.gguf.settings import Unwritable
from builder.gguf.vocabulary import vocabulary
from builder.gguf.weights import Held, Weights
from builder.gguf.writing import GgufMissing, Written, write_head
from builder.keys import make_key
from builder.plan.types import CONFIG, Action, GgufFile, TargetPlan
from builder.project.project import Project
from builder.project.toolchain import made_by
from builder.spec.quantizers import GgufKind
from builder.spec.types import Quantization
from builder.store import blobs, tmp
from builder.store.disk import durable
from builder.store.layout import Store
from builder.store.locks import acquire
from builder.store.types import Blob, Record
from builder.weights import shards
from builder.weights.shards import RawTensor
from builder.weights.structure import TensorSpec, block_of, shard_tensors


@dataclass(frozen=True)
class Converter:
    """How the blocks of one target become a GGUF. `made`: block -> its tensors. `quantize` makes K-quants."""

    target: str
    kind: GgufKind
    file: GgufFile
    architecture: Architecture
    made: Mapping[str, tuple[Made, ...]]
    quantize: Quantize = by_package

    def shard(self, block: str, shard: Mapping[str, RawTensor]) -> dict[str, RawTensor]:
        """The tensors of a block for llama.cpp. Raises GgufRefused for scales that a GGUF cannot hold."""
        held = Held(shard)
        try:
            return {
                tensor.name: RawTensor(
                    kind,
                    weight.shape,
                    b"".join(data(kind, tensor, weight, held, self.architecture, self.quantize)),
                )
                for tensor, weight, kind in self.made[block]
            }
        except Unwritable as error:
            raise GgufRefused(target=self.target, what=str(error)) from error

    @property
    def tensors(self) -> tuple[Made, ...]:
        return tuple(chain.from_iterable(self.made.values()))


def encoded(action: Action, shard: Mapping[str, RawTensor]) -> list[bytes | memoryview]:
    """The file of a block as chunks: a split of a GGUF, or a safetensors file."""
    if action.file.endswith(".gguf"):
        return splits.encode(shard, splits.number_of(action.file))
    return shards.encode(shard)


def converter(project: Project, ledger: Ledger, plan: TargetPlan) -> Converter:
    """How the blocks of a target that is a GGUF are converted. Its config.json is made already.

    Raises GgufRefused, GgufMissing.
    """
    if find_spec("gguf") is None:
        raise GgufMissing()
    kind, file = plan.target.variant.gguf, plan.gguf
    assert kind is not None
    assert file is not None
    config = ledger.record(plan.config)
    assert config is not None
    structure = plan.base.structure
    tensors, quantization = _source(project, plan)
    try:
        weighed = kind.weighed is not None
        made = layout.made_of(structure.model_type, kind.type, tensors, quantization, weighed=weighed)
        every = list(chain.from_iterable(made.values()))
        rows = next(w.shape[0] for tensor, w, _ in every if tensor.name == "token_embd.weight")
        said = json.loads(blobs.read(project.store, config.blob))
        found = architecture(said, [tensor.source for tensor, _, _ in every], rows)
    except Unwritable as error:
        raise GgufRefused(target=plan.name, what=str(error)) from error
    except (KeyError, TypeError, ValueError) as error:
        raise GgufRefused(target=plan.name, what=f"config.json lacks {error}") from error
    return Converter(plan.name, kind, file, found, made)


def _source(
    project: Project, plan: TargetPlan
) -> tuple[dict[str, Sequence[TensorSpec]], Mapping[str, Quantization]]:
    """The tensors of each block that is converted, and how they are quantized."""
    assert plan.gguf is not None
    if plan.gguf.of is None:
        by_block = plan.base.structure.by_block
        return {block: shard_tensors(each, plan.dtype, {}) for block, each in by_block.items()}, {}
    source = project.plan.targets[plan.gguf.of]
    assert isinstance(source, TargetPlan)  # the target is planned from it
    source = in_blocks(project, source)
    return {action.block: action.tensors for action in source.actions}, source.quantization


def in_blocks(project: Project, plan: TargetPlan) -> TargetPlan:
    """A target that was made whole, as if it was made by block: its view says what it holds.

    Raises GgufRefused, SourceError.
    """
    if plan.learned is None:
        return plan
    try:
        weights = Weights(project.store.models / plan.name, plan.name)
    except Unwritable as error:
        raise GgufRefused(target=plan.name, what=str(error)) from error
    by_block: dict[str, list[TensorSpec]] = {}
    for tensor in weights.stored:
        by_block.setdefault(block_of(tensor.name), []).append(tensor)
    actions = tuple(
        Action(make_key("whole/1", plan.learned, block), block, block, tuple(each), 0)
        for block, each in by_block.items()
    )
    return replace(
        plan, actions=actions, quantization=weights.quantization, learned=None, needs=None, start=None
    )


def make_head(
    store: Store, ledger: Ledger, plan: TargetPlan, made: Converter, on_wait: Callable[[], None]
) -> None:
    """The first file of a GGUF, if there is none: settings and vocabulary. The copied files are in the store.

    Raises GgufRefused.
    """
    with acquire(store, [made.file.head], on_wait):
        if ledger.record(made.file.head) is not None:
            return
        written = described(store, ledger, plan, made)
        with tmp.new_folder(store) as folder, durable.explained(folder):
            file = folder / made.file.file
            write_head(file, written, wanted=made.kind.type, files=splits.count_of(made.file.file))
            blob = blobs.ingest_file(store, file)
        ledger.write(Record(made.file.head, "gguf head", blob, made_by()))


def described(store: Store, ledger: Ledger, plan: TargetPlan, made: Converter) -> Written:
    """All that a GGUF says beside the bytes of tensors. The copied files are in the store.

    Raises GgufRefused.
    """
    config = ledger.record(plan.config)
    assert config is not None
    with settings_folder(store, plan, config.blob) as folder:
        try:
            tokens = vocabulary(folder, made.architecture.rows)
        except Unwritable as error:
            raise GgufRefused(target=plan.name, what=str(error)) from error
        except (KeyError, TypeError, ValueError) as error:
            raise GgufRefused(target=plan.name, what=f"its tokenizer lacks {error}") from error
    return Written(made.architecture, tokens, made.tensors)


@contextmanager
def settings_folder(store: Store, plan: TargetPlan, config: Blob) -> Iterator[Path]:
    """A folder with all files of a target but its weights: how text becomes tokens, and config.json."""
    with tmp.new_folder(store) as folder, durable.explained(folder):
        for name, blob in (*((e.name, e.blob) for e in plan.base.aux), (CONFIG, config)):
            place = folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(blobs.checked(store, blob), place)
        yield folder
