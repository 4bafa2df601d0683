"""Turns a calibration file into sequences of tokens, with the chat template, as training does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.console.words import one_line
from builder.errors import BuildError
from builder.spec.rows import Row, RowInvalid, read, shared

_EXPECTED = 'expected {"messages": [...]}, {"prompt": ..., "completion": ...} or {"text": ...}'
HELD = 8  # sequences that nothing is rounded for
COSTED = 16  # sequences on which costs are measured, or half of those that are rounded for


class CalibrationInvalid(BuildError):
    """{name}: {what}."""

    exit_code = 2
    hint = "Correct the file, or `calibration`, `samples` and `sequence_length` in artifacts.toml."


@dataclass(frozen=True)
class Piece:
    """A sequence of tokens. `counted` is 1 where the next token belongs to an answer or a text, else 0."""

    tokens: list[int]
    counted: list[int]


def sequences(file: Path, name: str, tokenizer: Any, samples: int, length: int) -> list[list[int]]:
    """At most `samples` sequences of exactly `length` tokens. Raises CalibrationInvalid.

    Rows are used in the order of the file, each at most once. A sequence begins where a row begins, and goes
    on with the next rows. What is left of its last row is dropped. There are never as many sequences as
    tokens in each, so that arrays of a model can be told apart (builder.engine.rounding.walk). `name` is the
    file in messages.
    """
    return [piece.tokens for piece in pieces(file, name, tokenizer, samples, length)]


def divided(
    file: Path, name: str, tokenizer: Any, samples: int, length: int
) -> tuple[list[Piece], list[Piece]]:
    """At most `samples` sequences to round for, and at most HELD others.

    Of a short text a fifth is held, at least one sequence. A text of one sequence is both. Raises
    CalibrationInvalid.
    """
    found = pieces(file, name, tokenizer, samples + HELD, length)
    if len(found) == 1:
        return found, found
    used = min(samples, len(found) - max(1, min(HELD, len(found) // 5)))
    apart = found[used : used + HELD]
    return found[: used - 1] if used == length > 1 else found[:used], apart


def costed(used: list[Piece]) -> list[Piece]:
    """The sequences on which costs are measured: half of those that are rounded for, but COSTED at least.

    There are never as many as tokens in each.
    """
    found = used[: max(COSTED, len(used) // 2)]
    return found[:-1] if len(found) == len(found[0].tokens) > 1 else found


def pieces(file: Path, name: str, tokenizer: Any, samples: int, length: int) -> list[Piece]:
    """What `sequences` gives, with what counts in each. Raises CalibrationInvalid."""
    found: list[Piece] = []
    current: list[int] = []
    counted: list[int] = []
    for place, row in _rows(file, name):
        tokens = _tokens(row, place, tokenizer)
        current += tokens
        counted += _counted(row, tokens, tokenizer)
        if len(current) >= length:
            if file.suffix == ".jsonl":
                found.append(Piece(current[:length], counted[:length]))
                current, counted = [], []
            else:  # a text: nothing of it is dropped
                whole = len(current) // length * length
                cuts = range(0, whole, length)
                found += [Piece(current[at : at + length], counted[at : at + length]) for at in cuts]
                current, counted = current[whole:], counted[whole:]
        if len(found) >= samples:
            break
    if not found:
        raise CalibrationInvalid(name=name, what=f"it holds fewer than {length} tokens (one sequence)")
    found = found[:samples]
    return found[:-1] if len(found) == length else found


def _counted(row: Row, tokens: list[int], tokenizer: Any) -> list[int]:
    """1 for each token that is followed by one of the answer of a row. Of a text, every token counts."""
    if "messages" not in row or not tokenizer.has_chat_template:
        return [1] * len(tokens)
    try:
        before = tokenizer.apply_chat_template(
            row["messages"][:-1],
            tools=row.get("tools"),
            tokenize=True,
            return_dict=False,
            add_generation_prompt=True,
        )
    except Exception:  # a template that refuses a row without its answer: then the whole row counts
        return [1] * len(tokens)
    start = shared(before, tokens)
    ends = [at for at in range(start, len(tokens)) if tokens[at] in tokenizer.eos_token_ids]
    end = ends[-1] if ends else len(tokens) - 1
    return [int(start <= at + 1 <= end) for at in range(len(tokens))]


def _rows(file: Path, name: str) -> Iterator[tuple[str, Row]]:
    """The rows of a .jsonl with their places, or the whole text as one row. Raises CalibrationInvalid."""
    try:
        for line, row in read(file, 1, _EXPECTED):
            yield f"{name}:{line}" if line else name, row
    except RowInvalid as error:
        place = f"{name}:{error.line}" if error.line else name
        raise CalibrationInvalid(name=place, what=error.what) from error


def _tokens(row: Row, place: str, tokenizer: Any) -> list[int]:
    """The tokens that mlx_lm.lora trains on: of a text with the token that ends it."""
    if "messages" not in row:
        found = list(tokenizer.encode(row["text"]))
        end = tokenizer.eos_token_id
        return found if end is None or found[-1:] == [end] else [*found, end]
    if not tokenizer.has_chat_template:
        text = "\n".join(message.get("content") or "" for message in row["messages"])
        return list(tokenizer.encode(text))
    try:
        made = tokenizer.apply_chat_template(
            row["messages"], tools=row.get("tools"), tokenize=True, return_dict=False
        )
    except Exception as error:  # a template is a program of the model's authors, which may raise anything
        what = f"the chat template refuses a row: {one_line(error)}"
        raise CalibrationInvalid(name=place, what=what) from error
    return list(made)
