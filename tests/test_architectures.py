"""Every text architecture of mlx-lm: our stream gives what its fuse and convert give, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.architecture_table import TABLE, row
from tests.architectures import REGISTRY, Architecture, unregistered
from tests.comparison import compare


@pytest.mark.parametrize("architecture", REGISTRY, ids=lambda a: a.name)
def test_fused_and_converted(architecture: Architecture, tmp_path: Path) -> None:
    result = compare(architecture, tmp_path)
    assert not result.differences
    assert result.changed_again == architecture.changed_again
    failures = [failure for failure in result.failures if not failure.startswith("mixed:")]
    assert bool(failures) == bool(architecture.fails), failures
    assert all(architecture.fails in failure for failure in failures)
    assert row(result) in TABLE.read_text().splitlines(), "run `python -m tests.architecture_table`"


def test_no_model_of_mlx_lm_is_forgotten() -> None:
    assert unregistered() == []
