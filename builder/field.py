"""What is said of a table and of a key of artifacts.toml; `builder.fields` says it of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# name: the name of a declared table, which `refers` says; names: a list of such names, not empty.
# path: relative to the file's folder; `~` is a home. size: "16GB". globs: a table of glob = {...} or false.
# texts: a table of label = "text"; a dotted label needs no quotes.
Kind = Literal["string", "path", "name", "names", "bool", "integer", "number", "size", "globs", "texts"]


@dataclass(frozen=True)
class Field:
    """One key of a table.

    `choices` are all the values that some setting allows: which integers go with which mode is MODES' to say.
    `example` is a line of TOML. `needs`: at least one of these keys must be given too. `excludes`: none of
    these may be. `entry`: the keys of one entry, for kind globs.
    """

    name: str
    kind: Kind
    doc: str
    default: str | bool | int | None = None
    choices: tuple[str | int, ...] = ()
    required: bool = False
    example: str = ""
    refers: str = ""
    needs: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()
    entry: tuple[Field, ...] = ()


@dataclass(frozen=True)
class Table:
    """[key] or, when `named`, any number of [key.NAME]. `one_of`: exactly one of these keys must be given."""

    key: str
    doc: str
    fields: tuple[Field, ...]
    named: bool = True
    one_of: tuple[str, ...] = ()
