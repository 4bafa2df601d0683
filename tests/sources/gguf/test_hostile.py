"""GGUF files whose metadata a stranger wrote: always a build or one clear error, never a traceback."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

import pytest

from tests.build.test_hostile import outcome
from tests.sources.gguf.test_importing import META, model, text, value, with_fields

DECLARATION = """\
[base.b]
gguf = "b.gguf"

[variant.4bit]
bits = 4
group_size = 32

[model.m]
base = "b"
variants = ["4bit"]
"""
MORE: dict[str, Any] = {
    "general.file_type": 0,
    "llama.vocab_size": 12,
    "llama.rope.dimension_count": 16,
    "llama.rope.scaling.type": "linear",
    "llama.rope.scaling.factor": 2.0,
    "llama.attention.key_length": 16,
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.ggml.eot_token_id": 6,
    "tokenizer.chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
}
ARRAY, STRING = 9, 8
# As they stand in the file: the type, then the bytes.
ENCODED = [
    *map(value, (True, False, 0, -1, 7, 2**31 - 1, 2.5, 0.0, -1.0, float("nan"), float("inf"), 1e38)),
    *map(value, ("", "x", "llama", "gpt2", "\0", "../x", "{% for %}", "x" * 5000, "{{ 1 / 0 }}")),
    *map(value, ([], [0], [-1, 99], [1] * 9, [""], ["a", "a"], ["a b c"], ["\0"] * 9, ["b"] * 9)),
    struct.pack("<IQ", 10, 2**63),
    struct.pack("<Iq", 11, -(2**63)),
    struct.pack("<Id", 12, float("nan")),
    struct.pack("<IQ", STRING, 2) + b"\xff\xfe",
    struct.pack("<IQ", STRING, 2**40),
    struct.pack("<IIQ", ARRAY, STRING, 2**40),
    struct.pack("<IIQ", ARRAY, STRING, 1) + struct.pack("<Q", 1) + b"\xff",
    struct.pack("<IIQ", ARRAY, ARRAY, 1) + struct.pack("<IQi", 5, 1, 3),
    struct.pack("<IIQ", ARRAY, 7, 2) + b"\1\0",
    struct.pack("<I", 99),
]
ROUNDS = 60  # of one run; each takes about 0.1 s


def mutated(dice: random.Random) -> bytes:
    """A GGUF with one to three fields replaced, removed, renamed or said twice."""
    fields = [(key, value(item)) for key, item in {**META, **MORE}.items()]
    for _ in range(dice.choice([1, 1, 1, 2, 3])):
        at, how = dice.randrange(len(fields)), dice.random()
        if how < 0.75:
            fields[at] = (fields[at][0], dice.choice(ENCODED))
        elif how < 0.85:
            del fields[at]
        elif how < 0.95:
            fields[at] = (dice.choice(["", "x", fields[0][0], f"{fields[at][0]}x"]), fields[at][1])
        else:
            fields.append(fields[at])
    return with_fields([text(key) + encoded for key, encoded in fields], model()[1])


@pytest.mark.slow
def test_metadata_of_a_stranger(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    seen: dict[str, int] = {}
    for number in range(ROUNDS):
        root = tmp_path / str(number)
        root.mkdir()
        (root / "b.gguf").write_bytes(mutated(dice))
        (root / "artifacts.toml").write_text(DECLARATION)
        found = outcome(root)
        seen[found] = seen.get(found, 0) + 1
    print(seen)
    assert sum(seen.values()) == ROUNDS
    assert {"built", "SourceInvalid"} <= seen.keys()
