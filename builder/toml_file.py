"""Read a TOML file that a person wrote. Whatever keeps it from being read is one SpecError."""

from __future__ import annotations

import re
import stat
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from builder.errors import SpecError
from builder.paths import from_here
from builder.problems import dotted
from builder.toml_lines import Lines, index_lines

MOST_BYTES = 1 << 20
_WIDEST = 100

_AT = r"(?s)(.*) \(at (?:line (\d+), column (\d+)|end of document)\)"


class Document(NamedTuple):
    label: str  # the file's name in messages
    data: dict[str, Any]
    lines: Lines


def read_toml(file: Path, draft: bytes | None = None) -> Document:
    """The file, or what it is about to hold. Raises SpecError."""
    label = from_here(file)
    raw = _read_bytes(file, label) if draft is None else draft
    try:
        text = raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        what = f"not UTF-8 (byte 0x{raw[error.start]:02x}); save the file as UTF-8"
        raise SpecError(problems=f"{label}:{line}: {what}") from None
    try:
        return Document(label, tomllib.loads(text), index_lines(text))
    except tomllib.TOMLDecodeError as error:
        raise SpecError(problems=f"{label}{_syntax(str(error), text)}") from None
    except RecursionError:
        raise SpecError(problems=f"{label}: arrays or tables are nested too deep to be read") from None
    except ValueError:  # thousands of digits
        raise SpecError(problems=f"{label}: a number is too long to be read") from None


def _read_bytes(file: Path, label: str) -> bytes:
    try:
        mode = file.stat().st_mode
        if stat.S_ISDIR(mode):
            raise SpecError(problems=f"{label} is a folder; name the artifacts.toml inside it.")
        if not stat.S_ISREG(mode):
            raise SpecError(problems=f"{label} is not a regular file.")
        with file.open("rb") as stream:
            raw = stream.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise SpecError(problems=f"{label} does not exist.", hint="`builder init` makes one.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SpecError(problems=f"{label} cannot be read: {reason}.") from None
    if len(raw) > MOST_BYTES:
        raise SpecError(problems=f"{label} is larger than 1 MiB, so it is not a declaration.")
    return raw


def _syntax(error: str, text: str) -> str:
    """`:line:col: what is wrong`, the line and a caret below the column."""
    what, line, column = error, len(text.rstrip().split("\n")), 0
    if match := re.fullmatch(_AT, error):
        what = match[1]
        if match[2]:
            line, column = int(match[2]), int(match[3])
    source = text.split("\n")[line - 1]
    column = column or len(source.rstrip()) + 1
    first = max(0, column - 1 - _WIDEST // 2)
    part = "".join(c if c.isprintable() else " " for c in source[first : first + _WIDEST]).rstrip()
    return f":{line}:{column}: {_plain(what)}\n  {part}\n  {' ' * (column - 1 - first)}^"


def _plain(what: str) -> str:
    """tomllib's message, without Python's tuples."""
    if match := re.fullmatch(r"Cannot declare \((.*)\) twice", what):
        keys = [a or b for a, b in re.findall(r"'([^']*)'|\"([^\"]*)\"", match[1])]
        return f"[{dotted(*keys)}] is declared twice; keep one"
    if what == "Cannot overwrite a value":
        return "this key or table has been given before; keep one"
    return f"not TOML: {what[:1].lower()}{what[1:]}"
