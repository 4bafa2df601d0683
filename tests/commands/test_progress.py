"""How events are shown, and which way is chosen."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from builder.console import display, events
from builder.console.display import showing
from builder.console.events import BlockDone, Hashing, Note, PassDone, PassStarted, TargetDone, silent
from builder.console.lines import JsonLines, Plain
from builder.console.live import Live

EVENTS: list[events.Event] = [
    Note("base:tiny: importing x.gguf"),
    Hashing("model.safetensors", 10**9, 2 * 10**9),
    PassStarted("a-model-with-a-long-name", ("4bit", "5bit"), 4, 2, 20_000_000_000),
    BlockDone("a-model-with-a-long-name", "model.layers.0", 2, 10_000_000_000),
    BlockDone("a-model-with-a-long-name", "model.layers.1", 2, 10_000_000_000),
    PassDone("a-model-with-a-long-name", 1.5),
    TargetDone("m_4bit", "store/models/m_4bit", 10, 4.5, 3, 1, 1.5),
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines() -> None:
    stream = io.StringIO()
    plain = Plain(stream, every=0)
    for event in EVENTS:
        plain(event)
    assert stream.getvalue().splitlines() == [
        "base:tiny: importing x.gguf",
        "model.safetensors: hashed 1.0 of 2.0 GB",
        "a-model-with-a-long-name: 4bit, 5bit: 4 blocks to make, 2 reused, 20.0 GB to write",
        "a-model-with-a-long-name: 2 of 4 blocks",
        "a-model-with-a-long-name: 4 of 4 blocks",
    ]


def test_the_time_left_begins_again_with_further_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr("builder.console.lines.time.monotonic", lambda: float(next(clock)) / 2)
    stream = io.StringIO()
    plain = Plain(stream, every=0)
    for done, total in ((16, 240), (128, 240), (240, 240), (8, 98), (53, 98), (8, 98), (53, 98)):
        plain(events.Scored("m_4bit", done, total))
    assert [line.partition("measured")[2] for line in stream.getvalue().splitlines()] == [
        "",
        ", 0:10 left",
        ", 0:00 left",
        "",
        ", 0:10 left",
        "",
        ", 0:10 left",
    ]


def test_json_lines() -> None:
    stream = io.StringIO()
    lines = JsonLines(stream)
    for event in EVENTS:
        lines(event)
    found = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in found] == [type(event).__name__ for event in EVENTS]
    assert found[3]["block"] == "model.layers.0"
    assert all(line["time"] > 1e9 for line in found)


def test_the_live_line_fits_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    live = Live(stream)
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr("builder.console.live.time.monotonic", lambda: float(next(clock)))
    for event in EVENTS[:-2]:
        live(event)
    assert live._progress is not None
    (task,) = live._progress.tasks
    text = f"{task.description} {'-' * 8} {task.fields['text']}"
    assert len(text) <= 80
    assert "4/4 blocks" in text
    assert "20.0/20.0 GB" in text
    live(PassDone("a-model-with-a-long-name", 1.0))
    assert live._progress is None
    live.stop()
    assert "importing x.gguf" in stream.getvalue()


@pytest.mark.parametrize(
    ("terminal", "variables", "chosen"),
    [
        (True, {}, "live"),
        (True, {"CI": "true"}, "plain"),
        (True, {"TERM": "dumb"}, "plain"),
        (False, {}, "plain"),
        (False, {"BUILDER_PROGRESS": "json"}, "json"),
        (True, {"BUILDER_PROGRESS": "silent"}, "silent"),
        (True, {"BUILDER_PROGRESS": "nonsense"}, "live"),
    ],
)
def test_what_is_chosen(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, variables: dict[str, str], chosen: str
) -> None:
    for name in ("CI", "BUILDER_PROGRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stderr", Terminal() if terminal else io.StringIO())
    assert display.mode() == chosen


def test_one_live_display_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUILDER_PROGRESS", "live")
    monkeypatch.setattr(sys, "stderr", Terminal())
    with showing() as first, showing() as second:
        assert isinstance(first, Live)
        assert isinstance(second, Plain)
    with showing() as third:
        assert isinstance(third, Live)


def test_silent_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    for event in EVENTS:
        silent(event)
    assert capsys.readouterr() == ("", "")


def test_nothing_but_commands_and_progress_prints() -> None:
    """Library code emits events."""
    import ast

    import builder

    package = Path(builder.__file__).parent
    for path in package.rglob("*.py"):
        if path.parent.name in ("console", "commands") or path == package / "tasks" / "tables.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            is_print = (
                isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            )
            assert not is_print, f"{path}:{getattr(node, 'lineno', 0)}"


def test_lines_of_several_threads_stay_whole(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with (tmp_path / "log").open("w") as stream, ThreadPoolExecutor(8) as threads:
        lines = JsonLines(stream)
        list(threads.map(lambda _: lines(EVENTS[3]), range(500)))
    found = (tmp_path / "log").read_text().splitlines()
    assert [json.loads(line)["event"] for line in found] == ["BlockDone"] * 500
