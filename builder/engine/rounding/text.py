"""Turns a calibration file into sequences of tokens, with the chat template, as training does."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from builder.errors import BuildError

_EXPECTED = 'expected {"text": ...}, {"messages": [...]} or {"prompt": ..., "completion": ...}'


class CalibrationInvalid(BuildError):
    """{name}: {what}."""

    exit_code = 2
    hint = "Correct the file, or `calibration`, `samples` and `sequence_length` in artifacts.toml."


def sequences(file: Path, name: str, tokenizer: Any, samples: int, length: int) -> list[list[int]]:
    """At most `samples` sequences of exactly `length` tokens. Raises CalibrationInvalid.

    Rows are used in the order of the file, each at most once. A sequence begins where a row begins, and goes
    on with the next rows. What is left of its last row is dropped. `name` is the file in messages.
    """
    found: list[list[int]] = []
    current: list[int] = []
    for row in rows(file, name):
        current += _tokens(row, name, tokenizer)
        if len(current) >= length:
            if file.suffix == ".jsonl":
                found.append(current[:length])
                current = []
            else:  # a text: nothing of it is dropped
                whole = len(current) // length * length
                found += [current[at : at + length] for at in range(0, whole, length)]
                current = current[whole:]
        if len(found) >= samples:
            break
    if not found:
        raise CalibrationInvalid(name=name, what=f"it holds fewer than {length} tokens (one sequence)")
    return found[:samples]


def rows(file: Path, name: str) -> Iterator[Mapping[str, Any]]:
    """The rows of a .jsonl, or the whole text as one row. Raises CalibrationInvalid, which names the line."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationInvalid(name=name, what=str(error)) from error
    if file.suffix != ".jsonl":
        yield {"text": text}
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _row(line, f"{name}:{number}")


def _row(line: str, place: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CalibrationInvalid(name=place, what=str(error)) from error
    if isinstance(row, dict):
        if isinstance(row.get("messages"), list) and row["messages"]:
            return row
        if isinstance(row.get("prompt"), str) and isinstance(row.get("completion"), str):
            said = (("user", row["prompt"]), ("assistant", row["completion"]))
            return {"messages": [{"role": role, "content": content} for role, content in said]}
        if isinstance(row.get("text"), str):
            return row
    raise CalibrationInvalid(name=place, what=_EXPECTED)


def _tokens(row: Mapping[str, Any], name: str, tokenizer: Any) -> list[int]:
    if "messages" not in row:
        return list(tokenizer.encode(row["text"]))
    if not getattr(tokenizer, "chat_template", None):
        text = "\n".join(str(message.get("content") or "") for message in row["messages"])
        return list(tokenizer.encode(text))
    try:
        made = tokenizer.apply_chat_template(
            row["messages"], tools=row.get("tools"), tokenize=True, return_dict=False
        )
    except Exception as error:  # a template is a program of the model's authors, which may raise anything
        what = f"the chat template refuses a row: {' '.join(str(error).split())[:200]}"
        raise CalibrationInvalid(name=name, what=what) from error
    return list(made)
