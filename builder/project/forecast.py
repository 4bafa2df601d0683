"""What a run would do and cost. Decides with the functions that the build uses, and does nothing."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from builder.keys import Key
from builder.plan.types import Action, TargetPlan, Unresolved
from builder.project import speed
from builder.project.available import NOTHING, Availables
from builder.project.headers import estimated
from builder.project.peaks import begun_bytes, copies, made_bytes, peak_memory, rounding_memory
from builder.project.preflight import view_copies
from builder.project.project import Project
from builder.project.state import missing_actions, reads_source, target_state
from builder.spec.types import GgufSource, Target
from builder.store import blobs, pins


@dataclass(frozen=True)
class PassForecast:
    """One pass over one model. Sizes in bytes; `seconds` None: this machine has no record yet.

    `read`: weights of the blocks that must be walked, `write`: new blobs, `memory`: an upper estimate of
    the process at its peak. `estimated`: the base was not read yet, and its headers told the numbers.
    `once`: the pass is the first to read the base, and fingerprints it meanwhile.
    """

    model: str
    targets: tuple[str, ...]
    make: int
    reuse: int
    read: int
    write: int
    memory: int
    seconds: float | None
    estimated: bool = False
    once: bool = False


@dataclass(frozen=True)
class LearnedForecast:
    """A quantizer that runs on a whole target, which a pass makes first where it is not there.

    `start`: a target whose codes it keeps, or None. `read`: bytes of the shards of these targets. What the
    quantizer writes, holds and takes is not known before. `prunes`: the source is an intermediate that goes
    as soon as nothing needs it.
    """

    target: str
    method: str
    source: str
    read: int
    prunes: bool
    start: str | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source, *([self.start] if self.start else []))


@dataclass(frozen=True)
class FetchForecast:
    """What is pulled of a target instead of being built: `blocks` blocks, `nbytes` in all. `whole`: all
    of it.
    """

    target: str
    remote: str
    blocks: int
    nbytes: int
    whole: bool


@dataclass(frozen=True)
class Forecast:
    """What a run would do. `fetch`: what is pulled first, and is in no pass. `learned`: after the passes.
    `relink`: targets whose bytes are all there; `prepare`: targets whose sources must be read first:
    their passes are estimates, if there are any; `imports`: bytes that imports of GGUF bases write
    before; `refused`: what cannot be built as it is declared. `before` and `after` are the bytes of all
    blobs; `after` counts an intermediate that the run deletes at its end, and not what a quantizer
    writes. `copies`: bytes of the views, where the file system can neither clone nor link."""

    passes: tuple[PassForecast, ...]
    learned: tuple[LearnedForecast, ...]
    relink: tuple[str, ...]
    prepare: tuple[tuple[str, str], ...]
    refused: tuple[tuple[str, str], ...]
    built: tuple[str, ...]
    before: int
    after: int
    free: int
    copies: int = 0
    imports: int = 0
    fetch: tuple[FetchForecast, ...] = ()

    @property
    def is_empty(self) -> bool:
        planned = self.passes or self.learned or self.relink or self.prepare or self.refused
        return not (planned or self.fetch)

    @property
    def fits(self) -> bool:
        return self.after - self.before + self.copies <= self.free


def forecast(project: Project, names: Collection[str] = (), available: Availables = NOTHING) -> Forecast:
    """What building `names` would do; without names, what `doit` would do. `available`: what remotes have.

    Raises BuildError.
    """
    chosen = [t.name for t in project.spec.targets if _is_wanted(t, names)]
    learned: dict[str, LearnedForecast] = {}
    steps: set[Key | None] = set()  # the same step under another name runs once
    for name in chosen:
        if name in available and available[name].whole:
            continue
        if (step := _learned_step(project, name)) is not None:
            plan = project.plan.targets[name]
            assert isinstance(plan, TargetPlan)  # or there would be no step
            if plan.learned not in steps:
                learned[name] = step
                steps.add(plan.learned)
    relink, built = [], []
    fetch: list[FetchForecast] = []
    prepare: list[tuple[str, str]] = []
    refused: list[tuple[str, str]] = []
    todo: dict[tuple[str, str], list[tuple[TargetPlan, tuple[Action, ...]]]] = {}  # by pass
    read = [*(name for step in learned.values() for name in step.sources), *_repacked(project, chosen)]
    for name in dict.fromkeys([*chosen, *read]):
        if name in learned:
            continue
        if project.is_built(name):
            built.append(name)
            continue
        plan = project.plan.targets[name]
        if isinstance(plan, Unresolved):
            (prepare if plan.error is None else refused).append((plan.name, plan.reason))
            continue
        if target_state(project.store, plan).built:
            built.append(plan.name)
            continue
        missing = missing_actions(project.store, plan)
        if there := available.get(name):
            fetch.append(FetchForecast(name, there.remote, there.blocks, there.nbytes, there.whole))
            missing = tuple(action for action in missing if action.key not in there.keys)
            if there.whole:
                continue
        if missing:
            todo.setdefault(_pass_of(plan), []).append((plan, missing))
        else:
            relink.append(plan.name)
    guessed = estimated(project, [name for name, _ in prepare]) if prepare else {}
    for plan in guessed.values():
        todo.setdefault(_pass_of(plan), []).append((plan, plan.actions))
    viewed = [plan for targets in todo.values() for plan, _ in targets]
    viewed += [plan for name in relink if isinstance(plan := project.plan.targets[name], TargetPlan)]
    known = speed.passes(project.cache)
    claimed: set[Key] = set()
    passes = tuple(
        _pass(project, model, targets, known, claimed, estimated=any(p.name in guessed for p, _ in targets))
        for (model, _), targets in todo.items()
    )
    imports = _imports(project, guessed.values())
    before = sum(blobs.present(project.store).values())
    root = project.store.root
    return Forecast(
        passes,
        tuple(learned.values()),
        tuple(relink),
        tuple(prepare),
        tuple(refused),
        tuple(name for name in built if name in chosen),
        before,
        before + imports + sum(p.write for p in passes) + sum(one.nbytes for one in fetch),
        shutil.disk_usage(root).free,
        view_copies(project.store, viewed),
        imports,
        tuple(fetch),
    )


def _pass_of(plan: TargetPlan) -> tuple[str, str]:
    """The model of a pass, and the name of a target that has a pass of its own."""
    alone = plan.target.variant.rounds_for_text or bool(plan.target.variant.made_from)
    return plan.target.model.name, plan.name if alone else ""


def _repacked(project: Project, names: Iterable[str]) -> list[str]:
    """The targets whose blocks an exact GGUF needs and lacks."""
    found = []
    for name in names:
        plan = None if project.is_built(name) else project.plan.targets[name]
        if isinstance(plan, TargetPlan) and plan.gguf is not None and plan.gguf.of is not None:
            source = project.plan.targets[plan.gguf.of]
            assert isinstance(source, TargetPlan)  # the GGUF is planned from it
            lacking = {action.block for action in missing_actions(project.store, plan)}
            if any(action.block in lacking for action in missing_actions(project.store, source)):
                found.append(source.name)
    return found


def _imports(project: Project, guessed: Iterable[TargetPlan]) -> int:
    """Bytes of the GGUF bases that a run imports first."""
    sizes = {
        plan.target.model.base: plan.base.whole.nbytes
        for plan in guessed
        if isinstance(project.spec.bases[plan.target.model.base].source, GgufSource)
    }
    return sum(sizes.values())


def _is_wanted(target: Target, names: Collection[str]) -> bool:
    return target.name in names if names else not target.variant.intermediate


def _learned_step(project: Project, name: str) -> LearnedForecast | None:
    """The whole-model step of a learned target; None where its own bytes are in the store."""
    variant = project.spec.target(name).variant
    if variant.learned is None or project.is_built(name):
        return None
    plan = project.plan.targets[name]
    if isinstance(plan, Unresolved) or not reads_source(project.store, plan):
        return None
    source = project.plan.targets[str(plan.needs)]
    assert isinstance(source, TargetPlan)  # a learned target is planned from it
    prunes = source.target.variant.intermediate and source.name not in pins.pinned(project.store)
    read = source.size + (plan.start.size if plan.start else 0)
    start = plan.start.name if plan.start else None
    return LearnedForecast(name, variant.learned.method, source.name, read, prunes, start)


def _pass(
    project: Project,
    model: str,
    targets: list[tuple[TargetPlan, tuple[Action, ...]]],
    known: tuple[speed.Pass, ...],
    claimed: set[Key],
    *,
    estimated: bool = False,
) -> PassForecast:
    """`claimed`: keys that an earlier pass of the run makes; this adds its own."""
    unique = {a.key: a for _, missing in targets for a in missing if a.key not in claimed}
    claimed.update(unique)
    everything = {action.key for plan, _ in targets for action in plan.actions}
    source = targets[0][0].base.whole.block_nbytes
    made = made_bytes(unique.values())
    read = sum(source[block] for block in made)
    write = sum(made.values())
    plans = [plan for plan, _ in targets]
    base, budget = project.spec.bases[plans[0].target.model.base], project.spec.build.memory
    rounding = max(map(rounding_memory, plans))
    if budget is None or rounding < budget:  # then hidden states may stay in memory
        most = max(rounding_memory(plan, 3) for plan in plans)
        rounding = min(most, budget or most)
    begun = begun_bytes(base) if estimated and not rounding else None
    return PassForecast(
        model,
        tuple(plan.name for plan, _ in targets),
        len(unique),
        len(everything) - len(unique),
        read,
        write,
        max(peak_memory(unique.values(), source, budget, copies(project, plans), begun or 0), rounding),
        None if rounding else speed.estimate(known, read, write),
        estimated,
        begun is not None,
    )
