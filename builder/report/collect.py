"""Makes a Report from the manifests, records and results in the store. Loads no model and builds nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from builder.evaluate.circumstances import told
from builder.evaluate.results import Result, doubts, missed, read, verdict
from builder.evaluate.statistics import Figure
from builder.plan.changes import inputs_of, settings_of
from builder.plan.types import TargetPlan, nominal_size
from builder.project.project import Project
from builder.project.questions import QuestionsMissing
from builder.project.result_keys import result_key, suite_key
from builder.project.state import target_state
from builder.report.cells import divergence
from builder.report.facts import (
    BlockSurvival,
    ExpertsLeft,
    Frontier,
    ModelReport,
    Production,
    Provenance,
    Report,
    Row,
)
from builder.report.frontier import frontier, kind_of
from builder.report.pairs import compared
from builder.report.training import trained
from builder.spec.types import Metric, Model, Variant
from builder.store import records, releases, views
from builder.store.holdings import usable_record
from builder.store.types import Manifest, Scalar
from builder.weights.survival import Survival, rows, total


def collect(project: Project, models: Sequence[str]) -> Report:
    """What the store knows about these models, or about all declared models if `models` is empty.

    Raises BuildError.
    """
    from importlib.metadata import version

    chosen = [project.spec.models[name] for name in models] or list(project.spec.models.values())
    return Report(version("modelkiln"), tuple(_model(project, model) for model in chosen))


def _model(project: Project, model: Model) -> ModelReport:
    plans = [plan for plan in project.plan.resolved() if plan.target.model.name == model.name]
    control = control_of(project, model)
    made: list[Row] = []
    results: dict[str, dict[str, Result]] = {}
    unread = _unread(project, model)
    for plan in sorted(plans, key=lambda plan: (-nominal_size(plan), plan.name)):
        if _is_known(project, plan):
            results[plan.name] = _measured(project, plan)
            made.append(_row(project, plan, results[plan.name], control))
    suites = {name: project.spec.suites[name] for name in model.suites}
    kinds = {name: suite.kind for name, suite in suites.items()}
    mine = [f"{model.name}_{variant}" for variant in model.variants]
    report = ModelReport(
        name=model.name,
        base=model.base,
        adapter=model.adapter,
        rows=tuple(made),
        metrics=tuple(dict.fromkeys(metric for row in made for metric in row.figures)),
        kinds=kinds,
        required={each.metric: (each.operator, each.value) for each in model.require},
        compared=tuple(compared(model, kinds, [row.target for row in made], results)),
        absent=tuple(name for name in mine if name not in results),
        control=control.name if control else None,
        plain=_plain(project, control) if control else None,
        unread=unread,
        top_k={name: suite.top_k for name, suite in suites.items() if suite.kind == "fidelity"},
        checks={name: suite.check for name, suite in suites.items() if suite.kind == "generate"},
        states={name: target_state(project.store, project.plan.targets[name]).kind for name in mine},
        production=_production(project, mine),
        training=trained(project, model),
        seed_of=model.seed_of,
        experts={plan.target.variant.name: left for plan in plans if (left := _experts(project, plan))},
    )
    return replace(report, frontier=_frontier(project, report, results))


def _frontier(
    project: Project, report: ModelReport, results: Mapping[str, Mapping[str, Result]]
) -> Frontier | None:
    """The targets beside the line, with the rows of the results that gave their KL."""
    metric = divergence(report)
    rows = {
        target: suites[metric.suite].rows.get(metric.name, ())
        for target, suites in results.items()
        if metric and metric.suite in suites
    }
    return frontier(report, project.spec.variants, rows)


def _production(project: Project, mine: Sequence[str]) -> Production | None:
    """What models/production shows, if it shows or should show one of these targets."""
    folder = project.store.models / releases.PRODUCTION
    key = views.current_key(folder)
    name = views.current_name(folder) if key else None
    if name not in mine and project.spec.production not in mine:
        return None
    plan = project.plan.targets.get(name) if name is not None and name in mine else None
    return Production(name, isinstance(plan, TargetPlan) and plan.key == key)


def _unread(project: Project, model: Model) -> dict[str, str]:
    """By suite, what is wrong with its questions. The results of such a suite cannot be looked up."""
    found = {}
    for name in model.suites:
        try:
            suite_key(project, project.spec.suites[name])
        except QuestionsMissing as error:
            data = project.spec.suites[name].data
            found[name] = f"{data.name if data else name}: {error.fields['what']}"
    return found


def _measured(project: Project, plan: TargetPlan) -> dict[str, Result]:
    """The results of a target, by suite. Suites whose questions are missing are left out."""
    found = {}
    for suite in project.spec.suites_of(plan.target):
        with suppress(QuestionsMissing):
            key = result_key(project, plan.target.model, plan.measured, suite)
            if (result := read(project.store, key)) is not None:
                found[suite.name] = result
    return found


def _plain(project: Project, control: Model) -> Row | None:
    """The first known target of the control that is not quantized."""
    for variant in control.variants:
        plan = _control_target(project, control, project.spec.variants[variant])
        variant_of = plan.target.variant if plan is not None else None
        if (
            plan is not None
            and variant_of
            and not (variant_of.is_quantized or variant_of.gguf or variant_of.experts)
        ):
            return _row(project, plan, _measured(project, plan), None)
    return None


def _is_known(project: Project, plan: TargetPlan) -> bool:
    """Whether a target is built, or was measured from its sources."""
    return records.read_manifest(project.store, plan.key) is not None or bool(_measured(project, plan))


def control_of(project: Project, model: Model) -> Model | None:
    """The first declared model with the base of `model` and no adapter. None if `model` has no adapter."""
    if model.adapter is None:
        return None
    others = (m for m in project.spec.models.values() if m.adapter is None and m.base == model.base)
    return next(others, None)


def _row(
    project: Project,
    plan: TargetPlan,
    results: Mapping[str, Result],
    control: Model | None,
) -> Row:
    manifest = records.read_manifest(project.store, plan.key)
    measures = manifest.measures if manifest else {}
    variant = plan.target.variant
    beside = _control_target(project, control, variant)
    require = plan.target.model.require
    short = missed(require, results)
    blocks = _blocks(project, plan)
    return Row(
        target=plan.name,
        variant=variant.name,
        bits=_bits(variant),
        size=manifest.size if manifest else plan.whole_size or plan.size,
        is_built=manifest is not None,
        bits_per_weight=float(measures.get("bits_per_weight", plan.bits_per_weight)),
        figures=_figures(results),
        survival=_whole(measures),
        blocks=blocks,
        verdict=verdict(require, results),
        misses=tuple(map(str, short)),
        doubts={doubt.condition.metric: doubt.end for doubt in doubts(require, results)},
        provenance=_provenance(plan, manifest, results),
        control_name=beside.name if beside else None,
        control=_figures(_measured(project, beside)) if beside else None,
        samples={suite: result.samples for suite, result in results.items() if result.samples},
        kind=kind_of(variant),
        searched=variant.goal is not None and variant.goal.smallest,
    )


def _experts(project: Project, plan: TargetPlan) -> ExpertsLeft | None:
    """What a target keeps of its experts. None for a target that keeps them all."""
    pruned, wanted = plan.base.pruned, plan.target.variant.experts
    if pruned is None or wanted is None:
        return None
    found = project.routing(pruned.measured)
    tenth, held = (found.tenth, found.held) if found else (None, 0)
    return ExpertsLeft(pruned.keep, pruned.count, wanted.criterion, tenth, held)


def _control_target(project: Project, control: Model | None, variant: Variant) -> TargetPlan | None:
    """The control's target in this variant, if that target is declared, and built or measured."""
    if control is None:
        return None
    plan = project.plan.targets.get(f"{control.name}_{variant.name}")
    return plan if isinstance(plan, TargetPlan) and _is_known(project, plan) else None


