"""The rows of a text for training, calibration or questions, as mlx_lm.lora reads them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]


class RowInvalid(Exception):
    """What is wrong with a file, and in which line. `line` is None where the whole file is wrong."""

    def __init__(self, what: str, line: int | None = None) -> None:
        super().__init__(what)
        self.what, self.line = what, line


def read(file: Path, least: int, expected: str) -> Iterator[tuple[int | None, Row]]:
    """The rows of a .jsonl with their lines, or a whole text as one row. Raises RowInvalid.

    least: how many messages a row must have. expected: what a row may be, for the message about another one.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RowInvalid(str(error)) from error
    if file.suffix != ".jsonl":
        yield None, {"text": text}
        return
    for number, line in enumerate(text.split("\n"), start=1):  # a JSON string may hold other line ends
        if line.strip():
            try:
                yield number, row_of(line, least, expected)
            except RowInvalid as error:
                raise RowInvalid(error.what, number) from error.__cause__


def row_of(line: str, least: int, expected: str) -> Row:
    """The row of one line. As in mlx-lm, prompt and completion become messages and win over other keys.

    Raises RowInvalid.
    """
    try:
        row = json.loads(line)
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        raise RowInvalid(f"{half} is half of a character") from error
    except (ValueError, RecursionError) as error:
        raise RowInvalid(str(error)) from error
    if not isinstance(row, dict):
        raise RowInvalid(expected)
    if "prompt" in row and "completion" in row:
        said = (("user", row["prompt"]), ("assistant", row["completion"]))
        row["messages"] = [{"role": role, "content": content} for role, content in said]
    if "messages" not in row and isinstance(row.get("text"), str):
        return row
    messages = row.get("messages")
    if not isinstance(messages, list) or len(messages) < least or not all(map(_is_message, messages)):
        raise RowInvalid(expected)
    if not isinstance(row.get("tools"), list | None):
        raise RowInvalid("`tools` is not a list")
    return row


def _is_message(message: object) -> bool:
    """Whether a message has a text as its content. The content may be null beside `tool_calls`."""
    if not isinstance(message, dict):
        return False
    content = message.get("content")
    return isinstance(content, str) or (content is None and isinstance(message.get("tool_calls"), list))


def shared(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens at the beginning both sequences share."""
    for index, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return index
    return min(len(first), len(second))
