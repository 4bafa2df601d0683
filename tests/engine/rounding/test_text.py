"""Calibration texts become the tokens that training sees, or one error that names file and line.

The errors hold no half characters, which pytest-xdist cannot pass on: run with -n 0 where one does.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from builder.engine.rounding.text import COSTED, CalibrationInvalid, Piece, costed, sequences
from builder.evaluate.worker.tokens import tokenizer_of
from tests.build.test_hostile import mutate_lines
from tests.tiny import make_base

ROUNDS = 200  # of one run; each takes about 1 ms
END = 256  # the token that ends a text
CALL = {"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
ROWS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "some words " * 4}]},
    {"prompt": "b?", "completion": "more words " * 4, "tools": [{"type": "function"}]},
    {"messages": [{"role": "user", "content": "c?"},
                  {"role": "assistant", "content": None, "tool_calls": [CALL]}]},
    {"text": "a plain text. " * 4},
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tokenizer_of(make_base(tmp_path_factory.mktemp("made") / "base", layers=1))


def written(folder: Path, *lines: object, name: str = "text.jsonl") -> Path:
    """A file of these lines: text as it is, everything else as JSON."""
    file = folder / name
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return file


def one(tokenizer: Any, folder: Path, row: object, length: int) -> str:
    """The text of the one sequence of one row."""
    (found,) = sequences(written(folder, row), "text.jsonl", tokenizer, 9, length)
    return str(tokenizer.decode([token for token in found if token != END]))


MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": MESSAGES}, "user: hi\nassistant: yo\n"),
        ({"prompt": "hi", "completion": "yo"}, "user: hi\nassistant: yo\n"),
        ({"prompt": "hi", "completion": "yo", "text": "no", "messages": []}, "user: hi\nassistant: yo\n"),
        ({"messages": MESSAGES, "text": "no", "tools": None}, "user: hi\nassistant: yo\n"),
        ({"text": "hi\nyo", "other": 1}, "hi\nyo"),
        ({"text": "a\u2028b\x85c"}, "a\u2028b\x85c"),
    ],
)
def test_a_row_becomes_what_training_sees(row: object, expected: str, tokenizer: Any, tmp_path: Path) -> None:
    length = len(expected.encode()) + ("text" in row and "messages" not in row and "prompt" not in row)
    assert one(tokenizer, tmp_path, row, length) == expected


def test_a_row_of_text_ends_with_the_end(tokenizer: Any, tmp_path: Path) -> None:
    file = written(tmp_path, {"text": "ab"}, {"text": "c<|eos|>"}, {"text": ""})
    (found,) = sequences(file, "text.jsonl", tokenizer, 9, 6)
    a, b, c = (tokenizer.encode(letter)[0] for letter in "abc")
    assert found == [a, b, END, c, END, END]


def test_tools_reach_the_template(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer._tokenizer, "chat_template", "{{ tools[0].name }}{{ messages[0].content }}")
    assert one(tokenizer, tmp_path, {"messages": MESSAGES, "tools": [{"name": "look"}]}, 6) == "lookhi"
    assert (
        one(tokenizer, tmp_path, {"prompt": "hi", "completion": "", "tools": [{"name": "up"}]}, 4) == "uphi"
    )


def test_without_a_template_contents_are_joined(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(vars(tokenizer), "has_chat_template", False)
    calls = [*MESSAGES, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    assert one(tokenizer, tmp_path, {"messages": calls}, 6) == "hi\nyo\n"


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\n\n \n"])
def test_marks_and_line_ends_do_not_count(mark: bytes, end: bytes, tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "text.jsonl"
    file.write_bytes(mark + end.join(json.dumps(row).encode() for row in ROWS) + end)
    expected = sequences(written(tmp_path, *ROWS, name="other.jsonl"), "other.jsonl", tokenizer, 99, 20)
    assert sequences(file, "text.jsonl", tokenizer, 99, 20) == expected
    assert len(expected) > 1


@pytest.mark.parametrize("text", ["abcdefghij", "\ufeffabcdefghij", "abcdefghijk"])
def test_a_text_is_cut_whole(text: str, tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text(text)
    found = sequences(file, "text.txt", tokenizer, 9, 5)
    assert [tokenizer.decode(each) for each in found] == ["abcde", "fghij"]
    assert sequences(file, "text.txt", tokenizer, 1, 5) == found[:1]


def test_sequences_begin_where_rows_begin(tokenizer: Any, tmp_path: Path) -> None:
    file = written(tmp_path, *({"text": word} for word in ["abc", "defghijk", "lmnop", "q", "rstuv", "wx"]))
    found = sequences(file, "text.jsonl", tokenizer, 9, 6)
    assert [tokenizer.decode(each).replace("<|eos|>", ".") for each in found] == [
        "abc.de",
        "lmnop.",
        "q.rstu",
    ]
    for samples in (1, 2, 3):
        assert sequences(file, "text.jsonl", tokenizer, samples, 6) == found[:samples]


def test_rows_after_the_last_sample_are_not_read(tokenizer: Any, tmp_path: Path) -> None:
    file = written(tmp_path, *ROWS, "{")
    assert len(sequences(file, "text.jsonl", tokenizer, 2, 10)) == 2
    with pytest.raises(CalibrationInvalid, match="text.jsonl:5: "):
        sequences(file, "text.jsonl", tokenizer, 99, 10)


@pytest.mark.parametrize("name", ["text.jsonl", "text.txt"])
@pytest.mark.parametrize("content", ["", "\n\n", '{"text": "ab"}'])
def test_a_short_text_is_refused(name: str, content: str, tokenizer: Any, tmp_path: Path) -> None:
    file = written(tmp_path, content, name=name)
    with pytest.raises(CalibrationInvalid) as caught:
        sequences(file, name, tokenizer, 9, 32)
    assert caught.value.message == f"{name}: it holds fewer than 32 tokens (one sequence)."
    assert caught.value.exit_code == 2


EXPECTED = ": expected {"
BAD = [
    (b"{", "Expecting property name"),
    (b"7", EXPECTED),
    (b"null", EXPECTED),
    (b'["text"]', EXPECTED),
    (b"{}", EXPECTED),
    (b'{"text": ["a"]}', EXPECTED),
    (b'{"text": null}', EXPECTED),
    (b'{"messages": []}', EXPECTED),
    (b'{"messages": {"role": "user"}}', EXPECTED),
    (b'{"messages": ["a"]}', EXPECTED),
    (b'{"messages": [null]}', EXPECTED),
    (b'{"messages": [{"role": "user", "content": 7}]}', EXPECTED),
    (b'{"messages": [{"role": "user", "content": [{"type": "text"}]}]}', EXPECTED),
    (b'{"prompt": "a", "completion": ["b"]}', EXPECTED),
    (b'{"prompt": "a"}', EXPECTED),
    (b'{"messages": [{"role": "user", "content": "a"}], "tools": 7}', ": `tools` is not a list"),
    (rb'{"text": "\ud800"}', r": '\ud800' is half of a character"),
    (rb'{"text": "a", "tools": [{"\udfff": 1}]}', r": '\udfff' is half of a character"),
    (b"[" * 50_000, "maximum recursion depth"),
]


@pytest.mark.parametrize("templated", [True, False])
@pytest.mark.parametrize(("line", "says"), BAD)
def test_a_bad_row_names_its_line(
    line: bytes, says: str, templated: bool, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(vars(tokenizer), "has_chat_template", templated)
    file = tmp_path / "text.jsonl"
    file.write_bytes(b'{"text": "a"}\n\n' + line + b"\n")
    with pytest.raises(
        CalibrationInvalid, match=f"^v: text.jsonl:3: .*{re.escape(says.removeprefix(': '))}"
    ) as caught:
        sequences(file, "v: text.jsonl", tokenizer, 9, 32)
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 300


def test_what_a_template_refuses_names_its_line(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        tokenizer._tokenizer, "chat_template", "{{ raise_exception('roles\nmust alternate') }}"
    )
    file = written(tmp_path, {"text": "a"}, {"messages": MESSAGES})
    says = "^text.jsonl:2: the chat template refuses a row: roles must alternate[.]\n"
    with pytest.raises(CalibrationInvalid, match=says):
        sequences(file, "text.jsonl", tokenizer, 9, 32)


@pytest.mark.parametrize("name", ["text.jsonl", "text.txt"])
def test_what_is_not_text_is_refused(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    with pytest.raises(CalibrationInvalid, match="No such file"):
        sequences(file, name, None, 1, 2)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(CalibrationInvalid, match=f"^{name}: 'utf-8' codec can't decode"):
        sequences(file, name, None, 1, 2)


@pytest.mark.parametrize("templated", [True, False])
def test_a_calibration_text_of_a_stranger(
    templated: bool, tokenizer: Any, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(vars(tokenizer), "has_chat_template", templated)
    dice = random.Random(f"{seed} {templated}")
    seen = {"read": 0, "refused": 0}
    for _ in range(ROUNDS):
        file = written(tmp_path, *ROWS)
        mutate_lines(file, dice)
        try:
            found = sequences(file, "text.jsonl", tokenizer, 8, 16)
            assert all(len(each) == 16 and all(isinstance(token, int) for token in each) for each in found)
            seen["read"] += 1
        except CalibrationInvalid as error:
            assert error.message.startswith("text.jsonl:")
            assert len(error.message) < 2000
            error.report.encode()  # a terminal can show it
            seen["refused"] += 1
    print(seen)
    assert seen["read"]
    assert seen["refused"]


@pytest.mark.parametrize(
    ("there", "length", "used"),
    [(5, 64, 5), (16, 64, 16), (32, 64, 16), (100, 64, 50), (32, 16, 15), (1, 1, 1)],
)
def test_costs_are_measured_on_half_of_the_sequences(there: int, length: int, used: int) -> None:
    """But on COSTED at least, where there are as many. Never as many as tokens in each."""
    found = [Piece([number] * length, [1] * length) for number in range(there)]
    assert costed(found) == found[:used]
    assert used >= min(there, COSTED) - (length == COSTED)
