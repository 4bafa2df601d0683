"""A plan as doit tasks. No file_dep, no targets: `uptodate` asks the store, doit's database is a cache.

base:<base>        download or import, fingerprint, inspect
adapter:<adapter>  check, fingerprint
model:<target>     build one target; model:<model> and `model` are groups
eval:<target>      measure one target by the suites of its model, fail if it misses a requirement
threshold:<model>  the smallest target that meets the requirements, building only what the search needs
clean:<variant>    drop that variant of every model; clean:<target> drops one
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from builder.errors import BuildError, SourceMissing
from builder.interrupt import one_line_interrupts
from builder.plan import TargetPlan, Unknown
from builder.project import Project
from builder.spec import Adapter, Base, GgufSource, HfSource, Target, Variant

Task = dict[str, Any]  # doit's own currency, made here and nowhere else


@dataclass
class Selection:
    """Targets asked for in this run: the first of a model builds all of them in its one pass."""

    targets: set[str] = field(default_factory=set)
    named: set[str] = field(default_factory=set)


SELECTED = Selection()


def load(file: str) -> tuple[dict[str, Any], Callable[[], Iterator[Task]]]:
    """DOIT_CONFIG and the task creator for dodo.py. A bad declaration becomes doit's one-line error."""
    from doit.exceptions import InvalidDodoFile

    one_line_interrupts()
    try:
        project = Project.load(Path(file))
        defaults = [f"model:{t.name}" for t in project.spec.targets if not t.variant.intermediate]
    except BuildError as error:
        raise InvalidDodoFile(str(error)) from None

    def task_artifacts() -> Iterator[Task]:
        yield from project_tasks(project)

    config = {"default_tasks": defaults, "backend": "sqlite3", "dep_file": ".doit.db", "verbosity": 2}
    return config, task_artifacts


def project_tasks(project: Project) -> Iterator[Task]:
    """Every task of a project."""
    spec = project.spec
    yield _group("base", "the original weights")
    for base in spec.bases.values():
        yield _task(
            "base", base.name, describe_base(base), PrepareBase(project, base), BaseReady(project, base)
        )
    yield _group("adapter", "what was learned on top of a base")
    for adapter in spec.adapters.values():
        yield _task(
            "adapter",
            adapter.name,
            f"adapter on {adapter.base}, from {_short(adapter.path)}",
            PrepareAdapter(project, adapter),
            AdapterReady(project, adapter),
            after=[f"base:{adapter.base}"],
        )
    for variant in spec.variants.values():
        if variant.learned is not None:
            text = f"the text that {variant.name} learns from, {_short(variant.learned.calibration)}"
            yield _task("calibration", variant.name, text, CheckCalibration(project, variant))
    for target in spec.targets:
        yield _model_task(project, target)
    for model in spec.models.values():
        wanted = [f"model:{model.name}_{v}" for v in model.variants if not spec.variants[v].intermediate]
        yield _alias(f"model:{model.name}", f"every variant of {model.name} that is not intermediate", wanted)
    # Given last, doit takes this group's own task_dep: intermediates are not part of `doit model`.
    yield {
        "basename": "model",
        "name": None,
        "doc": "every declared target that is not intermediate",
        "task_dep": [f"model:{t.name}" for t in spec.targets if not t.variant.intermediate],
    }
    yield from _eval_tasks(project)
    yield from _clean_tasks(project)


def _model_task(project: Project, target: Target) -> Task:
    model = target.model
    after = [f"adapter:{model.adapter}"] if model.adapter else [f"base:{model.base}"]
    if target.variant.learned:
        after.append(f"calibration:{target.variant.name}")
    return _task(
        "model",
        target.name,
        describe_target(target),
        BuildTarget(project, target.name, SELECTED),
        TargetReady(project, target.name),
        after=after,
        setup=_setup(project, target),
    )


