"""The plan as doit tasks. A dodo.py gets the tasks with `from builder.tasks import load`."""

from builder.console.interrupt import one_line_interrupts

one_line_interrupts()  # first of all, for Ctrl-C while the rest is loaded

from builder.tasks.graph import load  # noqa: E402

__all__ = ["load"]
