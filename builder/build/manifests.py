"""The manifest of a target whose actions are all recorded: its files, and what came from what."""

from __future__ import annotations

import json
from contextlib import suppress

from builder.errors import BuildError
from builder.keys import Key
from builder.plan.changes import inputs_of, settings_of
from builder.plan.types import CONFIG, TargetPlan
from builder.project.toolchain import made_by, now
from builder.sources.contents import INDEX
from builder.store import blobs
from builder.store.holdings import usable_record
from builder.store.layout import Store
from builder.store.types import Blob, FileEntry, Manifest
from builder.weights import survival


class BlobMissing(BuildError):
    """{target}: the block "{block}" disappeared from the store during the build."""

    exit_code = 2
    hint = "Another program deletes from the store. Run the same command again."


def manifest_of(store: Store, target: TargetPlan, made: int) -> Manifest:
    entries = [
        *(
            FileEntry(action.file, _blob(store, target, action.key, action.block))
            for action in target.actions
        ),
        FileEntry(CONFIG, _blob(store, target, target.config, CONFIG)),
        _first(store, target),
        *target.base.aux,
    ]
    return Manifest(
        target.key,
        "target",
        target.name,
        now(),
        tuple(sorted(entries, key=lambda entry: entry.name)),
        inputs_of(target),
        settings_of(target),
        made_by(),
        {
            "bits_per_weight": target.bits_per_weight,
            "shard_bytes": target.size,
            "blocks": len(target.actions),
            "blocks_reused": len(target.actions) - made,
            **survival_measures(store, target),
        },
    )


def _first(store: Store, target: TargetPlan) -> FileEntry:
    """What a program looks into first: the index of the shards, or the first file of a GGUF."""
    if target.gguf is None:
        return FileEntry(INDEX, blobs.ingest(store, [index_bytes(target)]))
    return FileEntry(target.gguf.file, _blob(store, target, target.gguf.head, target.gguf.file))


def survival_measures(store: Store, target: TargetPlan) -> dict[str, float]:
    """What the records of a target's blocks say of its adapter, summed up (see builder.weights.survival)."""
    found: list[survival.Row] = []
    for action in target.actions:
        record = usable_record(store, action.key)
        text = record.provenance.get("survival") if record else None
        if isinstance(text, str):
            with suppress(ValueError):
                found += survival.rows(text)
    whole = survival.total(found)
    if whole is None:
        return {}
    measures = {"quantization_error": float(f"{whole.error:.4g}")}
    if whole.db is not None:
        measures["survival_db"] = round(whole.db, 2)
    if whole.cosine is not None:
        measures["survival_cosine"] = round(whole.cosine, 4)
    return measures


def _blob(store: Store, target: TargetPlan, key: Key, block: str) -> Blob:
    record = usable_record(store, key)
    if record is None:
        raise BlobMissing(target=target.name, block=block)
    return record.blob


def index_bytes(target: TargetPlan) -> bytes:
    """model.safetensors.index.json, as mlx_lm.utils.save_model writes it."""
    tensors = [(tensor, action.file) for action in target.actions for tensor in action.tensors]
    index = {
        "metadata": {
            "total_size": sum(tensor.nbytes for tensor, _ in tensors),
            "total_parameters": target.base.structure.parameter_count,
        },
        "weight_map": dict(sorted((tensor.name, file) for tensor, file in tensors)),
    }
    return json.dumps(index, indent=4).encode()
