"""Questions and calibration texts of strangers: always tokens or one clear error, never a traceback.

The errors hold no half characters, which pytest-xdist cannot pass on: run with -n 0 where one does.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builder.engine.quantizer import LearnedRequest, _chunks, _pairs, texts
from builder.evaluate.worker.answers import CHECKS, reference
from builder.evaluate.worker.measure import part
from builder.evaluate.worker.questions import DataInvalid, answer_asks, prompt, read_rows
from builder.evaluate.worker.tokens import tokenizer_of
from builder.spec.types import Suite
from tests.build.test_hostile import mutate_lines
from tests.tiny import make_base

ROUNDS = 200  # of one run; each takes about 1 ms
CALL = {"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
ROWS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "a?"},
                  {"role": "assistant", "content": '{"x": 1}'}], "is": "x"},
    {"prompt": "b?", "completion": '{"y": 2}', "is": ["y"], "tools": [{"type": "function"}]},
    {"messages": [{"role": "user", "content": "c?"},
                  {"role": "assistant", "content": None, "tool_calls": [CALL]}], "is": "y"},
]  # fmt: skip
TEXTS: list[dict[str, Any]] = [
    {"text": "some words. " * 8},
    {"messages": [{"role": "user", "content": "more words. " * 8}]},
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tokenizer_of(make_base(tmp_path_factory.mktemp("made") / "base", layers=1))


def of_answers(suite: Suite, tokenizer: Any) -> None:
    part(suite, read_rows(suite), tokenizer, None)


def of_reference(suite: Suite, tokenizer: Any) -> None:
    answer_asks(suite, read_rows(suite), tokenizer)


def of_generated(suite: Suite, tokenizer: Any) -> None:
    for row in read_rows(suite):
        prompt(suite, tokenizer, row)
        CHECKS[suite.check]('{"a": 1}', reference(suite, row))


READ: dict[str, tuple[Callable[[Suite, Any], None], dict[str, Any]]] = {
    "choice": (of_answers, {"kind": "choice", "answer": "is", "candidates": {"x": '{"x', "y": '{"y'}}),
    "exact": (of_answers, {"kind": "exact", "where": {"is": "x"}}),
    "perplexity": (of_answers, {"kind": "perplexity"}),
    "fidelity": (of_reference, {"kind": "fidelity"}),
    **{
        f"generate {check}": (of_generated, {"kind": "generate", "check": check, "where": {"is": "x"}})
        for check in CHECKS
    },
    "generate calls": (of_generated, {"kind": "generate", "check": "tool_call"}),
}


@pytest.mark.parametrize("templated", [True, False])
@pytest.mark.parametrize("kind", READ)
def test_questions_of_a_stranger(
    kind: str, templated: bool, tokenizer: Any, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(vars(tokenizer), "has_chat_template", templated)
    dice = random.Random(f"{seed} {kind}")
    read, settings = READ[kind]
    suite = Suite("s", data=tmp_path / "rows.jsonl", **settings)
    seen = {"read": 0, "refused": 0}
    for _ in range(ROUNDS):
        assert suite.data is not None
        suite.data.write_text("\n".join(map(json.dumps, ROWS)))
        mutate_lines(suite.data, dice)
        try:
            read(suite, tokenizer)
            seen["read"] += 1
        except DataInvalid as error:
            assert len(error.message) < 2000
            error.report.encode()  # a terminal can show it
            seen["refused"] += 1
    print(seen)
    assert seen["refused"]


@pytest.mark.parametrize("method", [_chunks, _pairs])
def test_a_calibration_text_of_a_stranger(method: Any, tokenizer: Any, tmp_path: Path, seed: int) -> None:
    dice = random.Random(f"{seed} {method.__name__}")
    file = tmp_path / "text.jsonl"
    request = LearnedRequest("", "", str(file), "text.jsonl", False, "", 4, 64, 0, 8, 16, 0.0, 8, 5.0)
    seen = {"read": 0, "refused": 0}
    for _ in range(ROUNDS):
        file.write_text("\n".join(map(json.dumps, TEXTS)))
        mutate_lines(file, dice)
        try:
            method(request)(tokenizer, 8, 16)
            seen["read"] += 1
        except SystemExit as refused:
            assert str(refused.code).startswith("text.jsonl")
            str(refused.code).encode()
            seen["refused"] += 1
    print(seen)
    assert seen["read"]
    assert seen["refused"]


CALLED = (
    b'{"messages": [{"role": "user", "content": "c?"}, {"role": "assistant", "tool_calls": []}], "is": "x"}'
)


@pytest.mark.parametrize("templated", [True, False])
@pytest.mark.parametrize(
    ("line", "says"),
    [
        (rb'{"text": "\ud800"}', r"line 1: '\ud800' is half of a character"),
        (rb'{"text": "a", "tools": [{"\udfff": 1}]}', r"line 1: '\udfff' is half of a character"),
        (b"[" * 50_000, "line 1: maximum recursion depth"),
        (CALLED, None),
    ],
)
def test_a_line_of_questions(
    line: bytes, says: str | None, templated: bool, tokenizer: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setitem(vars(tokenizer), "has_chat_template", templated)
    suite = Suite("s", data=tmp_path / "rows.jsonl", **READ["choice"][1])
    assert suite.data is not None
    suite.data.write_bytes(line)
    if says is not None:
        with pytest.raises(DataInvalid, match=re.escape(says)):
            read_rows(suite)
        return
    for row in read_rows(suite):
        assert prompt(suite, tokenizer, row)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"text": "a\xe2\x80\xa8b"}', None),  # a line separator inside a string ends no line
        (b'\xef\xbb\xbf{"text": "a"}', None),
        (b'{"text": "a"}\n{"text": ["a"]}', "text.jsonl:2: neither"),
        (rb'{"text": "\ud800"}', "text.jsonl:1: neither"),
        (b"[" * 50_000, "text.jsonl:1: neither"),
        (b"\xff\xfe", "text.jsonl: 'utf-8' codec can't decode"),
    ],
)
def test_a_calibration_text(content: bytes, says: str | None, tmp_path: Path) -> None:
    file = tmp_path / "text.jsonl"
    file.write_bytes(content)
    if says is None:
        assert len(texts(file, "text.jsonl")) == 1
    else:
        with pytest.raises(SystemExit, match=re.escape(says)):
            texts(file, "text.jsonl")
