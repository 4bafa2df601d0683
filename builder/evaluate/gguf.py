"""Measures a GGUF with llama.cpp by the suites of its model: the same questions, the same figures."""

from __future__ import annotations

from builder.console.events import Emit, Note
from builder.evaluate import results
from builder.evaluate.process import ask
from builder.evaluate.results import Result
from builder.evaluate.run import reference, request_of
from builder.keys import Key, make_key
from builder.plan.gguf import SCORER
from builder.plan.types import TargetPlan
from builder.project.project import Project
from builder.project.result_keys import reference_key, suite_key
from builder.project.roots import keys_of
from builder.spec.types import UNSCORED, Suite
from builder.store import blobs
from builder.store.locks import build_session, measuring
from builder.store.types import Blob


def measured_gguf(project: Project, target: TargetPlan, blob: Blob) -> dict[str, Result]:
    """The results of a GGUF that the store has, by suite."""
    found = (
        (s, results.read(project.store, _key(project, target, s, blob))) for s in _suites(project, target)
    )
    return {suite.name: result for suite, result in found if result is not None}


def evaluate_gguf(
    project: Project, target: TargetPlan, blob: Blob, name: str, emit: Emit
) -> dict[str, Result]:
    """Measures what is not known of a GGUF; all results, by suite. `target` gives the questions and tokens.

    Suites that generate or run a command are left out: llama.cpp only scores here. Raises BuildError.
    """
    known = measured_gguf(project, target, blob)
    todo = [suite for suite in _suites(project, target) if suite.name not in known]
    if not todo:
        return known
    waiting = lambda: emit(Note("waiting for another evaluation to end"))  # noqa: E731
    with measuring(project.store, waiting), build_session(project.store, keys_of(target)):
        references = {s.name: reference(project, target, s, emit) for s in todo if s.kind == "fidelity"}
        emit(Note(f"measuring {name} with llama.cpp: {', '.join(suite.name for suite in todo)}"))
        folder = project.store.models / target.name
        file = blobs.path(project.store, blob.digest)
        request = {**request_of(project, target, todo, folder), "references": references, "gguf": str(file)}
        answer = ask(target.name, {**request, "layerwise": False}, emit, name)
        for suite in todo:
            key, said = _key(project, target, suite, blob), answer["results"][suite.name]
            found = results.result_of(key, name, suite, said, answer["made"])
            results.write(project.store, found)
            known[suite.name] = found
    return {name: known[name] for name in target.target.model.suites if name in known}


def keys_of_gguf(project: Project, target: TargetPlan, blob: Blob) -> set[Key]:
    """The keys of what is measured of a GGUF. Raises QuestionsMissing."""
    return {_key(project, target, suite, blob) for suite in _suites(project, target)}


def _suites(project: Project, target: TargetPlan) -> list[Suite]:
    return [suite for suite in project.spec.suites_of(target.target) if suite.kind not in UNSCORED]


def _key(project: Project, target: TargetPlan, suite: Suite, blob: Blob) -> Key:
    compared = reference_key(project, target, suite) if suite.kind == "fidelity" else None
    return make_key("gguf-eval/1", blob.digest, suite_key(project, suite), compared, SCORER)
