"""What `doit` and `builder` do, in this process and with the functions that they call."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from builder.build import learned
from builder.build.first_pass import reads
from builder.build.prepare import prepare_adapter, prepare_base, prepare_calibration
from builder.build.restore import restore
from builder.console.events import BlockDone, Emit, Event, Note, silent
from builder.engine.quantizer import LearnedRequest
from builder.keys import Key, digest_bytes
from builder.plan.types import TargetPlan
from builder.project import roots
from builder.project.forecast import Forecast, forecast
from builder.project.project import Project
from builder.project.state import missing_actions
from builder.project.status import survey
from builder.release.delivery import deliver
from builder.sources import catalog
from builder.sources.base import IGNORED
from builder.spec.quantizers import METHOD_SETTINGS
from builder.store import blobs, records
from builder.store.care.gc import Policy, apply_gc
from builder.store.care.repair import quarantine
from builder.store.care.verify import Report, verify
from builder.store.disk import durable
from builder.tasks.uptodate import SELECTED, AdapterReady, BaseReady, TargetReady
from tests.soak.world import load

LARGE = 1000  # bytes of a file that planning does not hash, in a first build
STEP = re.compile(r": (dwq|gptq|awq|dynamic) on ")


@dataclass
class Ran:
    """What a run did, by its events."""

    events: list[Event] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    @property
    def blocks(self) -> int:
        return sum(event.made for event in self.events if isinstance(event, BlockDone))

    @property
    def nbytes(self) -> int:
        return sum(event.nbytes for event in self.events if isinstance(event, BlockDone))

    @property
    def steps(self) -> list[str]:
        """The targets that a learned quantizer ran for."""
        notes = [event.text for event in self.events if isinstance(event, Note)]
        return [note.partition(":")[0] for note in notes if STEP.search(note)]


def chosen(project: Project, names: Sequence[str]) -> list[str]:
    """The targets of a run: those that were named, else what a plain `doit` builds."""
    return list(names) or [t.name for t in project.spec.targets if not t.variant.intermediate]


def prepare(project: Project, targets: Collection[str]) -> None:
    """What runs before the targets: their bases, adapters and texts."""
    for name in targets:
        target = project.spec.target(name)
        model = target.model
        base = project.spec.bases[model.base]
        if not BaseReady(project, base)():
            prepare_base(project, base, silent)
        if model.adapter is not None:
            adapter = project.spec.adapters[model.adapter]
            if not AdapterReady(project, adapter)():
                prepare_adapter(project, adapter, silent)
        if target.variant.learned is not None:
            prepare_calibration(project, target.variant, silent)
    project.forget_plan()


def build(project: Project, targets: Sequence[str], named: Sequence[str] = ()) -> Ran:
    """What the tasks of these targets do, one after the other."""
    roots._TRIED.clear()  # each run is a process of its own
    SELECTED.targets, SELECTED.named = set(targets), set(named)
    ran = Ran()
    for name in targets:
        if not TargetReady(project, name)():
            deliver(project, name, set(targets), set(named), ran)
    return ran


def run(file: Path, names: Sequence[str] = ()) -> tuple[Forecast, Ran]:
    """`doit base:... adapter:...`, `doit plan`, `doit`, in three commands."""
    project = load(file)
    targets = chosen(project, names)
    prepare(project, targets)
    said = forecast(load(file), targets)
    return said, build(load(file), targets, names)


class Dropped(NamedTuple):
    """Blocks and learned steps that were made once and whose bytes are not all there."""

    blocks: int
    steps: int


def dropped(project: Project) -> Dropped:
    store = project.store
    there = blobs.present(store).keys()
    known = [record for key in records.record_keys(store) if (record := records.read(store, key))]
    blocks = sum(record.kind == "block" and record.blob.digest not in there for record in known)
    steps = sum(m.kind == "learned" and not m.digests <= there for m in records.manifests(store))
    return Dropped(blocks, steps)


def missing(file: Path, names: Sequence[str]) -> set[Key]:
    """The actions that a run of these targets has to do itself, learned ones and what they read left out."""
    project = load(file)
    targets = chosen(project, names)
    prepare(project, targets)
    found: set[Key] = set()
    for name in targets:
        plan = project.plan.targets[name]
        assert isinstance(plan, TargetPlan), plan
        found |= {action.key for action in missing_actions(project.store, plan)}
    return found


def built(project: Project) -> list[str]:
    """What status calls built."""
    return [status.target for status in survey(project) if status.state == "built"]


def collect(file: Path, policy: Policy) -> None:
    """`doit gc`"""
    project = load(file)
    roots.fingerprint(project, silent)
    plan = roots.gc_plan(project, policy)
    if not plan.is_empty:
        apply_gc(project.store, plan)
        roots.register(project)


def look(project: Project) -> Report:
    """`doit verify`"""
    return verify(project.store)


def repair(project: Project) -> Report:
    """`doit verify --repair`; what verify finds then."""
    report = look(project)
    if report.findings:
        quarantine(project.store, report.findings)
        restore(project, report.findings, silent)
    return look(project)


# -- a learned quantizer in milliseconds --------------------------------------------------------------------


def stand_in(cwd: Path, environment: Mapping[str, str], target: str, emit: Emit) -> tuple[int, str]:
    """In place of a learned quantizer's process: a quantization that depends on all that a real one reads."""
    import mlx.core as mx

    request = LearnedRequest(**json.loads((cwd / "request.json").read_text()))
    source, out = Path(request.source), Path(request.out)
    config = json.loads((source / "config.json").read_text())
    settings = [getattr(request, name) for name in sorted(METHOD_SETTINGS[request.method])]
    read = [settings, request.method, {k: v for k, v in config.items() if k not in IGNORED}]
    text, words = Path(request.calibration), (source / "tokenizer.json").read_bytes()
    seen = json.dumps(read, sort_keys=True).encode() + text.suffix.encode() + text.read_bytes() + words
    factor = 1 + int(digest_bytes(seen)[:4], 16) / 0x20000
    made = {}
    for file in sorted(source.glob("model*.safetensors")):
        tensors = mx.load(str(file))
        assert isinstance(tensors, dict)
        for name, tensor in tensors.items():
            if tensor.ndim != 2:
                made[name] = tensor
                continue
            parts = mx.quantize(tensor * factor, request.group_size, request.bits)
            for part, array in zip(("weight", "scales", "biases"), parts, strict=True):
                made[f"{name.removesuffix('.weight')}.{part}"] = array
    out.mkdir()
    mx.eval(made)
    mx.save_safetensors(str(out / "model.safetensors"), made, metadata={"format": "mlx"})
    how = {"group_size": request.group_size, "bits": request.bits, "mode": "affine"}
    config |= {"quantization": how, "quantization_config": how}
    (out / "config.json").write_text(json.dumps(config))
    return 0, ""


