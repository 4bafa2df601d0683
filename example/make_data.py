"""Makes the example's data: Django questions, each answered by a tool call or by a sentence.

usage: python example/make_data.py [FOLDER]     (default: example/data)

Questions come from the templates and words of words.toml, drawn by a seeded generator: the same files, byte
for byte, wherever it runs. No class, search pattern or concept occurs in two of the three files, and the last
three templates of each kind occur in test.jsonl only.
"""

from __future__ import annotations

import json
import random
import sys
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SEED = 7
SIZES = {"train": 480, "valid": 64, "test": 120}
HELD_OUT = 3  # templates of each kind that only the test set has

Row = dict[str, Any]


@dataclass(frozen=True)
class Split:
    """The words that one file may use, and whether it may use the held-out templates."""

    classes: Sequence[str]
    patterns: Sequence[str]
    concepts: Sequence[str]
    all_templates: bool = False


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "data"
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in make_data().items():
        (folder / f"{name}.jsonl").write_text(lines(rows), encoding="utf-8", newline="\n")
        print(f"{folder / name}.jsonl: {len(rows)} rows")


def routed(row: Row) -> Row:
    """The question of a row, and as its answer a regular expression: every answer that takes its route."""
    pattern = r'\{"tool": "search_code", "query": ".*"\}' if row["label"] == "tool" else "Answer: .*"
    return {**row, "messages": [*row["messages"][:-1], {"role": "assistant", "content": pattern}]}


def make_data() -> dict[str, list[Row]]:
    """The rows of each file. The five questions of the study open the test set."""
    words = tomllib.loads((HERE / "words.toml").read_text(encoding="utf-8"))
    draw = random.Random(SEED)
    maker = Maker(words, draw)
    splits = split(words, draw)
    study = maker.study()
    data = {
        "study": [routed(row) for row in study],
        "train": maker.rows(splits["train"], SIZES["train"]),
        "valid": maker.rows(splits["valid"], SIZES["valid"]),
        "test": [*study, *maker.rows(splits["test"], SIZES["test"] - len(study))],
    }
    learned = questions([*data["train"], *data["valid"]])
    assert not learned & questions(data["test"]), "a test question was trained on"
    return data


def split(words: dict[str, Any], draw: random.Random) -> dict[str, Split]:
    """Every word goes to one of the three files."""
    concepts = sorted(words["concepts"])
    draw.shuffle(concepts)
    classes = [noun + suffix for noun in words["nouns"] for suffix in words["suffixes"]]
    draw.shuffle(classes)
    patterns = list(words["patterns"])
    draw.shuffle(patterns)
    return {
        "train": Split(classes[:560], patterns[:42], concepts[:44]),
        "valid": Split(classes[560:640], patterns[42:49], concepts[44:50]),
        "test": Split(classes[640:], patterns[49:], concepts[50:], all_templates=True),
    }


class Maker:
    """Draws questions; every draw moves the one generator on, so the order of calls matters."""

    def __init__(self, words: dict[str, Any], draw: random.Random) -> None:
        self._words = words
        self._draw = draw

    def rows(self, split: Split, count: int) -> list[Row]:
        """`count` different questions: every other one wants the tool."""
        rows: list[Row] = []
        seen: set[str] = set()
        while len(rows) < count:
            ask = self._search if len(rows) % 2 == 0 else self._knowledge
            question, answer, label = ask(split)
            if question in seen:
                continue
            seen.add(question)
            if self._draw.random() < 0.3:
                question = self._draw.choice(self._words["greetings"]) + question
            rows.append(self._row(question, answer, label))
        return rows

    def study(self) -> list[Row]:
        """The five questions that the study asked by hand."""
        return [self._row(*asked) for asked in STUDY]

    def _search(self, split: Split) -> tuple[str, str, str]:
        """About this project's code."""
        if self._draw.random() < 0.5:
            subject = self._draw.choice(split.classes)
            question = self._template("class", split).format(e=subject)
        else:
            subject = self._draw.choice(split.patterns)
            question = self._template("pattern", split).format(p=subject)
        return question, tool_call(subject), "tool"

    def _knowledge(self, split: Split) -> tuple[str, str, str]:
        """About what anybody knows who knows Django."""
        if self._draw.random() < 0.7:
            concept = self._draw.choice(split.concepts)
            question = self._template("concept", split).format(c=concept)
            return question, direct(self._words["concepts"][concept]), "direct"
        first, second = self._draw.sample(split.concepts, 2)
        question = self._template("comparison", split).format(a=first, b=second)
        one, other = self._words["concepts"][first], self._words["concepts"][second]
        return question, direct(f"{one} The other: {other[0].lower()}{other[1:]}"), "direct"

    def _template(self, kind: str, split: Split) -> str:
        templates: list[str] = self._words["templates"][kind]
        return self._draw.choice(templates if split.all_templates else templates[:-HELD_OUT])

    def _row(self, question: str, answer: str, label: str) -> Row:
        messages = [
            {"role": "system", "content": self._words["system"]},
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
        return {"messages": messages, "label": label}


def tool_call(query: str) -> str:
    return json.dumps({"tool": "search_code", "query": query})


def direct(sentence: str) -> str:
    return f"Answer: {sentence}"


STUDY = (
    ("Find all Django view functions", tool_call("Django view functions"), "tool"),
    ("Show me the implementation of UserSerializer", tool_call("UserSerializer"), "tool"),
    ("Find all uses of async/await in the codebase", tool_call("async/await"), "tool"),
    (
        "What is dependency injection in Django?",
        direct("Objects receive what they depend on from outside."),
        "direct",
    ),
    (
        "What's the difference between Django ORM and raw SQL?",
        direct("The ORM builds queries from Python. The other: you write the query by hand."),
        "direct",
    ),
)


def questions(rows: Iterable[Row]) -> set[str]:
    return {row["messages"][1]["content"] for row in rows}


def lines(rows: Iterable[Row]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


if __name__ == "__main__":
    main()
