"""Questions of a suite that stand in the training data too: such a figure measures memory, not learning."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from builder.spec import rows
from builder.spec.rows import Row, RowInvalid
from builder.spec.training import TRAIN, VALID, Training
from builder.spec.types import Suite


@dataclass(frozen=True)
class Overlap:
    """`shared` of the `asked` questions of a suite stand in a file that the adapter was trained on.

    `line` is the line of the first of them, in the suite's own file.
    """

    suite: str
    file: str
    shared: int
    asked: int
    line: int

    def __str__(self) -> str:
        what = f"suite {self.suite}: {self.shared} of {self.asked} questions"
        purpose = "the adapter was trained on" if self.file == TRAIN else "chose the adapter"
        return f"{what} stand in {self.file}, which {purpose} (the first in line {self.line})"


def overlaps(suites: Iterable[Suite], training: Training) -> tuple[Overlap, ...]:
    """Every suite that shares questions with the training data. Files that cannot be read share nothing."""
    known = {name: _questions(training.data / name) for name in (TRAIN, VALID)}
    found = []
    for suite in suites:
        if suite.data is None or suite.data.suffix != ".jsonl":
            continue
        asked = [(line, _question(row)) for line, row in _rows(suite.data) if _is_asked(suite, row)]
        for name, questions in known.items():
            shared = [line for line, question in asked if question in questions]
            if shared:
                found.append(Overlap(suite.name, name, len(shared), len(asked), shared[0]))
    return tuple(found)


def _rows(file: Path) -> list[tuple[int, Row]]:
    try:
        return [(line or 1, row) for line, row in rows.read(file, 1, "")]
    except RowInvalid:
        return []  # who trains or measures with this file says what is wrong


def _is_asked(suite: Suite, row: Row) -> bool:
    return all(row.get(key) == value for key, value in suite.where.items())


def _questions(file: Path) -> frozenset[str]:
    return frozenset(_question(row) for _, row in _rows(file)) if file.is_file() else frozenset()


def _question(row: Row) -> str:
    """What is asked, whatever the answer is: all messages but the last one, or the whole text."""
    if "messages" not in row:
        return " ".join(str(row["text"]).split())
    asked = [[each.get("role"), " ".join(str(each.get("content")).split())] for each in row["messages"]]
    return json.dumps(asked[:-1] or asked, ensure_ascii=False)
