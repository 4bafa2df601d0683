"""What remotes have of the targets that a run would build. Asks them once, and only where something is
missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

from builder.build.sharing import Opened, forgiven, offered, opened
from builder.console.events import Emit, silent
from builder.plan.changes import Why
from builder.plan.types import TargetPlan
from builder.project.available import Available, Availables
from builder.project.project import Project
from builder.project.remotes import has, knows, remotes_of, wanted_of
from builder.project.state import missing_actions
from builder.project.status import Status
from builder.store.holdings import whole_manifest


@dataclass(frozen=True)
class SharedStatus(Status):
    """The status of a target, and the remote that has what is missing, or `fetched` blocks of it: `fetch`
    bytes.
    """

    remote: str = ""
    fetch: int | None = None
    fetched: int | None = None


def available(project: Project, names: Iterable[str], emit: Emit = silent) -> Availables:
    """Of each target that is not whole here: what the first remote has that has something of it."""
    if not remotes_of(project):
        return {}
    todo = [name for name in names if not project.is_built(name)]
    plans = [plan for name in todo if isinstance(plan := project.plan.targets[name], TargetPlan)]
    plans = [plan for plan in plans if whole_manifest(project.store, plan.key) is None]
    if not plans:
        return {}
    found: dict[str, Available] = {}
    for remote in opened(project, emit):
        with forgiven(project, remote.remote, emit):
            for plan in plans:
                if plan.name not in found and (what := _of(project, remote, plan)):
                    found[plan.name] = what
    return found


def _of(project: Project, remote: Opened, plan: TargetPlan) -> Available | None:
    from builder.remote.pull import plan_pull

    offer = offered(project, remote, wanted_of(project, [plan], results=False), [plan])
    made = plan_pull(offer, lambda blob: has(project, blob), lambda key: knows(project, key))
    keys = {record.key for record, _ in made.records}
    whole = plan.key in offer.manifests
    if whole:  # its records follow from it
        keys |= {action.key for action in missing_actions(project.store, plan)} | {plan.config}
    blocks = len(keys & {action.key for action in plan.actions})
    if not (blocks or whole):
        return None
    return Available(remote.remote.name, made.nbytes, blocks, frozenset(keys), whole)


def with_remotes(project: Project, rows: Sequence[Status], emit: Emit = silent) -> tuple[SharedStatus, ...]:
    """The status of targets, with what would be pulled instead of built."""
    due = [row.target for row in rows if row.state in ("not built", "out of date")]
    found = available(project, due, emit)
    return tuple(_with(row, found.get(row.target)) for row in rows)


def _with(row: Status, what: Available | None) -> SharedStatus:
    values = {field.name: getattr(row, field.name) for field in fields(row)}
    if what is None:
        return SharedStatus(**values)
    blocks = None if what.whole else what.blocks
    return SharedStatus(**values, remote=what.remote, fetch=what.nbytes, fetched=blocks)


def with_remote(answer: Why, found: Availables) -> Why:
    """Why a target would be built, with what would be pulled instead."""
    what = found.get(answer.target)
    if what is None:
        return answer
    return replace(answer, remote=what.remote, fetch=what.nbytes, fetched=what.blocks)
