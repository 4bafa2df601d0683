"""The words for states, so that every command says the same word for the same state. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

# What is on disk of a target. builder.project.state says which of them holds.
State = Literal["built", "not shown", "not kept", "not built", "out of date", "not planned"]
Verdict = Literal["passes", "misses", "not measured", "nothing required"]

# A second sign beside the colour of a verdict.
MARKS: Mapping[Verdict, str] = {"passes": "✓", "misses": "✗", "not measured": "?", "nothing required": "·"}

_OPERATORS = {">=": "at least", "<=": "at most", ">": "more than", "<": "less than"}


def verdict_text(verdict: Verdict, *, certain: bool = True) -> str:
    """A verdict with its sign, such as "✓ passes, not certain"."""
    return f"{MARKS[verdict]} {verdict}" + ("" if certain or verdict != "passes" else ", not certain")


def limit_text(operator: str, value: str) -> str:
    """A requirement in words: "at least 95 %"."""
    return f"{_OPERATORS[operator]} {value}"