def _setup(project: Project, target: Target) -> list[str]:
    """The intermediate that a learned target reads; none if its own bytes are in the store already."""
    learned = target.variant.learned
    if learned is None:
        return []
    from builder.state import target_state

    with suppress(BuildError):  # its own task says it
        if target_state(project.store, project.plan.targets[target.name]).kind in ("built", "unlinked"):
            return []
    return [f"model:{target.model.name}_{learned.source}"]


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
            Evaluate(project, target.name),
            Evaluated(project, target.name),
            after=[f"model:{target.name}"],
        )
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
        after = [f"adapter:{model.adapter}"] if model.adapter else [f"base:{model.base}"]
        yield _task("threshold", model.name, doc, FindThreshold(project, model.name), after=after)


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
    setup: list[str] | None = None,
) -> Task:
    return {
        "basename": basename,
        "name": name,
        "doc": doc,
        "actions": [(action, [])],
        "uptodate": [ready] if ready else [],
        "task_dep": after or [],
        # Run only if this task is not up to date: the edge to an intermediate that it reads.
        "setup": setup or [],
        # doit's capture swaps sys.stdout and leaks it between threads (`-P thread`).
        "io": {"capture": False},
    }


# -- what the tasks do: each is a value that a worker process can receive ----------------------------------


@dataclass
class Step:
    """An action of doit: runs, and turns a BuildError into doit's one-line failure."""

    project: Project

    def run(self) -> None:
        raise NotImplementedError

    def __call__(self) -> object:
        from doit.exceptions import TaskError, TaskFailed

        try:
            self.run()
        except BuildError as error:  # doit ends with 1 for a failure, with 2 for an error
            return (TaskFailed if error.exit_code == 1 else TaskError)(str(error), report=True)
        return None


@dataclass
class PrepareBase(Step):
    base: Base

    def run(self) -> None:
        from builder.prepare import prepare_base
        from builder.progress import showing

        again = not isinstance(self.project.base_facts(self.base), Unknown)  # run by -a
        with showing() as emit:
            prepare_base(self.project, self.base, emit, inspect_again=again)


@dataclass
class PrepareAdapter(Step):
    adapter: Adapter

    def run(self) -> None:
        from builder.prepare import prepare_adapter
        from builder.progress import showing

        with showing() as emit:
            prepare_adapter(self.project, self.adapter, emit)


@dataclass
class CheckCalibration(Step):
    """Before anything is made for it: is the text there?"""

    variant: Variant

    def run(self) -> None:
        found = self.project.calibration(self.variant)
        if isinstance(found, Unknown) and self.variant.learned is not None:
            path = self.variant.learned.calibration
            if not path.is_file():
                raise SourceMissing(table=f"variant.{self.variant.name}", path=path)
            self.project.digest(path)


@dataclass
class BuildTarget(Step):
    """Builds a target, and with it every other target of its model that this run asked for."""

    name: str
    selection: Selection

    def run(self) -> None:
        from builder.deliver import deliver, show
        from builder.progress import mode, showing

        with showing() as emit:
            results = deliver(self.project, self.name, self.selection.targets, self.selection.named, emit)
        if mode() in ("live", "plain"):
            show(results)


@dataclass
class Evaluate(Step):
    name: str

    def run(self) -> None:
        from builder.evaluate.run import check, evaluate
        from builder.evaluate.show import show
        from builder.progress import mode, showing

        self.project.forget_plan()
        plan = self.project.plan.targets[self.name]
        assert isinstance(plan, TargetPlan), "its model task has run"
        with showing() as emit:
            results = evaluate(self.project, plan, emit)
        if mode() in ("live", "plain"):
            show(self.name, results)
        check(plan, results)


@dataclass
class FindThreshold(Step):
    model: str

    def run(self) -> None:
        from builder.deliver import deliver
        from builder.evaluate.show import show_threshold
        from builder.evaluate.threshold import find_threshold
        from builder.progress import mode, showing

        self.project.forget_plan()
        with showing() as emit:
            found = find_threshold(
                self.project, self.model, lambda name: deliver(self.project, name, {name}, (), emit), emit
            )
        if mode() in ("live", "plain"):
            show_threshold(self.project, found)


@dataclass
class Clean(Step):
    names: tuple[str, ...]

    def run(self) -> None:
        from builder.deliver import clean

        clean(self.project, self.names)


