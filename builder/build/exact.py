"""An exact GGUF: the blocks of a quantized target, repacked one by one. No weight is rounded again."""

from __future__ import annotations

import time

from builder.build.blocks import Tally, check_shard
from builder.build.conversion import Converter, converter, encoded, make_head
from builder.build.learned import SourceNotBuilt
from builder.build.ledger import Ledger
from builder.build.one_pass import Built, copy_aux, finish, make_config
from builder.build.stored import read_block
from builder.build.waiting import waiting
from builder.console.events import BlockDone, Emit, PassDone, PassStarted
from builder.plan.types import Action, TargetPlan
from builder.project import preflight
from builder.project.project import Project
from builder.project.roots import keys_of, register
from builder.project.state import missing_actions
from builder.project.toolchain import made_by
from builder.store import blobs
from builder.store.holdings import usable_record
from builder.store.locks import acquire, build_session
from builder.store.types import Record


def build_exact(project: Project, plan: TargetPlan, emit: Emit) -> Built:
    """Builds an exact GGUF. Makes no block that is in the store. Raises BuildError."""
    started = time.perf_counter()
    store, ledger, tally = project.store, Ledger(project.store), Tally()
    source = source_of(project, plan)
    missing = missing_actions(store, plan)
    preflight.check(project, plan, missing, [plan])
    on_wait = waiting(plan.name, emit)
    with build_session(store, [*keys_of(plan), *keys_of(source)]):
        register(project)
        if usable_record(store, plan.config) is None:
            make_config(project, source, emit)
        copy_aux(project, plan)
        made = converter(project, ledger, plan)
        make_head(store, ledger, plan, made, on_wait)
        if missing:
            name, size = plan.target.model.name, sum(action.size for action in missing)
            reused = len(plan.actions) - len(missing)
            emit(PassStarted(name, (plan.target.variant.name,), len(missing), reused, size))
            for action in missing:
                with acquire(store, [action.key], on_wait):
                    _repack(project, plan, source, action, made, tally, emit)
            emit(PassDone(name, time.perf_counter() - started))
        return finish(project, plan, tally, time.perf_counter() - started, emit)


def source_of(project: Project, plan: TargetPlan) -> TargetPlan:
    """The target whose blocks an exact GGUF holds."""
    assert plan.gguf is not None
    source = project.plan.targets[str(plan.gguf.of)]
    assert isinstance(source, TargetPlan)  # the GGUF is planned from it
    return source


def lacks_source(project: Project, plan: TargetPlan) -> bool:
    """Whether making an exact GGUF needs a block of its source that is not there."""
    source = {action.block: action.key for action in source_of(project, plan).actions}
    missing = missing_actions(project.store, plan)
    return any(usable_record(project.store, source[action.block]) is None for action in missing)


def _repack(
    project: Project,
    plan: TargetPlan,
    source: TargetPlan,
    action: Action,
    made: Converter,
    tally: Tally,
    emit: Emit,
) -> None:
    """Makes one block. Raises SourceNotBuilt, GgufRefused."""
    store = project.store
    if usable_record(store, action.key) is not None:  # another run made it meanwhile
        return
    key = next(each.key for each in source.actions if each.block == action.block)
    record = usable_record(store, key)
    if record is None:
        raise SourceNotBuilt(target=plan.name, source=source.name)
    shard = made.shard(action.block, read_block(store, record, f"model.{source.name}"))
    check_shard(shard, action)
    blob = blobs.ingest(store, encoded(action, shard))
    Ledger(store).write(Record(action.key, "block", blob, {"block": action.block, **made_by()}))
    tally.made[action.key] = plan.name
    emit(BlockDone(plan.target.model.name, action.block, 1, blob.size))
