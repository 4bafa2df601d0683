"""Keeping the card of a view true: scores come after the build, and change without it."""

from __future__ import annotations

from collections.abc import Mapping

from builder.build import card
from builder.build.card import Score
from builder.console.words import number
from builder.evaluate.circumstances import told
from builder.evaluate.results import Result, interval_text
from builder.evaluate.run import measured
from builder.plan.types import TargetPlan
from builder.project.project import Project
from builder.store import records, views
from builder.store.disk import durable
from builder.store.types import Manifest


def text_of(project: Project, plan: TargetPlan, manifest: Manifest) -> str:
    """The card of a built target with what is known of it now. Raises BuildError."""
    base = project.spec.bases[plan.target.model.base]
    known = measured(project, plan)
    return card.render(
        manifest, base, plan.name, scores(known), told(result.made for result in known.values())
    )


def refresh(project: Project, plan: TargetPlan) -> None:
    """Write the card into the target's view if it says something else now. Raises BuildError."""
    folder = project.store.models / plan.name
    manifest = records.read_manifest(project.store, plan.key)
    if manifest is None or views.current_key(folder) != plan.key:
        return
    text, file = text_of(project, plan, manifest), folder / views.CARD
    with durable.explained(file):
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            durable.replace_text(file, text)


def scores(results: Mapping[str, Result]) -> list[Score]:
    """Every figure that was measured, as text."""
    return [
        Score(f"{suite}.{name}", number(figure.value), interval_text(figure), figure.counted)
        for suite, result in results.items()
        for name, figure in result.figures.items()
    ]
