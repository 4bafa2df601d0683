"""Pushing and pulling against a folder, a real S3 server and a web server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from builder.build import sharing
from builder.build.pulling import pull_targets
from builder.build.sharing import fetch, fetch_records, fetch_results, send, share
from builder.console.events import Event, Note
from builder.evaluate import results
from builder.evaluate.results import Result
from builder.evaluate.statistics import Figure
from builder.keys import Digest, Key
from builder.project.remotes import measured_of
from builder.project.state import target_state
from builder.remote import layout
from builder.remote import push as pushing
from builder.remote.connect import connect, open_remote
from builder.remote.contents import look
from builder.remote.offer import Rules, Wanted, offer_of
from builder.remote.push import NotWhole, plan_push, push
from builder.remote.setup import init
from builder.remote.transport import (
    NoRemoteStore,
    RemoteError,
    RemoteReadOnly,
    RemoteRefused,
    RemoteUnreachable,
    Transport,
)
from builder.store import blobs, records, seals
from builder.store.types import Record, manifest_to_text, record_to_text
from tests.remote.servers import Web
from tests.remote.team import (
    TARGETS,
    Heard,
    Lacking,
    Member,
    Stepping,
    forget_remotes,
    member,
    started,
    wrong_here,
    wrong_there,
)
from tests.toy import build, prepared


@pytest.fixture
def ann(tmp_path: Path, lines: str) -> Member:
    return member(tmp_path / "ann", lines, *TARGETS)


@pytest.fixture
def ben(tmp_path: Path, lines: str) -> Member:
    return member(tmp_path / "ben", lines)


def pulled(one: Member, *names: str) -> dict[str, str]:
    project = one.project
    rows = pull_targets(project, names or TARGETS, [one.remote], Heard(), dry_run=False)
    return {row.target: row.state for row in rows}


def test_what_one_pushes_the_other_has_byte_for_byte(ann: Member, ben: Member) -> None:
    transport = started(ann)
    sent = push(ann.store, transport, ann.bundles(), None, Heard())
    assert len(sent.blobs) == 12
    assert wrong_there(transport) == []
    assert [entry.path for entry in transport.list(layout.LEASES)] == []
    assert pulled(ben) == {"m_4bit": "built", "m_8bit": "built"}
    assert wrong_here(ben.store) == []
    for name in TARGETS:
        assert target_state(ben.store, ben.plan(name)).built
        mine, his = (one.store.models / name for one in (ann, ben))
        files = sorted(file.name for file in mine.iterdir())
        assert {*files, "README.md"} == {file.name for file in his.iterdir()}  # a toy has no card
        assert all((mine / file).read_bytes() == (his / file).read_bytes() for file in files)


def test_a_second_push_sends_nothing_and_a_new_target_only_its_own_blobs(ann: Member) -> None:
    transport = started(ann)
    first = push(ann.store, transport, ann.bundles(["m_4bit"]), None, Heard())
    steps: list[str] = []
    again = push(ann.store, Stepping(transport, steps.append), ann.bundles(["m_4bit"]), None, Heard())  # type: ignore[arg-type]
    assert again.is_empty
    assert {step.split()[0] for step in steps} == {"list", "read"}
    assert sum(step.startswith("list") for step in steps) == 2  # one listing, before and after
    other = push(ann.store, transport, ann.bundles(), None, Heard())
    held = {blob for bundle in ann.bundles(["m_4bit"]) for blob in bundle.blobs}
    assert len(first.blobs) == 7
    assert len(other.blobs) == 5
    assert not held & set(other.blobs)


def test_a_dry_run_writes_nothing(ann: Member) -> None:
    transport = started(ann)
    before = {entry.path for entry in transport.list(layout.ROOT)}
    assert plan_push(look(transport), ann.bundles(), None).nbytes > 40_000
    assert {entry.path for entry in transport.list(layout.ROOT)} == before == {layout.FORMAT}


def test_only_what_is_missing_is_pulled(ann: Member, ben: Member) -> None:
    transport = started(ann)
    push(ann.store, transport, ann.bundles(), None, Heard())
    assert pulled(ben, "m_4bit") == {"m_4bit": "built"}
    wanted = {blob.digest for bundle in ann.bundles(["m_8bit"]) for blob in bundle.blobs}
    here = {Digest(entry.name) for entry, _ in blobs.files(ben.store)}
    steps: list[str] = []
    forget_remotes()
    project = ben.project
    plan = ben.plan("m_8bit")
    found = sharing.look_at(project, ben.remote)
    found = sharing.Opened(
        found.remote,
        look(Stepping(found.contents.transport, steps.append)),  # type: ignore[arg-type]
        found.rules,
    )
    sharing.take(project, found, sharing.wanted_of(project, [plan]), Heard(), [plan])
    streamed = {step.split()[1] for step in steps if step.startswith("stream") and step.endswith("done")}
    assert streamed == {layout.blob(digest) for digest in wanted - here}


HOLD = """
import sys
from pathlib import Path
from builder.keys import Key
from builder.store import locks
from builder.store.format import open_store
with locks.acquire(open_store(Path(sys.argv[1])), map(Key, sys.argv[2:])):
    print("holding", flush=True)
    sys.stdin.readline()
