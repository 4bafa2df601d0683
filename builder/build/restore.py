"""After damage was put aside: rebuild exactly what it held. The actions that are whole are not run again."""

from __future__ import annotations

from collections.abc import Iterable

from builder.build.calibrated import build_calibrated
from builder.build.exact import build_exact, lacks_source, source_of
from builder.build.intermediates import prune_intermediates
from builder.build.learned import build_learned, sources_of
from builder.build.one_pass import build
from builder.build.prepare import prepare_base
from builder.console.events import Emit
from builder.errors import SourceError
from builder.keys import Key
from builder.plan.types import TargetPlan
from builder.project.project import Project
from builder.project.state import reads_source, target_state
from builder.spec.types import Base, GgufSource
from builder.store import records
from builder.store.care.findings import Finding


def restore(project: Project, findings: Iterable[Finding], emit: Emit) -> tuple[str, ...]:
    """Rebuild the declared targets and bases that the findings touch; their names. Raises BuildError."""
    damaged = {f.path.name for f in findings if f.kind.is_damage}
    damaged |= {f.view.name for f in findings if f.view is not None and f.kind.is_damage}
    rebuilt = []
    for base in project.spec.bases.values():
        if isinstance(base.source, GgufSource) and _touches(
            project, _import_key(project, base), base.name, damaged
        ):
            prepare_base(project, base, emit)
            rebuilt.append(base.name)
    project.forget_plan()
    by_model: dict[str, list[TargetPlan]] = {}
    for plan in project.plan.resolved():
        if _touches(project, plan.key, plan.name, damaged) and not target_state(project.store, plan).built:
            by_model.setdefault(plan.target.model.name, []).append(plan)
    for plans in by_model.values():
        _build(project, plans, emit)
        rebuilt += [plan.name for plan in plans]
    return tuple(rebuilt)


def _build(project: Project, plans: list[TargetPlan], emit: Emit) -> None:
    """Targets of one model: in one pass what is made by block and what learned ones read, then those."""
    learned = [plan for plan in plans if plan.needs is not None]
    calibrated = [plan for plan in plans if plan.target.variant.rounds_for_text]
    exact = [plan for plan in plans if plan.gguf is not None and plan.gguf.of is not None]
    apart = [*learned, *calibrated, *exact]
    wanted = {plan.name: plan for plan in plans if plan not in apart}
    for plan in exact:
        if lacks_source(project, plan) and (read := source_of(project, plan)) not in calibrated:
            if read.target.variant.rounds_for_text:
                calibrated.append(read)
            else:
                wanted[read.name] = read
    for plan in learned:
        for read in sources_of(project, plan) if reads_source(project.store, plan) else ():
            if not target_state(project.store, read).built:
                if not read.target.variant.rounds_for_text:
                    wanted[read.name] = read
                elif read not in calibrated:
                    calibrated.append(read)
    if wanted:
        build(project, list(wanted.values()), emit)
    for plan in calibrated:
        build_calibrated(project, plan, emit)
    for plan in learned:
        build_learned(project, plan, emit)
    for plan in exact:
        build_exact(project, plan, emit)
    if learned:
        prune_intermediates(project, emit)


def _import_key(project: Project, base: Base) -> Key | None:
    """None for a source that is not there: then nothing of it can be restored, and its own task says so."""
    try:
        return project.sources.gguf_key(base)
    except SourceError:
        return None


def _touches(project: Project, key: Key | None, name: str, damaged: set[str]) -> bool:
    """Whether a manifest, one of its blobs, or its view was damaged."""
    if {name, str(key), f"{key}.toml"} & damaged:
        return True
    manifest = records.read_manifest(project.store, key) if key else None
    return manifest is not None and not damaged.isdisjoint(manifest.digests)