@contextmanager
def quick() -> Iterator[None]:
    """Learned quantizers take milliseconds. Nothing waits for the disk: a killed process keeps its writes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learned, "_listened", stand_in)
        for name in ("sync_file", "sync_folder"):
            patch.setattr(durable, name, lambda *_, **__: None)
        yield


# -- in a process that can be killed ------------------------------------------------------------------------


def in_child(file: Path, names: Sequence[str], calls: int | None, said: Any, *, unread: bool = False) -> None:
    """Builds. Kills itself with SIGKILL at that call to the file system, or says how many actions it ran.

    unread: the bases are large, so that the build is the first to read those that nobody has read.
    """
    project = load(file)
    targets = chosen(project, names)
    with quick(), pytest.MonkeyPatch.context() as patch:
        if unread:
            patch.setattr(catalog, "HASH_AT_ONCE", LARGE)
            targets = first(project, targets)
        else:
            prepare(project, targets)
        if calls is not None:
            die_after(calls, project.store.root)
        ran = build(load(file), targets, names)
    said.send((ran.blocks, ran.steps))


def first(project: Project, targets: Sequence[str]) -> list[str]:
    """The targets whose build is the first to read their base. Without one, all, and they are prepared."""
    spec = project.spec
    bases = {name: spec.bases[spec.target(name).model.base] for name in targets}
    found = [name for name in targets if reads(project, bases[name], [name])]
    if not found:
        prepare(project, targets)
    return found or list(targets)


def die_after(count: int, store: Path) -> Callable[[], int]:
    """Kills this process at that call which changes something in the store. Returns what counts the calls."""
    made = 0
    inside = str(store)
    calls = frozenset(
        {"os.rename", "os.link", "os.remove", "os.mkdir", "os.chmod", "os.utime", "shutil.rmtree"}
    )

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal made
        if event == "open":
            if not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
                return
        elif event not in calls:
            return
        if inside in str(arguments[0]):
            made += 1
            if made >= count:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return lambda: made
