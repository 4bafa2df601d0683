"""A GGUF of one file in the store, under its key, as all that is made."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from builder.build.importance import text_of
from builder.console.events import Emit, Writing
from builder.gguf.layout import shares
from builder.gguf.mixes import MIXES, SMALLER
from builder.gguf.writing import Written
from builder.keys import Key
from builder.plan.types import TargetPlan
from builder.project.project import Project
from builder.project.toolchain import made_by
from builder.store import blobs, records, tmp
from builder.store.disk import durable
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
    made: Mapping[str, str | int | float | bool]  # with what, where and when
    text: str = ""  # that its importance matrix is of

    @property
    def usual(self) -> str:
        return next(iter(self.mix))

    @property
    def shares(self) -> str:
        """The mix as text: "Q4_1 79 %, Q8_0 21 %"."""
        return shares(self.mix)


def from_record(record: Record, plan: TargetPlan) -> Gguf:
    """What the record says of the one file of a target."""
    said, kind = record.provenance, plan.target.variant.gguf
    assert kind is not None
    mix: dict[str, float] = json.loads(str(said["mix"]))
    return Gguf(
        record.key,
        kind.type,
        record.blob,
        mix,
        float(said["bits_per_weight"]),
        str(said["architecture"]),
        int(said["context"]),
        {name: said[name] for name in ("toolchain", "machine", "made") if name in said},
        text_of(kind.weighed) if kind.weighed else "",
    )


def mix_in_words(wanted: str, mix: Mapping[str, float], bits: float) -> str:
    """What a mixture really came out as. Empty for a type that says it itself."""
    if wanted not in MIXES:
        return ""
    said = f"{bits:.2f} bits per weight: {shares(mix)}"
    narrow = SMALLER.get(MIXES[wanted][0])
    if narrow in mix:
        said += f". {narrow} is for weights whose width is not a multiple of 256"
    return said


def stored(
    project: Project,
    name: str,
    key: Key,
    made: Written,
    fill: Callable[[Path, Callable[[int], None]], None],
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
    record = _record_of(key, blob, made)
    records.write(project.store, record)
    return record


def _record_of(key: Key, blob: Blob, made: Written) -> Record:
    """The record of a file, with what a card says of it."""
    said: dict[str, str | int | float | bool] = {
        "mix": json.dumps(made.mix),
        "bits_per_weight": round(made.bits_per_weight, 4),
        "architecture": made.architecture.name,
        "context": int(made.architecture.settings["context_length"]),
        **made_by(),
    }
    return Record(key, "gguf", blob, said)
