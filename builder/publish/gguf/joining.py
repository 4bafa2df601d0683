"""One file of a target that is a GGUF in several: the form in which people pass a model on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from builder.build.conversion import converter, described
from builder.build.ledger import Ledger
from builder.build.manifests import BlobMissing
from builder.console.events import Emit, Note
from builder.console.words import size_text
from builder.gguf import layout, splits
from builder.gguf.architecture import Tensor
from builder.gguf.weights import Weight
from builder.gguf.writing import WRITER, write_all
from builder.keys import Key, make_key
from builder.plan.types import TargetPlan
from builder.project.project import Project
from builder.project.toolchain import version_of
from builder.publish.gguf.making import Gguf, from_record, stored
from builder.store import blobs
from builder.store.holdings import usable_record
from builder.store.types import Record

_PIECE = 1 << 22


def known_joined(project: Project, plan: TargetPlan, about: Mapping[str, str]) -> Gguf | None:
    """The one file of a target, if the store has it."""
    record = usable_record(project.store, _key(plan, about))
    return from_record(record, wanted_type(plan)) if record is not None else None


def unjoined(plan: TargetPlan) -> tuple[int, str]:
    """The bytes of the weights of a file that is not made, and the type that most of them have."""
    tensors = [tensor for action in plan.actions for tensor in action.tensors]
    return sum(tensor.nbytes for tensor in tensors), next(iter(layout.mix(tensors)))


def join(project: Project, plan: TargetPlan, about: Mapping[str, str], emit: Emit) -> Gguf:
    """The one file of a target that is built, made if the store has none. Raises BuildError."""
    found = known_joined(project, plan, about)
    if found is not None:
        return found
    ledger = Ledger(project.store)
    written = described(project.store, ledger, plan, converter(project, ledger, plan))
    emit(Note(f"joining the files of {plan.name}, {size_text(written.nbytes)}"))
    places = _places(project, plan)

    def read(tensor: Tensor, weight: Weight, kind: str) -> Iterator[bytes]:
        path, extent = places[tensor.name]
        with path.open("rb") as file:
            file.seek(extent.start)
            for start in range(0, extent.nbytes, _PIECE):
                yield file.read(min(_PIECE, extent.nbytes - start))

    def fill(file: Path, step: Callable[[int], None]) -> None:
        write_all(file, written, read, wanted=wanted_type(plan), about=about, step=step)

    record = stored(project, plan.name, _key(plan, about), written, fill, {}, emit)
    return from_record(record, wanted_type(plan))


def _places(project: Project, plan: TargetPlan) -> dict[str, tuple[Path, splits.Extent]]:
    """Where the bytes of each tensor are."""
    found: dict[str, tuple[Path, splits.Extent]] = {}
    for action in plan.actions:
        record: Record | None = usable_record(project.store, action.key)
        if record is None:
            raise BlobMissing(target=plan.name, block=action.block)
        path = blobs.path(project.store, record.blob.digest)
        extents = splits.extents(action.tensors, splits.number_of(action.file))
        found |= {name: (path, extent) for name, extent in extents.items()}
    return found


def wanted_type(plan: TargetPlan) -> str:
    """The type of GGUF that the variant of a target declares."""
    assert plan.target.variant.gguf is not None
    return plan.target.variant.gguf.type


def _key(plan: TargetPlan, about: Mapping[str, str]) -> Key:
    return make_key("gguf-joined/1", WRITER, plan.key, sorted(about.items()), version_of("gguf"))
