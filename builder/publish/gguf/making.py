"""Makes a GGUF of a built target and keeps it in the store under its key, as all that is made."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from builder.console.events import Emit, Note, Writing
from builder.console.words import size_text
from builder.gguf.formats import Quantize, by_package
from builder.gguf.layout import shares
from builder.gguf.weights import Weights
from builder.gguf.writing import WRITER, Written, planned, write
from builder.keys import Key, make_key
from builder.plan.types import TargetPlan
from builder.project.project import Project
from builder.project.toolchain import version_of
from builder.store import blobs, records, tmp
from builder.store.disk import durable
from builder.store.holdings import usable_record
from builder.store.types import Blob, Record


@dataclass(frozen=True)
class Gguf:
    """One file. `mix` is type -> share of all weights. `usual` is the type that most weights have."""

    key: Key
    wanted: str
    blob: Blob
    mix: Mapping[str, float]
    bits_per_weight: float
    architecture: str
    context: int
    text: str = ""  # that its importance matrix is of
    importance: Key | None = None  # of that matrix

    @property
    def usual(self) -> str:
        return next(iter(self.mix))

    @property
    def shares(self) -> str:
        """The mix as text: "Q4_1 79 %, Q8_0 21 %"."""
        return shares(self.mix)


def known(project: Project, plan: TargetPlan, wanted: str, about: Mapping[str, str]) -> Gguf | None:
    """The GGUF of a target, if the store has it."""
    record = usable_record(project.store, _key(plan, wanted, about))
    return from_record(record, wanted) if record is not None else None


def make(project: Project, plan: TargetPlan, wanted: str, about: Mapping[str, str], emit: Emit) -> Gguf:
    """The GGUF of a target that is built, made if the store has none. Raises BuildError."""
    key = _key(plan, wanted, about)
    record = usable_record(project.store, key)
    if record is None:
        made, weights = planned(project.store.models / plan.name, plan.name, wanted)
        record = written(project, plan, wanted, about, key, (made, weights), by_package, {}, emit)
    return from_record(record, wanted)


def from_record(record: Record, wanted: str) -> Gguf:
    said = record.provenance
    mix: dict[str, float] = json.loads(str(said["mix"]))
    return Gguf(
        record.key,
        wanted,
        record.blob,
        mix,
        float(said["bits_per_weight"]),
        str(said["architecture"]),
        int(said["context"]),
        str(said.get("text", "")),
        Key(str(said["importance"])) if "importance" in said else None,
    )


def _key(plan: TargetPlan, wanted: str, about: Mapping[str, str]) -> Key:
    return make_key(WRITER, plan.key, wanted, sorted(about.items()), version_of("gguf"))


def written(
    project: Project,
    plan: TargetPlan,
    wanted: str,
    about: Mapping[str, str],
    key: Key,
    what: tuple[Written, Weights],
    quantize: Quantize,
    weighed: Mapping[str, str],
    emit: Emit,
) -> Record:
    """Writes a file that is planned, and its record. `weighed`: `text` and key (`importance`) of its matrix.

    Raises BuildError.
    """
    made, weights = what
    name = f"{plan.name} as GGUF {wanted}"
    emit(Note(f"writing {name}, {size_text(made.nbytes)}"))

    def fill(file: Path, step: Callable[[int], None]) -> None:
        write(file, made, weights, target=plan.name, wanted=wanted, about=about, step=step, quantize=quantize)

    return stored(project, name, key, made, fill, weighed, emit)


def stored(
    project: Project,
    name: str,
    key: Key,
    made: Written,
    fill: Callable[[Path, Callable[[int], None]], None],
    weighed: Mapping[str, str],
    emit: Emit,
) -> Record:
    """Keeps the file that `fill` writes, and its record. `fill` calls its second argument with the bytes of
    each portion. Events call the file `name`. Raises BuildError.
    """
    done = 0

    def step(count: int) -> None:
        nonlocal done
        done += count
        emit(Writing(name, min(done, made.nbytes), made.nbytes))

    with tmp.new_folder(project.store) as folder, durable.explained(folder):
        file = folder / "model.gguf"
        fill(file, step)
        blob = blobs.ingest_file(project.store, file)
    record = _record_of(key, blob, made, weighed)
    records.write(project.store, record)
    return record


def _record_of(key: Key, blob: Blob, made: Written, weighed: Mapping[str, str]) -> Record:
    """The record of a file, with what a card says of it."""
    said: dict[str, str | int | float | bool] = {
        "mix": json.dumps(made.mix),
        "bits_per_weight": round(made.bits_per_weight, 4),
        "architecture": made.architecture.name,
        "context": int(made.architecture.settings["context_length"]),
        **weighed,
    }
    return Record(key, "gguf", blob, said)