"""


def test_a_pull_that_waits_for_another_run_says_so_once(ann: Member, ben: Member) -> None:
    push(ann.store, started(ann), ann.bundles(), None, Heard())
    names = sorted({blob.digest for bundle in ann.bundles() for blob in bundle.blobs})
    command = [sys.executable, "-c", HOLD, str(ben.store.root), *names]
    heard = Heard()
    with subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "holding\n"

        def tell(event: Event) -> None:
            heard(event)
            if isinstance(event, Note) and "waiting" in event.text and other.poll() is None:
                other.communicate("\n")

        rows = pull_targets(ben.project, TARGETS, [ben.remote], tell, dry_run=False)
    assert {row.state for row in rows} == {"built"}
    said = [note for note in heard.notes if "waiting" in note]
    assert said == [f"{ben.remote.name}: waiting for another run, which fetches or makes the same"]


def test_a_target_with_one_block_there_takes_that_block(ann: Member, ben: Member) -> None:
    """A build pulls block by block what is there. What is not there is left to the build."""
    transport = started(ann)
    push(ann.store, transport, ann.bundles(["m_4bit"]), None, Heard())
    plan = ann.plan("m_4bit")
    key = plan.actions[1].key
    record = records.read(ann.store, key)
    assert record is not None
    transport.delete([layout.blob(record.blob.digest)])  # a gap: a miss, never a half view
    heard = Heard()
    fetch(ben.project, [ben.plan("m_4bit")], heard)
    assert records.read(ben.store, key) is None
    assert records.read(ben.store, plan.actions[0].key) is not None
    assert records.read_manifest(ben.store, plan.key) is None
    assert wrong_here(ben.store) == []
    assert heard.notes == ["team: 10.1 kB in 3 blobs pulled for m_4bit"]


def test_two_results_for_one_key_are_never_mixed(ann: Member, ben: Member, tmp_path: Path) -> None:
    transport = started(ann)
    push(ann.store, transport, ann.bundles(["m_4bit"]), None, Heard())
    project = ben.project
    action = ben.plan("m_4bit").actions[0]
    blob = blobs.ingest(project.store, [bytes(action.size)])  # another device rounds otherwise
    records.write(project.store, Record(action.key, "block", blob))
    build(project, "m_4bit")
    sent = push(ben.store, transport, ben.bundles(["m_4bit"]), None, Heard())
    assert sent.kept == ("m_4bit: the remote has other bytes of this target, and they stay",)
    assert sent.blobs == ()
    assert transport.head(layout.blob(blob.digest)) is None
    assert wrong_there(transport) == []


def test_who_is_late_by_a_moment_is_told(ann: Member) -> None:
    """Both saw nothing there. One create wins, and the other says that it lost."""
    transport = started(ann)
    plan = ann.plan("m_4bit")
    manifest = records.read_manifest(ann.store, plan.key)
    assert manifest is not None
    other = replace(manifest, files=manifest.files[1:])
    path, text = layout.manifest(plan.key), seals.sealed(manifest_to_text(other))

    def overtake(step: str) -> None:
        if step == f"create {path}":
            transport.create(path, text)

    heard = Heard()
    push(ann.store, Stepping(transport, overtake), ann.bundles(["m_4bit"]), None, heard)  # type: ignore[arg-type]
    assert transport.read(path) == text
    said = f"team: somebody was faster with other bytes of manifest {plan.key[:12]}, and they stay"
    assert heard.notes == [said]


def test_the_same_bytes_with_other_figures_are_no_conflict(ann: Member) -> None:
    transport = started(ann)
    push(ann.store, transport, ann.bundles(["m_4bit"]), None, Heard())
    plan = ann.plan("m_4bit")
    manifest = records.read_manifest(ann.store, plan.key)
    assert manifest is not None
    other = replace(manifest, measures={**manifest.measures, "survival_db": 1.0})
    transport.write(layout.manifest(plan.key), seals.sealed(manifest_to_text(other)))
    again = push(ann.store, transport, ann.bundles(["m_4bit"]), None, Heard())
    assert (again.kept, again.is_empty) == ((), True)


def test_results_of_another_device_are_left_where_the_device_counts(ann: Member) -> None:
    transport = started(ann)
    places = {"a": {"device": "cpu"}, "b": {"device": "gpu M3", "machine": "Darwin arm64"}, "c": {}}
    keys = {Key(name * 64): made for name, made in places.items()}
    for key, made in keys.items():
        transport.write(layout.result(key), seals.sealed(json.dumps({"key": key, "made": made}) + "\n"))
    for device, expected in ((None, "abc"), ("cpu", "ac"), ("metal", "bc"), ("cuda", "c")):
        wanted = Wanted(results=frozenset(keys))
        offer = offer_of(look(transport), wanted, Rules(device), lambda _: False)
        assert {key[0] for key in offer.results} == set(expected), device


def test_damaged_and_void_texts_are_replaced(ann: Member) -> None:
    transport = started(ann)
    push(ann.store, transport, ann.bundles(["m_4bit"]), None, Heard())
    plan = ann.plan("m_4bit")
    transport.write(layout.manifest(plan.key), b"half a mani")
    record = records.read(ann.store, plan.actions[0].key)
    assert record is not None
    transport.delete([layout.blob(record.blob.digest)])
    sent = push(ann.store, transport, ann.bundles(["m_4bit"]), None, Heard())
    assert [blob.digest for blob in sent.blobs] == [record.blob.digest]
    assert wrong_there(transport) == []


def test_a_blob_that_is_damaged_here_is_not_pushed(ann: Member) -> None:
    transport = started(ann)
    bundles = ann.bundles(["m_4bit"])
    place = blobs.path(ann.store, min(bundles[0].blobs, key=lambda blob: blob.digest).digest)
    stat = place.stat()
    data = bytearray(place.read_bytes())
    data[0] ^= 1
    place.chmod(0o644)
    place.write_bytes(data)
    os.utime(place, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as a disk that flips a bit
    with pytest.raises(Exception, match="bytes do not match its name"):
        push(ann.store, transport, bundles, None, Heard())
    assert wrong_there(transport) == []
    assert list(transport.list(layout.TARGETS)) == list(transport.list(layout.ACTIONS)) == []


def test_no_flipped_or_cut_byte_is_believed(ann: Member, ben: Member) -> None:
    """Of every object, one after the other. Whatever came is right, and the rest is missing."""
    transport = started(ann)
    push(ann.store, transport, ann.bundles(["m_4bit"]), None, Heard())
    objects = [entry.path for entry in transport.list(layout.ROOT) if entry.path != layout.FORMAT]
    plan = ben.plan("m_4bit")
    known = {layout.blob(Digest(entry.name)) for entry, _ in blobs.files(ben.store)}
    objects = [path for path in objects if path not in known]
    for number, path in enumerate(objects):
        data = transport.read(path)
        assert data is not None
        flipped = bytes([data[0] ^ 1]) + data[1:]
        transport.write(path, flipped if number % 2 else data[:-1])
        forget_remotes()
        fetch(ben.project, [plan], Heard())
        assert wrong_here(ben.store) == [], path
        sound = {Digest(entry.name) for entry, _ in blobs.files(ben.store)}
        assert layout.named(path) not in sound or not path.startswith(layout.BLOBS)
        if path.startswith((layout.BLOBS, layout.TARGETS)):
            assert records.read_manifest(ben.store, plan.key) is None, path
        transport.write(path, data)
        for key in (*records.record_keys(ben.store),):
            records.path(ben.store, key).unlink()
        for key in records.manifest_keys(ben.store):
            records.manifest_path(ben.store, key).unlink()
        for entry, _ in blobs.files(ben.store):
            Path(entry.path).unlink()
        prepared(ben.file)
    forget_remotes()
    assert pulled(ben, "m_4bit") == {"m_4bit": "built"}


SUITE = """
[suite.asked]
kind = "perplexity"
data = "text.txt"

