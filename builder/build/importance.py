"""The importance matrix of a model: what the weights of its layers are given while a text runs through it.

It is made from base and adapter, with one layer in memory, and kept in the store under its key as a GGUF that
llama.cpp's programs read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from builder.build.calibrated import open_sequences
from builder.build.one_pass import open_adapter, open_base
from builder.build.shelves import shelf
from builder.build.waiting import waiting
from builder.console.events import Emit, Learning, Note
from builder.errors import SourceMissing
from builder.gguf import imatrix
from builder.keys import Digest, Key, named_key
from builder.plan.parts import measured_base, measured_text
from builder.plan.types import TargetPlan
from builder.project import hashing
from builder.project.peaks import walking_memory
from builder.project.project import Project
from builder.project.roots import keys_of
from builder.project.toolchain import made_by
from builder.project.watch import unchanged
from builder.sources.calibration import read_as
from builder.sources.facts import Calibration
from builder.spec.quantizers import Calibrated
from builder.spec.types import Target
from builder.store import blobs, records, tmp
from builder.store.disk import durable
from builder.store.holdings import usable_record
from builder.store.locks import acquire, build_session
from builder.store.types import Blob, Record

if TYPE_CHECKING:
    import mlx.core as mx

    from builder.engine.rounding.importance import Squared

_VERSION = 1  # of how the sums are made. Another number makes them again


@dataclass(frozen=True)
class Importance:
    """An importance matrix. `blob` None: it is not made yet. `text` says what it is of."""

    key: Key
    blob: Blob | None
    text: str


def known_importance(project: Project, plan: TargetPlan, how: Calibrated, emit: Emit) -> Importance:
    """The importance matrix of an unquantized target for a text, if the store has it.

    Raises SourceMissing.
    """
    if not how.calibration.is_file():
        raise SourceMissing(table=f"model.{plan.target.model.name}", path=how.calibration)
    key = _key(plan, how, hashing.digest(project, how.calibration, emit))
    record = usable_record(project.store, key)
    return Importance(key, record.blob if record else None, _in_words(how))


def importance_of(
    project: Project, plan: TargetPlan, how: Calibrated, names: Mapping[str, str], emit: Emit
) -> Importance:
    """The same, made if the store has none. `names`: path of a module -> llama.cpp's name of its weight.

    Raises BuildError.
    """
    known = known_importance(project, plan, how, emit)
    if known.blob is not None:
        return known
    with (
        acquire(project.store, [known.key], waiting(plan.name, emit), "choice-"),
        build_session(project.store, list(keys_of(plan))),
    ):
        record = usable_record(project.store, known.key)
        if record is None:
            record = _made(project, plan, how, known, names, emit)
        return replace(known, blob=record.blob)


def _made(
    project: Project,
    plan: TargetPlan,
    how: Calibrated,
    known: Importance,
    names: Mapping[str, str],
    emit: Emit,
) -> Record:
    import mlx.core as mx

    emit(Note(f"{plan.name}: an importance matrix is made of {known.text}"))
    digest = hashing.digest(project, how.calibration, emit)
    variant = replace(plan.target.variant, calibrated=how)
    told = replace(plan, target=Target(plan.target.model, variant), calibration=digest)
    with unchanged(project, plan) as check:
        found = _run(project, told, mx.array([p.tokens for p in open_sequences(project, told)[0]]), emit)
        check()
    entries = [(names[path], each.sums, each.counts) for path, each in found.items() if path in names]
    with tmp.new_folder(project.store) as folder, durable.explained(folder):
        file = folder / "imatrix.gguf"
        imatrix.write(file, entries, how.calibration.name, how.samples, how.sequence_length)
        blob = blobs.ingest_file(project.store, file)
    unseen = _unseen(found, names)
    own: dict[str, str | int] = {**made_by(), "text": known.text, "unseen": unseen}
    record = Record(known.key, "imatrix", blob, own)
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


def _in_words(how: Calibrated) -> str:
    return f"{how.calibration.name}, at most {how.samples} x {how.sequence_length} tokens"


def _key(plan: TargetPlan, how: Calibrated, digest: Digest) -> Key:
    """Everything that the activations depend on, and how they are written."""
    base = plan.base
    return named_key(
        "imatrix/1",
        {
            "version": [_VERSION, imatrix.FORMAT],
            **measured_base(base, plan.adapter),
            "dtype": plan.dtype or base.structure.default_dtype,
            **measured_text(how, base, Calibration(digest, read_as(how.calibration))),
        },
    )
