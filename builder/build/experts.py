"""Measures what a model's experts do for a text. It is kept under its key, for all variants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from builder.build.measuring import opened
from builder.build.opening import open_adapter, open_base
from builder.build.sequences import open_sequences
from builder.build.sharing import fetch_records
from builder.build.shelves import shelf
from builder.build.waiting import waiting
from builder.console.events import Emit, Learning, Note
from builder.console.words import count
from builder.errors import SourceChanged
from builder.keys import Key
from builder.plan.experts import a_tenth_less, kept_of, routing_key, tenth_in_words
from builder.plan.planning import Facts, plan_alone, whole_facts
from builder.plan.types import TargetPlan, Unresolved
from builder.project.measurements import keep
from builder.project.peaks import walking_memory
from builder.project.project import Project
from builder.project.watch import unchanged
from builder.spec.types import Target
from builder.store.disk import durable
from builder.store.locks import acquire, build_session
from builder.weights.experts import Routing

if TYPE_CHECKING:
    from builder.engine.rounding.shelf import Shelf
    from builder.engine.rounding.text import Piece

HELD = 8  # sequences of other text, on which the loss of a tenth is measured


def measure_experts(project: Project, target: Target, emit: Emit) -> Routing:
    """What was measured of the experts of a target. Measures nothing where it is in the store.

    Raises BuildError, and PlanError where the target cannot have the share that it asks for.
    """
    key = fetch_routing(project, target, emit)
    with acquire(project.store, [key], waiting(target.name, emit), "routing-"):
        found = project.routing(key)
        if found is None:
            found = _measured(project, target, key, emit)
            keep(project.store, key, "routing", found.to_text(), target.name)
    kept_of(target, found)
    project.forget_plan()
    return found


def fetch_routing(project: Project, target: Target, emit: Emit) -> Key:
    """Pulls what somebody has measured. Returns the key of it."""
    facts, toolchain = _facts(project, target), project.planned_from().toolchain
    assert facts.text is not None
    key = routing_key(target, facts.base, facts.adapter, facts.text, toolchain)
    fetch_records(project, [key], emit)
    return key


def _facts(project: Project, target: Target) -> Facts:
    facts = whole_facts(target, project.planned_from())
    if isinstance(facts, Unresolved):
        raise SourceChanged(source=f"model:{target.name}", path=facts.reason)
    return facts


def _measured(project: Project, target: Target, key: Key, emit: Emit) -> Routing:
    import mlx.core as mx

    from builder.engine.blas import accelerated, numpy_on_one_thread
    from builder.engine.expert_places import find
    from builder.engine.routing import measure
    from builder.engine.stream import cut

    facts, name = _facts(project, target), target.name
    plain = replace(target.variant, quantization=None, recipe=None, goal=None, overrides=(), experts=None)
    plan = plan_alone(Target(target.model, plain), facts, project.planned_from().toolchain)

    def step(done: int, total: int) -> None:
        emit(Learning(name, "experts", done, total, None))

    explained = durable.explained(project.store.root)
    with build_session(project.store, [key]), unchanged(project, plan), accelerated(threads=1), explained:
        model, config = open_base(project, plan)
        places = find(model, config)
        used, apart = open_sequences(project, plan)
        tokens = mx.array([piece.tokens for piece in used])
        what = f"{count(places.count, 'expert')} in {count(len(places.stacks), 'layer')}"
        emit(Note(f"{name}: {what} are measured with {tokens.size} tokens"))
        blocks = cut(model, open_adapter(project, plan), compiled=False)
        kind, kept = facts.base.structure.model_type, shelf(project, walking_memory(plan, models=2))
        with numpy_on_one_thread():
            found = measure(model, blocks, places, tokens, kind, step, kept)
            del model, blocks
            found = _with_tenth(project, plan, found, key, apart[:HELD], emit, kept)
    if found.tenth is not None:
        emit(Note(f"{name}: {tenth_in_words(found)}"))
    return found


def _with_tenth(
    project: Project,
    plan: TargetPlan,
    found: Routing,
    key: Key,
    pieces: Sequence[Piece],
    emit: Emit,
    kept: Shelf,
) -> Routing:
    """Adds what the model loses without a tenth of its experts."""
    import mlx.core as mx

    from builder.engine.without_tenth import lost

    base = a_tenth_less(plan.base, found, key)
    if base is None:
        return found

    def step(done: int, total: int) -> None:
        emit(Learning(plan.name, "without a tenth of the experts", done, total, None))

    tokens = mx.array([piece.tokens for piece in pieces])
    counted = mx.array([piece.counted for piece in pieces], dtype=mx.float32)
    held = sum(sum(piece.counted) for piece in pieces)
    if not held:
        return found
    whole, less = opened(project, plan), opened(project, replace(plan, base=base))
    tenth = lost(whole, less, tokens, counted, step, kept)
    return found if tenth is None else replace(found, tenth=tenth, held=held)
