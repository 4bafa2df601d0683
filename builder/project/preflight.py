"""Before a pass: will its bytes fit on the disk, and its largest block into memory? If not, the numbers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from itertools import pairwise
from math import prod
from statistics import mode
from types import MappingProxyType

from builder.console.words import size_text
from builder.errors import BuildError
from builder.plan.types import CONFIG, Action, TargetPlan
from builder.project.project import Project
from builder.project.roots import freeable
from builder.project.state import target_state
from builder.sources.contents import INDEX
from builder.store import views
from builder.store.disk import capability
from builder.store.layout import Store

RESIDENT = 400 << 20  # Python, mlx and mlx-lm themselves
LOOPS = 100 << 20  # the compiled loops of calibrated rounding, and numpy's BLAS
COPIES = 2  # while one portion of a block is written, the next is computed
PORTION = 128 << 20  # bytes of output that are computed at once (see execute.portions)
_NONE: Mapping[str, int] = MappingProxyType({})
NO_SPACE_CHECK = "BUILDER_NO_SPACE_CHECK"  # set by `--no-space-check`
SLACK = 4 << 20  # records, manifests and the blocks of the file system


class NoRoom(BuildError):
    """this build writes {needed}, but the disk of {path} has only {free} free."""

    exit_code = 2
    hint = "`doit gc` frees {freeable}, which is {enough}. `--no-space-check` builds all the same."


class NoMemory(BuildError):
    """block "{block}" of {model} needs about {needed} of memory, but [build] memory is {budget}."""

    exit_code = 2
    hint = "A build holds at least one block. Raise [build] memory, or build fewer variants at once."


def check(
    project: Project, plan: TargetPlan, actions: Iterable[Action], targets: Iterable[TargetPlan] = ()
) -> None:
    """Before the actions of `targets`, all of one model, `plan` one of them.

    Raises NoRoom, NoMemory, and StoreError for files that cannot lie in one view.
    """
    todo, store = list(actions), project.store
    copied = (CONFIG, INDEX, *(entry.name for entry in plan.base.aux))
    views.check_names(store, store.models / plan.name, copied)
    model, source = plan.target.model.name, plan.base.structure.block_nbytes
    budget = project.spec.build.memory
    check_memory(budget, model, todo, source, deltas(plan))
    if todo and budget is not None and (rounding := rounding_memory(plan)) > budget:
        raise NoMemory(
            block=plan.actions[-1].block, model=model, needed=size_text(rounding), budget=size_text(budget)
        )
    needed = sum(action.size for action in todo) + view_copies(store, targets)
    free = shutil.disk_usage(store.root).free
    if needed and needed + SLACK > free and not os.environ.get(NO_SPACE_CHECK):
        gain = freeable(project)
        raise NoRoom(
            needed=size_text(needed + SLACK),
            path=project.store.root,
            free=size_text(free),
            freeable=size_text(gain),
            enough="enough" if free + gain >= needed + SLACK else "not enough",
        )


def rounding_memory(plan: TargetPlan) -> int:
    """An upper estimate, in bytes, of a calibrated pass at its peak. 0 for a target that is not calibrated.

    In float32: what lies outside of the layers, the largest layer exact, rounded and as codes, the hidden
    states before and after a layer, and the second moments of the inputs of experts.
    """
    how = plan.target.variant.calibrated
    if how is None or how.nearest:
        return 0
    structure = plan.base.structure
    shapes = {name: [p.tensor.shape for p in each] for name, each in structure.by_block.items()}
    elements = {name: sum(map(prod, each)) for name, each in shapes.items()}
    layers = {name for name in shapes if name.rpartition(".")[2].isdigit()}
    outside = sum(size for name, size in elements.items() if name not in layers)
    largest = max((elements[name] for name in layers), default=0)
    experts = max(
        (sum(s[0] * s[-1] ** 2 for s in each if len(s) == 3) for name, each in shapes.items()), default=0
    )
    widths = [shape[-1] for name in layers for shape in shapes[name] if len(shape) == 2]
    hidden = how.samples * how.sequence_length * (mode(widths) if widths else 0)
    return RESIDENT + LOOPS + 4 * (2 * outside + 4 * largest + 3 * hidden + experts)


def view_copies(store: Store, targets: Iterable[TargetPlan]) -> int:
    """Bytes of the views to be made, where the file system can neither clone nor link: they are copies."""
    if capability.links(store.tmp):
        return 0
    return sum(target.whole_size or 0 for target in targets if not target_state(store, target).built)


def check_memory(
    budget: int | None,
    model: str,
    actions: Iterable[Action],
    source: Mapping[str, int],
    fused: Mapping[str, int] = _NONE,
) -> None:
    """Raises NoMemory naming the block that does not fit the budget."""
    if budget is None:
        return
    peaks = block_peaks(actions, source, fused)
    for block, needed in peaks.items():
        if needed > budget:
            raise NoMemory(block=block, model=model, needed=size_text(needed), budget=size_text(budget))


def peak_memory(
    actions: Iterable[Action],
    source: Mapping[str, int],
    budget: int | None = None,
    fused: Mapping[str, int] = _NONE,
) -> int:
    """An upper estimate, in bytes, of the process at its peak."""
    todo = list(actions)
    peaks = block_peaks(todo, source, fused)
    ahead = reads_ahead(todo, source, budget, fused)
    return max((peak + ahead.get(block, 0) for block, peak in peaks.items()), default=RESIDENT)


def reads_ahead(
    actions: Iterable[Action],
    source: Mapping[str, int],
    budget: int | None,
    fused: Mapping[str, int] = _NONE,
) -> Mapping[str, int]:
    """Block -> bytes of the next one to make, where both are allowed in memory: it is read meanwhile."""
    peaks = block_peaks(actions, source, fused)
    order = [block for block in source if block in peaks]
    return {
        block: source[following]
        for block, following in pairwise(order)
        if budget is None or peaks[block] + source[following] <= budget
    }


def deltas(plan: TargetPlan) -> Mapping[str, int]:
    """Block -> bytes of the largest delta of an adapted stack of experts.

    mlx computes it in float32, twice the size of the stack itself; the kernels do without.
    """
    found: dict[str, int] = {}
    for block in plan.adapter.slices if plan.adapter else ():
        for parameter in plan.base.structure.by_block.get(block, ()):
            shape, path = parameter.tensor.shape, parameter.tensor.name.removesuffix(".weight")
            if len(shape) == 3 and plan.adapter is not None and path in plan.adapter.paths:
                found[block] = max(found.get(block, 0), 4 * prod(shape))
    return found


def block_peaks(
    actions: Iterable[Action], source: Mapping[str, int], fused: Mapping[str, int] = _NONE
) -> Mapping[str, int]:
    """Block -> upper estimate of the process while it is made: its weights, a fused copy, two portions, and
    what `fused` (see `deltas`) says."""
    made: dict[str, int] = {}
    largest: dict[str, int] = {}
    for action in actions:
        made[action.block] = made.get(action.block, 0) + action.size
        largest[action.block] = max(largest.get(action.block, 0), action.size)
    return {
        block: RESIDENT
        + COPIES * (source[block] + min(size, max(PORTION, largest[block])))
        + fused.get(block, 0)
        for block, size in made.items()
    }
