"""A run and its remotes: what they have is pulled before it is made, what was made may be pushed.

A remote never makes a run fail. Where it cannot be used, one line says so, and the run goes on without it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from builder.console.events import Emit, Note
from builder.console.words import count, size_text
from builder.errors import BuildError
from builder.keys import Key
from builder.plan.types import TargetPlan
from builder.project.project import Project
from builder.project.remotes import (
    bundle_of,
    fitting,
    has,
    knows,
    loose_bundle,
    records_from,
    remotes_of,
    rules_of,
    wanted_of,
)
from builder.project.roots import keys_of
from builder.spec.sharing import Remote
from builder.store import records
from builder.store.holdings import usable_record, whole_manifest
from builder.store.locks import build_session

if TYPE_CHECKING:
    from builder.remote.contents import Contents
    from builder.remote.offer import Offer, Rules, Wanted
    from builder.remote.push import Bundle, PushPlan


@dataclass(frozen=True)
class Opened:
    """A remote that answers, and what it had when this process first looked."""

    remote: Remote
    contents: Contents
    rules: Rules


_Name = tuple[str, str, int]  # of a declaration, of a remote, of a process


@dataclass
class _Process:
    """What this process knows of remotes, and since when. `opened` None: it did not answer."""

    opened: dict[_Name, tuple[float, Opened | None]] = field(default_factory=dict)

    def known(self, name: _Name) -> bool:
        """Whether somebody has looked lately. A notebook lives for days, and its team goes on pushing."""
        return name in self.opened and time.monotonic() - self.opened[name][0] < _LATELY_S

    def note(self, name: _Name, found: Opened | None) -> None:
        self.opened[name] = time.monotonic(), found


_LATELY_S = 300.0
_KNOWN = _Process()


def look_again() -> None:
    """Somebody has pushed since this process looked."""
    _KNOWN.opened.clear()


def look_at(project: Project, remote: Remote) -> Opened:
    """Opens a remote and looks what it has. Raises BuildError."""
    from builder.remote.connect import open_remote
    from builder.remote.contents import look

    return Opened(remote, look(open_remote(remote)), rules_of(project, remote))


def opened(project: Project, emit: Emit) -> Iterator[Opened]:
    """Every remote that answers. One that does not is told once."""
    for remote in remotes_of(project):
        name = _name(project, remote)
        if not _KNOWN.known(name):
            with forgiven(project, remote, emit):
                _KNOWN.note(name, look_at(project, remote))
        if found := _KNOWN.opened[name][1]:
            yield found


def _name(project: Project, remote: Remote) -> _Name:
    return str(project.spec.file), remote.name, os.getpid()


@contextmanager
def forgiven(project: Project, remote: Remote, emit: Emit, hint: str = "") -> Iterator[None]:
    """Turns an error of a remote into a line. The remote is not used any more in this process."""
    try:
        yield
    except BuildError as error:
        _KNOWN.note(_name(project, remote), None)
        emit(Note(f"{error.message.rstrip('.')}. The run goes on without it. {hint}".rstrip()))


# -- pulling -------------------------------------------------------------------------------------------------


def fetch(project: Project, plans: Sequence[TargetPlan], emit: Emit) -> None:
    """Pulls what remotes have of these targets and their blocks, and is not here."""
    if not remotes_of(project):
        return
    todo = [plan for plan in plans if whole_manifest(project.store, plan.key) is None]
    if todo:
        with build_session(project.store, [key for plan in todo for key in keys_of(plan)]):
            bring(project, wanted_of(project, todo, results=False), emit, todo)
            for plan in todo:
                settle(project, plan)


def fetch_records(
    project: Project, keys: Iterable[Key], emit: Emit, plans: Sequence[TargetPlan] = ()
) -> None:
    """Pulls single records: the structure of a base, costs of weights, log-probs of a reference, blocks.

    plans: what blocks are compared with before they are taken.
    """
    if not remotes_of(project):
        return
    from builder.remote.offer import Wanted

    missing = frozenset(key for key in keys if usable_record(project.store, key) is None)
    bring(project, Wanted(records=missing), emit, plans)


def fetch_manifests(project: Project, keys: Iterable[Key], emit: Emit) -> None:
    """Pulls what is neither a target nor a block: trained adapters."""
    if not remotes_of(project):
        return
    from builder.remote.offer import Wanted

    missing = frozenset(key for key in keys if whole_manifest(project.store, key) is None)
    bring(project, Wanted(manifests=missing), emit)


def fetch_results(project: Project, keys: Iterable[Key], emit: Emit) -> None:
    """Pulls what somebody has measured."""
    if not remotes_of(project):
        return
    from builder.remote.offer import Wanted

    missing = frozenset(key for key in keys if not knows(project, key))
    bring(project, Wanted(results=missing), emit)


def bring(project: Project, wanted: Wanted, emit: Emit, plans: Sequence[TargetPlan] = ()) -> None:
    """Pulls from one remote after the other what is still missing."""
    if not wanted:
        return
    for found in opened(project, emit):
        with forgiven(project, found.remote, emit):
            take(project, found, wanted, emit, plans)


def take(
    project: Project, found: Opened, wanted: Wanted, emit: Emit, plans: Sequence[TargetPlan] = ()
) -> int:
    """Pulls from one remote; how many bytes came. Raises BuildError."""
    from builder.remote.pull import plan_pull, pull

    offer = offered(project, found, wanted, plans)
    for line in offer.refused[:3]:
        emit(Note(f"{found.remote.name}: {line}: not taken"))
    plan = plan_pull(offer, lambda blob: has(project, blob), lambda key: knows(project, key))
    if plan.is_empty:
        return 0
    came = pull(project.store, found.contents.transport, plan, emit)
    if came.blobs:
        what = f"{size_text(came.nbytes)} in {count(came.blobs, 'blob')}"
        emit(Note(f"{found.remote.name}: {what} pulled{_for(plans)}"))
    return came.nbytes


def offered(project: Project, found: Opened, wanted: Wanted, plans: Sequence[TargetPlan]) -> Offer:
    """What a remote has of what is wanted, and may be taken. Raises BuildError."""
    from builder.remote.offer import offer_of

    offer = offer_of(found.contents, wanted, found.rules, lambda blob: has(project, blob))
    return fitting(plans, offer)


def settle(project: Project, plan: TargetPlan) -> None:
    """A target that came as a whole has the records that follow from it."""
    manifest = whole_manifest(project.store, plan.key)
    for record in records_from(plan, manifest) if manifest else ():
        if usable_record(project.store, record.key) is None:
            records.write(project.store, record)


def _for(plans: Sequence[TargetPlan]) -> str:
    return f" for {', '.join(plan.name for plan in plans)}" if plans else ""


# -- pushing -------------------------------------------------------------------------------------------------


def share(project: Project, plans: Sequence[TargetPlan], occasion: str, emit: Emit) -> None:
    """Pushes targets to the remotes that want it on this occasion: "release", or "always"."""
    for remote in remotes_of(project):
        if remote.push == "always" or (remote.push == "release" and occasion == "release"):
            name = _name(project, remote)
            if _KNOWN.known(name) and _KNOWN.opened[name][1] is None:
                continue
            again = f"`builder push {' '.join(plan.name for plan in plans)}` tries again."
            with forgiven(project, remote, emit, again):
                bundles = [found for plan in plans if (found := bundle_of(project, plan))]
                told(remote, send(project, remote, bundles, emit), emit)


def push_targets(project: Project, names: Sequence[str], emit: Emit) -> None:
    """Pushes what is built of these targets to every remote. Raises BuildError."""
    plans = [plan for name in names if isinstance(plan := project.plan.targets[name], TargetPlan)]
    bundles = [found for plan in plans if (found := bundle_of(project, plan))]
    for remote in project.spec.remotes.values():
        told(remote, send(project, remote, bundles, emit), emit)


def send(
    project: Project, remote: Remote, bundles: Sequence[Bundle], emit: Emit, *, read_back: bool = False
) -> PushPlan:
    """Pushes to one remote. Raises BuildError."""
    from builder.remote.connect import open_remote
    from builder.remote.push import push
    from builder.remote.signing import own_signer

    transport = open_remote(remote)
    return push(project.store, transport, bundles, own_signer(), emit, read_back=read_back)


def send_keys(project: Project, remote: Remote, keys: Iterable[Key], emit: Emit) -> PushPlan:
    """Pushes records and results alone, before there is a target. Raises BuildError."""
    return send(project, remote, [loose_bundle(project, keys)], emit)


def told(remote: Remote, sent: PushPlan, emit: Emit) -> None:
    for line in sent.kept:
        emit(Note(f"{remote.name}: {line}"))
    if not sent.is_empty:
        names = ", ".join(bundle.name for bundle in sent.bundles)
        what = f"{size_text(sent.nbytes)} in {count(len(sent.blobs), 'blob')}"
        emit(Note(f"{remote.name}: {what} pushed for {names}"))
