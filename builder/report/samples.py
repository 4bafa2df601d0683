"""Some answers of every variant beside the right answer, question by question."""

from __future__ import annotations

from dataclasses import dataclass

from builder.console.states import MARKS
from builder.report.facts import ModelReport, Row


@dataclass(frozen=True)
class Said:
    """One answer, and the variants that wrote it."""

    variants: tuple[str, ...]
    text: str
    right: bool

    @property
    def mark(self) -> str:
        return MARKS["passes"] if self.right else MARKS["misses"]

    @property
    def word(self) -> str:
        return "right" if self.right else "wrong"


@dataclass(frozen=True)
class Question:
    """One question of a suite with its right answer. `check` says how an answer is compared with it."""

    suite: str
    check: str
    text: str
    expected: str
    answers: tuple[Said, ...]


def questions(model: ModelReport) -> list[Question]:
    """The questions with kept answers, in the order of the suites. Equal answers stand together."""
    rows = [(f"{row.variant}, no adapter", row) for row in [model.plain] if row]
    rows += [(row.variant, row) for row in model.rows]
    found: dict[tuple[str, str, str], dict[tuple[str, bool], list[str]]] = {}
    for name, row in rows:
        for suite in _of_model(model, row):
            for sample in row.samples[suite]:
                asked = found.setdefault((suite, sample.question, sample.expected), {})
                asked.setdefault((sample.said, sample.right), []).append(name)
    return [
        Question(
            suite,
            model.checks.get(suite, ""),
            text,
            expected,
            tuple(Said(tuple(names), said, right) for (said, right), names in answers.items()),
        )
        for (suite, text, expected), answers in found.items()
    ]


def markdown(asked: list[Question]) -> list[str]:
    """The lines of the questions and answers in Markdown."""
    lines = []
    for each in asked:
        lines += [f"**{_code(each.text)}** ({each.suite})", "", f"- right{how(each)}: {_code(each.expected)}"]
        lines += [
            f"- {said.mark} {said.word}, {', '.join(said.variants)}: {_code(said.text)}"
            for said in each.answers
        ]
        lines.append("")
    return lines


def how(question: Question) -> str:
    """How the right answer is meant, where it is not the text itself."""
    return " (a regular expression)" if question.check == "regex" else ""


def _code(text: str) -> str:
    """Text as code in Markdown on one line, also with backticks in it."""
    line = " ".join(text.split()) or "(nothing)"
    fence = "`" * (1 + max((len(run) for run in _runs(line)), default=0))
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{space}{line}{space}{fence}"


def _runs(text: str) -> list[str]:
    """The runs of backticks in a text."""
    return ["`" * len(run) for run in "".join(c if c == "`" else " " for c in text).split()]


def _of_model(model: ModelReport, row: Row) -> list[str]:
    return [suite for suite in model.kinds if suite in row.samples]
