"""Finds the smallest variant that passes with every seed. One seed is one sample of a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from builder.console.events import Emit
from builder.console.states import Verdict
from builder.evaluate.run import evaluate
from builder.evaluate.threshold import Judged, NonePasses, Search, family_of, search
from builder.project.project import Project
from builder.spec.types import Metric, Model


@dataclass(frozen=True)
class SeedsThreshold:
    """The outcome of `find_seeds_threshold`.

    The names in `search` are those of variants. `judged` are the models of the seeds by name. A variant is
    asked with one seed after the other, until it misses with one of them.
    """

    judged: Mapping[str, Judged]
    search: Search

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(self.judged)

    @property
    def required(self) -> tuple[Metric, ...]:
        """The figures that are required, each once."""
        first = next(iter(self.judged.values()))
        return tuple(dict.fromkeys(condition.metric for condition in first.require))

    def verdict(self, variant: str, model: str) -> Verdict:
        return self.judged[model].verdict(f"{model}_{variant}")

    def values(self, variant: str, metric: Metric) -> tuple[float, ...]:
        """A figure of a variant with each seed that was measured."""
        figures = (each.figures.get(f"{model}_{variant}", {}) for model, each in self.judged.items())
        return tuple(found[metric] for found in figures if metric in found)


def find_seeds_threshold(
    project: Project, name: str, models: Sequence[Model], deliver: Callable[[str], object], emit: Emit
) -> SeedsThreshold:
    """The smallest variant whose targets meet the requirements with every seed. `deliver` builds a target.

    `models` are those of the seeds, `name` is what they were declared as. Raises NonePasses when every
    variant misses with some seed, NothingToRequire without requirements, and other BuildErrors.
    """
    judged = {model.name: Judged(project, model.name) for model in models}
    for each in judged.values():
        each.known()
    first = next(iter(judged.values()))
    in_order = [first.plans[target].target.variant for target in first.order]
    variants = {variant.name: variant for variant in in_order}

    def passes(variant: str) -> bool:
        return all(ask(f"{model}_{variant}", each) for model, each in judged.items())

    def ask(target: str, each: Judged) -> bool:
        if each.verdict(target) == "not measured":
            deliver(target)
            each.judge(target, evaluate(project, each.plans[target], emit))
        return each.verdict(target) == "passes"

    known = {}
    for variant in variants:
        verdicts = [each.verdict(f"{model}_{variant}") for model, each in judged.items()]
        if "misses" in verdicts or "not measured" not in verdicts:
            known[variant] = "misses" not in verdicts
    found = search([*variants], passes, known, lambda variant: family_of(variants[variant]))
    if found.found is None:
        largest = [*variants][-1]
        raise NonePasses(model=name, name=largest, what=_missed(judged, largest))
    return SeedsThreshold(judged, found)


def _missed(judged: Mapping[str, Judged], variant: str) -> str:
    """What a variant misses with each seed that was asked."""
    short = {model: each.misses.get(f"{model}_{variant}", ()) for model, each in judged.items()}
    return "; ".join(f"{model}: {', '.join(map(str, missed))}" for model, missed in short.items() if missed)


def answer(search: Search) -> str:
    """The answer as one sentence."""
    if search.unasked:
        rest = ", ".join(search.unasked)
        return f"{search.found} is the smallest found that passes with every seed; not measured: {rest}"
    return f"{search.found} is the smallest that passes with every seed"
