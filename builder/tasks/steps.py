"""The actions of the tasks. Each action is a value that can be sent to a worker process."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.util import find_spec

from builder.console.events import Emit
from builder.errors import BuildError
from builder.plan.types import TargetPlan, Unresolved
from builder.project.machines import cluster_address
from builder.project.project import Project
from builder.project.toolchain import device
from builder.sources.facts import NOT_YET, Unknown
from builder.spec.types import Adapter, Base, Variant
from builder.tasks.uptodate import Selection

UNREGISTERED = (
    "each target is a pass of its own: doit uses a reporter that is not builder's, and does not know"
    " builder's `run` command. `builder init` prints the lines that teach it."
)


def without_kernels() -> str:
    """Names the extra whose kernels are missing here. Empty where they are there or a GPU computes."""
    if not sys.platform.startswith("linux") or find_spec("numba"):
        return ""
    return (
        ""
        if device() == "cuda"
        else 'the extra "cpu" is not installed: without its kernels quantizing takes twice as long'
    )


def read_what_was_left(project: Project, name: str) -> None:
    """Reads the base of a target, where its task left that to a build that has not come yet."""
    plan = project.plan.targets[name]
    if isinstance(plan, Unresolved) and plan.error is None and NOT_YET in plan.reason:
        from builder.build.prepare import prepare_sources
        from builder.console.display import showing

        with showing() as emit:
            prepare_sources(project, plan.target, emit)


@dataclass
class Step:
    """An action of doit. It runs, and turns a BuildError into a one-line failure of doit."""

    project: Project

    def run(self) -> None:
        raise NotImplementedError

    def tell(self) -> None:
        """Prints the answer of a task that is up to date, where it has one. Raises BuildError."""

    def __call__(self) -> object:
        from doit.exceptions import TaskError, TaskFailed

        try:
            self.run()
        except BuildError as error:  # doit exits with 1 for TaskFailed, and with 2 for TaskError
            fail = (TaskFailed if error.exit_code == 1 else TaskError)(error.report, report=True)
            fail.error = type(error).__name__  # for the reporter, which may be in another process
            return fail
        return None


@dataclass
class PrepareBase(Step):
    """Downloads or imports a base, fingerprints and inspects it. Leaves to a build what that reads anyway."""

    base: Base
    selection: Selection

    def run(self) -> None:
        from builder.build.first_pass import reads
        from builder.build.prepare import fetch_base, prepare_base
        from builder.console.display import showing

        # A base that is known already is prepared again only by `doit -a`.
        again = not isinstance(self.project.sources.base_facts(self.base), Unknown)
        with showing() as emit:
            fetch_base(self.base, emit)
            self.project.forget_plan()
            if not again and reads(self.project, self.base, self.selection.targets):
                return
            prepare_base(self.project, self.base, emit, inspect_again=again)


@dataclass
class PrepareAdapter(Step):
    """Checks and fingerprints an adapter."""

    adapter: Adapter

    def run(self) -> None:
        from builder.build.prepare import prepare_adapter
        from builder.console.display import showing

        with showing() as emit:
            prepare_adapter(self.project, self.adapter, emit)


@dataclass
class CheckCalibration(Step):
    """Checks that the calibration text of a variant exists, before anything is made for the variant."""

    variant: Variant

    def run(self) -> None:
        from builder.build.prepare import prepare_calibration
        from builder.console.display import showing

        with showing() as emit:
            prepare_calibration(self.project, self.variant, emit)


@dataclass
class BuildTarget(Step):
    """Builds a target, together with every other target of its model that this run includes."""

    name: str
    selection: Selection

    def run(self) -> None:
        from builder.console.display import prints_answers, showing
        from builder.console.events import Note
        from builder.release.delivery import deliver
        from builder.tasks.tables import print_built

        with showing() as emit:
            if not self.selection.targets:
                emit(Note(UNREGISTERED))
            if hint := without_kernels():
                emit(Note(hint))
            if cluster_address():
                from builder.cluster.spreading import spread_builds

                spread_builds(self.project, self.name, self.selection.targets, emit)
            results = deliver(self.project, self.name, self.selection.targets, self.selection.named, emit)
        if prints_answers():
            print_built(results)


@dataclass
class Evaluate(Step):
    """Measures a target, prints its figures and its verdict, and fails if the target misses a requirement."""

    name: str
    selection: Selection

    def run(self) -> None:
        from builder.console.display import prints_answers, showing
        from builder.evaluate.process import EvaluationFailed
        from builder.evaluate.run import check, evaluate
        from builder.release.scores import refresh
        from builder.tasks.tables import print_results

        self.project.forget_plan()
        read_what_was_left(self.project, self.name)
        plan = self.project.plan.targets[self.name]
        if not isinstance(plan, TargetPlan):  # the sources have disappeared since the target was built
            raise EvaluationFailed(target=self.name, what=plan.reason)
        with showing() as emit:
            if cluster_address() and not self.selection.again:
                from builder.cluster.spreading import spread_evaluations

                spread_evaluations(self.project, self.name, self.selection.measured, emit)
            results = evaluate(self.project, plan, emit, again=self.selection.again)
        refresh(self.project, plan)
        if prints_answers():
            print_results(plan.target, results)
        check(plan, results)

    def tell(self) -> None:
        from builder.evaluate.run import measured
        from builder.tasks.tables import print_results

        plan = self.project.plan.targets[self.name]
        if isinstance(plan, TargetPlan):
            print_results(plan.target, measured(self.project, plan))


@dataclass
class ReleaseStep(Step):
    """A step after which production shows something else. What a release publishes follows."""

    def publish(self, emit: Emit) -> None:
        if not self.project.spec.published:
            return
        from builder.console.events import Note
        from builder.publish.publication import outcome, publish_release

        self.project.forget_plan()
        for made in publish_release(self.project, emit):
            emit(Note(outcome(made)))


@dataclass
class Release(ReleaseStep):
    """Moves models/production to its declared target."""

    def run(self) -> None:
        from builder.console.display import showing
        from builder.console.events import Note
        from builder.release.production import PRODUCTION, is_current, release

        self.project.forget_plan()
        with showing() as emit:
            if not is_current(self.project):
                release(self.project, emit)
                emit(Note(f"{PRODUCTION} is now {self.project.spec.production}"))
            self.publish(emit)

    def tell(self) -> None:
        from builder.tasks.tables import print_release

        print_release(self.project)


@dataclass
class Rollback(ReleaseStep):
    """Exchanges models/production and its former target."""

    def run(self) -> None:
        from builder.console.display import showing
        from builder.console.events import Note
        from builder.release.production import PRODUCTION, rollback

        with showing() as emit:
            emit(Note(f"{PRODUCTION} is now {rollback(self.project)}"))
            self.publish(emit)


@dataclass
class Withdraw(Step):
    """Takes models/production and its former target away."""

    def run(self) -> None:
        from builder.release.production import withdraw

        withdraw(self.project)


@dataclass
class Clean(Step):
    """Drops the bytes of targets. Their records stay."""

    names: tuple[str, ...]

    def run(self) -> None:
        from builder.console.display import showing
        from builder.release.delivery import clean

        with showing() as emit:
            clean(self.project, self.names, emit)
