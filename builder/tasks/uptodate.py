"""The `uptodate` of each task: values that ask the plan and the store. `doit info` shows their str()."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from builder.errors import BuildError
from builder.plan.types import TargetPlan
from builder.project.project import Project
from builder.sources.facts import Unknown
from builder.spec.types import Adapter, Base
from builder.store import records


@dataclass
class Selection:
    """The targets of this run. The first task of a model builds all of them in one pass.

    `named` are the targets that were named one by one, `measured` those that are to be measured. `again`:
    what is measured already is measured anew.
    """

    targets: set[str] = field(default_factory=set)
    named: set[str] = field(default_factory=set)
    measured: set[str] = field(default_factory=set)
    again: bool = False


SELECTED = Selection()


@dataclass
class BaseReady:
    """uptodate of base:<name>: the base is fingerprinted and inspected."""

    project: Project
    base: Base

    def __call__(self, task: object = None, values: object = None) -> bool:
        facts = _asked(lambda: self.project.sources.base_facts(self.base))
        return not isinstance(facts, Unknown)

    def __str__(self) -> str:
        facts = _asked(lambda: self.project.sources.base_facts(self.base))
        reason = facts.reason if isinstance(facts, Unknown) else "is fingerprinted"
        return f"base {self.base.name} {reason}"


@dataclass
class AdapterReady:
    """uptodate of adapter:<name>: the adapter is fingerprinted and fits its base."""

    project: Project
    adapter: Adapter

    def __call__(self, task: object = None, values: object = None) -> bool:
        return self.project.sources.adapter_checked(self.adapter)

    def __str__(self) -> str:
        if self.project.sources.adapter_checked(self.adapter):
            return f"adapter {self.adapter.name} is fingerprinted and fits its base"
        facts = _asked(lambda: self.project.sources.adapter_facts(self.adapter))
        reason = facts.reason if isinstance(facts, Unknown) else "has not been checked against its base yet"
        return f"adapter {self.adapter.name} {reason}"


@dataclass
class TargetReady:
    """uptodate of model:<target>: the target is built. Also prunes and pins what this run requires."""

    project: Project
    name: str

    def __call__(self, task: object = None, values: object = None) -> bool:
        from builder.project.state import target_state

        try:
            built = self.project.is_built(self.name)
            if not built:
                plan = self.project.plan.targets[self.name]
                if not isinstance(plan, TargetPlan):
                    self.project.forget_plan()  # the sources may have been prepared since the last plan
                    plan = self.project.plan.targets[self.name]
                built = target_state(self.project.store, plan).built
        except BuildError:
            return False  # the action reports it
        if built:
            from builder.project.roots import keep_registered

            keep_registered(self.project)  # so that gc in another checkout knows about this target
            if key := self.project.keys.get(self.name):
                records.mark_used(self.project.store, key)
            self._settle()
        return built

    def _settle(self) -> None:
        """Does for a built target what a build would do: pins it if named, and prunes its intermediates."""
        from builder.build.intermediates import prune_intermediates
        from builder.console.display import showing
        from builder.store import pins

        variant = self.project.spec.target(self.name).variant
        if variant.intermediate and self.name in SELECTED.named:
            pins.pin(self.project.store, self.name)
        if variant.learned is not None and self.name in SELECTED.targets:
            with showing() as emit:
                prune_intermediates(self.project, emit, SELECTED.targets)

    def __str__(self) -> str:
        from builder.project.state import target_state

        try:
            state = target_state(self.project.store, self.project.plan.targets[self.name])
        except BuildError as error:
            return str(error)
        return f"{state.name} is {state.kind}: {state.reason}"


@dataclass
class Evaluated:
    """uptodate of eval:<name>: every result is in the store, and every requirement holds."""

    project: Project
    name: str
    selection: Selection

    def __call__(self, task: object = None, values: object = None) -> bool:
        from builder.evaluate.run import complete

        try:
            plan = self.project.plan.targets[self.name]
            if self.selection.again:
                return False
            return isinstance(plan, TargetPlan) and complete(self.project, plan)
        except BuildError:
            return False  # the action reports it


@dataclass
class Released:
    """uptodate of release:production: models/production shows the declared target as it is built now."""

    project: Project

    def __call__(self, task: object = None, values: object = None) -> bool:
        from builder.release.production import is_current

        try:
            # Each place of a publication is asked, so that a release that was interrupted goes on.
            return is_current(self.project) and not self.project.spec.published
        except BuildError:
            return False  # the action reports it


def _asked(facts: Callable[[], object]) -> object:
    try:
        return facts()
    except BuildError as error:
        return Unknown(str(error))
