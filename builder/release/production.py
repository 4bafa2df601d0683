"""Moving `models/production` to a target that meets its requirements, and back."""

from __future__ import annotations

from builder.build.sharing import share
from builder.console.events import Emit, Note
from builder.errors import BuildError
from builder.evaluate.results import missed
from builder.evaluate.run import measured
from builder.plan.types import TargetPlan
from builder.project.project import Project
from builder.project.roots import keys_of
from builder.release.scores import text_of
from builder.store import records, releases, views
from builder.store.holdings import holds
from builder.store.locks import build_session

PRODUCTION = releases.PRODUCTION


class ReleaseRefused(BuildError):
    """{target} is not released: {what}. models/production has not changed."""

    hint = "`doit eval:{target}` shows its figures. [model.{model}.require] says what they must be."


class NoFormer(BuildError):
    """there is no former release to go back to."""

    hint = "`doit release:production` makes one when it moves to another target."


class NothingDeclared(BuildError):
    """artifacts.toml declares no release."""

    exit_code = 3
    hint = 'Add [release] with production = "TARGET".'


def is_current(project: Project) -> bool:
    """Whether production shows the declared target as it is built now. Raises BuildError."""
    plan = _plan(project)
    if plan is None:
        return False
    manifest = records.read_manifest(project.store, plan.key)
    folder = project.store.models / PRODUCTION
    if manifest is None or views.current_name(folder) != plan.name:
        return False
    return views.is_current(project.store, folder, manifest)


def release(project: Project, emit: Emit) -> None:
    """Move production to the declared target. Raises ReleaseRefused, StoreError; then nothing has moved."""
    plan = _plan(project)
    target = str(project.spec.production)
    model = project.spec.target(target).model.name
    if plan is None:
        raise ReleaseRefused(target=target, model=model, what="its sources are missing")
    with build_session(project.store, keys_of(plan)):
        manifest = records.read_manifest(project.store, plan.key)
        if manifest is None or not holds(project.store, manifest):
            raise ReleaseRefused(target=target, model=model, what="it is not built")
        require = plan.target.model.require
        if short := missed(require, measured(project, plan)):
            raise ReleaseRefused(target=target, model=model, what="; ".join(map(str, short)))
        if not require:
            emit(Note(f"{target} is released unmeasured: [model.{model}.require] names no condition"))
        records.mark_used(project.store, plan.key)
        releases.move(project.store, PRODUCTION, manifest, plan.name, text_of(project, plan, manifest))
    share(project, [plan], "release", emit)


def rollback(project: Project) -> str:
    """Exchange production and its former; what production shows now. Raises NoFormer, StoreError."""
    former = project.store.models / f"{PRODUCTION}{releases.FORMER}"
    if views.current_key(former) is None:
        raise NoFormer()
    with build_session(project.store, []):
        releases.back(project.store, PRODUCTION)
    return str(views.current_name(project.store.models / PRODUCTION))


def withdraw(project: Project) -> None:
    """Take production and its former away; gc may delete what they held. Raises StoreError."""
    for name in (f"{PRODUCTION}{releases.FORMER}", PRODUCTION):
        views.remove(project.store, project.store.models / name)


def _plan(project: Project) -> TargetPlan | None:
    plan = project.plan.targets[str(project.spec.production)]
    return plan if isinstance(plan, TargetPlan) else None
