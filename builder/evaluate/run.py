"""Measures a target by the suites of its model. A result that the store has is not measured again."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from builder.console.events import Emit, Note
from builder.errors import BuildError
from builder.evaluate import results
from builder.evaluate.circumstances import circumstances
from builder.evaluate.command import run_command
from builder.evaluate.process import EvaluationFailed, ask
from builder.evaluate.results import Missed, Result, missed
from builder.evaluate.statistics import Figure
from builder.keys import Key
from builder.plan.types import TargetPlan
from builder.project.project import Project
from builder.project.result_keys import PRECISION, needs_directory, reference_key, result_key
from builder.project.roots import register
from builder.project.state import usable_record
from builder.project.watch import unchanged
from builder.spec.types import Suite, Target
from builder.store import blobs, records, views
from builder.store.locks import measuring
from builder.store.types import Record

_OF_MEMORY = 0.7  # the share of memory for weights. Activations and logits need the rest


class ChangedMeanwhile(BuildError):
    """eval:{target}: {what} changed while it was being measured."""

    exit_code = 2
    hint = "Nothing was kept. Run the same command again."


class RequirementMissed(BuildError):
    """{target} does not meet its requirements: {what}"""


def measured(project: Project, target: TargetPlan) -> dict[str, Result]:
    """The results of a target that the store has, by suite. Raises SourceError if a data file is missing."""
    found = (
        (suite, results.read(project.store, result_key(project, target.key, suite)))
        for suite in _suites(project, target)
    )
    return {suite.name: result for suite, result in found if result is not None}


def known_of(project: Project, target: Target, key: Key) -> dict[str, Result]:
    """The results that the store has for the suites in a target's requirements, by suite. Plans nothing."""
    names = dict.fromkeys(condition.suite for condition in target.model.require)
    suites = (project.spec.suites[name] for name in names)
    found = ((s, results.read(project.store, result_key(project, key, s))) for s in suites)
    return {suite.name: result for suite, result in found if result is not None}


def complete(project: Project, target: TargetPlan) -> bool:
    """Whether the store has every result of a target and every requirement holds."""
    known = measured(project, target)
    model = target.target.model
    return set(model.suites) <= set(known) and not missed(model.require, known)


def evaluate(project: Project, target: TargetPlan, emit: Emit) -> dict[str, Result]:
    """Measures what the store does not know, and returns all results by suite. Raises BuildError.

    Only one evaluation runs at a time. Others wait.
    """
    known = measured(project, target)
    if set(known) < set(target.target.model.suites):
        with measuring(project.store, lambda: emit(Note("waiting for another evaluation to end"))):
            known = measured(project, target) | _measure(project, target, emit)
    return {name: known[name] for name in target.target.model.suites}


def _measure(project: Project, target: TargetPlan, emit: Emit) -> dict[str, Result]:
    """Measures the results that the store lacks. Raises ChangedMeanwhile if inputs change during this."""
    keys = {suite.name: result_key(project, target.key, suite) for suite in _suites(project, target)}
    todo = [
        suite for suite in _suites(project, target) if results.read(project.store, keys[suite.name]) is None
    ]
    directory = _directory(project, target)
    found: dict[str, Result] = {}

    def keep(suite: Suite, figures: Mapping[str, Figure], said: Mapping[str, Any]) -> None:
        _check_unchanged(project, target, suite, keys[suite.name], directory)
        rows = {metric: tuple(values) for metric, values in said.get("rows", {}).items()}
        key, made = keys[suite.name], said["made"]
        found[suite.name] = Result(key, target.name, suite.name, suite.kind, figures, rows, made)
        results.write(project.store, found[suite.name])

    scored = [suite for suite in todo if suite.kind not in ("generate", "command")]
    references = {s.name: _reference(project, target, s, emit) for s in scored if s.kind == "fidelity"}
    generated = [[suite] for suite in todo if suite.kind == "generate"]
    for together in [scored, *generated] if scored else generated:  # all scored suites share one pass
        emit(Note(f"measuring {target.name}: {', '.join(suite.name for suite in together)}"))
        request = _request(project, target, together, directory)
        answer = ask(target.name, {**request, "references": references}, emit)
        for suite in together:
            said = answer["results"][suite.name]
            figures = {name: Figure(**figure) for name, figure in said["figures"].items()}
            keep(suite, figures, {"rows": said["rows"], "made": answer["made"]})
    for suite in (suite for suite in todo if suite.kind == "command"):
        assert directory is not None, "a command measures a directory"
        emit(Note(f"measuring {target.name}: {suite.name}"))
        made = {"made": circumstances()}
        keep(suite, run_command(suite, directory, project.spec.file.parent), made)
    return found


