"""How the adapter of a model was trained, from its manifest and its curve in the store."""

from __future__ import annotations

from builder.errors import BuildError
from builder.evaluate.overlap import overlaps
from builder.project.project import Project
from builder.report.facts import Trained
from builder.sources.trained import manifest_of
from builder.spec.types import Model
from builder.store import blobs
from builder.training.curves import CURVE, curve_from


def trained(project: Project, model: Model) -> Trained | None:
    """None for an adapter that is not trained here, or whose training is not known."""
    adapter = project.spec.adapters[model.adapter] if model.adapter else None
    if adapter is None or adapter.train is None:
        return None
    try:
        manifest = manifest_of(project.sources, adapter)
        entry = next((each for each in manifest.files if each.name == CURVE), None) if manifest else None
        curve = curve_from(blobs.read(project.store, entry.blob).decode()) if entry else None
    except (BuildError, ValueError, KeyError, TypeError):
        return None
    if manifest is None or curve is None:
        return None
    shared = overlaps((project.spec.suites[name] for name in model.suites), adapter.train)
    kept = curve.best if adapter.train.keep == "best" and curve.best is not None else curve.steps
    fused = manifest.measures.get("fused_loss")
    return Trained(
        train=tuple(curve.train),
        valid=tuple(curve.valid),
        steps=curve.steps,
        kept=kept,
        settings=dict(manifest.settings),
        seconds=float(manifest.measures.get("seconds", 0.0)),
        overlaps=tuple(map(str, shared)),
        loss=dict(curve.valid).get(kept),
        fused_loss=None if fused is None else float(fused),
    )
