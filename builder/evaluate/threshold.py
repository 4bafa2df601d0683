"""Finds the smallest target of a model that meets its requirements. Builds and measures only what it must."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

from builder.console.events import Emit
from builder.errors import BuildError
from builder.evaluate.process import EvaluationFailed
from builder.evaluate.results import Doubt, Missed, Result, Verdict, doubts, figure_of, missed
from builder.evaluate.run import evaluate, measured
from builder.plan.types import TargetPlan, Unresolved, nominal_size
from builder.project.project import Project
from builder.spec.types import Metric, Variant
from builder.store import records


class NothingToRequire(BuildError):
    """model "{model}" has no requirements."""

    exit_code = 3
    hint = 'Add [model.{model}.require], for example "routing.accuracy" = ">= 0.95".'


class NonePasses(BuildError):
    """threshold:{model}: no target meets the requirements. {name}, the largest, misses {what}"""


@dataclass(frozen=True)
class Search:
    """The outcome of a search. `order` is all targets from small to large.

    `passes` says of each target that was asked whether it passes. `found` is the smallest target that passes.
    `exceptions` are pairs (smaller, larger) where the smaller passes and the larger does not. `unasked` are
    the targets that are smaller than `found` and were not measured.
    """

    order: tuple[str, ...]
    passes: Mapping[str, bool]
    found: str | None

    @property
    def exceptions(self) -> tuple[tuple[str, str], ...]:
        return _exceptions(self.order, self.passes)

    @property
    def unasked(self) -> tuple[str, ...]:
        smaller = self.order[: self.order.index(self.found)] if self.found else ()
        return tuple(name for name in smaller if name not in self.passes)


def _exceptions(order: Sequence[str], passes: Mapping[str, bool]) -> tuple[tuple[str, str], ...]:
    known = [name for name in order if name in passes]
    return tuple(
        (small, large)
        for at, small in enumerate(known)
        for large in known[at + 1 :]
        if passes[small] and not passes[large]
    )


def search(
    order: Sequence[str],
    passes: Callable[[str], bool],
    known: Mapping[str, bool],
    family: Callable[[str], Hashable] = lambda name: None,
) -> Search:
    """Bisects each family of targets. `passes` is asked about targets that `known` does not have.

    `order` is from small to large. The largest family comes first. Only targets smaller than the smallest
    target that is known to pass are asked, and of a family only those that what is known does not decide.

    The answer is right if, within a family, every target larger than a target that passes also passes. Where
    the answers contradict this, every member is asked from the small end until one passes.
    """
    asked = dict(known)

    def ask(name: str) -> bool:
        if name not in asked:
            asked[name] = passes(name)
        return asked[name]

    families: dict[Hashable, list[str]] = {}
    for name in order:
        families.setdefault(family(name), []).append(name)
    found = next((name for name in order if known.get(name)), None)
    end = order.index(found) if found is not None else len(order)
    for members in sorted(families.values(), key=len, reverse=True):
        smaller = [name for name in members if order.index(name) < end]
        smallest = _bisect(smaller, ask, asked)
        if _exceptions(members, asked):
            smallest = next((name for name in smaller if ask(name)), None)
        if smallest is not None:
            found, end = smallest, order.index(smallest)
    return Search(tuple(order), dict(asked), found)


def _bisect(order: Sequence[str], ask: Callable[[str], bool], known: Mapping[str, bool]) -> str | None:
    """The smallest target that passes, provided that all larger targets pass too.

    What is known narrows the search first: everything smaller than a target that fails fails too.
    """
    low = max((at + 1 for at, name in enumerate(order) if known.get(name) is False), default=0)
    high = min((at for at, name in enumerate(order) if known.get(name)), default=len(order))
    while low < high:
        middle = (low + high) // 2
        if ask(order[middle]):
            high = middle
        else:
            low = middle + 1
    return order[high] if high < len(order) else None


class _Asked(Exception):
    """A search asks about the target of this name."""


def candidates(
    order: Sequence[str],
    known: Mapping[str, bool],
    width: int,
    family: Callable[[str], Hashable] = lambda name: None,
) -> list[str]:
    """The targets that a search would ask about next, whatever the answers are: the nearest `width` of them.

    Empty where what is known decides. Whoever measures several at once needs fewer rounds than `search` asks.
    """

    def ask(name: str) -> bool:
        raise _Asked(name)

    found: list[str] = []
    worlds = [dict(known)]
    while worlds and len(found) < width:
        world = worlds.pop(0)
        try:
            search(order, ask, world, family)
        except _Asked as asked:
            name = str(asked)
            found += [] if name in found else [name]
            worlds += [{**world, name: True}, {**world, name: False}]
    return found


def family_of(variant: Variant) -> Hashable:
    """The family of a variant. Its members differ only in bits, so more bits should be better."""
    learned = variant.learned.method if variant.learned else variant.rounds_for_text
    if variant.quantization is not None:
        how = variant.quantization
        return (how.mode, how.group_size, variant.overrides, learned, variant.experts)
    if variant.goal is not None:
        return ("goal", variant.group_size, learned, variant.experts)
    if variant.gguf is not None:
        return ("gguf", variant.gguf.of, variant.gguf.weighed)
    if variant.learned is not None:
        return ("tuned", variant.learned.start)
    return ("recipe", variant.group_size, learned, variant.experts) if variant.recipe else None


@dataclass(frozen=True)
class Threshold:
    """The outcome of `find_threshold`.

    `misses` are the missed conditions of each target that was asked. `open` are the conditions that hold only
    for the figure and not for its whole interval. `built` are the targets that were built or checked.
    """

    search: Search
    misses: Mapping[str, Sequence[Missed]]
    open: Mapping[str, Sequence[Doubt]]
    built: tuple[str, ...]

    def verdict(self, name: str) -> Verdict:
        passed = self.search.passes.get(name)
        return "not measured" if passed is None else "passes" if passed else "misses"

    def details(self, name: str) -> str:
        """What a target misses, or which of its figures are not certain."""
        return "; ".join(map(str, self.misses.get(name) or self.open.get(name, ())))


def find_threshold(project: Project, model: str, deliver: Callable[[str], object], emit: Emit) -> Threshold:
    """Finds the smallest target of `model` that meets the requirements. `deliver` builds a target by name.

    Raises NonePasses when no target passes, NothingToRequire without requirements, and other BuildErrors.
    """
    judged = Judged(project, model)
    built: list[str] = []

    def passes(name: str) -> bool:
        deliver(name)
        built.append(name)
        return judged.judge(name, evaluate(project, judged.plans[name], emit))

    known = judged.known()
    found = search(judged.order, passes, known, lambda name: family_of(judged.plans[name].target.variant))
    if found.found is None:
        largest = judged.order[-1]
        raise NonePasses(model=model, name=largest, what="; ".join(map(str, judged.misses[largest])))
    return Threshold(found, judged.misses, judged.open, tuple(built))


def open_candidates(project: Project, model: str, width: int) -> list[str]:
    """The targets of a model that are to be measured next, if `width` are measured at once.

    Raises NothingToRequire, and what keeps the model from being planned.
    """
    judged = Judged(project, model)
    families = {name: family_of(plan.target.variant) for name, plan in judged.plans.items()}
    return candidates(judged.order, judged.known(), width, families.__getitem__)


def known_threshold(project: Project, model: str) -> Threshold:
    """What the results that are known say, without measuring: `found` is None where none is known to pass.

    Raises NothingToRequire, and what keeps the model from being planned.
    """
    judged = Judged(project, model)
    known = judged.known()
    found = next((name for name in judged.order if known.get(name)), None)
    return Threshold(Search(tuple(judged.order), known, found), judged.misses, judged.open, ())


class Judged:
    """The targets of a model, small to large, and what their results say.

    Raises NothingToRequire, and what keeps the model from being planned.
    """

    def __init__(self, project: Project, model: str) -> None:
        self.require = project.spec.models[model].require
        if not self.require:
            raise NothingToRequire(model=model)
        self.project = project
        self.plans = {p.name: p for p in project.plan.resolved() if p.target.model.name == model}
        if not self.plans:
            raise _reason(project, model)
        self.order = sorted(self.plans, key=lambda name: (_weight_bytes(project, self.plans[name]), name))
        self.misses: dict[str, Sequence[Missed]] = {}
        self.open: dict[str, Sequence[Doubt]] = {}
        self.figures: dict[str, Mapping[Metric, float]] = {}  # of those that are required

    def verdict(self, name: str) -> Verdict:
        """What is known of a target."""
        short = self.misses.get(name)
        return "not measured" if short is None else "misses" if short else "passes"

    def judge(self, name: str, results: Mapping[str, Result]) -> bool:
        self.misses[name], self.open[name] = missed(self.require, results), doubts(self.require, results)
        found = {each.metric: figure_of(results, each.metric) for each in self.require}
        self.figures[name] = {metric: figure.value for metric, figure in found.items() if figure}
        return not self.misses[name]

    def known(self) -> dict[str, bool]:
        """Target -> whether it passes, of those whose required figures are all in the store."""
        found = {}
        for name, plan in self.plans.items():
            if _all_known(results := measured(self.project, plan), plan):
                found[name] = self.judge(name, results)
        return found


def _weight_bytes(project: Project, plan: TargetPlan) -> int:
    """Bytes of the shards. For a learned target, an estimate until the target has been made."""
    manifest = records.read_manifest(project.store, plan.key) if plan.needs else None
    return int(manifest.measures["shard_bytes"]) if manifest else nominal_size(plan)


def _reason(project: Project, model: str) -> BuildError:
    """Why no target of a model can be built, as its first target says."""
    first = next(plan for plan in project.plan.targets.values() if plan.target.model.name == model)
    assert isinstance(first, Unresolved)
    return first.error or EvaluationFailed(target=first.name, what=first.reason)


def _all_known(results: Mapping[str, object], plan: TargetPlan) -> bool:
    return {condition.suite for condition in plan.target.model.require} <= set(results)


def answer(search: Search) -> str:
    """The answer as one sentence: what was found, and what was not measured."""
    if search.found is None:
        return "no target is known to pass"
    if not search.unasked:
        return f"{search.found} is the smallest that passes"
    return f"{search.found} is the smallest found; smaller ones not measured: {', '.join(search.unasked)}"
