"""Chooses the bits of a target that asks for a size, by measuring. What was chosen is kept under its key."""

from __future__ import annotations

from builder.build.blocks import Tally
from builder.build.calibrated import round_blocks
from builder.build.measuring import Comparison, measured_costs
from builder.build.sequences import open_sequences
from builder.build.sharing import fetch, fetch_records
from builder.build.waiting import waiting
from builder.console.events import Emit, Note
from builder.console.words import count
from builder.errors import SourceChanged
from builder.keys import Key
from builder.plan.allocation import Allocation
from builder.plan.goals import (
    allocation_key,
    choices,
    measured_with,
    sensitivity_key,
    shared,
    uniform,
    with_bits,
)
from builder.plan.planning import Facts, facts_of, plan_alone
from builder.plan.types import TargetPlan, Unresolved
from builder.project import preflight
from builder.project.measurements import keep
from builder.project.project import Project
from builder.project.roots import keys_of
from builder.project.state import missing_actions
from builder.spec.types import Target
from builder.store.locks import acquire, build_session


def choose_bits(project: Project, target: Target, emit: Emit) -> Allocation:
    """What was chosen. Measures nothing where it is in the store. Raises BuildError."""
    store, sources = project.store, project.planned_from()
    facts = facts_of(target, sources)
    if isinstance(facts, Unresolved):
        raise SourceChanged(source=f"model:{target.name}", path=facts.reason)
    made = uniform(target, facts.base)
    key = fetch_bits(project, target, facts, emit)
    with acquire(store, [key], waiting(target.name, emit), "choice-"):
        if (known := project.allocation(key)) is not None:
            return known
        found = _measured(project, made, facts, sources.toolchain, emit)
        keep(store, key, "allocation", found.to_text(), target.name)
        return found


def fetch_bits(project: Project, target: Target, facts: Facts, emit: Emit) -> Key:
    """Pulls what somebody has chosen and measured; the key of what is chosen."""
    assert facts.text is not None
    toolchain = project.planned_from().toolchain
    key = allocation_key(target, facts.base, facts.adapter, facts.text, toolchain)
    made = measured_with(uniform(target, facts.base))
    cost = sensitivity_key(made, facts.base, facts.adapter, facts.text, toolchain)
    fetch_records(project, [key, cost], emit)
    return key


def _measured(project: Project, made: Target, facts: Facts, toolchain: str, emit: Emit) -> Allocation:
    """Measures what each weight costs with the same bits everywhere, and compares ways to share the bytes."""
    from builder.engine.rounding.text import costed

    how, text = made.variant.quantization, facts.text
    assert how is not None
    assert text is not None
    common = plan_alone(made, facts, toolchain)
    emit(Note(f"{made.name}: {how.bits} bits for every weight fit. What each weight costs there is measured"))
    if made.variant.rounds_for_text:
        fetch(project, [common], emit)
    with build_session(project.store, list(keys_of(common))):
        _make(project, common, emit)
        used, apart = open_sequences(project, common)
        plain = measured_with(made)
        key = sensitivity_key(plain, facts.base, facts.adapter, text, toolchain)
        source = plan_alone(plain, facts, toolchain)
        # Where the model is rounded three times, time counts. Else more text gives less KL.
        texts = costed(used) if made.variant.rounds_for_text else used
        known = measured_costs(project, source, key, texts, choices(made, facts.base), emit)
        ways = shared(made, facts.base, known)
        plans = {
            name: plan_alone(with_bits(made, how.bits, own), facts, toolchain) for name, own in ways.items()
        }
        compared = Comparison(project, common, apart, emit)
        before, found = compared.divergence(common, "the same bits"), dict[str, float]()
        for name, plan in plans.items():
            with build_session(project.store, list(keys_of(plan))):
                _make(project, plan, emit)
                found[name] = compared.divergence(plan, f"its own bits, way {len(found) + 1} of {len(plans)}")
    best = min(found, key=lambda name: found[name], default="")
    own, after = ways.get(best, {}), found.get(best, before)
    kept = after < before
    said = f"{made.name}: KL on other text {before:.4f} with {how.bits} bits for every weight"
    which = "the second" if kept else "the first"
    emit(Note(f"{said}, {after:.4f} with own bits for {count(len(own), 'weight')}: {which} is kept"))
    return Allocation(
        how.bits,
        {path: each.bits for path, each in sorted(own.items())},
        {path: known.cost_with(path, how) for path in sorted(known.cost)},
        before,
        after,
        compared.held,
        kept,
        groups={p: each.group_size for p, each in sorted(own.items()) if each.group_size != how.group_size},
        ways=found,
    )


def _make(project: Project, plan: TargetPlan, emit: Emit) -> None:
    """The blocks of a plan, where measuring it needs them. Raises BuildError."""
    if plan.target.variant.rounds_for_text:
        preflight.check(project, plan, missing_actions(project.store, plan), [plan])
        round_blocks(project, plan, Tally(), emit)
