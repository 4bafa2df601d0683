"""Rows as tokens, by mlx-lm's own datasets, and what is wrong with some of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from builder.console.words import count
from builder.spec.rows import RowInvalid, read
from builder.spec.training import Training
from builder.training.request import TrainingInvalid

_EXPECTED = "a row has `messages`, `prompt` and `completion`, or `text`"
_NAMED = 5  # lines that a message names


@dataclass(frozen=True)
class Row:
    """The tokens of one row, and where the part that is learned begins.

    `line` is its line in the file. `width` is what mlx-lm sorts rows by: the number of keys of the row.
    """

    line: int
    tokens: Sequence[int]
    offset: int
    width: int

    def learned(self, max_length: int) -> int:
        """How many tokens count for the loss, after the row is cut."""
        last = min(len(self.tokens), max_length)
        return max(0, last - max(1, self.offset))


def rows_of(
    adapter: str, file: Path, tokenizer: Any, training: Training, tell: Callable[[int, int], None]
) -> tuple[Row, ...]:
    """Every row of a file. Raises TrainingInvalid, which names the file and the line."""
    from mlx_lm.tuner.datasets import create_dataset

    try:
        found = [(line or 1, dict(row)) for line, row in read(file, 1, _EXPECTED)]
    except RowInvalid as error:
        place = f", line {error.line}" if error.line else ""
        raise TrainingInvalid(adapter=adapter, what=f"{file.name}{place}: {error.what}") from error
    if not found:
        raise TrainingInvalid(adapter=adapter, what=f"{file.name} has no rows")
    try:
        dataset = create_dataset(
            [row for _, row in found], tokenizer, SimpleNamespace(mask_prompt=training.mask_prompt)
        )
    except ValueError as error:
        raise TrainingInvalid(adapter=adapter, what=f"{file.name}: {str(error).rstrip('.')}") from error
    rows = []
    for index, (line, row) in enumerate(found):
        try:
            tokens, offset = dataset.process(row)
        except Exception as error:  # chat templates raise whatever they like
            what = f"{file.name}, line {line}: {str(error)[:200] or type(error).__name__}"
            raise TrainingInvalid(adapter=adapter, what=what) from error
        rows.append(Row(line, list(tokens), offset, len(row)))
        tell(index + 1, len(found))
    return tuple(rows)


def remarks(name: str, rows: Sequence[Row], training: Training) -> tuple[str, ...]:
    """Rows that are cut, that teach nothing, or that no batch holds: how many, and the first of them."""
    longest, size = training.max_length, training.batch_size
    cut = [row.line for row in rows if len(row.tokens) > longest]
    empty = [row.line for row in rows if row.learned(longest) == 0]
    spare = len(rows) % size
    found = []
    if cut:
        found.append(
            f"{name}: {count(len(cut), 'row')} longer than {longest} tokens will be cut{_lines(cut)}"
        )
    if empty:
        what = "nothing is left to learn" if training.mask_prompt else "too short to learn from"
        found.append(f"{name}: {count(len(empty), 'row')} where {what}{_lines(empty)}")
    if spare and len(rows) > size:
        found.append(f"{name}: {count(spare, 'row')} in no batch, as {len(rows)} is not a multiple of {size}")
    return tuple(found)


def _lines(lines: Sequence[int]) -> str:
    named = ", ".join(str(line) for line in lines[:_NAMED])
    more = f" and {len(lines) - _NAMED} more" if len(lines) > _NAMED else ""
    return f" ({'line' if len(lines) == 1 else 'lines'} {named}{more})"
