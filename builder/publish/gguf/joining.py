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
from builder.gguf.architecture import GgufRefused, Tensor
from builder.gguf.formats import data
from builder.gguf.settings import Unwritable
from builder.gguf.weights import Weight, Weights
from builder.gguf.writing import WRITER, Read, Written, write_all
from builder.keys import Key, make_key
from builder.plan.types import TargetPlan
from builder.project.project import Project
from builder.project.state import missing_actions
from builder.project.toolchain import version_of
from builder.publish.gguf.keeping import Gguf, from_record, stored
from builder.store import blobs
from builder.store.holdings import usable_record
from builder.store.types import Record

_PIECE = 1 << 22


def known_joined(project: Project, plan: TargetPlan, about: Mapping[str, str]) -> Gguf | None:
    """The one file of a target, if the store has it."""
    record = usable_record(project.store, _key(plan, about))
    return from_record(record, plan) if record is not None else None


def unjoined(plan: TargetPlan) -> tuple[int, dict[str, float]]:
    """The bytes of the weights of a file that is not made, and the mix of their types."""
    tensors = [tensor for action in plan.actions for tensor in action.tensors]
    return sum(tensor.nbytes for tensor in tensors), layout.mix(tensors)


def join(project: Project, plan: TargetPlan, about: Mapping[str, str], emit: Emit) -> Gguf:
    """The one file of a target whose blocks are in the store, made if the store has none.

    An exact one whose blocks are not there is repacked from the view of the target that it is made of.
    Raises BuildError.
    """
    found = known_joined(project, plan, about)
    if found is not None:
        return found
    ledger = Ledger(project.store)
    written = described(project.store, ledger, plan, converter(project, ledger, plan))
    name = f"{plan.target.model.name} as GGUF {wanted_type(plan)}"
    emit(Note(f"writing {name}, {size_text(written.nbytes)}"))
    apart = plan.gguf is not None and plan.gguf.of is not None and missing_actions(project.store, plan)
    read = _repacked(project, plan, written) if apart else _stored(project, plan)

    def fill(file: Path, step: Callable[[int], None]) -> None:
        try:
            write_all(file, written, read, wanted=wanted_type(plan), about=about, step=step)
        except Unwritable as error:
            raise GgufRefused(target=plan.name, what=str(error)) from error

    record = stored(project, name, _key(plan, about), written, fill, emit)
    return from_record(record, plan)


def _stored(project: Project, plan: TargetPlan) -> Read:
    """Reads the bytes of tensors from the blocks in the store."""
    places = _places(project, plan)

    def read(tensor: Tensor, weight: Weight, kind: str) -> Iterator[bytes]:
        path, extent = places[tensor.name]
        with path.open("rb") as file:
            file.seek(extent.start)
            for start in range(0, extent.nbytes, _PIECE):
                yield file.read(min(_PIECE, extent.nbytes - start))

    return read


def _repacked(project: Project, plan: TargetPlan, written: Written) -> Read:
    """Repacks the weights of the quantized target as they are read."""
    assert plan.gguf is not None
    weights = Weights(project.store.models / str(plan.gguf.of), plan.name)
    return lambda tensor, weight, kind: data(kind, tensor, weight, weights, written.architecture)


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
