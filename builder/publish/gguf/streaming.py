"""A GGUF that is published: planned as a target, made block by block of base and adapter, and joined."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from builder.build.blocks import Tally
from builder.build.conversion import in_blocks
from builder.build.kquants import prepare_kquants
from builder.build.one_pass import copy_aux, make_missing
from builder.console.events import Emit
from builder.errors import SourceMissing
from builder.gguf.architecture import GgufRefused
from builder.gguf.mixes import MIXES
from builder.gguf.settings import Unwritable
from builder.plan.gguf import as_gguf
from builder.plan.quantization import PlanError
from builder.plan.types import TargetPlan
from builder.project import hashing, preflight
from builder.project.opened import NotBuilt
from builder.project.project import Project
from builder.project.roots import keys_of
from builder.project.state import missing_actions
from builder.publish.gguf.joining import join, known_joined
from builder.publish.gguf.keeping import Gguf
from builder.sources.calibration import read_as
from builder.sources.facts import Calibration
from builder.spec.destinations import EXACT, Publication
from builder.spec.quantizers import Calibrated, GgufKind
from builder.spec.types import Target
from builder.store.locks import build_session


def plan_of(
    project: Project, publication: Publication, plan: TargetPlan, wanted: str, emit: Emit
) -> TargetPlan:
    """A file of a publication as a target: the declared one of this kind, or one that nobody declares.

    plan: the target that is published. Raises NotBuilt, GgufRefused, SourceMissing.
    """
    model = plan.target.model
    weighed = publication.calibrated if wanted in MIXES else None
    kind = GgufKind(wanted, plan.target.variant.name if wanted == EXACT else None, weighed)
    for name in model.variants:
        declared = project.plan.targets[f"{model.name}_{name}"]
        if declared.target.variant.gguf == kind and isinstance(declared, TargetPlan):
            return declared
    source = plan if wanted == EXACT else project.plan.targets[str(publication.source)]
    if not isinstance(source, TargetPlan):
        raise NotBuilt(target=source.name)
    variant = replace(source.target.variant, name=wanted, gguf=kind, intermediate=False)
    text = _facts(project, source, weighed, emit) if weighed else None
    try:
        made = as_gguf(Target(model, variant), in_blocks(project, source), text)
    except PlanError as error:
        if isinstance(error.__cause__, Unwritable):
            raise GgufRefused(target=source.name, what=str(error.__cause__)) from error
        raise
    assert isinstance(made, TargetPlan)  # its source is planned
    return made


def _facts(project: Project, plan: TargetPlan, how: Calibrated, emit: Emit) -> Calibration:
    if not how.calibration.is_file():
        raise SourceMissing(table=f"model.{plan.target.model.name}", path=how.calibration)
    return Calibration(hashing.digest(project, how.calibration, emit), read_as(how.calibration))


def stream(project: Project, plan: TargetPlan, about: Mapping[str, str], emit: Emit) -> Gguf:
    """The file of such a target, made if the store has none. No unquantized model is written.

    Raises BuildError.
    """
    found = known_joined(project, plan, about)
    if found is not None:
        return found
    assert plan.gguf is not None
    with build_session(project.store, keys_of(plan)):
        if plan.gguf.of is None:
            preflight.check(project, plan, missing_actions(project.store, plan), [plan])
            prepare_kquants(project, [plan], emit)
            make_missing(project, [plan], Tally(), emit)
        copy_aux(project, plan)
        return join(project, plan, about, emit)
