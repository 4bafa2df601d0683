"""The commands that this package adds to doit, and that `builder` offers too. Each command has its own file.

A command loads the project, calls one function that returns a value, and shows the value.
"""

from __future__ import annotations

from builder.console.interrupt import one_line_interrupts

one_line_interrupts()  # first of all, for Ctrl-C while the rest is loaded

from collections.abc import Mapping  # noqa: E402

# Name -> class. pyproject.toml has the same table, [tool.doit.plugins.command], and a test compares them.
COMMANDS: Mapping[str, str] = {
    "run": "builder.commands.run:Run",
    "status": "builder.commands.status:Status",
    "why": "builder.commands.why:Why",
    "plan": "builder.commands.plan:Plan",
    "gc": "builder.commands.gc:Gc",
    "verify": "builder.commands.verify:Verify",
    "report": "builder.commands.report:Report",
    "list": "builder.commands.list:List",
    "info": "builder.commands.info:Info",
    "help": "builder.commands.help:Help",
}

# Commands of `builder` only. They work without a project, or they change its declaration.
STANDALONE: Mapping[str, str] = {
    "build": "builder.commands.build:Build",
    "eval": "builder.commands.eval:Eval",
    "init": "builder.commands.init:Init",
    "add-variant": "builder.commands.add_variant:AddVariant",
    "path": "builder.commands.path:Path",
    "attest": "builder.commands.attest:Attest",
    "lock": "builder.commands.lock:Lock",
    "push": "builder.commands.push:Push",
    "pull": "builder.commands.pull:Pull",
    "remote": "builder.commands.remote:Remote",
    "trust": "builder.commands.trust:Trust",
    "worker": "builder.commands.worker:Worker",
    "completion": "builder.commands.completion:Completion",
}
