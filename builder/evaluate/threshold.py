"""The smallest target of a model that meets its requirements, building and measuring only what that needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from builder.errors import BuildError
from builder.evaluate.process import EvaluationFailed
from builder.evaluate.results import Missed, Result, missed
from builder.evaluate.run import evaluate, measured
from builder.plan import TargetPlan, Unresolved, nominal_size
from builder.progress import Emit
from builder.project import Project
from builder.store import records


class NothingToRequire(BuildError):
    """model "{model}" has no requirements."""

    exit_code = 3
    hint = 'Add [model.{model}.require], for example "routing.accuracy" = ">= 0.95".'


class NonePasses(BuildError):
    """threshold:{model}: no target meets the requirements; {name}, the largest, misses {what}"""


@dataclass(frozen=True)
class Search:
    """`order` from small to large, `passes` what was found of those that were asked, `found` the smallest
    that passes. `exceptions`: pairs (smaller, larger) where the smaller passes and the larger does not, so
    that size does not order them.
    """

    order: tuple[str, ...]
    passes: Mapping[str, bool]
    found: str | None

    @property
    def exceptions(self) -> tuple[tuple[str, str], ...]:
        known = [name for name in self.order if name in self.passes]
        return tuple(
            (small, large)
            for at, small in enumerate(known)
            for large in known[at + 1 :]
            if self.passes[small] and not self.passes[large]
        )


def search(order: Sequence[str], passes: Callable[[str], bool], known: Mapping[str, bool]) -> Search:
    """Bisects `order`, asking `passes` for what is not known.

    Right where whatever passes is passed by all that is larger. Where what is known contradicts that, every
    target from the small end is asked until one passes.
    """
    asked = dict(known)

    def ask(name: str) -> bool:
        if name not in asked:
            asked[name] = passes(name)
        return asked[name]

    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        if ask(order[middle]):
            high = middle
        else:
            low = middle + 1
    result = Search(tuple(order), dict(asked), order[low] if low < len(order) else None)
    if result.exceptions:
        found = next((name for name in order if ask(name)), None)
        result = Search(tuple(order), dict(asked), found)
    return result


@dataclass(frozen=True)
class Threshold:
    """A search, and what each target that was asked misses."""

    search: Search
    misses: Mapping[str, Sequence[Missed]]
    built: tuple[str, ...]


def find_threshold(project: Project, model: str, deliver: Callable[[str], object], emit: Emit) -> Threshold:
    """`deliver` builds a target by name. Raises BuildError, NonePasses when no target passes."""
    require = project.spec.models[model].require
    if not require:
        raise NothingToRequire(model=model)
    plans = {p.name: p for p in project.plan.resolved() if p.target.model.name == model}
    if not plans:
        raise _reason(project, model)
    order = sorted(plans, key=lambda name: (_weight_bytes(project, plans[name]), name))
    misses: dict[str, Sequence[Missed]] = {}
    built: list[str] = []

    def judge(name: str, results: Mapping[str, Result]) -> bool:
        misses[name] = missed(require, results)
        return not misses[name]

    def passes(name: str) -> bool:
        deliver(name)
        built.append(name)
        return judge(name, evaluate(project, plans[name], emit))

    known = {}
    for name, plan in plans.items():
        if _all_known(results := measured(project, plan), plan):
            known[name] = judge(name, results)
    found = search(order, passes, known)
    if found.found is None:
        largest = order[-1]
        raise NonePasses(model=model, name=largest, what="; ".join(map(str, misses[largest])))
    return Threshold(found, misses, tuple(built))


def _weight_bytes(project: Project, plan: TargetPlan) -> int:
    """As a learned target was made; as it will about be, before."""
    manifest = records.read_manifest(project.store, plan.key) if plan.needs else None
    return int(manifest.measures["shard_bytes"]) if manifest else nominal_size(plan)


def _reason(project: Project, model: str) -> BuildError:
    """Why nothing of a model can be built: what its first target says."""
    first = next(plan for plan in project.plan.targets.values() if plan.target.model.name == model)
    assert isinstance(first, Unresolved)
    return first.error or EvaluationFailed(target=first.name, what=first.reason)


def _all_known(results: Mapping[str, object], plan: TargetPlan) -> bool:
    return {condition.suite for condition in plan.target.model.require} <= set(results)
