"""The keys of what is measured: a suite, a target's answers to it, the reference for them."""

from __future__ import annotations

from dataclasses import replace

from builder.keys import Key, make_key
from builder.plan.types import TargetPlan
from builder.project import questions
from builder.project.project import Project
from builder.project.questions import SCORER
from builder.project.toolchain import machine_name
from builder.spec.types import Model, Spec, Suite, Target

PRECISION = "float32"  # of what is scored, the reference too
_OF_A_MACHINE = ("tokens_per_second", "seconds", "memory")


def needs_directory(spec: Spec, target: Target) -> bool:
    """Whether a target must be built to be measured.

    An unquantized intermediate need not: to scoring it is its base and its adapter.
    """
    variant = target.variant
    if variant.is_quantized or variant.learned or variant.experts or not variant.intermediate:
        return True
    return any(spec.suites[name].kind in ("generate", "command") for name in target.model.suites)


def suite_key(project: Project, suite: Suite) -> Key:
    """What is asked, whatever it is called. Raises QuestionsMissing when the data cannot be read."""
    return questions.suite_key(project.sources, project.spec.file.parent, suite)


def result_key(project: Project, model: Model, measured: Key, suite: Suite) -> Key:
    """Of one suite on a target of a model, `measured` as TargetPlan says. Raises QuestionsMissing.

    The target counts by what can change a figure: not by its name, nor by files that make no prompt. Where
    the model requires a time or a memory, the machine counts too.
    """
    where = machine_name() if is_timed(model, suite) else None
    return make_key("eval/2", measured, suite_key(project, suite), SCORER, where)


def is_timed(model: Model, suite: Suite) -> bool:
    """Whether the result of a suite belongs to one machine: the model requires a time or a memory of it."""
    timed = any(c.suite == suite.name and c.metric.name in _OF_A_MACHINE for c in model.require)
    return timed and suite.kind in ("generate", "command")


def reference_key(project: Project, target: TargetPlan, suite: Suite) -> Key:
    """Of the unquantized model's log-probs. Raises QuestionsMissing."""
    base = target.base
    slices = sorted(target.adapter.slices.items()) if target.adapter else None
    asked = suite_key(project, replace(suite, part="all"))  # top_k among it. One reference serves all parts
    return make_key("reference/3", base.weights, slices, base.identity.prompts, asked, PRECISION, SCORER)


def measured_keys(project: Project, target: TargetPlan, suite: Suite) -> frozenset[Key]:
    """Everything that is kept of one suite on one target. Raises QuestionsMissing."""
    result = result_key(project, target.target.model, target.measured, suite)
    if suite.kind != "fidelity":
        return frozenset({result})
    return frozenset({result, reference_key(project, target, suite)})
