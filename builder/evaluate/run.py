"""Measures a target by the suites of its model. A result that the store has is not measured again."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from builder import machine
from builder.build.sharing import fetch_records, fetch_results, share
from builder.console.events import Emit, Note
from builder.errors import BuildError, SourceChanged
from builder.evaluate import memory, results
from builder.evaluate.circumstances import circumstances
from builder.evaluate.command import run_command
from builder.evaluate.overlap import Overlap, overlaps
from builder.evaluate.process import EvaluationFailed, ask
from builder.evaluate.results import Missed, Result, missed
from builder.keys import Key
from builder.plan.types import CONFIG, TargetPlan
from builder.project.project import Project
from builder.project.result_keys import PRECISION, needs_directory, reference_key, result_key
from builder.project.roots import keys_of, register
from builder.project.watch import Shown, base_folder, copied_from, unchanged
from builder.spec.types import UNSCORED, Suite, Target
from builder.store import blobs, records
from builder.store.holdings import usable_record
from builder.store.locks import build_session, measuring
from builder.store.types import Record

_OF_MEMORY = 0.7  # the share of memory for weights. Activations and logits need the rest


class ChangedMeanwhile(BuildError):
    """eval:{target}: {what} changed while it was being measured."""

    exit_code = 2
    hint = "Nothing was kept. Run the same command again."


class RequirementMissed(BuildError):
    """{target} misses its requirements: {what}"""


def measured(
    project: Project, target: TargetPlan, suites: Sequence[Suite] | None = None
) -> dict[str, Result]:
    """The results of a target that the store has, by suite. Raises SourceError if a data file is missing."""
    asked = project.spec.suites_of(target.target) if suites is None else suites
    found = ((suite, results.read(project.store, _key(project, target, suite))) for suite in asked)
    return {suite.name: result for suite, result in found if result is not None}


def known_of(project: Project, target: Target, measured: Key) -> dict[str, Result]:
    """What the store knows of the suites that a target's requirements name. Plans nothing."""
    names = {condition.suite for condition in target.model.require}
    suites = (suite for suite in project.spec.suites_of(target) if suite.name in names)
    keys = ((suite, result_key(project, target.model, measured, suite)) for suite in suites)
    found = ((suite, results.read(project.store, key)) for suite, key in keys)
    return {suite.name: result for suite, result in found if result is not None}


def complete(project: Project, target: TargetPlan) -> bool:
    """Whether the store has every result of a target and every requirement holds."""
    known = measured(project, target)
    asked = {suite.name for suite in project.spec.suites_of(target.target)}
    return asked <= set(known) and not missed(target.target.model.require, known)


def evaluate(
    project: Project,
    target: TargetPlan,
    emit: Emit,
    *,
    again: bool = False,
    suites: Sequence[Suite] | None = None,
) -> dict[str, Result]:
    """Measure what is not known yet, one evaluation at a time; all results, by suite. Raises BuildError.

    again: measure all of it, and replace what is known. suites: those of the target, if not given.
    """
    asked = project.spec.suites_of(target.target) if suites is None else suites
    known = {} if again else measured(project, target, asked)
    if len(known) < len(asked):
        _fetch(project, target, emit, asked, again=again)
        known = {} if again else measured(project, target, asked)
    if len(known) < len(asked):
        with (
            measuring(project.store, lambda: emit(Note("waiting for another evaluation to end"))),
            build_session(project.store, keys_of(target)),
        ):
            known = {} if again else measured(project, target, asked)
            todo = [suite for suite in asked if suite.name not in known]
            for shared in _overlaps(project, target, todo):
                emit(Note(f"{target.name}: {shared}"))
            known |= measure(project, target, emit, todo, _shown(project, target))
        share(project, [target], "always", emit)
    records.mark_used(project.store, target.key)
    return {suite.name: known[suite.name] for suite in asked}


def _overlaps(project: Project, target: TargetPlan, suites: Sequence[Suite]) -> tuple[Overlap, ...]:
    """What suites share with the data that the target's adapter was trained on."""
    name = target.target.model.adapter
    training = project.spec.adapters[name].train if name else None
    return overlaps(suites, training) if training else ()


