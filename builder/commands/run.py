"""`doit` and `doit run`: doit's run command, which also notes the selected targets and handles Ctrl-C."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from doit.cmd_run import Run as DoitRun
from doit.exceptions import InvalidCommand

from builder.commands import COMMANDS, STANDALONE
from builder.commands.base import OPT_JSON
from builder.commands.guard import guarded
from builder.commands.usage import OneScreen
from builder.console.display import ANSWERS, MODES, VARIABLE, showing
from builder.console.interrupt import INTERRUPTED
from builder.console.words import nearest, quoted
from builder.errors import BuildError
from builder.project.machines import CLUSTER, cluster_address
from builder.project.preflight import NO_SPACE_CHECK
from builder.project.remotes import NO_REMOTE, without_remotes
from builder.spec.place import DECLARATION
from builder.tasks.reporter import Collecting, ErrorsOnly, Reporter
from builder.tasks.selection import as_tasks, note_selection

OPT_PROGRESS: Mapping[str, Any] = {
    "name": "progress",
    "long": "progress",
    "type": str,
    "default": "",
    "choices": [(name, "") for name in MODES],
    "metavar": "MODE",
    "help": f"how progress is shown on stderr: {', '.join(MODES)}. Default: live on a terminal, else plain",
}
OPT_QUIET: Mapping[str, Any] = {
    "name": "quiet",
    "short": "q",
    "long": "quiet",
    "type": bool,
    "default": False,
    "help": "print errors only",
}
OPT_SPACE: Mapping[str, Any] = {
    "name": "no_space_check",
    "long": "no-space-check",
    "type": bool,
    "default": False,
    "help": "build although the disk seems too small for it",
}
OPT_NO_REMOTE: Mapping[str, Any] = {
    "name": "no_remote",
    "long": "no-remote",
    "type": bool,
    "default": False,
    "help": "neither pull from remotes nor push to them",
}
OPT_CLUSTER: Mapping[str, Any] = {
    "name": "cluster",
    "long": "cluster",
    "type": str,
    "default": "",
    "metavar": "ADDRESS",
    "help": "build and measure on the workers of this scheduler of dask, for example tcp://host:8786",
}
OPT_LOCKED: Mapping[str, Any] = {
    "name": "locked",
    "long": "locked",
    "type": bool,
    "default": False,
    "help": "refuse to run unless all inputs are those of artifacts.lock",
}


OPT_DRY_RUN: Mapping[str, Any] = {
    "name": "dry_run",
    "long": "dry-run",
    "type": bool,
    "default": False,
    "help": "only for publish:NAME: show the files, the bytes and the card, and send nothing",
}


# Of doit's options, the help shows those that a person needs every day.
_EVERY_DAY: Mapping[str, str] = {
    "always": "run the tasks also where they are up to date",
    "continue": "go on with the other tasks when one fails",
    "num_process": "run N tasks at once",
}
OURS = (
    *(
        dict(o) | {"help": text}
        for name, text in _EVERY_DAY.items()
        for o in DoitRun.cmd_options
        if o["name"] == name
    ),
    OPT_PROGRESS,
    OPT_QUIET,
    OPT_LOCKED,
    OPT_NO_REMOTE,
    OPT_CLUSTER,
    OPT_SPACE,
    OPT_DRY_RUN,
    OPT_JSON,
)


class UnknownTask(BuildError):
    """there is no task or target "{name}"{near}"""

    exit_code = 3
    hint = "`doit list` shows all tasks. `doit help` shows the commands."


class OneClient(BuildError):
    """-n starts processes on this machine, and --cluster gives the work to others."""

    exit_code = 3
    hint = "Leave out -n: the jobs of a cluster run at the same time anyway."


class Run(OneScreen, DoitRun):  # type: ignore[misc]
    """doit's run. It notes the selected targets before it starts. Ctrl-C ends it with one line."""

    name = "run"
    doc_purpose = "build what is not up to date: all targets, or those that are named"
    doc_usage = "[TARGET or TASK...]"
    doc_more = (
        "`{bin} help COMMAND` shows the options of another command. docs/cli.md has doit's other options."
    )
    cmd_options = (
        *DoitRun.cmd_options,
        OPT_PROGRESS,
        OPT_QUIET,
        OPT_LOCKED,
        OPT_NO_REMOTE,
        OPT_CLUSTER,
        OPT_SPACE,
        OPT_DRY_RUN,
        OPT_JSON,
    )
    shown_options = OURS

    def parse_execute(self, in_args: Sequence[str]) -> int:
        if in_args[:1] in (["-h"], ["--help"]):
            print(self.help())
            return 0
        return int(super().parse_execute(in_args) or 0)

    def execute(self, params: Any, args: Sequence[str]) -> int:
        code = guarded(lambda: int(super(Run, self).execute(params, args) or 0))
        if code == INTERRUPTED and threading.active_count() > 1:
            # doit's threads are daemons that may be inside mlx. A usual exit would abort the process.
            sys.stderr.flush()
            os._exit(code)
        return code

    def _execute(
        self,
        outfile: Any,
        verbosity: Any = None,
        always: bool = False,
        continue_: bool = False,
        reporter: Any = "console",
        num_process: int = 0,
        par_type: str = "process",
        single: bool = False,
        auto_delayed_regex: bool = False,
        force_verbosity: bool = False,
        failure_verbosity: int = 0,
        pdb: bool = False,
        progress: str = "",
        quiet: bool = False,
        locked: bool = False,
        no_remote: bool = False,
        cluster: str = "",
        no_space_check: bool = False,
        dry_run: bool = False,
        json: bool = False,
    ) -> int:
        """Runs the tasks. doit reads the names of these arguments from this signature."""
        arguments = dict(locals())
        ours = ("progress", "quiet", "locked", "no_remote", "cluster", "no_space_check", "dry_run", "json")
        for name in ("self", "__class__", *ours):
            arguments.pop(name, None)
        if no_remote:
            os.environ[NO_REMOTE] = "1"  # worker processes inherit it, and those below
        if cluster:
            os.environ[CLUSTER] = cluster
        if num_process and cluster_address():
            raise OneClient()
        if locked:
            _check_lock(forks=num_process > 0)
        if no_space_check:
            os.environ[NO_SPACE_CHECK] = "1"
        if quiet or progress:
            os.environ[VARIABLE] = progress or "silent"
        if json:
            os.environ[ANSWERS] = "json"
        names = [*(self.sel_tasks or [])]
        if dry_run or _DRY_RUN in names:  # doit leaves to a task what stands after its name
            return _dry_run([name for name in names if name != _DRY_RUN], as_json=json or _JSON in names)
        self.sel_tasks: list[str] = as_tasks(self.sel_tasks or [], self.task_list)
        note_selection(self.task_list, self.sel_tasks)
        collected = Collecting() if json else None
        if collected:
            arguments["reporter"] = collected
        elif quiet:
            arguments["reporter"] = ErrorsOnly
        elif arguments["reporter"] == "console":
            arguments["reporter"] = Reporter
        try:
            code = int(super()._execute(**arguments) or 0)
        except InvalidCommand as error:
            if error.not_found is None:
                raise
            tasks = [task.name for task in self.task_list]
            commands = COMMANDS if self.name == "run" else ()  # doit takes the typo `doit staus` for a task
            raise unknown_task(str(error.not_found), [*tasks, *commands]) from None
        if collected:
            from builder.commands.outcome import print_outcome

            print_outcome(collected.tasks, collected.failed)
        return code


