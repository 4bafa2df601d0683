"""Makes doit tasks from a declaration. They have no file_dep and no targets: `uptodate` asks the store.

doit's database is only a cache.

base:<base>        download or import, fingerprint, inspect
adapter:<adapter>  check, fingerprint
model:<target>     build one target. model:<model> and `model` are groups
eval:<target>      measure one target by the suites of its model, and fail if the target misses a requirement.
                   An unquantized intermediate is scored from its base and adapter, without building it
threshold:<model>  find the smallest target that meets the requirements, building only what the search needs
release:production move models/production to its declared target. rollback:production goes back
publish:<name>     send a target where [publish.<name>] says
clean:<variant>    drop that variant of every model. clean:<target> drops one target
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from builder.console.display import tell_error
from builder.console.words import from_here, stand_in
from builder.errors import BuildError
from builder.project.project import Project
from builder.project.result_keys import needs_directory
from builder.spec.seeds import models_of, of_all_seeds
from builder.spec.types import Spec, Target
from builder.tasks.descriptions import describe_adapter, describe_base, describe_target
from builder.tasks.publishing import Publish, needed, sources_of
from builder.tasks.steps import (
    BuildTarget,
    CheckCalibration,
    Clean,
    Evaluate,
    PrepareAdapter,
    PrepareBase,
    Release,
    Rollback,
    Withdraw,
)
from builder.tasks.thresholds import FindSeedsThreshold, FindThreshold
from builder.tasks.uptodate import SELECTED, AdapterReady, BaseReady, Evaluated, Released, TargetReady

DATABASE = ".modelkiln.db"  # not doit's default name, which another dodo.py may use with another backend
Task = dict[str, Any]  # a task as doit takes it. Only this module makes them


def load(file: str) -> tuple[dict[str, Any], Callable[[], Iterator[Task]]]:
    """DOIT_CONFIG and the task creator, for dodo.py. A bad declaration becomes a one-line error of doit.

    Raises InvalidDodoFile, for which doit exits with 3, and SystemExit for errors with another exit code.
    """
    from doit.exceptions import InvalidDodoFile

    from builder.tasks.reporter import Reporter

    _note_where_the_person_is()
    try:
        project = Project.load(Path(file))
        defaults = [f"model:{t.name}" for t in project.spec.targets if not t.variant.intermediate]
    except BuildError as error:
        if error.exit_code == 3:
            raise InvalidDodoFile(error.report) from None
        tell_error(error.report)
        raise SystemExit(error.exit_code) from None

    def task_artifacts() -> Iterator[Task]:
        yield from project_tasks(project)

    config = {
        "default_tasks": defaults,
        "backend": "sqlite3",
        "dep_file": DATABASE if _can_write(Path(DATABASE)) else ":memory:",
        "verbosity": 2,
        "reporter": Reporter,  # notes which targets a run includes, also where doit does not know our `run`
    }
    return config, task_artifacts


def _note_where_the_person_is() -> None:
    """doit goes to the folder of dodo.py (`-f`, `-d`, `-k`). Paths are relative to where it was started."""
    loader = sys.modules.get("doit.loader")
    started = getattr(loader, "initial_workdir", None)
    if started and Path(started) != Path.cwd():
        stand_in(Path(started))


def _can_write(file: Path) -> bool:
    """Whether doit can keep its database; without one, it asks the store more often."""
    return os.access(file if file.exists() else file.absolute().parent, os.W_OK)


def project_tasks(project: Project) -> Iterator[Task]:
    """Every task of a project."""
    spec = project.spec
    yield _group("base", "the original weights")
    for base in spec.bases.values():
        prepare = PrepareBase(project, base, SELECTED)
        yield _task("base", base.name, describe_base(base), prepare, BaseReady(project, base))
    yield _group("adapter", "what was learned on top of a base")
    for adapter in spec.adapters.values():
        yield _task(
            "adapter",
            adapter.name,
            describe_adapter(adapter),
            PrepareAdapter(project, adapter),
            AdapterReady(project, adapter),
            after=[f"base:{adapter.base}"],
        )
    if any(variant.calibration is not None for variant in spec.variants.values()):
        yield _group("calibration", "the texts that variants are made for")
    for variant in spec.variants.values():
        if variant.calibration is not None:
            text = f"the text that {variant.name} is made for, {from_here(variant.calibration)}"
            yield _task("calibration", variant.name, text, CheckCalibration(project, variant))
    for target in spec.targets:
        yield _model_task(project, target)
    for model in spec.models.values():
        wanted = [f"model:{model.name}_{v}" for v in model.variants if not spec.variants[v].intermediate]
        yield _alias(f"model:{model.name}", f"every variant of {model.name} that is not intermediate", wanted)
    yield from _seed_groups(spec, "model")
    # This group comes last, so that doit uses its task_dep: intermediates are not part of `doit model`.
    yield {
        "basename": "model",
        "name": None,
        "doc": "every declared target that is not intermediate",
        "task_dep": [f"model:{t.name}" for t in spec.targets if not t.variant.intermediate],
    }
    yield from _eval_tasks(project)
    yield from _clean_tasks(project)
    if project.spec.production is not None:
        yield from _release_tasks(project, project.spec.production)
    if project.spec.publications:
        yield _group("publish", "send a target to where people run it")
    for publication in project.spec.publications.values():
        doc = f"send {publication.target} to {publication.to}"
        step = Publish(project, publication)
        yield _task("publish", publication.name, doc, step, after=needed(project, publication))


def _model_task(project: Project, target: Target) -> Task:
    after = [sources_of(target.model)]
    if target.variant.calibration:
        after.append(f"calibration:{target.variant.name}")
    return _task(
        "model",
        target.name,
        describe_target(target),
        BuildTarget(project, target.name, SELECTED),
        TargetReady(project, target.name),
        after=after,  # `deliver` makes the target that a learned target reads, so that is not a dependency
    )


def _seed_groups(spec: Spec, kind: str) -> Iterator[Task]:
    """Where `seeds` made several models of one: its name and the names of its targets stand for all seeds."""
    for name, targets in of_all_seeds(spec).items():
        if kind == "model" or all(spec.target(target).model.suites for target in targets):
            yield _alias(f"{kind}:{name}", f"{name} with every seed", [f"{kind}:{each}" for each in targets])


def _eval_tasks(project: Project) -> Iterator[Task]:
    measured = [target for target in project.spec.targets if target.model.suites]
    if not measured:
        return
    for target in measured:
        suites = ", ".join(target.model.suites)
        yield _task(
            "eval",
            target.name,
            f"measure {target.name}: {suites}",
            Evaluate(project, target.name, SELECTED),
            Evaluated(project, target.name, SELECTED),
            after=_measured_of(project, target),
        )
    yield from _seed_groups(project.spec, "eval")
    yield {
        "basename": "eval",
        "name": None,
        "doc": "measure every target that is not intermediate",
        "task_dep": [f"eval:{t.name}" for t in measured if not t.variant.intermediate],
    }
    required = [model for model in project.spec.models.values() if model.require]
    if required:
        yield _group("threshold", "the smallest target that meets its requirements")
    for model in required:
        doc = f"the smallest target of {model.name} that has {', '.join(map(str, model.require))}"
        step = FindThreshold(project, model.name)
        yield _task("threshold", model.name, doc, step, after=[sources_of(model)])
    for name, models in models_of(required).items():
        conditions = ", ".join(map(str, models[0].require))
        doc = f"the smallest variant of {name} that has {conditions} with every seed"
        step = FindSeedsThreshold(project, name)
        yield _task("threshold", name, doc, step, after=[sources_of(model) for model in models])


def _measured_of(project: Project, target: Target) -> list[str]:
    """The task that must run before a target is measured. It builds the target or prepares its sources."""
    if needs_directory(project.spec, target):
        return [f"model:{target.name}"]
    return [sources_of(target.model)]


def _release_tasks(project: Project, target: str) -> Iterator[Task]:
    required = project.spec.target(target).model.require
    yield _group("release", "move a release to its declared target")
    yield _task(
        "release",
        "production",
        f"move models/production to {target}, if it meets its requirements",
        Release(project),
        Released(project),
        after=[f"model:{target}", *([f"eval:{target}"] if required else [])],
    )
    yield _group("rollback", "exchange a release and its former")
    yield _task("rollback", "production", "exchange models/production and its former", Rollback(project))
    doc = "take models/production and its former away"
    yield _task("clean", "production", doc, Withdraw(project))


def _clean_tasks(project: Project) -> Iterator[Task]:
    yield _group("clean", "drop bytes, keep records")
    targets = project.spec.targets
    for variant in sorted({t.variant.name for t in targets}):
        names = tuple(t.name for t in targets if t.variant.name == variant)
        yield _task("clean", variant, f"drop the {variant} variant of every model", Clean(project, names))
    for target in targets:
        yield _task("clean", target.name, f"drop {target.name}", Clean(project, (target.name,)))


def _group(basename: str, doc: str) -> Task:
    return {"basename": basename, "name": None, "doc": doc}


def _alias(name: str, doc: str, after: list[str]) -> Task:
    return {"basename": name, "doc": doc, "actions": None, "task_dep": after}


def _task(
    basename: str,
    name: str,
    doc: str,
    action: Callable[[], object],
    ready: Callable[..., bool] | None = None,
    *,
    after: list[str] | None = None,
) -> Task:
    return {
        "basename": basename,
        "name": name,
        "doc": doc,
        "actions": [(action, [])],
        "uptodate": [ready] if ready else [],
        "task_dep": after or [],
        # doit's capture replaces sys.stdout for all threads at once (`-P thread`).
        "io": {"capture": False},
    }