def _directory(project: Project, target: TargetPlan) -> Path | None:
    """The directory of a target. None for a target that is made from its sources. Raises EvaluationFailed."""
    directory = project.store.models / target.name
    if views.current_key(directory) == target.key:
        return directory
    if needs_directory(project.spec, target.target):
        raise EvaluationFailed(target=target.name, what=f"{directory} does not show this target as it is now")
    return None


def _check_unchanged(
    project: Project, target: TargetPlan, suite: Suite, key: Key, directory: Path | None
) -> None:
    """Raises ChangedMeanwhile when the questions or the model may have changed during the measurement."""
    if result_key(project, target.key, suite) != key:
        raise ChangedMeanwhile(target=target.name, what=f"the questions of suite {suite.name}")
    if directory is None:
        _check_sources(project, target)
    elif views.current_key(directory) != target.key:
        raise ChangedMeanwhile(target=target.name, what=directory)


def _check_sources(project: Project, target: TargetPlan) -> None:
    """Raises ChangedMeanwhile when the base or the adapter has changed since the plan."""
    project.forget_plan()
    now = project.plan.targets[target.name]
    if not isinstance(now, TargetPlan) or now.key != target.key:
        raise ChangedMeanwhile(target=target.name, what="its base or adapter")


def check(target: TargetPlan, known: Mapping[str, Result]) -> list[Missed]:
    """Raises RequirementMissed if a requirement is missed. The message says by how much."""
    wrong = missed(target.target.model.require, known)
    if wrong:
        raise RequirementMissed(target=target.name, what="; ".join(map(str, wrong)))
    return wrong


# -- asking the worker ---------------------------------------------------------------------------------------


def _reference(project: Project, target: TargetPlan, suite: Suite, emit: Emit) -> str:
    """The path of the reference's log-probs, which are made if the store has none."""
    key = reference_key(project, target, suite)
    record = usable_record(project.store, key)
    if record is None:
        emit(Note(f"measuring the unquantized {target.target.model.name} for {suite.name}"))
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "reference.safetensors"
            request = _request(project, target, [suite], None)
            request |= {"stored": None, "make": {suite.name: str(file)}}
            with unchanged(project, target):  # the worker reads base and adapter again
                ask(target.name, request, emit)
            if reference_key(project, target, suite) != key:
                raise ChangedMeanwhile(target=target.name, what=f"the questions of suite {suite.name}")
            how: dict[str, str | int | float | bool] = {"top_k": suite.top_k, "precision": PRECISION}
            record = Record(key, "reference", blobs.ingest_file(project.store, file), how)
        records.write(project.store, record)
        register(project)  # so that gc keeps the record, also when another checkout runs gc
    return str(blobs.path(project.store, record.blob.digest))


def _request(
    project: Project, target: TargetPlan, suites: Sequence[Suite], directory: Path | None
) -> dict[str, Any]:
    """The request to the worker. Without a directory the worker makes the target from its sources."""
    base = project.spec.bases[target.target.model.base]
    adapter = target.target.model.adapter
    worn = project.spec.adapters[adapter] if adapter else None
    return {
        "directory": str(directory) if directory else None,
        "stored": {"dtype": target.dtype},
        "base": {
            "directory": str(project.sources.base_directory(base)),
            "dequantize": base.dequantize,
            "trust_remote_code": base.trust_remote_code,
        },
        "adapter": {"name": worn.name, "base": worn.base, "path": str(worn.path)} if worn else None,
        "suites": [described(suite) for suite in suites],
        "references": {},
        "make": {},
        "layerwise": by_layer(target, project.spec.build.memory or _physical_memory()),
    }


def by_layer(target: TargetPlan, memory: int) -> bool:
    """Whether the model must be scored layer by layer, because in float32 it does not fit `memory` bytes."""
    parameters = sum(math.prod(each.tensor.shape) for each in target.base.structure.parameters)
    return 4 * parameters > _OF_MEMORY * memory


def _physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def described(suite: Suite) -> dict[str, Any]:
    """A suite for another process, as JSON values."""
    return {**asdict(suite), "data": str(suite.data) if suite.data else None}


def suite_from(described: Mapping[str, Any]) -> Suite:
    """The suite that `described` described."""
    known = {field.name for field in fields(Suite)}
    suite = Suite(**{key: value for key, value in described.items() if key in known})
    return replace(suite, data=Path(str(suite.data)) if suite.data else None)


def _suites(project: Project, target: TargetPlan) -> list[Suite]:
    return [project.spec.suites[name] for name in target.target.model.suites]
