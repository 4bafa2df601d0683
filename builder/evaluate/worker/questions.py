"""Turns a data file into tokens: what is asked of a model, and which tokens are the answer.

A row is what mlx_lm.lora trains on. {"messages": [...]} ends with the right answer and may have "tools".
{"prompt": ..., "completion": ...} becomes such messages. {"text": ...} is plain text. The chat template joins
prompt and answer before they are tokenised, so that the tokens are the same as in training.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from builder.console.words import one_line
from builder.errors import BuildError
from builder.spec import rows
from builder.spec.rows import Row, shared
from builder.spec.types import Suite

_EXPECTED = (
    'expected {"messages": [..., the right answer]}, {"prompt": ..., "completion": ...} or {"text": ...}'
)


class DataInvalid(BuildError):
    """suite {suite}: {path}: {what}."""

    hint = "Correct the file, or `data` in artifacts.toml."


@dataclass(frozen=True)
class Ask:
    """A sequence of tokens. Each of tokens[start:] is scored, given the tokens before it."""

    tokens: tuple[int, ...]
    start: int


def wrong(suite: Suite, what: str) -> DataInvalid:
    """The error for a suite whose data file is wrong."""
    return DataInvalid(suite=suite.name, path=suite.data, what=what)


def read_rows(suite: Suite) -> list[Row]:
    """The rows that the suite asks: those that hold the values of `where`. Raises DataInvalid."""
    found = every_row(suite)
    asked = [row for row in found if _is_asked(suite, row)]
    if not asked:
        raise wrong(suite, "no row has the values of `where`" if found else "is empty")
    if suite.kind not in ("perplexity", "fidelity") and not all("messages" in row for row in asked):
        raise wrong(suite, f"kind {suite.kind} needs rows with an answer, not plain text")
    return asked


def every_row(suite: Suite) -> list[Row]:
    """All rows of the data file. Raises DataInvalid."""
    assert suite.data is not None
    try:
        found = [row for _, row in rows.read(suite.data, 2, _EXPECTED)]
    except rows.RowInvalid as error:
        place = f"line {error.line}: " if error.line else ""
        raise wrong(suite, f"{place}{error.what}") from error
    return found if suite.data.suffix == ".jsonl" or found[0]["text"].strip() else []


def _is_asked(suite: Suite, row: Row) -> bool:
    return all(row.get(key) == value for key, value in suite.where.items())


def answer_asks(suite: Suite, rows: Iterable[Row], tokenizer: Any) -> list[Ask]:
    """The asks for the right answer of each row, or for every token of a text. Raises DataInvalid."""
    return [ask for asks in asks_by_row(suite, rows, tokenizer) for ask in asks]


def asks_by_row(suite: Suite, rows: Iterable[Row], tokenizer: Any) -> list[list[Ask]]:
    """As `answer_asks`, one list for each row. Raises DataInvalid."""
    found: list[list[Ask]] = []
    for row in rows:
        if "messages" in row:
            asks = [_answer(suite, tokenizer, row)]
        else:
            asks = _windows(tuple(tokenizer.encode(row["text"])), suite.window)
        found.append([ask for ask in asks if ask.start < len(ask.tokens)])
    if not any(found):
        raise wrong(suite, "holds no token that can be scored")
    return found


def prompt(suite: Suite, tokenizer: Any, row: Row) -> list[int]:
    """The tokens before the answer of a row. Raises DataInvalid."""
    return _templated(suite, tokenizer, row, row["messages"][:-1], before_answer=True)


def _answer(suite: Suite, tokenizer: Any, row: Row) -> Ask:
    before = prompt(suite, tokenizer, row)
    whole = _templated(suite, tokenizer, row, row["messages"])
    start = shared(before, whole)
    if start == 0:
        raise wrong(
            suite, f"nothing stands before the answer, so its first token cannot be scored: {_short(row)}"
        )
    ends = [i for i in range(start, len(whole)) if whole[i] in tokenizer.eos_token_ids]
    return Ask(tuple(whole[: ends[-1] + 1] if ends else whole), start)


def _templated(
    suite: Suite,
    tokenizer: Any,
    row: Row,
    messages: Sequence[Mapping[str, Any]],
    *,
    before_answer: bool = False,
) -> list[int]:
    """The tokens of messages, as mlx_lm.lora makes them. Raises DataInvalid if the template fails."""
    if not tokenizer.has_chat_template:
        text = "\n".join(m.get("content") or "" for m in messages)
        return list(tokenizer.encode(text + ("\n" if before_answer else "")))
    how = {"add_generation_prompt": True} if before_answer else {}
    try:
        return list(
            tokenizer.apply_chat_template(list(messages), tools=row.get("tools"), return_dict=False, **how)
        )
    except Exception as error:  # a template may raise anything
        raise wrong(suite, f"the chat template refuses {_short(row)}: {one_line(error)}") from error


def _short(row: Row) -> str:
    text = json.dumps(row["messages"], ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


def _windows(tokens: tuple[int, ...], size: int) -> list[Ask]:
    """Pieces of a text, each scored by itself. The first token of a piece is not scored."""
    return [Ask(tokens[at : at + size], 1) for at in range(0, len(tokens), size)]


def candidate_asks(suite: Suite, rows: Sequence[Row], tokenizer: Any) -> list[dict[str, Ask]]:
    """For each row, the asks for each candidate right after the prompt, by label. Raises DataInvalid.

    A candidate may end inside a token of the real answers: `{"tool"` where the answers have `":`. So a
    candidate is cut at the last token that it shares with every answer that begins with the candidate.
    """
    spans: dict[str, int] = {}
    asks: list[dict[str, Ask]] = []
    for row in rows:
        real = _answer(suite, tokenizer, row)
        made = {}
        for label, text in suite.candidates.items():
            said = [*row["messages"][:-1], {"role": "assistant", "content": text}]
            made[label] = _answer(suite, tokenizer, {**row, "messages": said})
            tokens = [t for t in made[label].tokens[made[label].start :] if t not in tokenizer.eos_token_ids]
            length = len(tokens)
            if (row["messages"][-1].get("content") or "").startswith(text):
                length = shared(tokens, real.tokens[real.start :])
            spans[label] = min(length, spans.get(label, length))
        asks.append(made)
    for label, span in spans.items():
        if span == 0:
            what = f"candidate {label!r} shares no whole token with the answers that begin with it"
            raise wrong(suite, what)
    return [
        {label: Ask(ask.tokens[: ask.start + spans[label]], ask.start) for label, ask in made.items()}
        for made in asks
    ]


def accepted(suite: Suite, row: Row) -> tuple[str, ...]:
    """The labels that are right for a row. Raises DataInvalid."""
    value = row.get(suite.answer)
    labels = tuple(value) if isinstance(value, list) else (value,)
    if not labels or not all(isinstance(label, str) and label in suite.candidates for label in labels):
        what = f"{suite.answer} is {value!r}, which is not a candidate ({', '.join(suite.candidates)})"
        raise wrong(suite, what)
    return tuple(str(label) for label in labels)