[suite.far]
kind = "fidelity"
data = "text.txt"
"""


def test_what_was_measured_travels(tmp_path: Path, lines: str) -> None:
    """Results, the log-probs that they are compared with, and what each weight costs."""
    two = [member(tmp_path / name, lines, *TARGETS[: name == "ann"]) for name in ("ann", "ben")]
    for one in two:
        text = one.file.read_text().replace('"8bit"]', '"8bit"]\nsuites = ["asked", "far"]')
        one.file.write_text(text + SUITE)
    ann, ben = two
    plan = ann.plan("m_4bit")
    found, references = measured_of(ann.project, plan)
    (reference,) = references
    for number, key in enumerate(sorted(found)):
        figures = {"perplexity": Figure(3.5 + number, None, None, 10)}
        results.write(ann.store, Result(key, "m_4bit", "asked", "perplexity", figures))
    blob = blobs.ingest(ann.store, [b"log-probs"])
    records.write(ann.store, Record(reference, "reference", blob))
    sent = push(ann.store, started(ann), ann.bundles(["m_4bit"]), None, Heard())
    assert sorted(text.key for text in sent.create if text.kind == "result") == sorted(found)
    fetch_results(ben.project, found, Heard())
    fetch_records(ben.project, references, Heard())
    for key in found:
        assert results.read(ben.store, key) == results.read(ann.store, key) != None  # noqa: E711
    assert blobs.read(ben.store, blob) == b"log-probs"
    assert records.read_manifest(ben.store, plan.key) is None  # nothing else came
    assert pulled(ben, "m_4bit") == {"m_4bit": "built"}


def test_the_second_remote_has_what_the_first_does_not(tmp_path: Path) -> None:
    ann = member(tmp_path / "ann", 'url = "../remote"', *TARGETS)
    push(ann.store, started(ann), ann.bundles(), None, Heard())
    ben = member(tmp_path / "ben", 'url = "../empty"\n[remote.other]\nurl = "../remote"')
    init(connect(ben.remote))
    heard = Heard()
    fetch(ben.project, [ben.plan("m_4bit")], heard)
    assert records.read_manifest(ben.store, ben.plan("m_4bit").key) is not None
    assert heard.notes == ["other: 16.0 kB in 6 blobs pulled for m_4bit"]


NAMES = ("../evil", "/tmp/evil", "a/../../evil", "a/b/c", ".evil", "", "artifact.toml/x", "con\0fig")


@pytest.mark.parametrize("name", NAMES)
def test_a_remote_cannot_make_us_write_elsewhere(tmp_path: Path, name: str) -> None:
    """Its text is sound, and names a file that is no file of a view."""
    ann = member(tmp_path / "ann", 'url = "../remote"', *TARGETS)
    transport = started(ann)
    push(ann.store, transport, ann.bundles(), None, Heard())
    plan = ann.plan("m_4bit")
    manifest = records.read_manifest(ann.store, plan.key)
    assert manifest is not None
    entries = (replace(manifest.files[0], name=name), *manifest.files[1:])
    evil = seals.sealed(manifest_to_text(replace(manifest, files=entries)))
    transport.write(layout.manifest(plan.key), evil)
    ben = member(tmp_path / "ben", 'url = "../remote"')
    heard = Heard()
    fetch(ben.project, [ben.plan("m_4bit")], heard)
    assert records.read_manifest(ben.store, plan.key) is None
    (ben.file.parent / "artifacts.lock").write_text(
        f'format = 1\n[base]\n[adapter]\n[target.m_4bit]\nkey = "{plan.key}"\n'
    )
    shutil.rmtree(ben.file.parent / "base")
    forget_remotes()
    assert pulled(ben, "m_4bit") == {"m_4bit": "not there"}
    assert not list(tmp_path.rglob("evil"))
    assert wrong_here(ben.store) == []


def test_a_text_under_another_key_is_not_believed(ann: Member, ben: Member) -> None:
    """Two right records that were exchanged, and one that names more bytes than a block has."""
    transport = started(ann)
    push(ann.store, transport, ann.bundles(["m_4bit"]), None, Heard())
    plan = ann.plan("m_4bit")
    transport.delete([layout.manifest(plan.key)])
    one, two, three = (layout.record(action.key) for action in plan.actions)
    texts = [transport.read(path) or b"" for path in (one, two)]
    transport.write(one, texts[1])
    transport.write(two, texts[0])
    record = records.read(ann.store, plan.actions[2].key)
    assert record is not None
    bigger = replace(record, blob=blobs.ingest(ann.store, [b"x" * 100_000]))
    transport.write(three, seals.sealed(record_to_text(bigger)))
    transport.upload(layout.blob(bigger.blob.digest), [b"x" * 100_000])
    fetch(ben.project, [ben.plan("m_4bit")], Heard())
    assert [records.read(ben.store, action.key) for action in plan.actions] == [None] * 3


def test_after_an_error_nothing_goes_on(ann: Member, ben: Member) -> None:
    """Ctrl-C too need not wait for the end of a blob of gigabytes."""
    transport = started(ann)
    push(ann.store, transport, ann.bundles(["m_4bit"]), None, Heard())
    begun: list[str] = []

    def endless(said: str) -> None:
        if said.startswith("stream") and said.endswith("chunk"):
            begun.append(said)
            if len(begun) == 1:
                raise KeyboardInterrupt
            time.sleep(0.2)

    project, plan = ben.project, ben.plan("m_4bit")
    stepping: Transport = Stepping(transport, endless)  # type: ignore[assignment]
    found = sharing.Opened(ben.remote, look(stepping), sharing.rules_of(project, ben.remote))
    with pytest.raises(KeyboardInterrupt):
        sharing.take(project, found, sharing.wanted_of(project, [plan]), Heard(), [plan])
    assert len(begun) < 6  # those that were under way, and one that begins at the same moment
    assert wrong_here(ben.store) == []


# -- remotes that cannot be used ----------------------------------------------------------------------------


def dead(folder: Path, lines: str) -> Member:
    return member(folder, lines, *TARGETS)


def test_a_run_goes_on_without_a_remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not there, no answer, no credentials: one line, once, and nothing else happens."""
    nowhere = 'url = "s3://models/x"\nendpoint = "http://127.0.0.1:9"\npush = "always"'
    cases = {
        "folder": ('url = "../nowhere"\npush = "always"', "there is no store at ../nowhere"),
        "secret": (nowhere, "there are no credentials for s3://models/x"),
        "web": ('url = "http://127.0.0.1:9"', "no answer from http://127.0.0.1:9"),
    }
    for name, (text, said) in cases.items():
        heard = Heard()
        one = member(tmp_path / name, text, "m_4bit")
        for _ in range(2):
            fetch(one.project, [one.plan("m_8bit")], heard)
            share(one.project, [one.plan("m_4bit")], "always", heard)
        assert len(heard.notes) == 1, heard.notes
        assert said in heard.notes[0]
        assert heard.notes[0].endswith("The run goes on without it.")
    with pytest.raises(NoRemoteStore):
        open_remote(member(tmp_path / "asked", 'url = "../nowhere"').remote)


