"""Bases, adapters and declarations of strangers: always a build or one clear error, never a traceback."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from builder.build.one_pass import build
from builder.build.prepare import prepare_target
from builder.errors import BuildError
from builder.project.project import Project
from tests.tiny import make_adapter, make_base

DECLARATION = """\
[base.tiny]
path = "base"

[adapter.tuned]
base = "tiny"
path = "adapter"
tokenizer = "adapter"

[variant.4bit]
bits = 4
group_size = 32
overrides = { "lm_head" = { bits = 8 }, "*.mlp.*" = false }

[variant.gptq]
method = "gptq"
from = "f16"
calibration = "text.jsonl"
bits = 4
samples = 8
sequence_length = 32

[variant.f16]
dtype = "float16"

[model.m]
adapter = "tuned"
variants = ["4bit", "f16", "gptq"]
suites = ["s"]
require = { "s.rate" = ">= 0.5" }

[suite.s]
kind = "exact"
data = "text.jsonl"
"""
VALUES: list[Any] = [
    None, True, False, 0, -1, 3, 2.5, 1e308, "", "x", "float16", "../x", "\ud800", [], {}, [1, "a"],
    ["a", None], {"a": 1}, {"a": {"b": []}}, [[]], {"__float__": "NaN"}, {"__float__": "Infinity"}, [{}],
    [None, {"content": 7}],
]  # fmt: skip
RAW = [b"", b"{", b"[]", b"7", b"null", b'"x"', b"\xff\xfe", b"[" * 50_000, b'{"a": 1, "a": NaN}', b"\0" * 64]
ROUNDS = 40  # of one run; each takes about 0.1 s


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose files a stranger may have written."""
    root = tmp_path_factory.mktemp("made")
    make_base(root / "base", layers=1)
    make_adapter(root / "adapter", layers=(0,))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(root / "base" / name, root / "adapter" / name)
    settings = json.loads((root / "base" / "config.json").read_text())
    rope = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 2.0, "original_max_position_embeddings": 64}
    settings |= {"rope_parameters": rope, "quantization_config": {"quant_method": "fp8"}}
    (root / "base" / "config.json").write_text(json.dumps(settings))
    (root / "base" / "generation_config.json").write_text('{"eos_token_id": [256], "do_sample": true}')
    (root / "text.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}]}\n{"text": "b"}\n')
    (root / "artifacts.toml").write_text(DECLARATION)
    return root


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a JSON document."""
    yield path
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


def mutated(data: Any, dice: random.Random) -> Any:
    """A JSON document with one value replaced, removed, renamed or added."""
    path = dice.choice(list(places(data))[:400])
    value = copy.deepcopy(dice.choice(VALUES))
    if not path:
        return value
    inside = data
    for key in path[:-1]:
        inside = inside[key]
    how = dice.random()
    if how < 0.7 or isinstance(inside, list):
        inside[path[-1]] = value
    elif how < 0.85:
        del inside[path[-1]]
    else:
        inside[f"{path[-1]}x"] = inside.pop(path[-1])
    return data


def mutate_json(file: Path, dice: random.Random) -> None:
    if dice.random() < 0.1:
        file.write_bytes(dice.choice(RAW))
        return
    data = json.loads(file.read_text())
    for _ in range(dice.choice([1, 1, 1, 2, 3])):
        data = mutated(data, dice)
    file.write_text(json.dumps(data))


def mutate_lines(file: Path, dice: random.Random) -> None:
    """A .jsonl file with one line changed, broken or repeated, or with other bytes."""
    if dice.random() < 0.1:
        file.write_bytes(dice.choice(RAW))
        return
    lines = [line.encode() for line in file.read_text().split("\n") if line]
    at = dice.randrange(len(lines))
    if dice.random() < 0.15:
        lines[at] = dice.choice([*RAW, lines[at][:-3], lines[at] * 2, b"\xef\xbb\xbf" + lines[at]])
    else:
        lines[at] = json.dumps(mutated(json.loads(lines[at]), dice)).encode()
    file.write_bytes(b"\n".join(lines))


def mutate_header(file: Path, dice: random.Random) -> None:
    """Another header of a safetensors file, before the same bytes."""
    raw = file.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.dumps(mutated(json.loads(raw[8 : 8 + size]), dice)).encode()
    if dice.random() < 0.1:
        header = dice.choice(RAW)
    file.unlink()
    file.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + size :])


def mutate_toml(file: Path, dice: random.Random) -> None:
    """A declaration with one value, one key, or one header changed."""
    lines = file.read_text().splitlines()
    for _ in range(dice.choice([1, 1, 2])):
        at = dice.randrange(len(lines))
        key, equals, _ = lines[at].partition(" = ")
        texts = ["nan", "inf", "-1", "1e999", '""', '"\\u0000"', "[]", "{}", "[1, 'a']", "{a = 1}", "true"]
        if equals and dice.random() < 0.8:
            lines[at] = f"{key} = {dice.choice(texts)}"
        else:
            lines[at] = dice.choice(
                ["[variant.f16]", "[x]", "[[model]]", "", "= 1", "a.b.c = 1", '["\\u0000".x]']
            )
    file.write_text("\n".join(lines))


def mutate(root: Path, name: str, dice: random.Random) -> None:
    """One file of a project as a stranger may have written it."""
    how = mutate_toml if name.endswith(".toml") else mutate_json if name.endswith(".json") else mutate_header
    how(root / name, dice)


NAMES = (
    "artifacts.toml",
    "base/config.json",
    "base/generation_config.json",
    "base/model.safetensors.index.json",
    "base/tokenizer_config.json",
    "base/model-00002-of-00002.safetensors",
    "adapter/adapter_config.json",
    "adapter/tokenizer_config.json",
    "adapter/tokenizer.json",
    "adapter/adapters.safetensors",
)


def outcome(root: Path) -> str:
    """What becomes of a project: "built", or the error."""
    try:
        project = Project.load(root / "artifacts.toml")
        for target in project.spec.targets:
            plan = prepare_target(project, target, lambda _: None)
            if plan.needs is None:
                build(project, [plan], lambda _: None)
    except BuildError as error:
        assert error.report.strip()
        assert len(error.message) < 2000
        return type(error).__name__
    return "built"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_what_a_stranger_wrote_builds_or_is_refused(made: Path, tmp_path: Path, name: str, seed: int) -> None:
    dice = random.Random(f"{seed} {name}")
    seen: dict[str, int] = {}
    for number in range(ROUNDS):
        root = tmp_path / str(number)
        shutil.copytree(made, root)
        mutate(root, name, dice)
        found = outcome(root)
        seen[found] = seen.get(found, 0) + 1
        shutil.rmtree(root)
    print(seen)
    assert sum(seen.values()) == ROUNDS