def _fetch(project: Project, target: TargetPlan, emit: Emit, asked: Sequence[Suite], *, again: bool) -> None:
    """What somebody has measured, before the lock is taken under which nothing else may be locked."""
    if not again:
        fetch_results(project, [_key(project, target, suite) for suite in asked], emit)
    left = [suite for suite in asked if again or suite.name not in measured(project, target, asked)]
    references = [reference_key(project, target, suite) for suite in left if suite.kind == "fidelity"]
    fetch_records(project, references, emit)


def measure(
    project: Project, target: TargetPlan, emit: Emit, todo: Sequence[Suite], shown: Shown | Path | None
) -> dict[str, Result]:
    """Measures suites. The keys are those of before: what changes meanwhile is refused.

    shown: the view, or a folder that stands for it. None: the target is measured from its sources.
    """
    keys = {suite.name: _key(project, target, suite) for suite in todo}
    directory = shown.folder if isinstance(shown, Shown) else shown
    found: dict[str, Result] = {}

    def keep(suite: Suite, result: Result) -> None:
        if _key(project, target, suite) != keys[suite.name]:
            raise ChangedMeanwhile(target=target.name, what=f"the questions of suite {suite.name}")
        if isinstance(shown, Shown) and not shown.is_shown:
            raise ChangedMeanwhile(target=target.name, what=shown.folder)
        found[suite.name] = result
        results.write(project.store, result)

    scored = [suite for suite in todo if suite.kind not in UNSCORED]
    references = {s.name: reference(project, target, s, emit) for s in scored if s.kind == "fidelity"}
    generated = [[suite] for suite in todo if suite.kind == "generate"]
    for together in [scored, *generated] if scored else generated:  # all scored suites share one pass
        emit(Note(f"measuring {target.name}: {', '.join(map(_asked, together))}"))
        request = {**request_of(project, target, together, directory), "references": references}
        _tell_memory(target, together, request, target.name, emit)
        with _sources_unchanged(project, target) if directory is None else nullcontext():
            answer = ask(target.name, request, emit)
        for suite in together:
            said, made = answer["results"][suite.name], answer["made"]
            keep(suite, results.result_of(keys[suite.name], target.name, suite, said, made))
    for suite in (suite for suite in todo if suite.kind == "command"):
        assert directory is not None, "a command measures a directory"
        emit(Note(f"measuring {target.name}: {suite.name}"))
        made = circumstances()
        figures = run_command(suite, directory, project.spec.file.parent)
        keep(suite, Result(keys[suite.name], target.name, suite.name, suite.kind, figures, made=made))
    return found


def _asked(suite: Suite) -> str:
    """What is said of a suite that is measured now."""
    parts = {"all": "", "search": " (one half of its questions)", "rest": " (the other half)"}
    return f"{suite.name}{parts[suite.part]}"


def _shown(project: Project, target: TargetPlan) -> Shown | None:
    """The view of the target, watched; None for one that is measured from its sources. Raises
    EvaluationFailed.
    """
    directory = project.store.models / target.name
    manifest = records.read_manifest(project.store, target.key)
    if manifest is not None and (shown := Shown(project.store, directory, manifest)).is_shown:
        return shown
    if needs_directory(project.spec, target.target):
        raise EvaluationFailed(target=target.name, what=f"{directory} does not show this target as it is now")
    return None


@contextmanager
def _sources_unchanged(project: Project, target: TargetPlan) -> Iterator[None]:
    """Raises ChangedMeanwhile when base or adapter are not, all the while, what was planned with."""
    try:
        with unchanged(project, target):
            yield
    except SourceChanged as error:
        raise ChangedMeanwhile(target=target.name, what="its base or adapter") from error


def check(target: TargetPlan, known: Mapping[str, Result]) -> list[Missed]:
    """Raises RequirementMissed if a requirement is missed. The message says by how much."""
    wrong = missed(target.target.model.require, known)
    if wrong:
        raise RequirementMissed(target=target.name, what="; ".join(map(str, wrong)))
    return wrong


