"""What the commands do, from Python, for notebooks and scripts: `from builder import Project`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from builder.project import project
from builder.project.targets import find_targets
from builder.spec.types import Spec

if TYPE_CHECKING:
    from builder.build.one_pass import Built
    from builder.console.events import Emit
    from builder.plan.changes import Why
    from builder.project.forecast import Forecast
    from builder.project.status import Status


class Project:
    """One artifacts.toml and its store.

    >>> project = Project("artifacts.toml")      # doctest: +SKIP
    >>> project.build("phase8_5bit")             # doctest: +SKIP
    >>> mlx_lm.load(project.path("phase8_5bit")) # doctest: +SKIP

    Every method raises BuildError for problems that a person can correct.
    """

    def __init__(self, file: str | Path = "artifacts.toml") -> None:
        self._project = project.Project.load(Path(file))

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
        from builder.evaluate.standing import scored_survey

        self._project.forget_plan()
        return scored_survey(self._project)

    def why(self, target: str) -> Why:
        """Why a target would be built again."""
        self._project.forget_plan()
        from builder.project.why import why

        (name,) = find_targets(self._project, [target])
        return why(self._project, name)

    def plan(self, *targets: str) -> Forecast:
        """What building these targets would do and cost. Without names: all targets that `doit` builds."""
        from builder.project.forecast import forecast

        self._project.forget_plan()
        return forecast(self._project, find_targets(self._project, targets))

    def build(self, *targets: str, emit: Emit | None = None) -> list[Built]:
        """Builds the targets that are not up to date. All targets of a model are built in one pass.

        Without names: all targets that `doit` builds. `emit` gets the events.
        """
        from builder.console.events import silent
        from builder.release.delivery import deliver

        wanted = find_targets(self._project, targets)
        chosen = wanted or [t.name for t in self.spec.targets if not t.variant.intermediate]
        done: list[Built] = []
        for name in chosen:
            if name not in {built.name for built in done}:
                done += deliver(self._project, name, set(chosen), set(wanted), emit or silent)
        return done

    def path(self, target: str) -> Path:
        """The folder that mlx_lm loads. It exists once the target is built."""
        (name,) = find_targets(self._project, [target])
        return self._project.store.models / name
