"""Publishing what is declared: look at the place, decide, send. A dry run only looks and decides."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from builder.console.events import Emit, Note
from builder.console.words import count, size_text, suggestion
from builder.keys import make_key
from builder.project.project import Project
from builder.project.roots import keys_of
from builder.publish import folder, ollama
from builder.publish.bundle import Plan
from builder.publish.contents import gather, planned
from builder.publish.errors import NothingPublished
from builder.publish.hub import Hub
from builder.publish.oci import Oci
from builder.spec.destinations import FolderPlace, OciPlace, OllamaPlace, Publication
from builder.store.locks import acquire, build_session


def find(project: Project, name: str) -> Publication:
    """A declared publication by its name. Raises NothingPublished."""
    declared = project.spec.publications
    if name not in declared:
        near = suggestion(name, list(declared)) if declared else "."
        raise NothingPublished(name=name, near=near)
    return declared[name]


def look(project: Project, publication: Publication, emit: Emit, *, dry: bool = True) -> Plan:
    """What publishing would do. Changes nothing there, and nothing here in a `dry` run. Raises BuildError."""
    bundle = gather(project, publication, emit, dry=dry)
    to = publication.to
    if isinstance(to, FolderPlace):
        return folder.plan(to, bundle)
    if isinstance(to, OciPlace):
        return Oci(to, project.cache).plan(bundle)
    if isinstance(to, OllamaPlace):
        return ollama.plan(to, bundle, project.cache)
    return Hub(to, project.store).plan(bundle, private=publication.private)


def publish(project: Project, publication: Publication, emit: Emit) -> Plan:
    """Sends what the place lacks, and returns what was to do. Does nothing where it has all.

    Raises BuildError. The place shows then what it showed before.
    """
    with _alone(project, publication, emit):
        if isinstance(publication.to, FolderPlace):
            folder.clear(publication.to)
        made = look(project, publication, emit, dry=False)
        for note in made.bundle.notes:
            emit(Note(note))
        if made.is_empty:
            return made
        to = publication.to
        if isinstance(to, FolderPlace):
            folder.apply(to, made, link=publication.link, emit=emit)
        elif isinstance(to, OciPlace):
            Oci(to, project.cache).apply(made, emit=emit)
        elif isinstance(to, OllamaPlace):
            ollama.apply(to, made, project.store, project.cache, emit)
        else:
            Hub(to, project.store).apply(made, private=publication.private, emit=emit)
    return made


def publish_release(project: Project, emit: Emit) -> list[Plan]:
    """Publishes what production shows, to each place that is part of a release. Raises BuildError."""
    return [publish(project, find(project, name), emit) for name in project.spec.published]


@contextmanager
def _alone(project: Project, publication: Publication, emit: Emit) -> Iterator[None]:
    """One publication at a time to a place, and gc leaves the files alone meanwhile."""
    key = make_key("publish", str(publication.to))
    waiting = lambda: emit(Note(f"waiting for another run that publishes to {publication.to}"))  # noqa: E731
    with (
        acquire(project.store, [key], waiting, "publication-"),
        build_session(project.store, keys_of(planned(project, publication))),
    ):
        yield


def outcome(made: Plan) -> str:
    """What was done, in one sentence."""
    if made.is_empty:
        return f"{made.to} has {made.bundle.target} already: {count(len(made.changes), 'file')}, all the same"
    sent, gone = made.named("send"), made.named("delete")
    same = len(made.named("same"))
    parts = [f"{count(len(sent), 'file')} new there ({size_text(made.sends)})"]
    parts += [f"{same} unchanged"] if same else []
    parts += [f"{count(len(gone), 'old file')} deleted"] if gone else []
    return f"{made.bundle.target} is at {made.to}: {', '.join(parts)}"
