"""Which keys change with each thing that a person does to a base, an adapter and a declaration."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builder.plan.changes import changes
from builder.project.project import Project
from tests.plan.test_key_parts import built
from tests.toy import DECLARATION, LEARNED, make_toy, planned, prepared, save_adapter

WHOLE = DECLARATION.replace('"8bit"]', '"8bit", "dwq"]') + LEARNED
ALL = frozenset({"blocks", "learned", "config", "measured", "key"})
Change = Callable[[Path], object]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return make_toy(tmp_path / "project", WHOLE)


def keys_of(project: Project) -> dict[str, object]:
    four, dwq = planned(project, "m_4bit"), planned(project, "m_dwq")
    return {
        "blocks": [action.key for action in four.actions],
        "learned": dwq.learned,
        "config": four.config,
        "measured": (four.measured, dwq.measured),
        "key": (four.key, dwq.key),
    }


def config(**values: Any) -> Change:
    def change(folder: Path) -> None:
        at = folder / "base/config.json"
        at.write_text(json.dumps({**json.loads(at.read_text()), **values}))

    return change


def write(name: str, text: str) -> Change:
    return lambda folder: (folder / name).write_text(text)


def declare(old: str, new: str) -> Change:
    def change(folder: Path) -> None:
        text = (folder / "artifacts.toml").read_text()
        assert old in text
        (folder / "artifacts.toml").write_text(text.replace(old, new))

    return change


def reordered(folder: Path) -> None:
    """Other tables first. The order of the targets changes with it, and no key."""
    text = (folder / "artifacts.toml").read_text()
    tables = text.split("\n[")
    (folder / "artifacts.toml").write_text("\n\n[".join(["", *(t.lstrip("[") for t in reversed(tables))]))


def moved(folder: Path) -> None:
    (folder / "base").rename(folder / "elsewhere")
    declare('path = "base"', 'path = "elsewhere"')(folder)


def code(folder: Path) -> None:
    (folder / "base/mine.py").write_text("x = 1")
    declare('path = "base"', 'path = "base"\ntrust_remote_code = true')(folder)


CONFIG = frozenset({"config", "measured", "key"})  # config.json of the target, and no weight
CASES: dict[str, tuple[Change, frozenset[str]]] = {
    "a stray json": (write("base/notes.json", "{}"), frozenset({"key"})),
    "what training left": (write("base/trainer_state.json", "{}"), frozenset()),
    "a chat template": (write("base/chat_template.jinja", "{{ x }}"), frozenset({"measured", "key"})),
    "a template in the tokenizer's config": (
        write("base/tokenizer_config.json", '{"chat_template": "x"}'),
        frozenset({"learned", "measured", "key"}),  # the file is new: it makes tokens too
    ),
    "a tokenizer": (write("base/tokenizer.json", "{ }"), frozenset({"learned", "measured", "key"})),
    "merges": (write("base/merges.txt", "a b"), frozenset({"learned", "measured", "key"})),
    "generation_config.json": (write("base/generation_config.json", "{}"), CONFIG),
    "eos_token_id": (config(eos_token_id=7), CONFIG),
    "use_cache of the text model": (config(text_config={"use_cache": False}), ALL),  # the table itself is new
    "rope_theta": (config(rope_theta=1.0), ALL),
    "the order of config.json": (write("base/config.json", '{ "model_type":"toy"}'), CONFIG),
    "weights": (write("base/model.safetensors", "other weights"), ALL - {"config"}),
    "dequantize": (declare('path = "base"', 'path = "base"\ndequantize = true'), ALL),
    "code that is run": (code, ALL - {"config"}),
    "an adapter": (lambda folder: save_adapter(folder / "adapter", fill=1), ALL - {"config"}),
    "a scale": (lambda folder: save_adapter(folder / "adapter", scale=4.0), ALL - {"config"}),
    "a text": (write("text.txt", "other words"), frozenset({"learned", "measured", "key"})),
    "bits": (declare("bits = 4", "bits = 3"), ALL),
    "strict": (declare("[base.toy]", "[build]\nstrict_toolchain = true\n\n[base.toy]"), ALL),
    # -- and what changes none
    "a readme": (write("base/README.md", "words"), frozenset()),
    "a log": (write("base/training.log", "words"), frozenset()),
    "what macOS leaves": (write("base/._tokenizer.json", "\0"), frozenset()),
    "an index of one shard": (
        write("base/model.safetensors.index.json", '{"weight_map": {"x": "model.safetensors"}}'),
        frozenset(),
    ),
    "a comment": (declare("[base.toy]", "# words\n[base.toy]"), frozenset()),
    "the order of tables": (reordered, frozenset()),
    "where a base lies": (moved, frozenset()),
    "the memory of a build": (declare("[base.toy]", '[build]\nmemory = "1GB"\n\n[base.toy]'), frozenset()),
    "survival": (declare("[base.toy]", "[build]\nsurvival = false\n\n[base.toy]"), frozenset()),
}


@pytest.mark.parametrize("name", CASES)
def test_what_changes_which_keys(file: Path, name: str) -> None:
    change, expected = CASES[name]
    before = prepared(file)
    plans = [planned(before, target) for target in ("m_4bit", "m_dwq")]
    old = keys_of(before)
    change(file.parent)
    after = prepared(file)
    new = keys_of(after)
    assert {part for part in old if old[part] != new[part]} == expected
    for plan in plans:
        found = changes(planned(after, plan.name), built(plan))
        assert bool(found) == (planned(after, plan.name).key != plan.key)


def test_settings_of_the_text_model_are_left_out_too(file: Path) -> None:
    config(text_config={"use_cache": True, "rope_theta": 1.0})(file.parent)
    blocks = keys_of(prepared(file))["blocks"]
    config(text_config={"use_cache": False, "rope_theta": 1.0})(file.parent)
    assert keys_of(prepared(file))["blocks"] == blocks
    config(text_config={"use_cache": False, "rope_theta": 2.0})(file.parent)
    assert keys_of(prepared(file))["blocks"] != blocks


def test_a_models_own_code_may_read_any_setting(file: Path) -> None:
    declare('path = "base"', 'path = "base"\ntrust_remote_code = true')(file.parent)
    blocks = keys_of(prepared(file))["blocks"]
    config(eos_token_id=7)(file.parent)
    assert keys_of(prepared(file))["blocks"] != blocks


@pytest.mark.parametrize(
    ("text", "learns_again"),
    [
        ('{"chat_template": "y", "add_bos_token": true}', False),
        ('{"chat_template": "x", "add_bos_token": false}', True),
        ('{"add_bos_token": true}', False),
        ("no JSON", True),
    ],
)
def test_a_template_inside_the_tokenizers_config_makes_no_tokens(
    file: Path, text: str, learns_again: bool
) -> None:
    place = file.parent / "base/tokenizer_config.json"
    place.write_text('{"chat_template": "x", "add_bos_token": true}')
    before = keys_of(prepared(file))
    place.write_text(text)
    after = keys_of(prepared(file))
    assert (after["learned"] != before["learned"]) == learns_again
    assert after["measured"] != before["measured"]
    assert after["blocks"] == before["blocks"]
