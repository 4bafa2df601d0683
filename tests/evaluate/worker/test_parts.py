"""The halves of a suite: a search asks one, and what is found is measured by the other."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from builder.evaluate.worker.parts import asks_of_part, rows_of_part
from builder.evaluate.worker.questions import DataInvalid, read_rows
from builder.spec.types import Suite


class Letters:
    """A tokenizer without a template: one token for each character."""

    has_chat_template = False
    eos_token_ids: tuple[int, ...] = ()

    def encode(self, text: str) -> list[int]:
        return [ord(each) for each in text]


def row(question: str, answer: str = "yes", **more: str) -> str:
    said = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": said, **more})


def suite(tmp_path: Path, lines: list[str], kind: str = "exact") -> Suite:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(lines))
    return Suite("s", kind, file)  # type: ignore[arg-type]


def asked(whole: Suite, part: str) -> set[str]:
    some = replace(whole, part=part)  # type: ignore[arg-type]
    rows = read_rows(some)
    return {rows[at]["messages"][0]["content"] for at in rows_of_part(some, rows)}


@pytest.mark.parametrize("count", [2, 7, 40])
def test_both_halves_are_the_whole_and_share_nothing(tmp_path: Path, count: int) -> None:
    whole = suite(tmp_path, [row(f"q{number}") for number in range(count)])
    search, rest = asked(whole, "search"), asked(whole, "rest")
    assert search | rest == asked(whole, "all")
    assert not search & rest
    assert len(search) == count // 2


def test_the_halves_do_not_depend_on_order_answers_or_where(tmp_path: Path) -> None:
    lines = [row(f"q{number}", label="ab"[number % 2]) for number in range(30)]
    whole = suite(tmp_path, lines)
    search = asked(whole, "search")
    assert 5 < len([each for each in search if int(each[1:]) % 2]) < 12  # not every second one
    some = replace(whole, where={"label": "a"})
    assert asked(some, "search") == {each for each in search if int(each[1:]) % 2 == 0}
    random.Random(0).shuffle(lines)
    assert asked(suite(tmp_path, lines), "search") == search
    assert asked(suite(tmp_path, [line.replace('"yes"', '"no"') for line in lines]), "search") == search


def test_a_question_that_stands_twice_is_in_one_half(tmp_path: Path) -> None:
    lines = [row(f"q{number}") for number in range(8)]
    whole = suite(tmp_path, [*lines, *(row(f"q{number}", "no") for number in range(8))])
    assert len(asked(whole, "search")) == len(asked(whole, "rest")) == 4
    assert not asked(whole, "search") & asked(whole, "rest")


def test_a_text_is_cut_in_the_middle(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("abcdefghij" * 10)
    whole = Suite("s", "perplexity", file, window=10)
    found = {}
    for part in ("search", "rest"):
        some = replace(whole, part=part)  # type: ignore[arg-type]
        asks, found[part] = asks_of_part(some, read_rows(some), Letters())
        assert len(asks) == 10  # a reference for the whole suite serves both
    assert found == {"search": [0, 1, 2, 3, 4], "rest": [5, 6, 7, 8, 9]}


def test_asks_follow_their_rows(tmp_path: Path) -> None:
    """A row of text has several asks, and all of them are in one half."""
    lines = [json.dumps({"text": letter * 25}) for letter in "abcdef"]
    whole = replace(suite(tmp_path, lines, "perplexity"), window=10)
    halves = []
    for part in ("search", "rest"):
        some = replace(whole, part=part)  # type: ignore[arg-type]
        asks, chosen = asks_of_part(some, read_rows(some), Letters())
        halves.append({asks[at].tokens[0] for at in chosen})
        assert len(chosen) == 9
    assert not halves[0] & halves[1]


def test_one_question_cannot_be_halved(tmp_path: Path) -> None:
    some = replace(suite(tmp_path, [row("only")]), part="search")
    with pytest.raises(DataInvalid, match="holds too few questions to search a size with one half of them"):
        rows_of_part(some, read_rows(some))
