"""Questions that stand in the training data are found, whatever their answers are."""

from __future__ import annotations

import json
from pathlib import Path

from builder.evaluate.overlap import overlaps
from builder.spec.training import Training
from builder.spec.types import Suite


def row(question: str, answer: str, **more: str) -> dict[str, object]:
    said = [("system", "Be short."), ("user", question), ("assistant", answer)]
    return {"messages": [{"role": role, "content": text} for role, text in said], **more}


def write(file: Path, *rows: dict[str, object]) -> None:
    file.write_text("".join(json.dumps(each) + "\n" for each in rows))


def test_an_overlap_is_found(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", row("one?", "a"), {"prompt": "alone?", "completion": "z"})
    write(tmp_path / "valid.jsonl", row("two?", "b"))
    write(
        tmp_path / "test.jsonl",
        row("new?", "c", label="x"),
        row("one?  ", "another answer", label="x"),
        row("two?", "b", label="y"),
        {"prompt": "alone?", "completion": "y", "label": "x"},
    )
    training = Training(tmp_path)
    suite = Suite("all", "exact", data=tmp_path / "test.jsonl")
    part = Suite("part", "exact", data=tmp_path / "test.jsonl", where={"label": "y"})
    found = [str(each) for each in overlaps([suite, part], training)]
    assert found == [
        "suite all: 2 of 4 questions stand in train.jsonl, which the adapter was trained on"
        " (the first in line 2)",
        "suite all: 1 of 4 questions stand in valid.jsonl, which chose the adapter (the first in line 3)",
        "suite part: 1 of 1 questions stand in valid.jsonl, which chose the adapter (the first in line 3)",
    ]
    assert overlaps([Suite("text", "perplexity", data=tmp_path / "gone.jsonl")], training) == ()


def test_the_examples_questions_are_new() -> None:
    data = Path(__file__).parents[2] / "example" / "data"
    assert overlaps([Suite("routing", "choice", data=data / "test.jsonl")], Training(data)) == ()
