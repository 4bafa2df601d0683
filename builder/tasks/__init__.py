"""The plan as doit tasks. A dodo.py gets the tasks with `from builder.tasks import load`."""

from builder.tasks.graph import load

__all__ = ["load"]
