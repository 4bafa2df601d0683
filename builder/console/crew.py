"""The live display of a cluster: one line for all jobs, and one line for each worker that does something."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from builder.console.events import Spread, Working


class Crew:
    """Shows what all workers do. The lines disappear at the end."""

    def __init__(self, console: Console) -> None:
        cut = Column(no_wrap=True, overflow="ellipsis")
        columns = (
            TextColumn("{task.description}"),
            BarColumn(8),
            TextColumn("{task.fields[text]}", table_column=cut),
        )
        self.progress = Progress(*columns, console=console, transient=True, refresh_per_second=8)
        self._jobs = self.progress.add_task("cluster", total=1, text="")
        self._lines: dict[str, TaskID] = {}
        self._started = time.monotonic()
        self.progress.start()

    def show(self, event: Spread | Working) -> bool:
        """Whether that was the last job."""
        if isinstance(event, Spread):
            text = f"{event.done}/{event.total} jobs{self._left(event)}"
            self.progress.update(self._jobs, completed=event.done, total=max(event.total, 1), text=text)
            return event.done >= event.total
        self._tell(event)
        return False

    def stop(self) -> None:
        self.progress.stop()

    def _tell(self, event: Working) -> None:
        line = self._lines.get(event.worker)
        if not event.job:
            if line is not None:
                self.progress.update(line, visible=False)
            return
        if line is None:
            line = self._lines[event.worker] = self.progress.add_task(event.worker[:16], total=1, text="")
        text = f"{event.job}  {event.done}/{event.total}"
        total = max(event.total, 1)
        self.progress.update(line, completed=event.done, total=total, text=text, visible=True)

    def _left(self, event: Spread) -> str:
        """The time that is left, if jobs go on ending as fast as they have."""
        seconds = time.monotonic() - self._started
        if not event.done or event.done >= event.total:
            return ""
        left = round((event.total - event.done) * seconds / event.done)
        return f"  ETA {left // 60}:{left % 60:02}"