_DRY_RUN, _JSON = "--dry-run", "--json"


class NoDryRun(BuildError):
    """--dry-run is for publish:NAME, and "{name}" is another task."""

    exit_code = 3
    hint = "`builder plan` shows what a build would do."


def _dry_run(names: Sequence[str], *, as_json: bool) -> int:
    """Shows what publications would do. Raises NoDryRun, BuildError."""
    from builder.commands.dry_run import dry_run
    from builder.tasks.publishing import TASK

    names = [name for name in names if name != _JSON]
    if wrong := next((name for name in names or ["doit"] if not name.startswith(TASK)), None):
        raise NoDryRun(name=wrong)
    return dry_run(Path(DECLARATION), names, as_json=as_json)


def known_tasks(names: Sequence[str], tasks: Sequence[Any]) -> list[str]:
    """The tasks of typed names, which must all be tasks. Raises UnknownTask."""
    known = [task.name for task in tasks]
    found = as_tasks(names, tasks)
    if wrong := next((name for name in found if name not in known), None):
        raise unknown_task(wrong, known)
    return found


def unknown_task(name: str, words: Sequence[str]) -> UnknownTask:
    """The error for an unknown name, with the nearest of `words`. Targets may be named without `model:`."""
    if name in STANDALONE:
        only = (
            f"`builder {name}` is a command of builder, not of doit. `doit help` shows the commands of doit."
        )
        return UnknownTask(name=name, near=".", hint=only)
    targets = [word.removeprefix("model:") for word in words if word.startswith("model:")]
    close = nearest(name, [*targets, *words])
    return UnknownTask(name=name, near=f"; did you mean {quoted(close)}?" if close else ".")


def _check_lock(*, forks: bool) -> None:
    """Checks all inputs against artifacts.lock. Raises LockDiffers, LockInvalid.

    A process that forks afterwards (`-n`) must not have used a remote.
    """
    from builder.build.lockfile import check
    from builder.project.project import Project

    with showing() as emit, without_remotes() if forks else nullcontext():
        check(Project.load(Path(DECLARATION)), emit)