# -- asking the worker ---------------------------------------------------------------------------------------


def reference(project: Project, target: TargetPlan, suite: Suite, emit: Emit) -> str:
    """The path of the reference's log-probs, which are made if the store has none."""
    key = reference_key(project, target, suite)
    record = usable_record(project.store, key)
    if record is None:
        emit(Note(f"measuring the unquantized {target.target.model.name} for {suite.name}"))
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "reference.safetensors"
            request = request_of(project, target, [suite], None)
            request |= {"stored": None, "make": {suite.name: str(file)}}
            said = f"{target.target.model.name}, unquantized"
            _tell_memory(target, [suite], request, said, emit)
            with unchanged(project, target):  # the worker reads base and adapter again
                ask(target.name, request, emit, said)
            if reference_key(project, target, suite) != key:
                raise ChangedMeanwhile(target=target.name, what=f"the questions of suite {suite.name}")
            how: dict[str, str | int | float | bool] = {"top_k": suite.top_k, "precision": PRECISION}
            record = Record(key, "reference", blobs.ingest_file(project.store, file), how)
        records.write(project.store, record)
        register(project)  # so that gc keeps the record, also when another checkout runs gc
    return str(blobs.path(project.store, record.blob.digest))


def request_of(
    project: Project, target: TargetPlan, suites: Sequence[Suite], directory: Path | None
) -> dict[str, Any]:
    """The request to the worker. Without a directory the worker makes the target from its sources."""
    base = project.spec.bases[target.target.model.base]
    adapter = target.target.model.adapter
    worn = project.adapter(adapter) if adapter else None
    gguf = str(directory / target.gguf.file) if directory and target.gguf else None
    return {
        **({"gguf": gguf} if gguf else {}),
        "directory": str(directory) if directory else None,
        "stored": {"dtype": target.dtype},
        "base": {
            "directory": str(base_folder(project, target)),
            "dequantize": base.dequantize,
            "trust_remote_code": base.trust_remote_code,
        },
        "tokenizer": _own_tokenizer(project, target),
        "adapter": {"name": worn.name, "base": worn.base, "path": str(worn.path)} if worn else None,
        "suites": [described(suite) for suite in suites],
        "references": {},
        "make": {},
        "layerwise": not gguf and by_layer(target, project.spec.build.memory or machine.memory()),
    }


def _tell_memory(
    target: TargetPlan, suites: Sequence[Suite], request: Mapping[str, Any], said: str, emit: Emit
) -> None:
    if request["layerwise"]:
        stored = request["directory"] is not None
        emit(Note(memory.told(said, memory.layerwise_memory(target, suites, reference=not stored))))


def _own_tokenizer(project: Project, target: TargetPlan) -> dict[str, str] | None:
    """Name -> path of the files that a tokenizer is made from, where the target gets the adapter's."""
    own = target.adapter.tokenizer if target.adapter else None
    if own is None or not own.used:
        return None
    places = {CONFIG: base_folder(project, target) / CONFIG, **copied_from(project, target)}
    return {name: str(path.resolve()) for name, path in places.items()}


def by_layer(target: TargetPlan, available: int) -> bool:
    """Whether the model must be scored layer by layer, because in float32 it does not fit into memory."""
    parameters = sum(math.prod(each.tensor.shape) for each in target.base.structure.parameters)
    return 4 * parameters > _OF_MEMORY * available


def described(suite: Suite) -> dict[str, Any]:
    """A suite for another process, as JSON values."""
    return {**asdict(suite), "data": str(suite.data) if suite.data else None}


def suite_from(described: Mapping[str, Any]) -> Suite:
    """The suite that `described` described."""
    known = {field.name for field in fields(Suite)}
    suite = Suite(**{key: value for key, value in described.items() if key in known})
    return replace(suite, data=Path(str(suite.data)) if suite.data else None)


def _key(project: Project, target: TargetPlan, suite: Suite) -> Key:
    return result_key(project, target.target.model, target.measured, suite)
