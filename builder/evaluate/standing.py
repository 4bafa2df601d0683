"""The status of every target with its score, for `doit status` and for the Python API. Measures nothing."""

from __future__ import annotations

from dataclasses import replace

from builder.errors import BuildError
from builder.project.project import Project
from builder.project.status import Status, survey


def scored_survey(project: Project) -> tuple[Status, ...]:
    """The status of every declared target, in file order, with score and misses. Raises BuildError."""
    return tuple(scored(project, row) for row in survey(project))


def scored(project: Project, row: Status) -> Status:
    """The status with the score of the first requirement, and with the requirements that are missed."""
    target = project.spec.target(row.target)
    known_keys = project.known.get(row.target)
    if not target.model.require or known_keys is None:
        return row
    from builder.evaluate.results import figure_of, missed, verdict
    from builder.evaluate.run import known_of

    try:
        known = known_of(project, target, known_keys.measured)
    except BuildError:  # its questions are not there: then nothing is known of it
        return row
    figure = figure_of(known, target.model.require[0].metric)
    short = [miss for miss in missed(target.model.require, known) if miss.value is not None]
    said = verdict(target.model.require, known)
    return replace(row, score=figure.value if figure else None, misses=tuple(map(str, short)), verdict=said)
