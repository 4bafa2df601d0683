"""The tokenizer that training saved beside an adapter: what differs is said, and the declaration chooses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builder.build.one_pass import copy_aux
from builder.errors import SourceChanged, SourceError
from builder.project.project import Project
from builder.project.watch import require_base
from builder.sources.tokenizers import differences, own_files
from builder.store import blobs
from tests import toy

JINJA = "chat_template.jinja"
CONFIG = "tokenizer_config.json"
TOOLS = "additional_chat_templates/tools.jinja"
Files = dict[str, Any]


def tokenizer(*added: str, **more: Any) -> Files:
    return {"model": {"vocab": {"a": 0}}, "added_tokens": [{"content": token} for token in added], **more}


def told(base: Files, own: Files) -> tuple[str, ...]:
    """What differs, of files given by name."""

    def reading(files: Files) -> Callable[[str], bytes]:
        return lambda name: (v if isinstance(v := files[name], str) else json.dumps(v)).encode()

    return differences(base, reading(base), own, reading(own))


@pytest.mark.parametrize(
    ("base", "own", "expected"),
    [
        ({JINJA: "x"}, {}, ()),
        ({JINJA: "x"}, {JINJA: "x"}, ()),
        ({JINJA: "x"}, {JINJA: "y"}, ("another chat template",)),
        ({}, {JINJA: "y"}, ("another chat template",)),
        ({JINJA: "x"}, {CONFIG: {"chat_template": "x"}}, ()),  # said elsewhere
        ({CONFIG: {"chat_template": "x"}}, {JINJA: "x"}, ()),
        ({JINJA: "x"}, {CONFIG: {"chat_template": "y"}}, ("another chat template",)),
        ({CONFIG: {"chat_template": [{"name": "default", "template": "x"}, {"name": "tools", "template": "t"}]}},
         {JINJA: "x", TOOLS: "t"}, ()),
        ({JINJA: "x"}, {JINJA: "x", TOOLS: "t"}, ("another chat template",)),
        ({"tokenizer.json": tokenizer()}, {"tokenizer.json": tokenizer("<t>")}, ("added tokens ('<t>')",)),
        ({"tokenizer.json": tokenizer()}, {"added_tokens.json": {"<t>": 5}}, ("added tokens ('<t>')",)),
        ({"tokenizer.json": tokenizer()}, {CONFIG: {"added_tokens_decoder": {"5": {"content": "<t>"}}}},
         ("added tokens ('<t>')",)),
        ({"tokenizer.json": tokenizer("<t>")}, {"tokenizer.json": tokenizer()}, ("no tokens '<t>'",)),
        ({"tokenizer.json": tokenizer()}, {"tokenizer.json": tokenizer(truncation={"length": 9})}, ()),
        ({"tokenizer.json": tokenizer()}, {"tokenizer.json": tokenizer(model={})},
         ("another tokenizer.json",)),
        ({"tokenizer.model": "x"}, {"tokenizer.model": "y"}, ("another tokenizer.model",)),
        ({CONFIG: {"eos_token": "a"}}, {CONFIG: {"eos_token": {"content": "a"}}}, ()),
        ({CONFIG: {"eos_token": "a"}}, {CONFIG: {"eos_token": "b"}}, ("another eos_token",)),
    ],
)  # fmt: skip
def test_what_differs(base: Files, own: Files, expected: tuple[str, ...]) -> None:
    assert told(base, own) == expected


@pytest.mark.parametrize(
    "text", ["", "[]", "7", "{", "[" * 100_000, '{"added_tokens": {"a": 1}, "chat_template": 7}']
)
@pytest.mark.parametrize("name", ["tokenizer.json", CONFIG, "added_tokens.json", "chat_template.json"])
def test_nonsense_is_compared_without_an_error(name: str, text: str) -> None:
    told({name: "{}"}, {name: text})


def project(root: Path, choice: str = "", **own: str) -> Project:
    file = toy.make_toy(root, toy.DECLARATION.replace('path = "adapter"', f'path = "adapter"\n{choice}'))
    (root / "base" / JINJA).write_text("of the base")
    for name, text in {f"{key}.jinja": text for key, text in own.items()}.items():
        (root / "adapter" / name).write_text(text)
    return toy.prepared(file)


def test_the_base_s_is_used_and_the_difference_is_said(tmp_path: Path) -> None:
    plan = toy.planned(project(tmp_path, chat_template="of the adapter"), "m_4bit")
    assert [remark for remark in plan.remarks if "chat template" in remark] == [
        "adapter tuned brings another chat template: the tokenizer and chat template of the base are used."
        ' `tokenizer = "adapter"` in [adapter.tuned] uses the adapter\'s'
    ]
    plain = toy.planned(project(tmp_path / "plain"), "m_4bit")
    assert (plain.key, plain.measured, plain.remarks) == (plan.key, plan.measured, ())


def test_what_the_declaration_settles_is_not_said_again(tmp_path: Path) -> None:
    plan = toy.planned(project(tmp_path, 'tokenizer = "base"', chat_template="other"), "m_4bit")
    assert plan.remarks == ()
    assert plan.key == toy.planned(project(tmp_path / "plain"), "m_4bit").key


def test_the_adapter_s_is_used_and_changes_the_target_but_no_block(tmp_path: Path) -> None:
    ours = project(tmp_path, 'tokenizer = "adapter"', chat_template="of the adapter")
    plan, plain = toy.planned(ours, "m_4bit"), toy.planned(project(tmp_path / "plain"), "m_4bit")
    assert plan.remarks == (
        "adapter tuned brings another chat template: its tokenizer and chat template are used",
    )
    assert [action.key for action in plan.actions] == [action.key for action in plain.actions]
    assert plan.key != plain.key
    assert plan.measured != plain.measured
    copy_aux(ours, plan)
    copied = {entry.name: blobs.read(ours.store, entry.blob) for entry in plan.base.aux}
    assert copied == {JINJA: b"of the adapter", "tokenizer.json": b"{}"}
    require_base(ours, ours.spec.bases["toy"], plan)
    (tmp_path / "adapter" / JINJA).write_text("of another adapter")
    with pytest.raises(SourceChanged):
        require_base(ours, ours.spec.bases["toy"], plan)
    ours.forget_plan()
    assert toy.planned(ours, "m_4bit").key != plan.key


def test_a_vocabulary_replaces_the_whole_vocabulary(tmp_path: Path) -> None:
    ours = project(tmp_path, 'tokenizer = "adapter"')
    for name in ("merges.txt", "vocab.json", CONFIG):
        (tmp_path / "base" / name).write_text("{}")
    (tmp_path / "base" / "generation_config.json").write_text("{}")
    (tmp_path / "adapter" / "tokenizer.json").write_text(json.dumps(tokenizer("<t>")))
    ours = toy.prepared(ours.spec.file)
    names = [entry.name for entry in toy.planned(ours, "m_4bit").base.aux]
    assert names == [JINJA, "generation_config.json", "tokenizer.json"]


def test_the_adapter_s_is_asked_for_and_not_there(tmp_path: Path) -> None:
    ours = project(tmp_path, 'tokenizer = "adapter"')
    with pytest.raises(SourceError, match="holds no tokenizer and no chat template"):
        ours.sources.adapter_facts(ours.spec.adapters["tuned"])


def test_only_files_of_a_tokenizer_count(tmp_path: Path) -> None:
    (tmp_path / "additional_chat_templates").mkdir()
    for name in (
        JINJA,
        TOOLS,
        CONFIG,
        "tokenizer.json",
        "adapter_config.json",
        "x.py",
        "README.md",
        "config.json",
    ):
        (tmp_path / name).write_text("x")
    assert own_files(tmp_path) == tuple(sorted((JINJA, TOOLS, CONFIG, "tokenizer.json")))
