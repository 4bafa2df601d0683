"""Finds the smallest variant that passes with every seed. One seed is one sample of a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from builder.console.events import Emit
from builder.console.states import Verdict
from builder.evaluate.run import evaluate
from builder.evaluate.threshold import Judged, NonePasses, Search, family_of, search
from builder.project.project import Project
from builder.spec.types import Model


@dataclass(frozen=True)
class SeedsThreshold:
    """The outcome of `find_seeds_threshold`.

    The names in `search` are those of variants. `verdicts` has the verdict of each target that was asked, by
    variant and model. A variant is asked with one seed after the other, until it misses with one of them.
    """

    models: tuple[str, ...]
    search: Search
    verdicts: Mapping[str, Mapping[str, Verdict]]
    misses: Mapping[str, str]

    def verdict(self, variant: str, model: str) -> Verdict:
        return self.verdicts.get(variant, {}).get(model, "not measured")


def find_seeds_threshold(
    project: Project, name: str, models: Sequence[Model], deliver: Callable[[str], object], emit: Emit
) -> SeedsThreshold:
    """The smallest variant whose targets meet the requirements with every seed. `deliver` builds a target.

    `models` are those of the seeds, `name` is what they were declared as. Raises NonePasses when every
    variant misses with some seed, NothingToRequire without requirements, and other BuildErrors.
    """
    judged = {model.name: Judged(project, model.name) for model in models}
    first = next(iter(judged.values()))
    variant_of = {plan.name: plan.target.variant for plan in first.plans.values()}
    order = [variant_of[target].name for target in first.order]
    variants = {variant.name: variant for variant in variant_of.values()}
    verdicts: dict[str, dict[str, Verdict]] = {}

    def told(variant: str, model: str, passed: bool) -> bool:
        verdicts.setdefault(variant, {})[model] = "passes" if passed else "misses"
        return passed

    for model, each in judged.items():
        for target, passed in each.known().items():
            told(each.plans[target].target.variant.name, model, passed)

    def passes(variant: str) -> bool:
        return all(ask(variant, model) for model in judged)

    def ask(variant: str, model: str) -> bool:
        if (known := verdicts.get(variant, {}).get(model)) is not None:
            return known == "passes"
        target, each = f"{model}_{variant}", judged[model]
        deliver(target)
        return told(variant, model, each.judge(target, evaluate(project, each.plans[target], emit)))

    found = search(order, passes, _known(verdicts, len(models)), lambda variant: family_of(variants[variant]))
    misses = {
        variant: "; ".join(
            f"{model}: {', '.join(map(str, missed))}"
            for model, each in judged.items()
            if (missed := each.misses.get(f"{model}_{variant}"))
        )
        for variant in order
    }
    if found.found is None:
        raise NonePasses(model=name, name=order[-1], what=misses[order[-1]])
    return SeedsThreshold(tuple(judged), found, verdicts, misses)


def _known(verdicts: Mapping[str, Mapping[str, Verdict]], seeds: int) -> dict[str, bool]:
    """What the verdicts of single seeds say about all of them. Nothing where one of them is open."""
    found = {}
    for variant, of_seed in verdicts.items():
        if "misses" in of_seed.values():
            found[variant] = False
        elif len(of_seed) == seeds:
            found[variant] = True
    return found


def answer(search: Search) -> str:
    """The answer as one sentence."""
    if search.unasked:
        rest = ", ".join(search.unasked)
        return f"{search.found} is the smallest found that passes with every seed; not measured: {rest}"
    return f"{search.found} is the smallest that passes with every seed"