@dataclass
class BaseReady:
    """uptodate of base:<name>; str() says why, for `doit info`."""

    project: Project
    base: Base

    def __call__(self, task: object = None, values: object = None) -> bool:
        facts = _asked(lambda: self.project.base_facts(self.base))
        return not isinstance(facts, Unknown)

    def __str__(self) -> str:
        facts = _asked(lambda: self.project.base_facts(self.base))
        reason = facts.reason if isinstance(facts, Unknown) else "is fingerprinted"
        return f"base {self.base.name} {reason}"


@dataclass
class AdapterReady:
    project: Project
    adapter: Adapter

    def __call__(self, task: object = None, values: object = None) -> bool:
        return self.project.adapter_checked(self.adapter)

    def __str__(self) -> str:
        if self.project.adapter_checked(self.adapter):
            return f"adapter {self.adapter.name} is fingerprinted and fits its base"
        facts = _asked(lambda: self.project.adapter_facts(self.adapter))
        reason = facts.reason if isinstance(facts, Unknown) else "has not been checked against its base yet"
        return f"adapter {self.adapter.name} {reason}"


@dataclass
class TargetReady:
    project: Project
    name: str

    def __call__(self, task: object = None, values: object = None) -> bool:
        from builder.state import target_state

        try:
            built = self.project.is_built(self.name)
            if not built:
                plan = self.project.plan.targets[self.name]
                if not isinstance(plan, TargetPlan):
                    self.project.forget_plan()  # its sources may have been prepared since
                    plan = self.project.plan.targets[self.name]
                built = target_state(self.project.store, plan).built
        except BuildError:
            return False  # the action says it
        if built:
            from builder.roots import keep_registered

            keep_registered(self.project)  # a gc from another checkout must know
            self._settle()
        return built

    def _settle(self) -> None:
        """What a run owes to a target that it finds built: keep what was named, prune what it needed."""
        from builder.progress import showing
        from builder.prune import prune_intermediates
        from builder.store import pins

        variant = self.project.spec.target(self.name).variant
        if variant.intermediate and self.name in SELECTED.named:
            pins.pin(self.project.store, self.name)
        if variant.learned is not None and self.name in SELECTED.targets:
            with showing() as emit:
                prune_intermediates(self.project, emit)

    def __str__(self) -> str:
        from builder.state import target_state

        try:
            state = target_state(self.project.store, self.project.plan.targets[self.name])
        except BuildError as error:
            return str(error)
        return f"{state.name} is {state.kind}: {state.reason}"


@dataclass
class Evaluated:
    """uptodate of eval:<name>: every result is in the store, every requirement holds."""

    project: Project
    name: str

    def __call__(self, task: object = None, values: object = None) -> bool:
        from builder.evaluate.run import complete

        try:
            plan = self.project.plan.targets[self.name]
            return isinstance(plan, TargetPlan) and complete(self.project, plan)
        except BuildError:
            return False  # the action says it


def _asked(facts: Callable[[], object]) -> object:
    try:
        return facts()
    except BuildError as error:
        return Unknown(str(error))


# -- one line of what each is ------------------------------------------------------------------------------


def describe_base(base: Base) -> str:
    match base.source:
        case GgufSource(location):
            return f"base weights, from {location}"
        case HfSource(repo, revision):
            return f"base weights, {repo} at {revision}"
        case other:
            return f"base weights, from {_short(other.path)}"


def describe_target(target: Target) -> str:
    model = target.model
    what = f"{model.base} + {model.adapter}" if model.adapter else model.base
    text = f"{what}, {describe_variant(target.variant)}"
    return f"{text} (intermediate)" if target.variant.intermediate else text


def describe_variant(variant: Variant) -> str:
    kind = f", {variant.dtype}" if variant.dtype else ""
    if variant.recipe is not None:
        return f"{variant.recipe}, group size {variant.group_size}{kind}"
    if (learned := variant.learned) is not None and variant.quantization is not None:
        bits, size = variant.quantization.bits, variant.quantization.group_size
        return f"{learned.method} from {learned.source}, {bits}-bit, group size {size}"
    if variant.quantization is None:
        return variant.dtype or "unquantized"
    how = variant.quantization
    mode = "" if how.mode == "affine" else f" {how.mode}"
    return f"{how.bits}-bit{mode}, group size {how.group_size}{kind}"


def _short(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
