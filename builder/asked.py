"""The keys of what is measured: a suite, a target's answers to it, the reference for them."""

from __future__ import annotations

from dataclasses import asdict

from builder.errors import BuildError
from builder.keys import Key, make_key
from builder.plan import TargetPlan
from builder.project import Project
from builder.spec import Suite

SCORER = "scoring/1"  # change it when the same model and questions give other numbers
_NOT_CONTENT = ("name", "data", "batch")  # of a suite: what never changes a figure


class QuestionsMissing(BuildError):
    """suite {suite}: {path}: {what}"""

    exit_code = 2
    hint = "Put the file there, or correct `data` in artifacts.toml."


def suite_key(project: Project, suite: Suite) -> Key:
    """What is asked, whatever it is called. Raises QuestionsMissing when the data cannot be read."""
    content = {k: v for k, v in asdict(suite).items() if k not in _NOT_CONTENT}
    try:
        data = project.digest(suite.data) if suite.data else None
    except OSError as error:
        raise QuestionsMissing(suite=suite.name, path=suite.data, what=error.strerror) from error
    return make_key("suite/1", content, data)


def result_key(project: Project, target: Key, suite: Suite) -> Key:
    """Of one suite on the target with this key. Raises QuestionsMissing."""
    return make_key("eval/1", target, suite_key(project, suite), SCORER)


def reference_key(project: Project, target: TargetPlan, suite: Suite) -> Key:
    """Of the unquantized model's log-probs. Raises QuestionsMissing."""
    aux = sorted((entry.name, entry.blob.digest) for entry in target.base.aux)
    adapter = target.adapter.digest if target.adapter else None
    return make_key("reference/1", target.base.weights, adapter, aux, suite_key(project, suite), SCORER)
