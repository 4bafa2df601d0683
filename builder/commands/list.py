"""`doit list`: doit's list of tasks, with `--json`, and with targets named as in status."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from doit.cmd_list import List as DoitList

from builder.commands.base import OPT_JSON, AnyOrder, print_json
from builder.commands.guard import guarded
from builder.commands.run import known_tasks
from builder.commands.usage import OneScreen


class List(AnyOrder, OneScreen, DoitList):  # type: ignore[misc]
    name = "list"
    doc_purpose = "list the tasks: all, or those that are named"
    doc_usage = "[TASK...]"
    cmd_options = (*DoitList.cmd_options, OPT_JSON)

    def execute(self, params: Any, args: Sequence[str]) -> int:
        return guarded(lambda: int(super(List, self).execute(params, args) or 0))

    def _execute(
        self,
        subtasks: bool = False,
        quiet: bool = True,
        status: bool = False,
        private: bool = False,
        list_deps: bool = False,
        template: Any = None,
        sort: str = "name",
        pos_args: Any = None,
        json: bool = False,
    ) -> int:
        """Lists the tasks. doit reads the names of these arguments from this signature."""
        pos_args = known_tasks(pos_args or [], self.task_list)
        if json:
            defaults = {*self.sel_tasks} if self.sel_default_tasks and self.sel_tasks else set()
            named = {*pos_args}
            tasks = [task for task in self.task_list if not named or task.name in named]
            print_json(
                "list",
                tasks=[
                    {
                        "name": task.name,
                        "doc": task.doc,
                        "group": not task.actions,
                        "default": task.name in defaults,
                    }
                    for task in tasks
                ],
            )
            return 0
        return int(
            super()._execute(subtasks, quiet, status, private, list_deps, template, sort, pos_args) or 0
        )
