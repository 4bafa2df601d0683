"""The importance matrix of a model: what the weights of its layers are given while a text runs through it.

It is made from base and adapter, with one layer in memory, and kept in the store under its key as a GGUF that
llama.cpp's programs read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from builder.build.opening import open_adapter, open_base
from builder.build.sequences import open_sequences
from builder.build.shelves import shelf
from builder.build.waiting import waiting
from builder.console.events import Emit, Learning, Note
from builder.gguf import imatrix
from builder.gguf.architecture import tensors_of
from builder.keys import Key
from builder.plan.types import TargetPlan
from builder.project.peaks import walking_memory
from builder.project.project import Project
from builder.project.roots import keys_of
from builder.project.toolchain import made_by
from builder.project.watch import unchanged
from builder.spec.quantizers import Calibrated
from builder.store import blobs, records, tmp
from builder.store.disk import durable
from builder.store.holdings import usable_record
from builder.store.locks import acquire, build_session
from builder.store.types import Blob, Record

if TYPE_CHECKING:
    import mlx.core as mx

    from builder.engine.rounding.importance import Squared


def importance_of(project: Project, plan: TargetPlan, emit: Emit) -> Blob:
    """The importance matrix of a target, made if the store has none. Raises BuildError."""
    key = _key(plan)
    record = usable_record(project.store, key)
    if record is not None:
        return record.blob
    with (
        acquire(project.store, [key], waiting(plan.name, emit), "choice-"),
        build_session(project.store, list(keys_of(plan))),
    ):
        return (usable_record(project.store, key) or _made(project, plan, key, emit)).blob


def _made(project: Project, plan: TargetPlan, key: Key, emit: Emit) -> Record:
    import mlx.core as mx

    how = plan.target.variant.text
    assert how is not None
    emit(Note(f"{plan.name}: an importance matrix is made of {text_of(how)}"))
    names = _names(plan)
    with unchanged(project, plan) as check:
        found = _run(project, plan, mx.array([p.tokens for p in open_sequences(project, plan)[0]]), emit)
        check()
    entries = [(names[path], each.sums, each.counts) for path, each in found.items() if path in names]
    with tmp.new_folder(project.store) as folder, durable.explained(folder):
        file = folder / "imatrix.gguf"
        imatrix.write(file, entries, how.calibration.name, how.samples, how.sequence_length)
        blob = blobs.ingest_file(project.store, file)
    unseen = _unseen(found, names)
    own: dict[str, str | int] = {**made_by(), "text": text_of(how), "unseen": unseen}
    record = Record(key, "imatrix", blob, own)
    records.write(project.store, record)
    if unseen:
        emit(Note(f"{plan.name}: {unseen} experts saw none of the text: all their inputs count alike"))
    return record


def _run(project: Project, plan: TargetPlan, tokens: mx.array, emit: Emit) -> dict[str, Squared]:
    """`plan` has the text."""
    import mlx.core as mx

    from builder.engine.blas import accelerated
    from builder.engine.rounding.importance import importance

    def step(done: int, total: int) -> None:
        emit(Learning(plan.name, "layers of the importance matrix", done, total, None))

    dtype = getattr(mx, plan.dtype) if plan.dtype else None
    with accelerated(threads=1), durable.explained(project.store.root):
        return importance(
            open_base(project, plan)[0],
            open_adapter(project, plan),
            dtype,
            tokens,
            step,
            shelf(project, walking_memory(plan)),
        )


def _unseen(found: Mapping[str, Squared], names: Mapping[str, str]) -> int:
    """How many experts of all layers were given nothing. Three matrices make an expert."""
    paths = [path for path, name in names.items() if "ffn_down_exps" in name and path in found]
    return sum(int((found[path].counts == 0).sum()) for path in paths)


def _names(plan: TargetPlan) -> dict[str, str]:
    """Path of a module -> llama.cpp's name of its weight."""
    structure = plan.base.structure
    weights = [p.tensor.name for p in structure.parameters if len(p.tensor.shape) > 1]
    named = tensors_of(structure.model_type, weights)[1]
    return {tensor.source.removesuffix(".weight"): tensor.name for tensor in named}


def text_of(how: Calibrated) -> str:
    """What an importance matrix is of, in words."""
    return f"{how.calibration.name}, at most {how.samples} x {how.sequence_length} tokens"


def _key(plan: TargetPlan) -> Key:
    assert plan.gguf is not None
    assert plan.gguf.importance is not None
    return plan.gguf.importance
