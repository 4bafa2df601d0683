"""A team: Ann builds and pushes, Ben has the same inputs in another folder and pulls. Built without mlx."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from builder.build.sharing import _KNOWN
from builder.console.events import Event, Note
from builder.plan.types import TargetPlan
from builder.project.project import Project
from builder.project.remotes import bundle_of
from builder.remote import layout
from builder.remote.connect import connect
from builder.remote.push import Bundle
from builder.remote.setup import init
from builder.remote.transport import Entry, Transport
from builder.spec.sharing import Remote
from builder.store import blobs, records
from builder.store.holdings import holds
from builder.store.layout import Store
from tests.toy import DECLARATION, build, make_toy, planned, prepared

TARGETS = ("m_4bit", "m_8bit")


@dataclass(frozen=True)
class Member:
    """One checkout."""

    file: Path

    @property
    def project(self) -> Project:
        return Project.load(self.file)

    @property
    def store(self) -> Store:
        return self.project.store

    @property
    def remote(self) -> Remote:
        return next(iter(self.project.spec.remotes.values()))

    def plan(self, name: str) -> TargetPlan:
        return planned(self.project, name)

    def bundles(self, names: Iterable[str] = TARGETS) -> list[Bundle]:
        project = self.project
        found = [bundle_of(project, planned(project, name)) for name in names]
        assert None not in found
        return [bundle for bundle in found if bundle is not None]


def member(folder: Path, remote: str, *built: str, more: str = "") -> Member:
    """A checkout with these targets built. `remote` are the lines of [remote.team]."""
    shutil.copytree(_template(built), folder, symlinks=True)
    file = folder / "artifacts.toml"
    file.write_text(f"{more}{DECLARATION}\n[remote.team]\n{remote}\n")
    return Member(file)


@cache
def _template(built: tuple[str, ...]) -> Path:
    """Made once in each process."""
    folder = Path(tempfile.mkdtemp(prefix="modelkiln-team-")) / "project"
    atexit.register(shutil.rmtree, folder.parent, ignore_errors=True)
    project = prepared(make_toy(folder))
    for name in built:
        build(project, name)
    project.cache.close()
    return folder


def started(one: Member) -> Transport:
    """The member's remote, with a store in it."""
    transport = connect(one.remote)
    init(transport)
    return transport


def forget_remotes() -> None:
    """As a new process would."""
    _KNOWN.opened.clear()


class Heard:
    """The events of a run."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    @property
    def notes(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Note)]


def wrong_here(store: Store) -> list[str]:
    """What a local store says that is not so: nothing, at any moment."""
    found = []
    for entry, _ in blobs.files(store):
        if blobs.hash_file(Path(entry.path)).digest != entry.name:
            found.append(f"blob {entry.name}")
    for key in records.record_keys(store):
        record = records.read(store, key)
        if record is None or not blobs.has(store, record.blob):
            found.append(f"record {key}")
    for key in records.manifest_keys(store):
        manifest = records.read_manifest(store, key)
        if manifest is None or not holds(store, manifest):
            found.append(f"manifest {key}")
    return found


def wrong_there(transport: Transport) -> list[str]:
    """What a remote store says that is not so: a blob of other bytes, a text without its blobs."""
    from builder.keys import Digest, Key, digest_bytes
    from builder.store import seals

    objects = {entry.path: entry.size for entry in transport.list(layout.ROOT)}
    found = []

    def size(digest: str) -> int | None:
        """By name too: a server that was killed may list less than it has."""
        path = layout.blob(Digest(digest))
        entry = None if path in objects else transport.head(path)
        return entry.size if entry else objects.get(path)

    for path in objects:
        name = layout.named(path)
        data = transport.read(path)
        if data is None or name is None:
            continue
        if path.startswith(layout.BLOBS) and digest_bytes(data) != name:
            found.append(path)
        if path.startswith(layout.ACTIONS):
            record = records.parse_record(seals.unsealed(data), Key(name))
            if record is None or size(record.blob.digest) != record.blob.size:
                found.append(path)
        if path.startswith(layout.TARGETS):
            manifest = records.parse_manifest(seals.unsealed(data), Key(name))
            if manifest is None or any(size(digest) is None for digest in manifest.digests):
                found.append(path)
    return found


Step = Callable[[str], None]


class Stepping:
    """A transport that says each step before and after it is done, as `put PATH`. For kills and faults."""

    def __init__(self, inner: Transport, step: Step) -> None:
        self._inner, self._step = inner, step
        self.name, self.url = inner.name, inner.url
        self.can_write, self.can_list, self.forks = inner.can_write, inner.can_list, inner.forks

    def __getattr__(self, name: str) -> object:
        method = getattr(self._inner, name)

        def stepped(*arguments: object) -> object:
            said = f"{name} {arguments[0]}"
            self._step(said)
            if name == "upload":
                path, chunks = arguments
                result = method(path, self._each(said, chunks))
            elif name == "stream":
                chunks = method(*arguments)
                result = chunks if chunks is None else self._each(said, chunks)
            elif name == "list":
                result = iter(list(method(*arguments)))
            else:
                result = method(*arguments)
            self._step(f"{said} done")
            return result

        return stepped

    def _each(self, said: str, chunks: Iterable[bytes]) -> Iterable[bytes]:
        for chunk in chunks:
            self._step(f"{said} chunk")
            yield chunk


class Lacking(Stepping):
    """A transport whose listing of everything lacks what is there, as that of SeaweedFS does after it was
    killed: a whole folder, which lists its own objects still.
    """

    def __init__(self, inner: Transport, hidden: str, step: Step = lambda step: None) -> None:
        super().__init__(inner, step)
        self._hidden = hidden

    def list(self, prefix: str) -> Iterator[Entry]:
        whole = prefix == layout.ROOT
        found = self._inner.list(prefix)
        return (entry for entry in found if not (whole and entry.path.startswith(self._hidden)))
