"""Measures one file of a target that is a GGUF: the questions and the keys of a target with a view."""

from __future__ import annotations

from builder.build.conversion import settings_folder
from builder.console.events import Emit, Note
from builder.evaluate.results import Result
from builder.evaluate.run import measure, measured
from builder.plan.types import TargetPlan
from builder.project.project import Project
from builder.project.roots import keys_of
from builder.store import blobs
from builder.store.holdings import usable_record
from builder.store.locks import build_session, measuring
from builder.store.types import Blob


def evaluate_file(project: Project, target: TargetPlan, file: Blob, emit: Emit) -> dict[str, Result]:
    """Measures what is not known of a target, whose weights are in one file; all results, by suite.

    Suites that run a command are left out. Raises BuildError.
    """
    asked = project.spec.suites_of(target.target)
    if len(known := measured(project, target)) == len(asked):
        return known
    config = usable_record(project.store, target.config)
    assert target.gguf is not None
    assert config is not None  # the file was made with it
    waiting = lambda: emit(Note("waiting for another evaluation to end"))  # noqa: E731
    with (
        measuring(project.store, waiting),
        build_session(project.store, keys_of(target)),
        settings_folder(project.store, target, config.blob) as folder,
    ):
        (folder / target.gguf.file).symlink_to(blobs.path(project.store, file.digest))
        known = measured(project, target)
        todo = [suite for suite in asked if suite.name not in known]
        known |= measure(project, target, emit, todo, folder)
    return {suite.name: known[suite.name] for suite in asked}
