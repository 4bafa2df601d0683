"""The tasks publish:NAME."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from builder.spec.destinations import EXACT, Publication
from builder.spec.publishing import PRODUCTION
from builder.spec.types import Model
from builder.tasks.steps import Step

if TYPE_CHECKING:
    from builder.project.project import Project

TASK = "publish:"


@dataclass
class Publish(Step):
    """Sends a target to its place. The place is asked each time, so this task is never up to date."""

    publication: Publication

    def run(self) -> None:
        from builder.console.display import prints_answers, showing
        from builder.publish.publication import outcome, publish
        from builder.tasks.tables import print_publication

        self.project.forget_plan()
        with showing() as emit:
            made = publish(self.project, self.publication, emit)
        if prints_answers():
            print_publication(outcome(made))


def needed(project: Project, publication: Publication) -> list[str]:
    """The tasks that must run before. A release is not moved by publishing it."""
    source = publication.source
    sources = [sources_of(project.spec.target(source).model)] if source else []
    if publication.target == PRODUCTION:
        return sources
    if publication.gguf and EXACT not in publication.gguf:  # the files are made of base and adapter
        return sources
    required = project.spec.target(publication.target).model.require
    measured = [f"eval:{publication.target}"] if required and publication.override is None else []
    return [f"model:{publication.target}", *measured, *sources]


def sources_of(model: Model) -> str:
    """The task that prepares what a model is made from. The task of an adapter comes after its base's."""
    return f"adapter:{model.adapter}" if model.adapter else f"base:{model.base}"
