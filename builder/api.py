"""What the commands do, from Python, for notebooks and scripts: `from builder import Project`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from builder.project import project
from builder.project.targets import find_target, find_targets
from builder.spec.place import DECLARATION, project_folder
from builder.spec.types import Spec

if TYPE_CHECKING:
    from builder.build.one_pass import Built
    from builder.build.pulling import PulledTarget
    from builder.console.events import Emit
    from builder.evaluate.records import Record
    from builder.evaluate.threshold import Threshold
    from builder.plan.changes import Why
    from builder.plan.types import TargetPlan
    from builder.project.forecast import Forecast
    from builder.project.status import Status
    from builder.store.care.policy import GcPlan
    from builder.store.care.verify import Report


class Project:
    """One artifacts.toml and its store.

    >>> project = Project()                      # doctest: +SKIP
    >>> project.build("phase8_5bit")             # doctest: +SKIP
    >>> mlx_lm.load(project.path("phase8_5bit")) # doctest: +SKIP

    Every method raises BuildError for problems that a person can correct. `emit` gets the events of a run.
    Without it, progress is shown as on the command line. `builder.silent` shows nothing.
    """

    def __init__(self, file: str | Path | None = None) -> None:
        """Without a file: the artifacts.toml of this folder, or of the nearest folder above."""
        if file is None:
            file = (project_folder(Path.cwd()) or Path()) / DECLARATION
        self._project = project.Project.load(Path(file))

    def __repr__(self) -> str:
        return f"<Project {self.spec.file}: {len(self.spec.models)} models, {len(self.targets)} targets>"

    def _repr_html_(self) -> str:
        """The status as a table, for a notebook."""
        from html import escape

        from builder.console.words import size_text

        headings = ("target", "state", "size", "bits per weight", "result", "why")
        lines = [f"<p>{escape(str(self.spec.file))}</p><table>", _row("th", headings)]
        for row in self.status():
            bits = f"{row.bits_per_weight:.3f}" if row.bits_per_weight is not None else "-"
            cells = (row.target, row.state, size_text(row.size), bits, row.verdict, row.why)
            lines.append(_row("td", [escape(cell) for cell in cells]))
        return "".join([*lines, "</table>"])

    # -- what is declared, and what is there -------------------------------------------------------------

    @property
    def spec(self) -> Spec:
        """What is declared."""
        return self._project.spec

    @property
    def targets(self) -> tuple[str, ...]:
        """The names of all declared targets, in file order."""
        return tuple(target.name for target in self.spec.targets)

    def status(self) -> tuple[Status, ...]:
        """The state and the score of every target, as `doit status --json` prints them."""
        from builder.build.outlook import with_remotes
        from builder.evaluate.standing import scored_survey

        self._project.forget_plan()
        return with_remotes(self._project, scored_survey(self._project))

    def why(self, target: str) -> Why:
        """Why a target would be built again."""
        self._project.forget_plan()
        from builder.build.outlook import available, with_remote
        from builder.project.why import why

        name = find_target(self._project, target)
        return with_remote(why(self._project, name), available(self._project, [name]))

    def plan(self, *targets: str) -> Forecast:
        """What building these targets would do and cost. Without names: all targets that `doit` builds."""
        from builder.build.outlook import available
        from builder.project.forecast import forecast

        self._project.forget_plan()
        names = find_targets(self._project, targets)
        return forecast(self._project, names, available(self._project, names or self.targets))

    def path(self, target: str) -> Path:
        """The folder that mlx_lm loads: of a built target, or of `base:NAME`. Raises NotBuilt."""
        from builder.project.opened import base_folder, target_folder

        self._project.forget_plan()
        kind, _, name = target.partition(":")
        if kind == "base" and name in self.spec.bases:
            return base_folder(self._project, self.spec.bases[name])
        return target_folder(self._project, find_target(self._project, target))

    # -- building and measuring --------------------------------------------------------------------------

    def build(self, *targets: str, emit: Emit | None = None) -> list[Built]:
        """Builds the targets that are not up to date. All targets of a model are built in one pass.

        Without names: all targets that `doit` builds.
        """
        from builder.release.delivery import deliver

        wanted = find_targets(self._project, targets)
        chosen = wanted or [t.name for t in self.spec.targets if not t.variant.intermediate]
        done: list[Built] = []
        with _shown(emit) as tell:
            for name in chosen:
                if name not in {built.name for built in done}:
                    done += deliver(self._project, name, set(chosen), set(wanted), tell)
        return done

    def evaluate(self, *targets: str, again: bool = False, emit: Emit | None = None) -> list[Record]:
        """Measures targets by the suites of their models, and builds what must be built for it.

        The records are those of `results`. `holds` says whether a requirement holds. A requirement
        that is missed is not an error here. `again`: measure what is known too. Without names: every target
        that `doit eval` measures.
        """
        from builder.evaluate.records import records_of
        from builder.evaluate.run import evaluate
        from builder.release.scores import refresh

        chosen, found = self._measurable(targets), []
        with _shown(emit) as tell:
            for name in chosen:
                plan = self._ready(name, chosen, tell)
                found += records_of(plan.target, evaluate(self._project, plan, tell, again=again))
                refresh(self._project, plan)
        return found

    def results(self, *targets: str) -> list[Record]:
        """What was measured, one flat dict for each figure: `pandas.DataFrame(project.results())`."""
        from builder.evaluate.records import records_of
        from builder.evaluate.run import measured
        from builder.plan.types import TargetPlan

        self._project.forget_plan()
        wanted = find_targets(self._project, targets) or self.targets
        plans = [plan for name in wanted if isinstance(plan := self._project.plan.targets[name], TargetPlan)]
        return [record for plan in plans for record in records_of(plan.target, measured(self._project, plan))]

    def threshold(self, model: str | None = None, emit: Emit | None = None) -> Threshold:
        """Finds the smallest target that meets the requirements: `.search.found`. Raises NonePasses.

        Builds and measures only what the search needs. The model may be left out where one has requirements.
        """
        from builder.build.prepare import prepare_adapter, prepare_base
        from builder.evaluate.threshold import find_threshold

        name = self._model(model)
        with _shown(emit) as tell:
            prepare_base(self._project, self.spec.bases[self.spec.models[name].base], tell)
            if worn := self.spec.models[name].adapter:
                prepare_adapter(self._project, self.spec.adapters[worn], tell)
            return find_threshold(self._project, name, lambda each: self._ready(each, [each], tell), tell)

    def release(self, emit: Emit | None = None) -> str:
        """Moves models/production to the declared target, which is built and measured first; its name.

        Raises ReleaseRefused for a target that misses a requirement. Nothing has moved then.
        """
        from builder.publish.publication import publish_release
        from builder.release.production import NothingDeclared, is_current, release

        name = self.spec.production
        if name is None:
            raise NothingDeclared()
        with _shown(emit) as tell:
            self._ready(name, [name], tell, build=True)
            if self.spec.target(name).model.require:
                self.evaluate(name, emit=tell)
            if not is_current(self._project):
                release(self._project, tell)
            publish_release(self._project, tell)
        return name

    def report(self, *models: str, out: str | Path | None = None) -> list[Path]:
        """Writes tables, plots and provenance of what was built and measured. Returns the files."""
        from builder.commands.report import known_models, write
        from builder.report.collect import collect

        self._project.forget_plan()
        made = collect(self._project, known_models(self._project, models))
        return write(made, Path(out) if out else self._project.store.root / "report")

    # -- the store ---------------------------------------------------------------------------------------

    def verify(self, *targets: str, repair: bool = False, emit: Emit | None = None) -> Report:
        """Hashes the store again, or what these targets hold. `repair` rebuilds what is damaged."""
        from builder.commands.verify import keys_of
        from builder.store.care.repair import quarantine
        from builder.store.care.verify import verify

        found = verify(self._project.store, only=keys_of(self._project, targets))
        if repair and found.findings:
            from builder.build.restore import restore

            quarantine(self._project.store, found.findings)
            with _shown(emit) as tell:
                restore(self._project, found.findings, tell)
        return found

    def gc(self, *, dry_run: bool = False, grace: float = 3600, **policy: Any) -> GcPlan:
        """Deletes what nobody needs, and returns what that was. `dry_run` deletes nothing.

        `grace`, `keep_days`, `max_bytes` and `results` mean what the options of `builder gc` mean.
        """
        from builder.project.roots import fingerprint, gc_plan, register
        from builder.store.care.gc import apply_gc
        from builder.store.care.policy import Policy

        self._project.forget_plan()
        with _shown(None) as tell:
            fingerprint(self._project, tell)
        plan = gc_plan(self._project, Policy(grace_s=grace, **policy))
        if not dry_run and not plan.is_empty:
            apply_gc(self._project.store, plan)
            register(self._project)
        return plan

    # -- remotes -----------------------------------------------------------------------------------------

    def push(self, *targets: str, emit: Emit | None = None) -> None:
        """Sends built targets, and what was measured of them, to every remote. Raises RemoteError."""
        from builder.build.sharing import push_targets

        names = find_targets(self._project, targets) or self.targets
        with _shown(emit) as tell:
            push_targets(self._project, names, tell)

    def pull(self, *targets: str, emit: Emit | None = None) -> tuple[PulledTarget, ...]:
        """Gets targets, and what was measured of them, from remotes. Builds nothing. Raises RemoteError."""
        from builder.build.pulling import pull_targets

        names = find_targets(self._project, targets) or self.targets
        with _shown(emit) as tell:
            return pull_targets(self._project, names, [*self.spec.remotes.values()], tell)

    def _measurable(self, targets: Sequence[str]) -> list[str]:
        names = find_targets(self._project, targets)
        return [
            target.name
            for target in self.spec.targets
            if target.model.suites and (target.name in names if names else not target.variant.intermediate)
        ]

    def _model(self, name: str | None) -> str:
        from builder.commands.report import known_model

        required = [model.name for model in self.spec.models.values() if model.require]
        if name is None and len(required) == 1:
            return required[0]
        return known_model(self._project, name or "")

    def _ready(self, name: str, chosen: Sequence[str], tell: Emit, *, build: bool = False) -> TargetPlan:
        """A target that can be measured: built where it must be, else with its sources prepared."""
        from builder.build.prepare import prepare_target
        from builder.project.result_keys import needs_directory
        from builder.release.delivery import deliver

        target = self.spec.target(name)
        self._project.forget_plan()
        if (build or needs_directory(self.spec, target)) and not self._project.is_built(name):
            deliver(self._project, name, set(chosen), (), tell)
        return prepare_target(self._project, target, tell)


@contextmanager
def _shown(emit: Emit | None) -> Iterator[Emit]:
    """The caller's own `emit`, or the display of the command line."""
    from builder.console.display import showing

    if emit is not None:
        yield emit
        return
    with showing() as shown:
        yield shown


def _row(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{cell}</{tag}>' for cell in cells)}</tr>"
