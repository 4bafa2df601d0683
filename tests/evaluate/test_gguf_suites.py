"""Which questions a GGUF is measured by."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from builder.evaluate.gguf import _suites
from builder.spec.parse import parse_spec
from tests.spec.test_learned import SEARCHES


def test_a_gguf_of_a_searched_target_is_not_graded_by_the_search() -> None:
    declared = SEARCHES + '[model.m.require]\n"same.kl" = "<= 1"\n'
    spec = parse_spec(Path("artifacts.toml"), declared.encode())
    project: Any = SimpleNamespace(spec=spec)
    plan: Any = SimpleNamespace(target=spec.targets[0])
    assert [(suite.name, suite.part) for suite in _suites(project, plan)] == [("same", "rest")]
