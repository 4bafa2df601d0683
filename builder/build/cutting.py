"""Blocks without some experts, cut out of blocks that lie in the store with all of them.

No base is read for that, and nothing is rounded again: the bytes of an expert are the same in both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from builder.build.blocks import Tally, check_shard
from builder.build.stored import read_block
from builder.build.waiting import waiting
from builder.console.events import Emit, Note
from builder.console.words import count
from builder.plan.types import Action, TargetPlan
from builder.project.project import Project
from builder.project.state import missing_actions
from builder.project.toolchain import made_by
from builder.store import blobs, records
from builder.store.holdings import usable_record
from builder.store.locks import acquire, build_session
from builder.store.types import Record
from builder.weights import shards


def cut_blocks(project: Project, targets: Sequence[TargetPlan], tally: Tally, emit: Emit) -> None:
    """Makes every missing block of the targets whose whole block is in the store. Raises BuildError."""
    for target in targets:
        if target.base.pruned is None:
            continue
        wanted = [action for action in missing_actions(project.store, target) if action.whole]
        with build_session(project.store, [action.whole for action in wanted if action.whole]):
            on_wait = waiting(target.name, emit)
            made = [action for action in wanted if _cut(project, target, action, on_wait)]
        tally.made.update({action.key: target.name for action in made})
        if made:
            emit(Note(f"{target.name}: {count(len(made), 'block')} cut out of blocks with all experts"))


def _cut(project: Project, target: TargetPlan, action: Action, on_wait: Callable[[], None]) -> bool:
    """False where the whole block is not there. Raises StoreError where its bytes are not its own."""
    from builder.engine.pruning import prune_shard

    store, pruned = project.store, target.base.pruned
    assert pruned is not None
    assert action.whole is not None
    whole = usable_record(store, action.whole)
    if whole is None:
        return False
    with acquire(store, [action.key], on_wait):
        if usable_record(store, action.key) is not None:
            return False
        shard = prune_shard(read_block(store, whole, f"model.{target.name}"), pruned)
        check_shard(shard, action)
        blob = blobs.ingest(store, shards.encode(shard))
        own = {name: value for name, value in whole.provenance.items() if name in ("block", "survival")}
        records.write(store, Record(action.key, "block", blob, {**own, **made_by()}))
    return True
