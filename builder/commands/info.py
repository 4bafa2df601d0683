"""`doit info TASK`: doit's information about a task, with an error of one line for a wrong name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from doit.cmd_info import Info as DoitInfo

from builder.commands.base import AnyOrder
from builder.commands.guard import guarded
from builder.commands.run import known_tasks
from builder.commands.usage import OneScreen


class Info(AnyOrder, OneScreen, DoitInfo):  # type: ignore[misc]
    name = "info"
    doc_purpose = "show what a task depends on, and why it would run"
    doc_usage = "TASK"

    def execute(self, params: Any, args: Sequence[str]) -> int:
        return guarded(lambda: int(super(Info, self).execute(params, args) or 0))

    def _execute(self, pos_args: Any, hide_status: bool = False) -> int:
        return int(super()._execute(known_tasks(pos_args, self.task_list), hide_status) or 0)
