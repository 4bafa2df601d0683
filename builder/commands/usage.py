"""The help of a command: what it does, how it is called and our own options, on one screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any, ClassVar

_WIDTH = 80
_COLUMN = 24


class OneScreen:
    """The help of a command of this package. Options of doit stay out unless `shown_options` names them."""

    shown_options: ClassVar[Sequence[Mapping[str, Any]] | None] = None  # None: all of cmd_options
    doc_more: ClassVar[str] = ""

    def help(self) -> str:
        """What `builder help COMMAND` prints."""
        command: Any = self
        usage = f"{command.bin_name} {command.name} {command.doc_usage}".strip()
        lines = [usage, "", fill(_sentence(command.doc_purpose), _WIDTH)]
        if command.doc_description:
            lines.append(fill(command.doc_description, _WIDTH))
        options = self.shown_options if self.shown_options is not None else command.cmd_options
        if options:
            lines += ["", *(line for option in options for line in _option(option))]
        if self.doc_more:
            lines += ["", fill(self.doc_more.format(bin=command.bin_name), _WIDTH)]
        return "\n".join(lines)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _option(option: Mapping[str, Any]) -> list[str]:
    """An option and what it does, wrapped beside each other."""
    value = (
        ""
        if option["type"] is bool
        else f" {option.get('metavar', 'N' if option['type'] is int else 'VALUE')}"
    )
    short = f"-{option['short']}, " if option.get("short") else "    "
    head = f"  {short}--{option['long']}{value}"
    text = str(option["help"]).replace("\n", " ")
    if (inverse := option.get("inverse")) and option["default"]:
        text += f"; --{inverse} switches it off"
    lead = head.ljust(_COLUMN) if len(head) < _COLUMN - 1 else f"{head}\n{' ' * _COLUMN}"
    first, *rest = fill(text, _WIDTH - _COLUMN).splitlines()
    return [lead + first, *(" " * _COLUMN + line for line in rest)]
