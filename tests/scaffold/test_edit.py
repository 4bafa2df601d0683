"""`builder add-variant`: one more variant, and nothing else of the file is changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from builder.scaffold.edit import add_variant, guess_settings
from builder.spec.parse import parse_spec
from tests.conftest import ROOT, Sandbox
from tests.tiny import DECLARATION

Make = Callable[..., Sandbox]


def added(tmp_path: Path, text: str, *args: str) -> str:
    (tmp_path / "artifacts.toml").write_text(text)
    spec = parse_spec(tmp_path / "artifacts.toml")
    changed = add_variant(text, spec, args[0], args[1], {})
    (tmp_path / "artifacts.toml").write_text(changed)
    parse_spec(tmp_path / "artifacts.toml")
    return changed


def test_add_variant_keeps_comments_and_order(tmp_path: Path) -> None:
    text = (ROOT / "artifacts.toml").read_text()
    changed = added(tmp_path, text, "phase8", "3bit")
    for line in text.splitlines():
        if not line.startswith("variants"):
            assert line in changed.splitlines()
    assert "[variant.3bit]\nbits = 3\ngroup_size = 64\n\n" in changed
    assert changed.index("[variant.8bit]") < changed.index("[variant.3bit]") < changed.index("[model.phase8]")


def test_add_variant_to_declarations_of_any_form(tmp_path: Path) -> None:
    dotted = 'variant.a.bits = 4\nmodel.m = { base = "b", variants = ["a"] }\nbase.b.path = "p"\n'
    assert "[variant.6bit]" in added(tmp_path, dotted, "m", "6bit")
    many = DECLARATION.replace(
        'variants = ["f16", "4bit", "5bit"]', 'variants = [\n  "f16", # x\n  "4bit",\n]'
    )
    changed = added(tmp_path, many, "m", "6bit")
    assert "# x" in changed
    assert '"6bit"' in changed


def test_add_variant_reuses_a_declared_variant(tmp_path: Path) -> None:
    text = DECLARATION + '\n[model.n]\nbase = "tiny"\nvariants = ["f16"]\n'
    assert added(tmp_path, text, "n", "4bit") == text.replace('["f16"]', '["f16", "4bit"]')


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("6bit", {"bits": 6, "group_size": 64}),
        ("4bit-g32", {"bits": 4, "group_size": 32}),
        ("bf16", {"dtype": "bfloat16"}),
        ("mxfp4", {"mode": "mxfp4"}),
        ("mixed_4_6", {"recipe": "mixed_4_6"}),
    ],
)
def test_usual_names_say_their_settings(name: str, settings: dict[str, object]) -> None:
    assert guess_settings(name) == settings


def test_a_refused_variant_changes_nothing(sandbox: Make) -> None:
    box = sandbox(DECLARATION)
    ran = box.builder("add-variant", "m", "7bit")
    assert ran.code == 3
    assert "7" in ran.err
    assert box.toml.read_text() == DECLARATION
    assert sorted(file.name for file in box.root.iterdir()) == ["artifacts.toml", "dodo.py", "pyproject.toml"]


def test_a_refused_variant_is_said_of_the_file_that_there_is(sandbox: Make) -> None:
    box = sandbox(DECLARATION)
    error = box.builder("add-variant", "m", "7bit").err
    assert error.startswith("ERROR: artifacts.toml:"), error
    assert "Nothing was written." in error


def test_line_ends_stay_what_they_are(sandbox: Make) -> None:
    box = sandbox("")
    text = DECLARATION.replace("\n", "\r\n")
    box.toml.write_bytes(text.encode())
    assert box.builder("add-variant", "m", "6bit").code == 0
    changed = box.toml.read_bytes()
    assert changed.count(b"\r\n") == changed.count(b"\n") > text.count("\n")
    assert b"[variant.6bit]\r\nbits = 6\r\ngroup_size = 64\r\n\r\n[" in changed
    assert {line for line in text.splitlines() if "variants" not in line} < {*changed.decode().splitlines()}


def test_a_byte_order_mark_stays(sandbox: Make) -> None:
    box = sandbox("")
    box.toml.write_text(DECLARATION, encoding="utf-8-sig")
    ran = box.builder("add-variant", "m", "6bit")
    assert ran.code == 0, ran.text
    assert box.toml.read_bytes().startswith(b"\xef\xbb\xbf")
    assert box.toml.read_bytes().count(b"\xef\xbb\xbf") == 1
    assert "m_6bit" in {target.name for target in parse_spec(box.toml).targets}


def test_a_symlink_is_written_through(sandbox: Make) -> None:
    box = sandbox(DECLARATION)
    real = box.root / "shared" / "real.toml"
    real.parent.mkdir()
    box.toml.rename(real)
    real.chmod(0o640)
    box.toml.symlink_to("shared/real.toml")
    assert box.builder("add-variant", "m", "6bit").code == 0
    assert box.toml.is_symlink()
    assert "[variant.6bit]" in real.read_text()
    assert real.stat().st_mode & 0o777 == 0o640
    assert [file.name for file in real.parent.iterdir()] == ["real.toml"]
