"""Runs one pass: lock, recheck, stream, ingest, record, manifest, view. The only place that writes targets.

Blobs first, then their record, the manifest after all records, the view last: any moment can be the last,
and a killed pass goes on at the first block that has no record. While one block is hashed and written by
other threads, the next one is computed, and the weights of the one after that are read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from builder.build import card
from builder.build.adoption import adopt
from builder.build.blocks import Tally, by_block, by_rows, make_blocks
from builder.build.conversion import converter, make_head
from builder.build.cutting import cut_blocks
from builder.build.feed import Feed
from builder.build.kquants import prepare_kquants, with_quantizer
from builder.build.ledger import Ledger
from builder.build.manifests import manifest_of
from builder.build.opening import open_whole, whole_adapter
from builder.build.reading import Reading, by_blocks
from builder.build.waiting import waiting
from builder.console.events import Emit, Note, PassDone, PassStarted
from builder.console.words import count
from builder.errors import SourceChanged
from builder.plan.remarks import remarked
from builder.plan.types import TargetPlan
from builder.project import peaks, preflight, speed
from builder.project.project import Project
from builder.project.roots import keys_of, register
from builder.project.state import missing_actions
from builder.project.toolchain import made_by
from builder.project.watch import copied_from, unchanged
from builder.store import blobs, records, views
from builder.store.holdings import holds
from builder.store.locks import acquire, build_session
from builder.store.types import Record
from builder.weights.structure import block_of

if TYPE_CHECKING:
    from builder.engine.stream import Stream

_ONE_PASS = Lock()  # one pass at a time in a process: two would double the memory (`doit -P thread`)


@dataclass(frozen=True)
class Built:
    """What came of one target: where it is, and what it took. Sizes in bytes, times in seconds."""

    name: str
    path: Path
    size: int
    bits_per_weight: float
    made: int
    reused: int
    seconds: float


def build(
    project: Project, targets: Sequence[TargetPlan], emit: Emit, tally: Tally | None = None
) -> list[Built]:
    """Build targets of one model in one pass over its base. Returns one Built for each.

    tally: what was made before, in the first pass over the base.
    Raises BuildError; whatever was recorded until then stays and is not done again.
    """
    start = time.perf_counter()
    store = project.store
    for target in targets:
        if taken := adopt(store, target):
            emit(
                Note(f"{target.name}: {count(taken, 'block')} taken over from the former format of the store")
            )
    keys = [key for target in targets for key in keys_of(target)]
    _check_room(project, targets)
    with _ONE_PASS, build_session(store, keys):
        tally = tally or Tally()
        register(project)
        cut_blocks(project, targets, tally, emit)
        prepare_kquants(project, targets, emit)
        make_missing(project, targets, tally, emit)
        for target in targets:
            copy_aux(project, target)
        seconds = tally.seconds + time.perf_counter() - start
        return [finish(project, target, tally, seconds, emit) for target in targets]


# -- blocks ----------------------------------------------------------------------------------------------


def _check_room(project: Project, targets: Sequence[TargetPlan]) -> None:
    """Before anything is written, even the registration of this build. Raises NoRoom, NoMemory."""
    missing = (action for target in targets for action in missing_actions(project.store, target))
    unique = {action.key: action for action in missing}
    preflight.check(project, targets[0], unique.values(), targets)


def make_missing(
    project: Project,
    targets: Sequence[TargetPlan],
    tally: Tally,
    emit: Emit,
    ledger: Ledger | None = None,
    read: Callable[[Stream, Collection[str]], Reading] | None = None,
) -> None:
    """Run every action that `ledger` (without one: the store) has no record of.

    read: how to read these blocks. Without it: one block after the other.
    """
    ledger = ledger or Ledger(project.store)
    todo = {target.name: ledger.missing(target) for target in targets}
    unsettled = [t for t in targets if ledger.record(t.config) is None]
    headless = [t for t in targets if t.gguf and ledger.record(t.gguf.head) is None]
    lacking = [t for t in targets if todo[t.name] or t in unsettled or t in headless]
    if not lacking and read is None:
        return
    unique = {action.key: action for actions in todo.values() for action in actions}
    total = len({action.key for target in targets for action in target.actions})
    model = targets[0].target.model.name
    names = tuple(target.target.variant.name for target in lacking)
    size = sum(action.size for action in unique.values())
    source = targets[0].base.whole.block_nbytes
    started = time.perf_counter()
    on_wait = waiting(model, emit, tally.waits)
    blocks = {action.block for action in unique.values()}
    table = f"base.{targets[0].target.model.base}"
    with unchanged(project, targets[0]) as check:
        stream = open_stream(project, lacking or targets, unsettled)
        reading = read(stream, blocks) if read else by_blocks(project, targets[0], stream, blocks)
        if lacking:
            emit(PassStarted(model, names, len(unique), total - len(unique), size))
        for remark in remarked(lacking):
            emit(Note(remark))
        for target in unsettled:
            _make_config(ledger, target, stream, check, on_wait)
        converters = {t.name: converter(project, ledger, t) for t in lacking if t.gguf}
        for target in headless:
            copy_aux(project, target)
            make_head(project.store, ledger, target, converters[target.name], on_wait)
        fused = peaks.copies(project, lacking)
        budget = project.spec.build.memory
        ahead = peaks.reads_ahead(unique.values(), source, budget, fused)
        work = by_block(lacking, todo)
        begun, opened = (reading.open_bytes, reading.open_blocks) if read is not None else (0, {})
        chosen, alone = peaks.at_once(unique.values(), source, budget, begun, opened)
        rows = by_rows(stream, converters, work, reading.rooms, chosen)
        with (
            with_quantizer(project.store, lacking, converters) as asking,
            Feed(
                reading.jobs,
                reading.rooms,
                ahead,
                table,
                direct=reading.direct,
                rows=rows,
                use=stream.take_rows,
            ) as feed,
        ):
            order = reading.order
            what = (ledger, work, stream, asking, feed, frozenset(map(block_of, rows)), alone)
            make_blocks(*what, order, ahead, check, tally, on_wait, emit)
            if read is not None:
                feed.finish()
            reading.hashed()
    seconds = time.perf_counter() - started
    if unique:
        speed.note(project.cache, speed.Pass(sum(source[block] for block in blocks), size, seconds))
    emit(PassDone(model, seconds))


def open_stream(project: Project, targets: Sequence[TargetPlan], unsettled: Sequence[TargetPlan]) -> Stream:
    """The lazily fused model of these targets (all of one model), with their variants.

    unsettled: those whose config.json is to be made.
    """
    from builder.engine.stream import Request, Stream
    from builder.engine.tracing import Trace

    trace = Trace()
    model, config = open_whole(project, targets[0], trace.around)
    adapter = whole_adapter(project, targets[0])
    requests = [Request(t.target.variant, t.dtype, t.quantization, t.base.pruned) for t in targets]
    configs = {target.target.variant.name for target in unsettled}
    return Stream(
        model,
        config,
        requests,
        adapter,
        configs=configs,
        survival=project.spec.build.survival,
        trace=trace,
    )


def make_config(project: Project, target: TargetPlan, emit: Emit) -> None:
    """config.json alone of a target: no block is read for it."""
    with unchanged(project, target) as check:
        stream = open_stream(project, [target], [target])
        _make_config(Ledger(project.store), target, stream, check, waiting(target.name, emit))


def _make_config(
    ledger: Ledger, target: TargetPlan, stream: Stream, check: Callable[[], None], on_wait: Callable[[], None]
) -> None:
    with acquire(ledger.store, [target.config], on_wait):
        check()
        if ledger.record(target.config) is None:
            blob = blobs.ingest(ledger.store, [stream.config(target.target.variant.name)])
            ledger.write(Record(target.config, "config", blob, made_by()))


# -- targets ---------------------------------------------------------------------------------------------


def copy_aux(project: Project, target: TargetPlan) -> None:
    """The files copied from the base, or from the adapter, as blobs."""
    missing = [entry for entry in target.base.aux if not blobs.has(project.store, entry.blob)]
    if not missing:
        return
    places = copied_from(project, target)
    for entry in missing:
        blob = blobs.ingest_file(project.store, places[entry.name])
        if blob != entry.blob:
            raise SourceChanged(source=f"base:{target.target.model.base}", path=places[entry.name])


def finish(project: Project, target: TargetPlan, tally: Tally, seconds: float, emit: Emit) -> Built:
    """Manifest, then view."""
    store = project.store
    made = sum(tally.made.get(action.key) == target.name for action in target.actions)
    with acquire(store, [target.key], waiting(target.name, emit, tally.waits)):
        manifest = records.read_manifest(store, target.key)
        if manifest is None or not holds(store, manifest):
            manifest = records.write_manifest(store, manifest_of(store, target, made))
        else:
            records.mark_used(store, target.key)
        view = store.models / target.name
        if not views.is_current(store, view, manifest):
            base = project.spec.bases[target.target.model.base]
            views.materialize(store, view, manifest, card.render(manifest, base, target.name))
    return Built(
        target.name,
        view,
        manifest.size,
        target.bits_per_weight,
        made,
        len(target.actions) - made,
        seconds,
    )
