"""Blocks without some experts, cut out of blocks that lie in the store with all of them.

No base is read for that, and nothing is rounded again: the bytes of an expert are the same in both.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from builder.build.blocks import Tally, check_shard
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
from builder.weights.safetensors import read_header

if TYPE_CHECKING:
    from builder.weights.shards import RawTensor


def cut_blocks(project: Project, targets: Sequence[TargetPlan], tally: Tally, emit: Emit) -> None:
    """Makes every missing block of the targets whose whole block is in the store. Raises BuildError."""
    for target in targets:
        if target.base.pruned is None:
            continue
        wanted = [action for action in missing_actions(project.store, target) if action.whole]
        with build_session(project.store, [action.whole for action in wanted if action.whole]):
            made = [action for action in wanted if _cut(project, target, action)]
        tally.made.update({action.key: target.name for action in made})
        if made:
            emit(Note(f"{target.name}: {count(len(made), 'block')} cut out of blocks with all experts"))


def _cut(project: Project, target: TargetPlan, action: Action) -> bool:
    """False where the whole block is not there."""
    from builder.engine.pruning import prune_shard

    store, pruned = project.store, target.base.pruned
    assert pruned is not None
    assert action.whole is not None
    whole = usable_record(store, action.whole)
    if whole is None:
        return False
    path = blobs.path(store, whole.blob.digest)
    with (
        acquire(store, [action.key]),
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
    ):
        if usable_record(store, action.key) is not None:
            return False
        view = memoryview(mapped)
        tensors = {
            each.name: shards.RawTensor(each.dtype, each.shape, view[each.start : each.end])
            for each in read_header(path, f"model.{target.name}").tensors
        }
        shard: dict[str, RawTensor] = prune_shard(tensors, pruned)
        check_shard(shard, action)
        blob = blobs.ingest(store, shards.encode(shard))
        for tensor in (*shard.values(), *tensors.values()):
            if isinstance(tensor.data, memoryview):
                tensor.data.release()
        view.release()
        own = {name: value for name, value in whole.provenance.items() if name in ("block", "survival")}
        records.write(store, Record(action.key, "block", blob, {**own, **made_by()}))
    return True
