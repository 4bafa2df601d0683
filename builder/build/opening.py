"""Opens what a target is made from: the lazy model of its base, and the lazy tensors of its adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from builder.plan.types import TargetPlan
from builder.project.project import Project
from builder.project.watch import base_folder

if TYPE_CHECKING:
    from builder.engine.loading import LoadedAdapter
    from builder.engine.sanitizing import Around


def open_base(project: Project, target: TargetPlan) -> tuple[Any, dict[str, Any]]:
    """The lazy model of a target's base without the experts that it leaves out, and its config."""
    model, config = open_whole(project, target)
    if (pruned := target.base.pruned) is None:
        return model, config
    from builder.engine.pruning import prune

    return prune(model, config, pruned)


def open_whole(
    project: Project, target: TargetPlan, around: Around | None = None
) -> tuple[Any, dict[str, Any]]:
    """The lazy model of a target's base, and its config. around: see builder.engine.loading.load."""
    from builder.engine.loading import load_base

    base = project.spec.bases[target.target.model.base]
    return load_base(
        base_folder(project, target),
        dequantize=base.dequantize,
        trust_remote_code=base.trust_remote_code,
        around=around,
    )


def open_adapter(project: Project, target: TargetPlan) -> LoadedAdapter | None:
    """The lazy tensors of a target's adapter, for what `open_base` gives."""
    whole = whole_adapter(project, target)
    if (pruned := target.base.pruned) is None:
        return whole
    from builder.engine.pruning import prune_adapter

    return prune_adapter(whole, pruned)


def whole_adapter(project: Project, target: TargetPlan) -> LoadedAdapter | None:
    """The lazy tensors of a target's adapter, for all experts of its base."""
    if target.target.model.adapter is None:
        return None
    from builder.engine.loading import LoadedAdapter
    from builder.engine.merging import with_merges
    from builder.sources.adapters.places import placed, places_of
    from builder.sources.adapters.reading import read_adapter
    from builder.sources.adapters.tensors import load_merges, load_tensors

    declared = project.adapter(target.target.model.adapter)
    info = placed(read_adapter(declared), declared, places_of(target.base.whole))
    return with_merges(
        LoadedAdapter(info.name, info.fine_tune_type, load_tensors(info), info.scales),
        load_merges(info),
        base_folder(project, target),
        trust_remote_code=project.spec.bases[target.target.model.base].trust_remote_code,
    )
