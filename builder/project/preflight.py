"""Before a pass: will its bytes fit on the disk, and its largest block into memory? If not, the numbers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from builder.console.words import listed, size_text
from builder.errors import BuildError
from builder.keys import Key
from builder.machine import memory
from builder.plan.types import CONFIG, Action, TargetPlan
from builder.project.peaks import block_peaks, copies, rounding_memory
from builder.project.project import Project
from builder.project.roots import freeable
from builder.project.state import missing_actions, target_state
from builder.sources.contents import INDEX
from builder.store import views
from builder.store.disk import capability
from builder.store.layout import Store

_NONE: Mapping[str, int] = MappingProxyType({})
NO_SPACE_CHECK = "BUILDER_NO_SPACE_CHECK"  # set by `--no-space-check`
SLACK = 4 << 20  # records, manifests and the blocks of the file system


class NoRoom(BuildError):
    """this build writes {needed}, but the disk of {path} has only {free} free."""

    exit_code = 2
    hint = "`doit gc` frees {freeable}, which is {enough}.{fits} `--no-space-check` builds all the same."


class NoMemory(BuildError):
    """block "{block}" of {model} needs about {needed} of memory, but [build] memory is {budget}."""

    exit_code = 2
    hint = "A build holds at least one block. {fits}"


class NoMemoryWhole(BuildError):
    """{target}: method "{method}" holds {what} in memory, at least {needed}, but {budget}."""

    exit_code = 2
    hint = "A variant with `calibration` and without `method` is rounded block by block, in less memory."


def check_whole(project: Project, plan: TargetPlan, read: Sequence[TargetPlan]) -> None:
    """Before a method that holds whole targets in memory. Raises NoMemoryWhole."""
    learned, budget = plan.target.variant.learned, project.spec.build.memory
    assert learned is not None
    needed, there = sum(each.size for each in read), memory()
    if needed > min(budget or needed, there or needed):
        declared = budget is not None and needed > budget
        size = budget if declared and budget is not None else there
        raise NoMemoryWhole(
            target=plan.name,
            method=learned.method,
            what=listed([each.name for each in read], "and"),
            needed=size_text(needed),
            budget=f"{'[build] memory is' if declared else 'this machine has'} {size_text(size)}",
        )


def check(
    project: Project, plan: TargetPlan, actions: Iterable[Action], targets: Iterable[TargetPlan] = ()
) -> None:
    """Before the actions of `targets`, all of one model, `plan` one of them.

    Raises NoRoom, NoMemory, and StoreError for files that cannot lie in one view.
    """
    todo, store = list(actions), project.store
    copied = (CONFIG, INDEX, *(entry.name for entry in plan.base.aux))
    views.check_names(store, store.models / plan.name, copied)
    model, source = plan.target.model.name, plan.base.whole.block_nbytes
    budget = project.spec.build.memory
    wanted = [plan, *targets]
    check_memory(budget, model, todo, source, copies(project, wanted))
    if todo and budget is not None and (rounding := rounding_memory(plan)) > budget:
        raise NoMemory(
            block=plan.actions[-1].block,
            model=model,
            needed=size_text(rounding),
            budget=size_text(budget),
            fits=_raise_to(rounding),
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
            fits=_what_fits(store, wanted, free - SLACK),
        )


def _what_fits(store: Store, targets: Iterable[TargetPlan], free: int) -> str:
    """As many of the targets, from the smallest, as there is room for. Blocks that they share count once."""
    sizes = {
        target.name: {action.key: action.size for action in missing_actions(store, target)}
        for target in targets
    }
    chosen: list[str] = []
    keys: dict[Key, int] = {}
    for name in sorted(sizes, key=lambda name: sum(sizes[name].values())):
        if sum((keys | sizes[name]).values()) + view_copies(store, ()) > free:
            break
        keys |= sizes[name]
        chosen.append(name)
    if not chosen:
        smallest = min(sum(each.values()) for each in sizes.values())
        return f" The smallest of its targets writes {size_text(smallest)}." if len(sizes) > 1 else ""
    return f" There is room for {listed(chosen, 'and')} ({size_text(sum(keys.values()))})."


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
    todo = list(actions)
    peaks = block_peaks(todo, source, fused)
    for block, needed in peaks.items():
        if needed > budget:
            raise NoMemory(
                block=block,
                model=model,
                needed=size_text(needed),
                budget=size_text(budget),
                fits=_raise_to(max(peaks.values())) + _one_by_one(todo, source, fused, budget),
            )


def _one_by_one(
    actions: Iterable[Action], source: Mapping[str, int], fused: Mapping[str, int], budget: int
) -> str:
    """Whether each variant alone has room."""
    largest: dict[str, Action] = {}
    for action in actions:
        largest[action.block] = max(largest.get(action.block, action), action, key=lambda each: each.size)
    peaks = block_peaks(largest.values(), source, fused)
    return " One variant at a time fits too." if max(peaks.values()) <= budget else ""


def _raise_to(needed: int) -> str:
    """What to write into artifacts.toml: no less than what is needed."""
    return f'With `memory = "{-(-needed // 10**8) / 10:.1f}GB"` in [build] this fits.'
