"""Blocks of a store of format 1, taken over under their present keys where content proves them right.

The keys of format 1 lacked names and types of tensors, and an import was found by a name that could be
given to another GGUF. So a block is taken over only if its base is a folder or a snapshot, whose files were
compared with the plan at every pass, and if the blob is sound and holds exactly the tensors that the plan
says.
"""

from __future__ import annotations

from builder.errors import BuildError
from builder.keys import Key, make_key
from builder.plan.types import Action, TargetPlan
from builder.project.state import missing_actions
from builder.store import blobs, records
from builder.store.format import FORMER
from builder.store.holdings import usable_record
from builder.store.layout import Store
from builder.store.locks import build_session
from builder.store.types import Record
from builder.weights.safetensors import read_header
from builder.weights.structure import TensorSpec, block_of


def adopt(store: Store, plan: TargetPlan) -> int:
    """Record the missing blocks of a target that the store holds under a former key; how many. Raises
    StoreError.
    """
    if plan.base.identity.former is None or not (store.root / FORMER).is_file():
        return 0
    found = 0
    former = {former_key(plan, action): action for action in missing_actions(store, plan)}
    with build_session(store, former):
        for key, action in former.items():
            record = usable_record(store, key)
            if record is not None and _holds(store, record, action):
                adopted = {**record.provenance, "adopted": record.key}
                records.write(store, Record(action.key, record.kind, record.blob, adopted))
                found += 1
    return found


def former_key(plan: TargetPlan, action: Action) -> Key:
    """The key that format 1 gave to a block."""
    chosen = sorted(plan.quantization.items())
    quantization = [
        [path, how.bits, how.group_size, how.mode]
        for path, how in chosen
        if block_of(f"{path}.weight") == action.block
    ]
    extra = [plan.inputs["toolchain"]] if "toolchain" in plan.inputs else []
    return make_key(
        "block/1",
        plan.base.identity.former,
        action.block,
        plan.adapter.slices.get(action.block) if plan.adapter else None,
        plan.dtype,
        make_key("quantization/1", quantization),
        *extra,
    )


def _holds(store: Store, record: Record, action: Action) -> bool:
    """Whether a blob holds exactly the planned tensors."""
    if record.blob.size != action.size:
        return False
    place = blobs.path(store, record.blob.digest)
    try:
        header = read_header(place, "store")
        sound = blobs.hash_file(place).digest == record.blob.digest
    except (BuildError, OSError):
        return False
    tensors = {TensorSpec(tensor.name, tensor.dtype, tensor.shape) for tensor in header.tensors}
    return sound and tensors == set(action.tensors)
