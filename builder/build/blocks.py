"""The blocks of one pass: computed on this thread, hashed and written by others, one block ahead of the disk.

mlx's streams are bound to one thread, and locks belong to the thread that took them. So a worker takes the
locks of a block, looks again at what is missing, asks this thread to compute that, and then writes it.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import zip_longest
from threading import Lock
from typing import TYPE_CHECKING

from builder.build.conversion import Converter, encoded
from builder.build.feed import Feed
from builder.build.ledger import Ledger
from builder.console.events import BlockDone, Emit
from builder.keys import Key
from builder.plan.types import Action, TargetPlan
from builder.project import peaks
from builder.project.toolchain import made_by
from builder.store import blobs
from builder.store.locks import acquire
from builder.store.types import Record
from builder.weights import shards
from builder.weights.pieces import Room
from builder.weights.structure import TensorSpec

if TYPE_CHECKING:
    from builder.engine.stream import Stream

WRITERS = 5  # shards that are hashed and written at a time: while some wait for the disk, others are hashed


@dataclass
class Tally:
    """Which keys this pass made, and for which target: a shared block counts once. The seconds it took.

    `waits`: held once the run has said that it waits for another one.
    """

    made: dict[Key, str] = field(default_factory=dict)
    seconds: float = 0.0
    waits: Lock = field(default_factory=Lock)


@dataclass(frozen=True)
class _Block:
    """One block between two threads: a worker holds its locks and writes it, this thread computes it.

    `wanted`: the actions that nobody has made in the meantime, set by the worker once it holds the locks.
    `made`: their tensors, set by the thread that owns mlx (its streams are bound to one thread).
    """

    name: str
    wanted: Future[Wanted] = field(default_factory=Future)
    made: Future[dict[Key, _Made]] = field(default_factory=Future)


@dataclass(frozen=True)
class _Made:
    """The tensors of one action as bytes, and what was measured of them (a line of text, may be empty)."""

    shard: Mapping[str, shards.RawTensor]
    survival: str


Wanted = Mapping[Key, tuple[TargetPlan, Action]]  # what to make of one block


def by_block(targets: Sequence[TargetPlan], todo: Mapping[str, Sequence[Action]]) -> dict[str, Wanted]:
    """Block -> what to make of it, for which target. todo: the actions of each target, by its name."""
    found: dict[str, dict[Key, tuple[TargetPlan, Action]]] = {}
    for target in targets:
        for action in todo[target.name]:
            found.setdefault(action.block, {}).setdefault(action.key, (target, action))
    return dict(found)


def by_rows(
    stream: Stream,
    converters: Mapping[str, Converter],
    todo: Mapping[str, Wanted],
    rooms: Mapping[str, Room],
    blocks: Container[str],
) -> dict[str, int]:
    """The parameters of `blocks` that are computed row by row, as they are read, and the bytes of a row."""
    found: dict[str, int] = {}
    for name, wanted in todo.items():
        if name in blocks and name in rooms:
            variants, model, places = _takes(converters, wanted)
            found |= stream.by_rows(name, rooms[name].units, variants, model, places)
    return found


def make_blocks(
    ledger: Ledger,
    todo: Mapping[str, Wanted],
    stream: Stream,
    converters: Mapping[str, Converter],
    feed: Feed,
    whole: Container[str],
    alone: Container[str],
    order: Sequence[str],
    ahead: Container[str],
    check: Callable[[], None],
    tally: Tally,
    on_wait: Callable[[], None],
    emit: Emit,
) -> None:
    """Walk the blocks once, in `order`. One block is written (WRITERS shards at a time) while the next is
    computed and, where `ahead` names that one, the one after it is read. `converters`: of targets that are a
    GGUF, by name. `whole`: the blocks that are not made in portions. `alone`: those that are made when all
    before them are written."""
    jobs: list[Future[None]] = []
    names = [name for name in order if name in todo]
    with ThreadPoolExecutor(WRITERS, "write") as writers, ThreadPoolExecutor(2, "block") as workers:
        for name, following in zip_longest(names, names[1:]):
            if name in alone:
                wait(jobs)
            stream.prefetch(name, feed.parameters(name))
            placed = False
            for portion in [todo[name]] if name in whole else portions(todo[name]):
                block = _Block(name)
                try:  # whatever happens, an interrupt too: the worker waits for `made`
                    work = (ledger, writers, block, portion, check, tally, on_wait, emit)
                    jobs.append(workers.submit(_write_block, *work))
                    if wanted := block.wanted.result():
                        if following and name in ahead:  # read while this one is computed
                            stream.prefetch(following, feed.parameters(following))
                        if not placed:
                            stream.place(name, feed.take(name))
                            placed = True
                        block.made.set_result(_compute(stream, converters, name, wanted))
                except BaseException as error:
                    if not block.made.done():
                        block.made.set_exception(error)
                    raise
                for job in jobs:
                    if job.done():
                        job.result()
            stream.drop(name)
            feed.done(name)
        for job in jobs:
            job.result()


def portions(actions: Wanted) -> list[Wanted]:
    """The actions of one block in portions of about PORTION bytes of output.

    A large embedding is made one variant after the other, so that memory holds it once, not once for each;
    its weight is read once all the same.
    """
    parts: list[dict[Key, tuple[TargetPlan, Action]]] = []
    size = peaks.PORTION + 1
    for key, (target, action) in actions.items():
        if size + action.size > peaks.PORTION:
            parts.append({})
            size = 0
        parts[-1][key] = (target, action)
        size += action.size
    return list(parts)


def _compute(
    stream: Stream,
    converters: Mapping[str, Converter],
    block: str,
    wanted: Wanted,
) -> dict[Key, _Made]:
    """The tensors of each wanted action of one block, evaluated, as bytes."""
    by_variant, name, places = _takes(converters, wanted)
    taken = stream.take(block, by_variant, name, places)
    for target, action in wanted.values():
        variant = target.target.variant.name
        if target.name in converters:
            taken[variant] = converters[target.name].shard(block, taken[variant])
        check_shard(taken[variant], action)
    return {
        key: _Made(taken[variant], stream.survival(block, variant)) for variant, key in by_variant.items()
    }


def _takes(
    converters: Mapping[str, Converter], wanted: Wanted
) -> tuple[Mapping[str, Key], str, Mapping[str, Mapping[str, int]]]:
    """The key of each variant, the name of the model, and where tensors will begin in their files."""
    by_variant = {target.target.variant.name: key for key, (target, _) in wanted.items()}
    name = next(iter(wanted.values()))[0].target.model.name
    places = {
        target.target.variant.name: shards.offsets(action.tensors)
        for target, action in wanted.values()
        if target.name not in converters
    }
    return by_variant, name, places


def check_shard(shard: Mapping[str, shards.RawTensor], action: Action) -> None:
    """Raises LayoutChanged if the shard does not hold what the plan says."""
    from builder.engine.variant_config import LayoutChanged

    found = {TensorSpec(name, tensor.dtype, tensor.shape) for name, tensor in shard.items()}
    if found != set(action.tensors):
        odd = min(tensor.name for tensor in found ^ set(action.tensors))
        raise LayoutChanged(target=action.file, what=f'block "{action.block}", tensor "{odd}"')


def _write_block(
    ledger: Ledger,
    writers: Executor,
    block: _Block,
    actions: Wanted,
    check: Callable[[], None],
    tally: Tally,
    on_wait: Callable[[], None],
    emit: Emit,
) -> None:
    """Lock, recheck, wait for the tensors, ingest each shard and then its record."""
    try:
        with acquire(ledger.store, actions, on_wait):
            wanted = {k: v for k, v in actions.items() if ledger.record(k) is None}
            block.wanted.set_result(wanted)
            if not wanted:
                return
            made = block.made.result()
            check()

            def write(key: Key) -> int:
                one, (target, action) = made.pop(key), wanted[key]
                blob = blobs.ingest(ledger.store, encoded(action, one.shard), threads=1, lasting=True)
                assert blob.size == action.size, f"{action.file}: planned {action.size}, wrote {blob.size}"
                found = {"survival": one.survival} if one.survival else {}
                ledger.write(Record(key, "block", blob, {"block": block.name, **found, **made_by()}))
                tally.made[key] = target.name
                return blob.size

            nbytes = sum(writers.map(write, wanted))
            model = next(iter(wanted.values()))[0].target.model.name
            emit(BlockDone(model, block.name, len(wanted), nbytes))
    except BaseException as error:
        if not block.wanted.done():
            block.wanted.set_exception(error)
        raise
