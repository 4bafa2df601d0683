"""Tables in Markdown: a cell stays a cell, whatever is in it."""

from __future__ import annotations

import pytest

from builder.console.markdown import table


def test_words_and_figures() -> None:
    rows = [("m_4bit", "4.50"), ("m_5bit", "5.50")]
    assert table(("target", "bits"), rows, text={0}) == [
        "| target | bits |",
        "| --- | ---: |",
        "| m_4bit | 4.50 |",
        "| m_5bit | 5.50 |",
    ]


def test_without_text_every_column_holds_words() -> None:
    assert table(("a", "b"), [("1", "2")])[1] == "| --- | --- |"
    assert table(("a", "b"), [("1", "2")], text=())[1] == "| ---: | ---: |"


def test_a_table_without_rows_is_its_head() -> None:
    assert table(("a",), []) == ["| a |", "| --- |"]


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        ("a|b", "a\\|b"),
        ("||", "\\|\\|"),
        ("a\nb", "a b"),
        ("a\r\nb", "a b"),
        ("a\rb", "a b"),  # a line ends there too (CommonMark 0.31, 2.1)
        ("", ""),
        ("no change", "no change"),
    ],
)
def test_a_cell_stays_a_cell(cell: str, shown: str) -> None:
    for lines in (table(("x", cell), []), table(("x", "y"), [("x", cell)])):
        assert f"| x | {shown} |" in lines
    (line,) = table(("x", "y"), [("x", cell)])[2:]
    assert len(line.splitlines()) == 1
    assert line.replace("\\|", "").count("|") == 3
