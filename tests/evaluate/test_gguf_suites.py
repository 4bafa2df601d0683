"""Which questions a GGUF is measured by."""

from __future__ import annotations

from pathlib import Path

from builder.spec.parse import parse_spec
from tests.spec.test_learned import SEARCHES


def test_a_gguf_of_a_searched_target_is_not_graded_by_the_search() -> None:
    declared = SEARCHES.replace('["v"]', '["v", "same"]') + '[model.m.require]\n"same.kl" = "<= 1"\n'
    spec = parse_spec(
        Path("artifacts.toml"), (declared + '[variant.same]\ngguf = "exact"\nof = "v"\n').encode()
    )
    assert [(suite.name, suite.part) for suite in spec.suites_of(spec.targets[1])] == [("same", "rest")]
