"""Which questions a part of a suite asks: one half while a size is searched, the other half afterwards.

Questions are ordered by the digest of what they ask, and cut in the middle. So the halves do not depend on
the order of the file, two suites of one file cut it in the same place, and a question that stands in the file
twice is in one half only. A text without rows is cut in the middle.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from builder.evaluate.worker.questions import Ask, asks_by_row, every_row, wrong
from builder.keys import digest_bytes
from builder.spec.rows import Row
from builder.spec.types import Suite


def rows_of_part(suite: Suite, rows: Sequence[Row]) -> list[int]:
    """The indices of those of `rows` that the suite's part asks. Raises DataInvalid."""
    if suite.part == "all":
        return list(range(len(rows)))
    first = _first_half(every_row(suite))
    return _some(suite, [at for at, row in enumerate(rows) if _is_in(suite, _asked(row) in first)])


def asks_of_part(suite: Suite, rows: Sequence[Row], tokenizer: Any) -> tuple[list[Ask], list[int]]:
    """All asks for the answers of `rows`, and the indices of those that the part asks. Raises DataInvalid."""
    grouped = asks_by_row(suite, rows, tokenizer)
    asks = [ask for group in grouped for ask in group]
    if suite.part == "all":
        return asks, list(range(len(asks)))
    if len(rows) == 1:
        chosen = [at for at in range(len(asks)) if _is_in(suite, at < len(asks) // 2)]
        return asks, _some(suite, chosen)
    wanted = set(rows_of_part(suite, rows))
    owners = [row for row, group in enumerate(grouped) for _ in group]
    return asks, _some(suite, [at for at, row in enumerate(owners) if row in wanted])


def _is_in(suite: Suite, first: bool) -> bool:
    return first == (suite.part == "search")


def _some(suite: Suite, chosen: list[int]) -> list[int]:
    if not chosen:
        raise wrong(suite, "holds too few questions to search a size with one half of them")
    return chosen


def _first_half(rows: Sequence[Row]) -> frozenset[str]:
    questions = sorted({_asked(row) for row in rows})
    return frozenset(questions[: len(questions) // 2])


def _asked(row: Row) -> str:
    """The digest of what a row asks, whatever its answer is."""
    what = [row["messages"][:-1], row.get("tools")] if "messages" in row else row["text"]
    return digest_bytes(json.dumps(what, sort_keys=True).encode())
