"""The pass of a calibrated target: blocks are rounded one after the other for the inputs that a text causes.

Every block is an action with a key and a record, as in any pass: a killed run goes on at the first block that
has no record, and a block that another target has made is read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from builder.build.blocks import Tally, check_shard
from builder.build.one_pass import Built, build, copy_aux, finish, make_config
from builder.build.opening import open_adapter, open_base
from builder.build.sequences import open_sequences
from builder.build.shelves import shelf
from builder.build.waiting import waiting
from builder.console.events import Emit, Learning, Note
from builder.console.words import count, size_text
from builder.plan.remarks import remarked
from builder.plan.types import Action, TargetPlan
from builder.project import preflight
from builder.project.peaks import rounding_memory
from builder.project.project import Project
from builder.project.roots import keys_of, register
from builder.project.state import missing_actions
from builder.project.toolchain import made_by
from builder.project.watch import unchanged
from builder.store import blobs, records
from builder.store.disk import durable
from builder.store.holdings import usable_record
from builder.store.locks import acquire, build_session
from builder.store.types import Record
from builder.weights import shards
from builder.weights.structure import block_of

if TYPE_CHECKING:
    from builder.engine.rounding.factors import Floats
    from builder.engine.rounding.shard import Made

_HEADS: dict[tuple[object, ...], Floats | None] = {}  # of the base and the text that came last
_SPECIAL = ("plain", "unseen", "blind")  # counts in a record's provenance


def build_calibrated(project: Project, plan: TargetPlan, emit: Emit) -> Built:
    """Builds one calibrated target. Makes no block that is in the store. Raises BuildError."""
    started = time.perf_counter()
    missing = missing_actions(project.store, plan)
    preflight.check(project, plan, missing, [plan])
    tally = Tally()
    with build_session(project.store, list(keys_of(plan))):
        register(project)
        if usable_record(project.store, plan.config) is None:
            make_config(project, plan, emit)
        if missing:
            with acquire(project.store, [plan.key], waiting(plan.name, emit)):
                round_blocks(project, plan, tally, emit)
            _tell_special(project, plan, emit)
        copy_aux(project, plan)
        return finish(project, plan, tally, time.perf_counter() - started, emit)


def build_one(project: Project, plan: TargetPlan, emit: Emit) -> Built:
    """Builds a target that needs no other one, in its own pass. Raises BuildError."""
    if plan.target.variant.rounds_for_text:
        return build_calibrated(project, plan, emit)
    return build(project, [plan], emit)[0]


def round_blocks(project: Project, plan: TargetPlan, tally: Tally, emit: Emit) -> None:
    """Makes the blocks that have no record, one after the other. Raises BuildError."""
    import mlx.core as mx

    from builder.engine.blas import accelerated
    from builder.engine.recipe import Recipe
    from builder.engine.rounding.stream import Rounding

    todo = missing_actions(project.store, plan)
    if not todo:
        return
    for remark in remarked([plan]):
        emit(Note(remark))
    emit(Note(f"{plan.name}: {count(len(todo), 'block')} to round for {_text_name(plan)}"))
    with unchanged(project, plan) as check, accelerated(threads=1) as blas:
        tokens = mx.array([piece.tokens for piece in open_sequences(project, plan)[0]])
        tied, head = plan.base.structure.tied, None
        if tied in plan.quantization and block_of(f"{tied}.weight") in {action.block for action in todo}:
            head = _head(project, plan, tokens, blas, emit)
        dtype = getattr(mx, plan.dtype) if plan.dtype else None
        rounding = Rounding(
            open_base(project, plan)[0],
            open_adapter(project, plan),
            Recipe(dtype, plan.quantization),
            tokens,
            [action.block for action in plan.actions],
            plan.name,
            survival=project.spec.build.survival,
            tied=tied,
            head=head,
            shelf=shelf(project, rounding_memory(plan)),
        )
        write = _writer(project, plan, tally, check, blas, emit)
        with durable.explained(project.store.root):
            rounding.run(_reader(project, plan), write)
        if rounding.shelf.stored:
            emit(Note(f"{plan.name}: {size_text(rounding.shelf.stored)} of hidden states went over the disk"))


def _head(project: Project, plan: TargetPlan, tokens: Any, blas: str, emit: Emit) -> Floats | None:
    """The moments of what the head is given. They are the same for all targets of a base and a text."""
    from builder.engine.rounding.stream import head_moments

    base, pruned = plan.base, plan.base.pruned
    experts = tuple(pruned.digest(block) for block in pruned.kept) if pruned else ()
    known = base.weights, tuple(sorted(base.structure.repairs)), experts, str(tokens.tolist()), blas
    if known not in _HEADS:
        emit(Note(f"{plan.name}: the embedding is also the head, so the base runs once without rounding"))
        with durable.explained(project.store.root):
            kept = shelf(project, rounding_memory(plan))
            head = head_moments(open_base(project, plan)[0], tokens, base.structure.tied, kept)
        _HEADS.clear()
        _HEADS[known] = head
    return _HEADS[known]


def _reader(project: Project, plan: TargetPlan) -> Callable[[str], Path | None]:
    actions = {action.block: action for action in plan.actions}

    def done(block: str) -> Path | None:
        record = usable_record(project.store, actions[block].key)
        return blobs.checked(project.store, record.blob) if record else None

    return done


def _writer(
    project: Project, plan: TargetPlan, tally: Tally, check: Callable[[], None], blas: str, emit: Emit
) -> Callable[[str, Made], Path]:
    store = project.store
    actions: Mapping[str, Action] = {action.block: action for action in plan.actions}
    total, made_so_far = len(missing_actions(store, plan)), 0

    def write(block: str, made: Made) -> Path:
        nonlocal made_so_far
        action = actions[block]
        check_shard(made.shard, action)
        check()
        record = usable_record(store, action.key)  # another target's run may have made it meanwhile
        if record is None:
            blob = blobs.ingest(store, shards.encode(made.shard))
            own: dict[str, str | int] = {**made_by(), "block": block, "blas": blas}
            own |= {"survival": made.survival} if made.survival else {}
            own |= {name: value for name in _SPECIAL if (value := getattr(made, name))}
            record = Record(action.key, "block", blob, own)
            records.write(store, record)
            tally.made[action.key] = plan.name
        made_so_far += 1
        emit(Learning(plan.name, "blocks", made_so_far, total, None))
        return blobs.path(store, record.blob.digest)

    return write


def _tell_special(project: Project, plan: TargetPlan, emit: Emit) -> None:
    """What could not be rounded for its own inputs, by the rule of builder.engine.rounding.stream."""
    found = [usable_record(project.store, action.key) for action in plan.actions]
    plain, unseen, blind = (
        sum(int(str(record.provenance.get(name, 0))) for record in found if record) for name in _SPECIAL
    )
    if plain:
        emit(Note(f"{plan.name}: {count(plain, 'weight')} rounded to nearest, as mlx does"))
    if unseen:
        emit(Note(f"{plan.name}: {count(unseen, 'expert')} saw few tokens: rounded for all experts' inputs"))
    if blind:
        emit(
            Note(
                f"{plan.name}: {count(blind, 'weight')} rounded without inputs, because the text reaches none"
            )
        )


def _text_name(plan: TargetPlan) -> str:
    text = plan.target.variant.calibration
    assert text is not None
    return text.name