def _bits(variant: Variant) -> int | None:
    """The bits of a weight. None where they differ between weights."""
    if variant.gguf is not None:
        return None
    if not variant.is_quantized:
        return 32 if variant.dtype == "float32" else 16
    if variant.quantization is None or variant.overrides:
        return None
    return variant.quantization.bits


def _figures(results: Mapping[str, Result]) -> dict[Metric, Figure]:
    return {
        Metric(suite, name): figure
        for suite, result in results.items()
        for name, figure in result.figures.items()
    }


def _whole(found: Mapping[str, Scalar]) -> Survival | None:
    if "quantization_error" not in found:
        return None
    return Survival(
        _number(found.get("survival_db")),
        _number(found.get("survival_cosine")),
        float(found["quantization_error"]),
    )


def _number(value: Scalar | None) -> float | None:
    return None if value is None else float(value)


def _blocks(project: Project, plan: TargetPlan) -> tuple[BlockSurvival, ...]:
    """The survival of each block whose record has it, in the order of the model."""
    found = []
    for action in plan.actions:
        record = usable_record(project.store, action.key)
        text = record.provenance.get("survival") if record else None
        if isinstance(text, str):
            with suppress(ValueError):
                paths = rows(text)
                if (sums := total(paths)) is not None:
                    found.append(BlockSurvival(action.block, sums))
    return tuple(found)


def _provenance(plan: TargetPlan, manifest: Manifest | None, results: Mapping[str, Result]) -> Provenance:
    inputs = manifest.inputs if manifest else inputs_of(plan)
    settings = manifest.settings if manifest else settings_of(plan)
    toolchain = manifest.toolchain if manifest else {}
    return Provenance(
        target=plan.name,
        key=plan.key,
        created=manifest.created if manifest else "",
        base=str(inputs.get("base", "")),
        base_digest=str(inputs.get("base_digest", "")),
        adapter=str(inputs.get("adapter", "")),
        adapter_digest=str(inputs.get("adapter_digest", "")),
        settings=", ".join(f"{name} {value}" for name, value in settings.items() if name != "variant"),
        toolchain=str(toolchain.get("toolchain", "")),
        machine=str(toolchain.get("machine", "")),
        measured=told(result.made for result in results.values()),
    )
