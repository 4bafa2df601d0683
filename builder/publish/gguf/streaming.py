"""A GGUF that no variant declares, made block by block of base and adapter for a publication."""

from __future__ import annotations

from collections.abc import Mapping

from builder.build.blocks import Tally
from builder.build.one_pass import copy_aux, make_missing
from builder.console.events import Emit
from builder.plan.gguf import as_gguf
from builder.plan.types import TargetPlan
from builder.project import preflight
from builder.project.opened import NotBuilt
from builder.project.project import Project
from builder.project.roots import keys_of
from builder.project.state import missing_actions
from builder.publish.gguf.joining import join
from builder.publish.gguf.making import Gguf
from builder.spec.quantizers import GgufKind
from builder.spec.types import Target, Variant
from builder.store.locks import build_session


def plan_of(project: Project, unquantized: str, wanted: str) -> TargetPlan:
    """A target that is `unquantized` as a GGUF of this type. Raises NotBuilt, PlanError."""
    source = project.plan.targets[unquantized]
    if not isinstance(source, TargetPlan):
        raise NotBuilt(target=unquantized)
    plain = source.target.variant
    variant = Variant(f"{plain.name}_{wanted}", dtype=plain.dtype, gguf=GgufKind(wanted))
    made = as_gguf(Target(source.target.model, variant), source)
    assert isinstance(made, TargetPlan)
    return made


def stream(project: Project, plan: TargetPlan, about: Mapping[str, str], emit: Emit) -> Gguf:
    """The file of such a target, made if the store has none. No unquantized model is written.

    Raises BuildError.
    """
    missing = missing_actions(project.store, plan)
    preflight.check(project, plan, missing)
    with build_session(project.store, keys_of(plan)):
        make_missing(project, [plan], Tally(), emit)
        copy_aux(project, plan)
        return join(project, plan, about, emit)
