"""Markdown for pages and model cards."""

from __future__ import annotations

from collections.abc import Container, Sequence


def table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], text: Container[int] | None = None
) -> list[str]:
    """The lines of a table, with `|` escaped.

    `text` holds the indices of the columns with words. The other columns hold figures and are right-aligned.
    Without `text`, every column holds words.
    """
    rule = ["---" if text is None or index in text else "---:" for index in range(len(headings))]
    return [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in (headings, rule, *rows)]


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").splitlines())