def test_a_server_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    one = member(tmp_path / "ann", 'url = "s3://models/x"\nendpoint = "http://127.0.0.1:9"')
    with pytest.raises(RemoteUnreachable, match="no answer from http://127.0.0.1:9"):
        open_remote(one.remote)


def test_wrong_credentials(tmp_path: Path, s3: object, monkeypatch: pytest.MonkeyPatch) -> None:
    one = member(tmp_path / "ann", f'url = "s3://models/w"\nendpoint = "{s3.endpoint}"')  # type: ignore[attr-defined]
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(RemoteRefused, match="403"):
        open_remote(one.remote)
    with pytest.raises(RemoteRefused, match="403"):
        list(connect(one.remote).list(layout.ROOT))


def test_a_folder_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = member(tmp_path / "ann", 'url = "../remote"', *TARGETS)
    started(one)
    real = os.open

    def refused(path: object, flags: int, *more: object, **options: object) -> int:
        if flags & os.O_CREAT and "/remote/" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, flags, *more, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(RemoteRefused, match="Permission denied"):
        send(one.project, one.remote, one.bundles(), Heard())


def test_a_full_remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from builder.remote.transport import RemoteFull
    from builder.store.disk import durable

    one = member(tmp_path / "ann", 'url = "../remote"', *TARGETS)
    transport = started(one)

    def full(fd: int, data: memoryview, at: int | None = None) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(durable, "write_all", full)
        with pytest.raises(RemoteFull, match="No space left"):
            send(one.project, one.remote, one.bundles(), Heard())
    assert {entry.path for entry in transport.list(layout.ROOT)} == {layout.FORMAT}


