"""Measure a target by the suites of its model: what the store knows is not measured again."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from builder.asked import reference_key, result_key
from builder.errors import BuildError
from builder.evaluate import results
from builder.evaluate.command import run_command
from builder.evaluate.process import ask
from builder.evaluate.results import Missed, Result, missed
from builder.keys import Key
from builder.plan import TargetPlan
from builder.progress import Emit, Note
from builder.project import Project
from builder.record import Record
from builder.roots import register
from builder.spec import Suite, Target
from builder.state import usable_record
from builder.store import blobs, records

_OF_MEMORY = 0.7  # the share that weights may take; activations and logits need the rest


class RequirementMissed(BuildError):
    """{target} does not meet its requirements: {what}"""


def measured(project: Project, target: TargetPlan) -> dict[str, Result]:
    """What the store knows of a target, by suite. Raises SourceError for data that is not there."""
    found = (
        (suite, results.read(project.store, result_key(project, target.key, suite)))
        for suite in _suites(project, target)
    )
    return {suite.name: result for suite, result in found if result is not None}


def known_of(project: Project, target: Target, key: Key) -> dict[str, Result]:
    """What the store knows of the suites that a target's requirements name. Plans nothing."""
    names = dict.fromkeys(condition.suite for condition in target.model.require)
    suites = (project.spec.suites[name] for name in names)
    found = ((s, results.read(project.store, result_key(project, key, s))) for s in suites)
    return {suite.name: result for suite, result in found if result is not None}


def complete(project: Project, target: TargetPlan) -> bool:
    """Whether every result is there and every requirement holds."""
    known = measured(project, target)
    model = target.target.model
    return set(model.suites) <= set(known) and not missed(model.require, known)


def evaluate(project: Project, target: TargetPlan, emit: Emit) -> dict[str, Result]:
    """Measure whatever is not known yet; all results, by suite. Raises BuildError."""
    known = measured(project, target)
    todo = [suite for suite in _suites(project, target) if suite.name not in known]
    directory = project.store.models / target.name
    scored = [suite for suite in todo if suite.kind not in ("generate", "command")]
    references = {s.name: _reference(project, target, s, emit) for s in scored if s.kind == "fidelity"}
    generated = [[suite] for suite in todo if suite.kind == "generate"]
    for together in [scored, *generated] if scored else generated:  # those that are scored share one pass
        emit(Note(f"measuring {target.name}: {', '.join(suite.name for suite in together)}"))
        request = _request(project, target, together, str(directory))
        answer = ask(target.name, {**request, "references": references}, emit)
        for suite in together:
            known[suite.name] = _kept(project, _result(project, target, suite, answer))
    for suite in (suite for suite in todo if suite.kind == "command"):
        emit(Note(f"measuring {target.name}: {suite.name}"))
        figures = run_command(suite, directory, project.spec.file.parent)
        key = result_key(project, target.key, suite)
        known[suite.name] = _kept(project, Result(key, target.name, suite.name, suite.kind, figures))
    return {name: known[name] for name in target.target.model.suites}


def _kept(project: Project, result: Result) -> Result:
    results.write(project.store, result)
    return result


def check(target: TargetPlan, known: Mapping[str, Result]) -> list[Missed]:
    """Raises RequirementMissed, which says by how much."""
    wrong = missed(target.target.model.require, known)
    if wrong:
        raise RequirementMissed(target=target.name, what="; ".join(map(str, wrong)))
    return wrong


# -- asking the worker ---------------------------------------------------------------------------------------


def _reference(project: Project, target: TargetPlan, suite: Suite, emit: Emit) -> str:
    """The file of the reference's log-probs, made if the store has none."""
    key = reference_key(project, target, suite)
    record = usable_record(project.store, key)
    if record is None:
        emit(Note(f"measuring the unquantized {target.target.model.name} for {suite.name}"))
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "reference.safetensors"
            request = {**_request(project, target, [suite], None), "make": {suite.name: str(file)}}
            ask(target.name, request, emit)
            record = Record(key, "reference", blobs.ingest_file(project.store, file), {"top_k": suite.top_k})
        records.write(project.store, record)
        register(project)  # so that gc, from another checkout too, keeps it
    return str(blobs.path(project.store, record.blob.digest))


def _request(
    project: Project, target: TargetPlan, suites: Sequence[Suite], directory: str | None
) -> dict[str, Any]:
    base = project.spec.bases[target.target.model.base]
    adapter = target.target.model.adapter
    worn = project.spec.adapters[adapter] if adapter else None
    return {
        "directory": directory,
        "base": {
            "directory": str(project.base_directory(base)),
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
    """Whether the model in float32 and its batches would not fit into `memory` bytes."""
    parameters = sum(math.prod(each.tensor.shape) for each in target.base.structure.parameters)
    return 4 * parameters > _OF_MEMORY * memory


def _physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def described(suite: Suite) -> dict[str, Any]:
    return {**asdict(suite), "data": str(suite.data) if suite.data else None}


def suite_from(described: Mapping[str, Any]) -> Suite:
    known = {field.name for field in fields(Suite)}
    suite = Suite(**{key: value for key, value in described.items() if key in known})
    return replace(suite, data=Path(str(suite.data)) if suite.data else None)


def _result(project: Project, target: TargetPlan, suite: Suite, answer: Mapping[str, Any]) -> Result:
    from builder.evaluate.statistics import Figure

    said = answer["results"][suite.name]
    figures = {name: Figure(**figure) for name, figure in said["figures"].items()}
    key = result_key(project, target.key, suite)
    return Result(key, target.name, suite.name, suite.kind, figures, tuple(said["rows"]), answer["made"])


def _suites(project: Project, target: TargetPlan) -> list[Suite]:
    return [project.spec.suites[name] for name in target.target.model.suites]
