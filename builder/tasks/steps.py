"""What the tasks do: each is a value that a worker process can receive."""

from __future__ import annotations

from dataclasses import dataclass

from builder.errors import BuildError
from builder.plan.types import TargetPlan
from builder.project.project import Project
from builder.sources.facts import Unknown
from builder.spec.types import Adapter, Base, Variant
from builder.tasks.uptodate import Selection


@dataclass
class Step:
    """An action of doit: runs, and turns a BuildError into doit's one-line failure."""

    project: Project

    def run(self) -> None:
        raise NotImplementedError

    def __call__(self) -> object:
        from doit.exceptions import TaskError, TaskFailed

        try:
            self.run()
        except BuildError as error:  # doit ends with 1 for a failure, with 2 for an error
            fail = (TaskFailed if error.exit_code == 1 else TaskError)(error.report, report=True)
            fail.error = type(error).__name__  # for the reporter, which may be in another process
            return fail
        return None


@dataclass
class PrepareBase(Step):
    base: Base

    def run(self) -> None:
        from builder.build.prepare import prepare_base
        from builder.console.display import showing

        again = not isinstance(self.project.sources.base_facts(self.base), Unknown)  # run by -a
        with showing() as emit:
            prepare_base(self.project, self.base, emit, inspect_again=again)


@dataclass
class PrepareAdapter(Step):
    adapter: Adapter

    def run(self) -> None:
        from builder.build.prepare import prepare_adapter
        from builder.console.display import showing

        with showing() as emit:
            prepare_adapter(self.project, self.adapter, emit)


@dataclass
class CheckCalibration(Step):
    """Before anything is made for it: is the text there?"""

    variant: Variant

    def run(self) -> None:
        from builder.build.prepare import prepare_calibration
        from builder.console.display import showing

        with showing() as emit:
            prepare_calibration(self.project, self.variant, emit)


@dataclass
class BuildTarget(Step):
    """Builds a target, and with it every other target of its model that this run asked for."""

    name: str
    selection: Selection

    def run(self) -> None:
        from builder.console.display import mode, showing
        from builder.release.delivery import deliver
        from builder.tasks.tables import print_built

        with showing() as emit:
            results = deliver(self.project, self.name, self.selection.targets, self.selection.named, emit)
        if mode() in ("live", "plain"):
            print_built(results)


@dataclass
class Evaluate(Step):
    name: str

    def run(self) -> None:
        from builder.console.display import mode, showing
        from builder.evaluate.process import EvaluationFailed
        from builder.evaluate.run import check, evaluate
        from builder.release.scores import refresh
        from builder.tasks.tables import print_results

        self.project.forget_plan()
        plan = self.project.plan.targets[self.name]
        if not isinstance(plan, TargetPlan):  # its sources have gone since it was built
            raise EvaluationFailed(target=self.name, what=plan.reason)
        with showing() as emit:
            results = evaluate(self.project, plan, emit)
        refresh(self.project, plan)
        if mode() in ("live", "plain"):
            print_results(self.name, results)
        check(plan, results)


@dataclass
class FindThreshold(Step):
    model: str

    def run(self) -> None:
        from builder.console.display import mode, showing
        from builder.evaluate.threshold import find_threshold
        from builder.project.result_keys import needs_directory
        from builder.release.delivery import deliver
        from builder.tasks.tables import print_threshold

        self.project.forget_plan()
        with showing() as emit:

            def build(name: str) -> None:
                if needs_directory(self.project.spec, self.project.spec.target(name)):
                    deliver(self.project, name, {name}, (), emit)

            found = find_threshold(self.project, self.model, build, emit)
        if mode() in ("live", "plain"):
            print_threshold(self.project, found)


@dataclass
class Release(Step):
    def run(self) -> None:
        from builder.console.display import showing
        from builder.console.events import Note
        from builder.release.production import PRODUCTION, release

        self.project.forget_plan()
        with showing() as emit:
            release(self.project, emit)
            emit(Note(f"{PRODUCTION} is now {self.project.spec.production}"))


@dataclass
class Rollback(Step):
    def run(self) -> None:
        from builder.console.display import showing
        from builder.console.events import Note
        from builder.release.production import PRODUCTION, rollback

        with showing() as emit:
            emit(Note(f"{PRODUCTION} is now {rollback(self.project)}"))


@dataclass
class Withdraw(Step):
    def run(self) -> None:
        from builder.release.production import withdraw

        withdraw(self.project)


@dataclass
class Clean(Step):
    names: tuple[str, ...]

    def run(self) -> None:
        from builder.console.display import showing
        from builder.release.delivery import clean

        with showing() as emit:
            clean(self.project, self.names, emit)
