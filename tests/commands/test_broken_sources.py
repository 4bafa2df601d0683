"""One broken thing does not stop the others: a source on a disk that is not mounted, odd texts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable

import pytest

from builder.errors import BuildError, SourceInvalid, described_error, error_from
from tests.commands.test_gc import blob_files, flip
from tests.conftest import Sandbox
from tests.tiny import DECLARATION, make_adapter, make_base

Make = Callable[..., Sandbox]
AWAY = """suites = ["own"]

[suite.own]
kind = "command"
command = "printf {figures}"

[base.away]
gguf = "/media/not/mounted/x.gguf"

[adapter.lost]
base = "away"
path = "lost"

[model.n]
base = "away"
variants = ["4bit"]
suites = ["own"]

[model.worn]
adapter = "lost"
variants = ["4bit"]
""".replace("{figures}", "'{\\\"accuracy\\\": 0.9}'")


@pytest.fixture
def box(sandbox: Make) -> Sandbox:
    made = sandbox(DECLARATION + AWAY)
    make_base(made.root / "base", layers=1)
    make_adapter(made.root / "adapter", layers=(0,))
    return made


def test_a_gguf_on_a_disk_that_is_not_mounted(box: Sandbox) -> None:
    ran = box.doit("model:m_4bit", "model:m_5bit")
    assert ran.code == 0, ran.text
    ran = box.doit("eval:m_4bit")
    assert ran.code == 0, ran.text
    assert "own.accuracy" in ran.out
    states = {row["target"]: row for row in json.loads(box.doit("status", "--json").out)["targets"]}
    assert [states[name]["state"] for name in ("m_4bit", "m_5bit", "n_4bit")] == [
        "built",
        "built",
        "not planned",
    ]
    assert "/media/not/mounted/x.gguf does not exist" in states["n_4bit"]["reason"]

    ran = box.doit("--continue")  # all that can be built is built, and the rest says why it is not
    assert ran.code != 0
    assert "/media/not/mounted/x.gguf does not exist" in ran.text
    assert "Traceback" not in ran.text
    for words in (("plan",), ("why",), ("status",), ("report",), ("list",)):
        ran = box.doit(*words)
        assert ran.code in (0, 1), (words, ran.text)
        assert "Traceback" not in ran.text

    box.edit('"4bit", "5bit"]', '"4bit"]')
    before = len(blob_files(box))
    ran = box.doit("gc", "--grace", "0")
    assert ran.code == 0, ran.text
    assert len(blob_files(box)) == before  # while something is not known, what was needed last stays
    good = (box.view("m_4bit") / "model-00001-of-00003.safetensors").read_bytes()
    (damaged,) = (path for path in blob_files(box) if path.read_bytes() == good)
    flip(damaged, 9)
    assert box.doit("verify").code == 1
    ran = box.doit("verify", "--repair")
    assert ran.code == 0, ran.text
    assert damaged.read_bytes() == good


@pytest.mark.parametrize("kind", ["{x}", "{", "{0}", "{hint!r:>9}", "%s {{"])
def test_a_type_with_braces_is_one_line(box: Sandbox, kind: str) -> None:
    """It is in the message and in the hint, and was once taken for a template."""
    config = box.root / "base/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": kind}))
    ran = box.doit("model:m_4bit")
    assert ran.code not in (0, 3), ran.text
    assert kind in ran.text
    assert "Traceback" not in ran.text


def test_names_with_braces_in_the_files_of_a_stranger(box: Sandbox) -> None:
    index = box.root / "base/model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "model-{shard}.safetensors"}}))
    ran = box.doit("model:m_4bit")
    assert "lacks model-{shard}.safetensors" in ran.text
    assert "Traceback" not in ran.text
    shutil.rmtree(box.root / "adapter")
    (box.root / "adapter").mkdir()
    (box.root / "adapter/adapter_config.json").write_text('{"fine_tune_type": "{lora}"}')
    ran = box.doit("adapter:tuned")
    assert ran.code != 0
    assert "Traceback" not in ran.text


@pytest.mark.parametrize("text", ["{x}", "{", "}", "{0}", "{what}", "%s", "{{what}}"])
def test_a_text_of_a_stranger_is_never_a_template(text: str) -> None:
    error = SourceInvalid(table=text, path=text, what=text, hint=text)
    assert error.message == f"{text}: {text}: {text}."
    assert error.hint_text == text
    assert error_from(described_error(error)).report == error.report
    assert BuildError(what=text).message == text
