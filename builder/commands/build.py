"""`builder build [TARGET...]`: runs `doit`, with options in any place."""

from __future__ import annotations

from builder.commands.base import AnyOrder
from builder.commands.run import Run


class Build(AnyOrder, Run):
    name = "build"
    doc_purpose = "build what is not up to date: all targets, or those that are named"
    doc_usage = "[TARGET or TASK...]"
