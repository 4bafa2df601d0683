"""`doit help`: doit's help, where our commands have one screen and a closed pipe is not an error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from doit.cmd_help import Help as DoitHelp

from builder.commands import STANDALONE
from builder.commands.guard import guarded


class Help(DoitHelp):  # type: ignore[misc]
    name = "help"

    def execute(self, params: Any, args: Sequence[str]) -> int:
        return guarded(lambda: self._show(params, args))

    def _show(self, params: Any, args: Sequence[str]) -> int:
        if len(args) == 1 and args[0] in STANDALONE and args[0] not in self.cmds:
            print(
                f"`builder help {args[0]}` shows the options: {args[0]} is a command of builder, not of doit."
            )
            return 0
        return int(super().execute(params, args) or 0)
