"""The keys of what is measured: a suite, a target's answers to it, the reference for them."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path

from builder.errors import BuildError
from builder.keys import Digest, Key, make_key
from builder.plan.types import TargetPlan
from builder.project.project import Project
from builder.project.toolchain import machine_name
from builder.spec.types import Model, Spec, Suite, Target

SCORER = "scoring/2"  # change it when the same model and questions give other numbers
PRECISION = "float32"  # of what is scored, the reference too
_OF_A_MACHINE = ("tokens_per_second", "seconds", "memory")
_NOT_CONTENT = ("name", "data", "batch", "timeout")  # of a suite: what never changes a figure


class QuestionsMissing(BuildError):
    """suite {suite}: {path}: {what}"""

    exit_code = 2
    hint = "Put the file there, or correct `data` in artifacts.toml."


def needs_directory(spec: Spec, target: Target) -> bool:
    """Whether a target must be built to be measured.

    An unquantized intermediate need not: to scoring it is its base and its adapter.
    """
    variant = target.variant
    if variant.is_quantized or variant.learned is not None or not variant.intermediate:
        return True
    return any(spec.suites[name].kind in ("generate", "command") for name in target.model.suites)


def suite_key(project: Project, suite: Suite) -> Key:
    """What is asked, whatever it is called. Raises QuestionsMissing when the data cannot be read."""
    content = {k: v for k, v in asdict(suite).items() if k not in _NOT_CONTENT}
    data = _digest(project, suite, suite.data) if suite.data else None
    read_as = None if suite.data is None else "jsonl" if suite.data.suffix == ".jsonl" else "text"
    named = [_digest(project, suite, file) for file in command_files(suite, project.spec.file.parent)]
    return make_key("suite/3", content, data, read_as, named)


def _digest(project: Project, suite: Suite, file: Path) -> Digest:
    try:
        return project.sources.digest(file)
    except OSError as error:
        raise QuestionsMissing(suite=suite.name, path=file, what=error.strerror) from error


def command_files(suite: Suite, folder: Path) -> list[Path]:
    """The files that the words of a command name, also after a `=`, in their order."""
    words = shlex.split(suite.command)
    files = (folder / name for word in words for name in (word, word.partition("=")[2]) if name)
    return [file for file in files if _is_file(file)]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # too long for a name: it was never meant as one
        return False


def result_key(project: Project, model: Model, measured: Key, suite: Suite) -> Key:
    """Of one suite on a target of a model, `measured` as TargetPlan says. Raises QuestionsMissing.

    The target counts by what can change a figure: not by its name, nor by files that make no prompt. Where
    the model requires a time or a memory, the machine counts too.
    """
    timed = any(c.suite == suite.name and c.metric.name in _OF_A_MACHINE for c in model.require)
    where = machine_name() if timed and suite.kind in ("generate", "command") else None
    return make_key("eval/2", measured, suite_key(project, suite), SCORER, where)


def reference_key(project: Project, target: TargetPlan, suite: Suite) -> Key:
    """Of the unquantized model's log-probs. Raises QuestionsMissing."""
    base = target.base
    slices = sorted(target.adapter.slices.items()) if target.adapter else None
    asked = suite_key(project, suite)  # top_k among it
    return make_key("reference/3", base.weights, slices, base.identity.prompts, asked, PRECISION, SCORER)


def measured_keys(project: Project, target: TargetPlan, suite: Suite) -> frozenset[Key]:
    """Everything that is kept of one suite on one target. Raises QuestionsMissing."""
    result = result_key(project, target.target.model, target.measured, suite)
    if suite.kind != "fidelity":
        return frozenset({result})
    return frozenset({result, reference_key(project, target, suite)})
