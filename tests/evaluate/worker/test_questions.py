"""From rows to tokens, as mlx_lm.lora trains on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from builder.evaluate.worker.answers import CHECKS, reference
from builder.evaluate.worker.questions import DataInvalid, answer_asks, prompt, read_rows
from builder.evaluate.worker.tokens import tokenizer_of
from builder.spec.types import Suite, SuiteKind
from tests.tiny import make_base

TOOLS_TEMPLATE = """\
{% for t in tools or [] %}<{{ t['function']['name'] }}>{% endfor %}\
{% for m in messages %}{{ m['role'] }}: {{ m['content'] or '' }}\
{% for c in m['tool_calls'] or [] %}{{ c['function'] | tojson }}{% endfor %}<|eos|>
{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"""
TOOLS = [{"type": "function", "function": {"name": "find"}}]
CALL = {"type": "function", "function": {"name": "find", "arguments": {"q": "x"}}}


def suite(folder: Path, text: str, kind: SuiteKind = "exact", name: str = "rows.jsonl", **how: Any) -> Suite:
    (folder / name).write_bytes(text.encode())
    return Suite("s", kind, folder / name, **how)


def tokenizer(folder: Path, template: str = TOOLS_TEMPLATE) -> Any:
    make_base(folder / "base")
    (folder / "base" / "chat_template.jinja").write_text(template)
    return tokenizer_of(folder / "base")


def trained_on(row: dict[str, Any], tokenizer: Any) -> tuple[list[int], int]:
    """The tokens of mlx_lm.lora for a row, and where the answer begins."""
    from types import SimpleNamespace

    from mlx_lm.tuner.datasets import create_dataset

    dataset: Any = create_dataset([row], tokenizer, SimpleNamespace(mask_prompt=True))
    tokens, start = dataset.process(row)
    return list(tokens), start


@pytest.mark.parametrize("config", ["config.json", "generation_config.json"])
def test_all_end_tokens_count(tmp_path: Path, config: str) -> None:
    """A base whose tokenizer names one end token and whose config names two, as chat models do."""
    folder = make_base(tmp_path)
    (folder / "generation_config.json").unlink()
    known = json.loads((folder / "config.json").read_text()) if config == "config.json" else {}
    (folder / config).write_text(json.dumps(known | {"eos_token_id": [256, 10]}))
    assert tokenizer_of(folder).eos_token_ids == {256, 10}


def test_tools_are_part_of_the_prompt(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "yes"}]
    asked, words = suite(tmp_path, json.dumps({"messages": messages, "tools": TOOLS})), tokenizer(tmp_path)
    (row,) = read_rows(asked)
    assert words.decode(prompt(asked, words, row)) == "<find>user: q<|eos|>\nassistant: "


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {
            "messages": [
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
            ],
            "tools": TOOLS,
        },
        {"prompt": "q", "completion": "a"},
        {"prompt": "q", "completion": "a", "tools": TOOLS},
    ],
)
def test_tokens_are_those_of_training(tmp_path: Path, row: dict[str, Any]) -> None:
    asked, words = suite(tmp_path, json.dumps(row)), tokenizer(tmp_path)
    (ask,) = answer_asks(asked, read_rows(asked), words)
    tokens, start = trained_on(row, words)
    assert ask.start == start
    assert list(ask.tokens) == tokens[: len(ask.tokens)]
    assert ask.tokens[-1] == 256


def test_only_a_newline_ends_a_line(tmp_path: Path) -> None:
    rows = [{"prompt": "a\u2028b\x85c\x0bd", "completion": "x"}, {"prompt": "b", "completion": "y"}]
    text = "\ufeff" + "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    found = read_rows(suite(tmp_path, text.replace("\\u000b", "\\t")))
    assert [row["completion"] for row in found] == ["x", "y"]
    assert found[0]["prompt"].startswith("a\u2028b\x85c")


def test_a_text_is_cut_into_windows(tmp_path: Path) -> None:
    asked = suite(tmp_path, "abcdefghij", "perplexity", "text.txt", window=4)
    asks = answer_asks(asked, read_rows(asked), tokenizer(tmp_path))
    assert [len(ask.tokens) for ask in asks] == [4, 4, 2]
    assert {ask.start for ask in asks} == {1}


@pytest.mark.parametrize(
    ("kind", "name", "text", "what"),
    [
        ("perplexity", "text.txt", " \n", "is empty."),
        ("fidelity", "text.txt", "", "is empty."),
        ("perplexity", "rows.jsonl", "", "is empty."),
        ("perplexity", "text.txt", "a", "holds no token that can be scored."),
        ("exact", "rows.jsonl", '{"text": "a b"}', "kind exact needs rows with an answer, not plain text."),
        ("exact", "rows.jsonl", '{"prompt": 1, "completion": "a"}', "line 1: expected"),
        ("exact", "rows.jsonl", '{"prompt": "q"}', "line 1: expected"),
        ("exact", "rows.jsonl", '{"messages": [{"content": null}, {"content": "a"}]}', "line 1: expected"),
        ("exact", "rows.jsonl", '{"prompt": "q", "completion": "a", "tools": {}}', "`tools` is not a list."),
        ("exact", "rows.jsonl", "[" * 5000, "line 1: "),
    ],
)
def test_wrong_data_is_named(tmp_path: Path, kind: SuiteKind, name: str, text: str, what: str) -> None:
    asked = suite(tmp_path, text, kind, name)
    with pytest.raises(DataInvalid) as caught:
        answer_asks(asked, read_rows(asked), tokenizer(tmp_path))
    assert what in caught.value.message


@pytest.mark.parametrize(
    ("template", "what"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[-1]['content'] }}", "its first token cannot be scored"),
    ],
)
def test_a_template_that_does_not_fit_is_named(tmp_path: Path, template: str, what: str) -> None:
    asked = suite(tmp_path, '{"prompt": "q", "completion": "a"}')
    with pytest.raises(DataInvalid) as caught:
        answer_asks(asked, read_rows(asked), tokenizer(tmp_path, template))
    assert what in caught.value.message


def test_calls_of_a_row_are_what_a_model_writes(tmp_path: Path) -> None:
    as_openai = {"function": {"name": "find", "arguments": '{"q": "y"}'}}
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "tool_calls": [CALL, as_openai]},
    ]
    asked = suite(tmp_path, json.dumps({"messages": messages}), "generate", check="tool_call")
    answer = reference(asked, read_rows(asked)[0])
    one = '<tool_call>{"arguments": {"q": "x"}, "name": "find"}</tool_call>'
    other = one.replace("x", "y")
    assert CHECKS["tool_call"](one + "\n" + other, answer)
    assert not CHECKS["tool_call"](one, answer)
    with pytest.raises(DataInvalid, match='without text cannot be checked by "exact"'):
        reference(suite(tmp_path, json.dumps({"messages": messages}), "generate"), read_rows(asked)[0])
