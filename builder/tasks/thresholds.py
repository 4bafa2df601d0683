"""The tasks threshold:NAME, of a model and of all seeds of a model."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from builder.console.events import Emit
from builder.project.machines import cluster_address
from builder.project.project import Project
from builder.tasks.steps import Step, read_what_was_left


def read_models(project: Project, models: Collection[str]) -> None:
    """Reads the bases of models, where their tasks left that to a build that has not come yet."""
    project.forget_plan()
    for target in project.spec.targets:
        if target.model.name in models:
            read_what_was_left(project, target.name)


def spread(models: Collection[str], project: Project, emit: Emit) -> None:
    """Where a run has a cluster, its workers measure what a search asks of each model. Raises BuildError."""
    if cluster_address():
        from builder.cluster.spreading import spread_threshold

        for model in models:
            spread_threshold(project, model, emit)


@dataclass
class FindThreshold(Step):
    """Finds and prints the smallest target of a model that meets the requirements."""

    model: str

    def run(self) -> None:
        from builder.console.display import prints_answers, showing
        from builder.evaluate.threshold import find_threshold
        from builder.tasks.tables import print_threshold

        read_models(self.project, [self.model])
        with showing() as emit:
            spread([self.model], self.project, emit)
            found = find_threshold(self.project, self.model, self.build(emit), emit)
        if prints_answers():
            print_threshold(self.project, found)

    def build(self, emit: Emit) -> Callable[[str], None]:
        """What makes a target so that it can be measured."""
        from builder.project.result_keys import needs_directory
        from builder.release.delivery import deliver

        def build(name: str) -> None:
            if needs_directory(self.project.spec, self.project.spec.target(name)):
                deliver(self.project, name, {name}, (), emit)

        return build


@dataclass
class FindSeedsThreshold(FindThreshold):
    """Finds and prints the smallest variant that passes with every seed. `model` is the declared name."""

    def run(self) -> None:
        from builder.console.display import prints_answers, showing
        from builder.evaluate.seeds import find_seeds_threshold
        from builder.spec.seeds import models_of
        from builder.tasks.tables import print_seeds_threshold

        models = models_of(self.project.spec.models.values())[self.model]
        read_models(self.project, [model.name for model in models])
        with showing() as emit:
            spread([model.name for model in models], self.project, emit)
            found = find_seeds_threshold(self.project, self.model, models, self.build(emit), emit)
        if prints_answers():
            print_seeds_threshold(self.project, found)
