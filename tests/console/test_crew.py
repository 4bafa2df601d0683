"""The lines of a cluster: in the live display, and in plain text."""

from __future__ import annotations

import io

from builder.console.events import Event, Note, Spread, Working
from builder.console.lines import Plain
from builder.console.live import Live

EVENTS: list[Event] = [
    Spread(0, 3),
    Working("mac-with-a-very-long-name", "m 3 blocks from model.layers.1", 1, 3),
    Working("two", "m_8bit: routing, measure", 40, 120),
    Note("two: something"),
    Spread(1, 3),
    Working("two", "", 0, 0),
    Spread(3, 3),
]


def test_plain_lines_name_every_worker() -> None:
    stream = io.StringIO()
    plain = Plain(stream, every=0)
    for event in EVENTS:
        plain(event)
    assert stream.getvalue().splitlines() == [
        "0 of 3 jobs",
        "0 of 3 jobs; mac-with-a-very-long-name: m 3 blocks from model.layers.1 (1 of 3)",
        "0 of 3 jobs; mac-with-a-very-long-name: m 3 blocks from model.layers.1 (1 of 3);"
        " two: m_8bit: routing, measure (40 of 120)",
        "two: something",
        "1 of 3 jobs; mac-with-a-very-long-name: m 3 blocks from model.layers.1 (1 of 3);"
        " two: m_8bit: routing, measure (40 of 120)",
        "1 of 3 jobs; mac-with-a-very-long-name: m 3 blocks from model.layers.1 (1 of 3)",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_one_display_has_a_line_for_each_worker() -> None:
    stream = Terminal()
    live = Live(stream)
    for event in EVENTS[:5]:
        live(event)
    crew = live._crew
    assert crew is not None
    assert [task.description for task in crew.progress.tasks] == ["cluster", "mac-with-a-very-", "two"]
    assert crew.progress.tasks[0].fields["text"].startswith("1/3 jobs")
    assert crew.progress.tasks[2].fields["text"] == "m_8bit: routing, measure  40/120"
    live(EVENTS[5])
    assert not crew.progress.tasks[2].visible
    live(EVENTS[6])
    assert live._crew is None
    assert "two: something" in stream.getvalue()
    live.stop()
