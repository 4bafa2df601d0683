"""From a data file to tokens: what is asked of a model, and which tokens are its answer.

A row is {"messages": [...]} whose last message is the right answer, or {"text": ...}. The prompt and the
answer are tokenised as the chat template puts them together, so that tokens are those of training.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from builder.errors import BuildError
from builder.spec import Suite

Row = Mapping[str, Any]
WINDOW = 512  # tokens of a plain text that are scored together


class DataInvalid(BuildError):
    """suite {suite}: {path}: {what}."""

    hint = "Correct the file, or `data` in artifacts.toml."


@dataclass(frozen=True)
class Ask:
    """Score tokens[start:], given what is before them."""

    tokens: tuple[int, ...]
    start: int


def read_rows(suite: Suite) -> list[Row]:
    """The rows that the suite asks. Raises DataInvalid."""
    assert suite.data is not None
    try:
        text = suite.data.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataInvalid(suite=suite.name, path=suite.data, what=str(error)) from error
    if suite.data.suffix != ".jsonl":
        return [{"text": text}]
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            rows.append(_row(suite, number, line))
    asked = [row for row in rows if all(row.get(key) == value for key, value in suite.where.items())]
    if not asked:
        raise DataInvalid(suite=suite.name, path=suite.data, what="no row is asked")
    return asked


def _row(suite: Suite, number: int, line: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataInvalid(suite=suite.name, path=suite.data, what=f"line {number}: {error}") from error
    row = row if isinstance(row, dict) else {}
    messages = row.get("messages")
    if messages is None and isinstance(row.get("text"), str):
        return dict(row)
    whole = isinstance(messages, list) and len(messages) > 1
    if not whole or not all(
        isinstance(m, dict) and isinstance(m.get("content"), str) for m in messages or ()
    ):
        what = f'line {number}: expected {{"messages": [..., the right answer]}} or {{"text": ...}}'
        raise DataInvalid(suite=suite.name, path=suite.data, what=what)
    return dict(row)


def answer_asks(rows: Iterable[Row], tokenizer: Any) -> list[Ask]:
    """The right answer of each row, or every token of a text."""
    asks: list[Ask] = []
    for row in rows:
        if "messages" in row:
            asks.append(_answer(tokenizer, row["messages"]))
        else:
            asks.extend(_windows(tuple(tokenizer.encode(row["text"]))))
    return [ask for ask in asks if ask.start < len(ask.tokens)]


def prompt(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """What comes before the answer."""
    return _templated(tokenizer, messages[:-1], add_generation_prompt=True)


def _answer(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> Ask:
    before = prompt(tokenizer, messages)
    whole = _templated(tokenizer, messages)
    start = shared(before, whole)
    ends = [i for i in range(start, len(whole)) if whole[i] in tokenizer.eos_token_ids]
    return Ask(tuple(whole[: ends[-1] + 1] if ends else whole), start)


def _templated(tokenizer: Any, messages: Sequence[Mapping[str, str]], **how: bool) -> list[int]:
    if tokenizer.has_chat_template:
        return list(tokenizer.apply_chat_template(list(messages), return_dict=False, **how))
    return list(tokenizer.encode("\n".join(m["content"] for m in messages) + ("\n" if how else "")))


def _windows(tokens: tuple[int, ...]) -> list[Ask]:
    return [Ask(tokens[at : at + WINDOW], 1) for at in range(0, len(tokens), WINDOW)]


def candidate_asks(suite: Suite, rows: Sequence[Row], tokenizer: Any) -> list[dict[str, Ask]]:
    """For each row, each candidate right after the prompt. Raises DataInvalid.

    A candidate may end inside a token of the real answers (`{"tool"` where they have `":`): it is cut at the
    last token that it shares with every answer that begins with it.
    """
    spans: dict[str, int] = {}
    asks: list[dict[str, Ask]] = []
    for row in rows:
        if "messages" not in row:
            raise DataInvalid(suite=suite.name, path=suite.data, what="a choice needs rows of messages")
        real = _answer(tokenizer, row["messages"])
        made = {}
        for label, text in suite.candidates.items():
            made[label] = _answer(tokenizer, [*row["messages"][:-1], {"role": "assistant", "content": text}])
            tokens = [t for t in made[label].tokens[made[label].start :] if t not in tokenizer.eos_token_ids]
            length = len(tokens)
            if row["messages"][-1]["content"].startswith(text):
                length = shared(tokens, real.tokens[real.start :])
            spans[label] = min(length, spans.get(label, length))
        asks.append(made)
    for label, span in spans.items():
        if span == 0:
            what = f"candidate {label!r} shares no whole token with the answers that begin with it"
            raise DataInvalid(suite=suite.name, path=suite.data, what=what)
    return [
        {label: Ask(ask.tokens[: ask.start + spans[label]], ask.start) for label, ask in made.items()}
        for made in asks
    ]


def accepted(suite: Suite, row: Row) -> tuple[str, ...]:
    """The labels that are right for a row. Raises DataInvalid."""
    value = row.get(suite.answer)
    labels = tuple(value) if isinstance(value, list) else (value,)
    if not labels or any(label not in suite.candidates for label in labels):
        what = f"{suite.answer} is {value!r}, which is no candidate ({', '.join(suite.candidates)})"
        raise DataInvalid(suite=suite.name, path=suite.data, what=what)
    return tuple(str(label) for label in labels)


def shared(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens they begin with in common."""
    for index, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return index
    return min(len(first), len(second))
