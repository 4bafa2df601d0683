"""Searches the fewest bytes with which a target meets what its model requires, by measuring.

Sizes are tried from coarse to fine: the same bits for every weight first, then eighths of the step between
the bits that miss and the bits that pass. One half of the questions judges them. The other half measures the
target that was found, so that no figure is better because it was searched for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from builder.build.allocation import choose_bits
from builder.build.calibrated import build_one
from builder.build.sharing import fetch_records
from builder.build.waiting import waiting
from builder.console.events import Emit, Note
from builder.console.words import size_text
from builder.errors import BuildError, SourceChanged
from builder.evaluate.results import missed
from builder.evaluate.run import evaluate, measured
from builder.evaluate.threshold import search
from builder.keys import Key
from builder.plan.allocation import Allocation, Tried
from builder.plan.goals import allocation_key, between, rungs, sized, with_allocation
from builder.plan.planning import Facts, facts_of, plan_alone
from builder.plan.types import TargetPlan, Unresolved
from builder.project.measurements import keep
from builder.project.project import Project
from builder.project.roots import keys_of
from builder.sources.facts import Unknown
from builder.spec.types import Target
from builder.store.care import drop
from builder.store.locks import acquire, build_session


class NoSizePasses(BuildError):
    """{target}: no size meets the requirements. With {bits} bits for every weight it {said}"""

    hint = "Require less, or look at the unquantized model first: does it pass?"


def search_size(project: Project, target: Target, emit: Emit) -> Allocation:
    """What was chosen. Measures nothing where it is in the store. Raises BuildError."""
    sources = project.planned_from()
    facts, questions = facts_of(target, sources), sources.questions[target.model.name]
    if isinstance(facts, Unresolved):
        raise SourceChanged(source=f"model:{target.name}", path=facts.reason)
    if isinstance(questions, Unknown):
        raise questions.error or SourceChanged(source=f"model:{target.name}", path=questions.reason)
    assert facts.text is not None
    key = allocation_key(target, facts.base, facts.adapter, facts.text, sources.toolchain, questions)
    fetch_records(project, [key], emit)
    with acquire(project.store, [key], waiting(target.name, emit), "search-"):
        if (known := project.allocation(key)) is not None:
            return known
        found = _Search(project, target, facts, sources.toolchain, emit).run()
        keep(project.store, key, "allocation", found.to_text(), target.name)
    return found


@dataclass(frozen=True)
class _Candidate:
    """A size that is measured: what was chosen for it, and its plan."""

    chosen: Allocation
    plan: TargetPlan


class _Search:
    def __init__(self, project: Project, target: Target, facts: Facts, toolchain: str, emit: Emit) -> None:
        self.project, self.target, self.facts = project, target, facts
        self.toolchain, self.emit = toolchain, emit
        # Under a name of its own: the target's name never shows a model that may miss what is required.
        self.candidate = Target(target.model, replace(target.variant, name=f"{target.variant.name}.search"))
        self.uniform = {nbytes: bits for bits, nbytes in rungs(target, facts.base).items()}
        self.made: dict[int, _Candidate] = {}  # by bytes
        self.tried: dict[int, Tried] = {}

    def run(self) -> Allocation:
        """Raises NoSizePasses, BuildError."""
        sizes = list(self.uniform)
        best = self._search(sizes)
        if best is None:
            self._drop(frozenset())
            most = max(self.tried)
            raise NoSizePasses(target=self.target.name, bits=self.uniform[most], said=self.tried[most].said)
        if (at := sizes.index(best)) > 0:
            best = self._search([sizes[at - 1], *between(sizes[at - 1], best), best]) or best
        self._drop(keys_of(self.made[best].plan))
        return replace(self.made[best].chosen, tried=tuple(self.tried.values()))

    def _search(self, sizes: list[int]) -> int | None:
        """The smallest of `sizes` that passes."""
        known = {str(nbytes): each.passes for nbytes, each in self.tried.items() if nbytes in sizes}
        names = [str(nbytes) for nbytes in sizes]
        found = search(names, lambda name: self._passes(int(name)), known).found
        return int(found) if found is not None else None

    def _passes(self, nbytes: int) -> bool:
        """Builds and measures one size."""
        project, emit = self.project, self.emit
        chosen = self._choice(nbytes)
        plan = plan_alone(with_allocation(self.candidate, chosen), self.facts, self.toolchain)
        self.made[nbytes] = _Candidate(chosen, plan)
        asked = project.spec.search_suites(self.target)
        with build_session(project.store, keys_of(plan)):
            if len(measured(project, plan, asked)) < len(asked):  # a search that was killed had measured some
                build_one(project, plan, emit)
            results = evaluate(project, plan, emit, suites=asked)
        short = missed(self.target.model.require, results)
        said = f"misses {'; '.join(map(str, short))}" if short else "passes"
        self.tried[nbytes] = Tried(plan.bits_per_weight, plan.size, not short, said)
        size = f"{plan.bits_per_weight:.4g} bits per weight, {size_text(plan.size)}"
        emit(Note(f"{self.target.name}: {size}: {said}, on one half of the questions"))
        self._drop(self._needed())
        return not short

    def _choice(self, nbytes: int) -> Allocation:
        if (bits := self.uniform.get(nbytes)) is not None:
            return Allocation(bits, {}, {}, 0.0, 0.0, 0, kept=False)
        return choose_bits(self.project, sized(self.target, nbytes), self.emit)

    def _needed(self) -> frozenset[Key]:
        """Of what was made, what the search goes on with: the smallest that passes, and the bits below it."""
        best = min((nbytes for nbytes, each in self.tried.items() if each.passes), default=None)
        below = [nbytes for nbytes in self.tried if nbytes in self.uniform and (not best or nbytes < best)]
        kept = {*([best] if best else []), *([max(below)] if below else [])}
        return frozenset().union(*(keys_of(self.made[nbytes].plan) for nbytes in kept))

    def _drop(self, needed: frozenset[Key]) -> None:
        """Frees the disk of what the search made and does not need any more. Records stay."""
        going = [each.plan.key for each in self.made.values()]
        folder = self.project.spec.file.parent
        drop.drop(self.project.store, {self.candidate.name: going}, folder, keep=needed)