def test_a_full_disk_here(ann: Member, ben: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    push(ann.store, started(ann), ann.bundles(["m_4bit"]), None, Heard())
    import shutil

    from builder.errors import StoreFull

    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    with pytest.raises(StoreFull, match="are to be pulled, and 1 B are free"):
        pulled(ben, "m_4bit")


# -- a web server -------------------------------------------------------------------------------------------


@pytest.fixture
def published(tmp_path: Path, web: Web) -> Member:
    """Ben reads by HTTP what Ann pushed into the folder behind it."""
    one = member(tmp_path / "ann", 'url = "../remote"', *TARGETS)
    push(one.store, started(one), one.bundles(), None, Heard())
    return member(tmp_path / "ben", f'url = "{web.url}"')


def test_a_web_server_is_read_by_name(published: Member, web: Web) -> None:
    assert pulled(published) == {"m_4bit": "built", "m_8bit": "built"}
    assert wrong_here(published.store) == []
    assert {asked.split()[0] for asked in web.asked} == {"GET", "HEAD"}


def test_a_web_server_is_never_written(published: Member, web: Web) -> None:
    project = prepared(published.file)
    build(project, "m_4bit")
    with pytest.raises(RemoteReadOnly):
        send(published.project, published.remote, published.bundles(["m_4bit"]), Heard())
    assert {asked.split()[0] for asked in web.asked} <= {"GET", "HEAD"}


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_line_goes_on_where_it_was(
    published: Member, web: Web, ranges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from builder.remote import bucket

    monkeypatch.setattr(bucket, "_PAUSE_S", 0.01)
    monkeypatch.setattr(bucket, "_PIECE", 1000)
    web.cut_after, web.ranges = 3000, ranges
    assert pulled(published, "m_4bit")["m_4bit"] == ("built" if ranges else "not there")
    assert wrong_here(published.store) == []
    assert any("bytes=3000-" in asked for asked in web.asked)


def test_a_server_that_stands_still_is_left(
    published: Member, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    from builder.remote import bucket
    from builder.remote import connect as connecting

    monkeypatch.setitem(connecting._CLIENT, "read_timeout", "200ms")
    monkeypatch.setattr(bucket, "_PAUSE_S", 0.01)
    monkeypatch.setattr(bucket, "_RESUMES", 1)
    heard = Heard()
    web.stall_after = 0
    fetch(published.project, [published.plan("m_4bit")], heard)
    assert any(note.endswith("The run goes on without it.") for note in heard.notes), heard.notes
    assert wrong_here(published.store) == []


# -- what may be done ---------------------------------------------------------------------------------------


def refusing(*kinds: str) -> Callable[[str], None]:
    def step(said: str) -> None:
        if said.split()[0] in kinds:
            raise RemoteRefused(remote="team", what="403 Forbidden, AccessDenied")

    return step


def test_a_remote_that_may_not_be_listed_is_asked_by_name(ann: Member, ben: Member) -> None:
    transport = started(ann)
    no_list: Transport = Stepping(transport, refusing("list"))  # type: ignore[assignment]
    push(ann.store, no_list, ann.bundles(["m_4bit"]), None, Heard())
    assert wrong_there(transport) == []
    project, plan = ben.project, ben.plan("m_4bit")
    found = sharing.Opened(ben.remote, look(no_list), sharing.rules_of(project, ben.remote))
    sharing.take(project, found, sharing.wanted_of(project, [plan]), Heard(), [plan])
    assert records.read_manifest(ben.store, plan.key) is not None


def test_a_remote_that_may_not_be_written_says_so(ann: Member) -> None:
    transport = started(ann)
    with pytest.raises(RemoteRefused, match="refuses: 403 Forbidden, AccessDenied"):
        push(
            ann.store,
            Stepping(transport, refusing("write", "upload", "create")),  # type: ignore[arg-type]
            ann.bundles(),
            None,
            Heard(),
        )
    assert {entry.path for entry in transport.list(layout.ROOT)} == {layout.FORMAT}


@pytest.mark.parametrize(("push_when", "occasions"), [("release", ["release"]), ("always", ["always"])])
def test_a_run_pushes_when_it_is_asked_to(tmp_path: Path, push_when: str, occasions: list[str]) -> None:
    one = member(tmp_path / "ann", f'url = "../remote"\npush = "{push_when}"', *TARGETS)
    transport = started(one)
    other = "always" if push_when == "release" else "never"
    if other == "always":
        share(one.project, [one.plan("m_4bit")], "always", Heard())
        assert list(transport.list(layout.TARGETS)) == []
    heard = Heard()
    share(one.project, [one.plan("m_4bit")], occasions[0], heard)
    assert [e.path for e in transport.list(layout.TARGETS)] == [layout.manifest(one.plan("m_4bit").key)]
    assert heard.notes == ["team: 16.5 kB in 7 blobs pushed for m_4bit"]


# -- two at once, and patience ------------------------------------------------------------------------------


def test_two_pushers_of_one_target_both_succeed(ann: Member, tmp_path: Path, lines: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    other = member(tmp_path / "other", lines, *TARGETS)
    transport = started(ann)
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(push, one.store, transport, one.bundles(), None, Heard()) for one in (ann, other)]
        sent = [job.result() for job in jobs]
    assert [plan.kept for plan in sent] == [(), ()]
    assert wrong_there(transport) == []
    assert list(transport.list(layout.LEASES)) == []


def test_what_fails_once_is_tried_again(ann: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pushing, "PAUSES", (0.01, 0.01))
    transport = started(ann)
    failed: set[str] = set()

    def once(step: str) -> None:
        kind = step.split()[0]
        if kind in ("upload", "create") and step not in failed and not step.endswith("done"):
            failed.add(step)
            raise RemoteUnreachable(remote="team", what="cut")

    heard = Heard()
    push(ann.store, Stepping(transport, once), ann.bundles(["m_4bit"]), None, heard)  # type: ignore[arg-type]
    assert wrong_there(transport) == []
    assert any("tried again in" in note for note in heard.notes)


def test_a_server_that_loses_what_it_took_is_noticed(ann: Member) -> None:
    transport = started(ann)

    def lose(step: str) -> None:
        if step.startswith("upload") and step.endswith("done"):
            transport.delete([step.split()[1]])

    with pytest.raises(NotWhole, match="does not keep what it was sent"):
        push(ann.store, Stepping(transport, lose), ann.bundles(["m_4bit"]), None, Heard())  # type: ignore[arg-type]
    assert list(transport.list(layout.ACTIONS)) == list(transport.list(layout.TARGETS)) == []


def test_a_server_whose_listing_lacks_what_is_there(ann: Member, ben: Member) -> None:
    """Nothing is sent twice, and all of it can be pulled."""
    uploads: list[str] = []
    bundle = ann.bundles(["m_4bit"])[0]
    hidden = min(blob.digest for blob in bundle.blobs)
    folder = layout.blob(hidden).rpartition("/")[0]
    transport: Transport = Lacking(started(ann), folder, uploads.append)  # type: ignore[assignment]
    assert layout.blob(hidden) not in {entry.path for entry in transport.list(layout.ROOT)}
    push(ann.store, transport, [bundle], None, Heard())
    sent = [step for step in uploads if step.startswith("upload") and step.endswith("done")]
    assert len(sent) == len(set(sent)) == len(bundle.blobs)
    assert push(ann.store, transport, [bundle], None, Heard()).is_empty
    plan = ben.plan("m_4bit")
    found = sharing.Opened(ben.remote, look(transport), sharing.rules_of(ben.project, ben.remote))
    sharing.take(ben.project, found, sharing.wanted_of(ben.project, [plan]), Heard(), [plan])
    assert records.read_manifest(ben.store, plan.key) is not None


def test_reading_back_finds_a_server_that_lies(ann: Member) -> None:
    transport = started(ann)

    def lie(step: str) -> None:
        if step.startswith("upload") and step.endswith("done"):
            path = step.split()[1]
            size = transport.head(path).size  # type: ignore[union-attr]
            transport.write(path, bytes(size))

    with pytest.raises(RemoteError, match="came back with other bytes"):
        push(
            ann.store,
            Stepping(transport, lie),  # type: ignore[arg-type]
            ann.bundles(["m_4bit"]),
            None,
            Heard(),
            read_back=True,
        )
    assert list(transport.list(layout.ACTIONS)) == []
