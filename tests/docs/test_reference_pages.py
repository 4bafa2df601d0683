"""What is generated from the code is what the code says now."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest

from builder.commands import COMMANDS
from builder.spec import fields
from builder.spec.parse import parse_spec
from builder.spec.schema import KINDS, schema
from docs.reference_pages import declaration_page, error_classes, errors_page, generated
from tests.conftest import ROOT
from tests.tiny import DECLARATION


@pytest.mark.parametrize("path", generated(), ids=str)
def test_generated_files_are_up_to_date(path: Path) -> None:
    """Fails after a change of fields or errors: run `python docs/reference_pages.py`."""
    assert (ROOT / path).read_text(encoding="utf-8") == generated()[path]


def test_every_kind_of_field_has_a_schema() -> None:
    assert {*KINDS, "globs", "table"} == set(get_args(fields.Kind))


def test_the_examples_of_the_reference_are_a_declaration(tmp_path: Path) -> None:
    blocks = re.findall(r"^```toml\n(.*?)^```$", declaration_page(), re.MULTILINE | re.DOTALL)
    text = "\n".join(blocks)
    for written, meant in {
        "[variant.NAME]": "[variant.4bit]",
        "[suite.NAME]": "[suite.routing]",
        "MODEL_VARIANT": "NAME_4bit",
    }.items():
        assert written in text
        text = text.replace(written, meant)
    (tmp_path / "artifacts.toml").write_text(text)
    assert [target.name for target in parse_spec(tmp_path / "artifacts.toml").targets] == ["NAME_4bit"]
    assert validated(text) == []


def test_pyproject_registers_every_command() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert data["tool"]["doit"]["plugins"]["command"] == COMMANDS


def test_errors_have_a_message_and_a_sensible_exit_code() -> None:
    page = errors_page()
    for kind in error_classes():
        assert kind.__doc__, kind
        assert kind.exit_code in (1, 2, 3), kind
        assert f"## {kind.__name__}\n" in page


def validated(text: str) -> list[str]:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft7Validator(schema())
    return sorted(error.message for error in validator.iter_errors(tomllib.loads(text)))


def test_the_schema_takes_what_the_parser_takes() -> None:
    assert validated(DECLARATION) == []
    assert validated((ROOT / "artifacts.toml").read_text()) == []


@pytest.mark.parametrize(
    "text",
    [
        "[bass.x]\npath = 'a'",
        "[base.x]\npaht = 'a'",
        "[base.x]\npath = 'a'\nhf = 'b/c'\nrevision = 'main'",
        "[base.x]\nhf = 'b/c'",
        "[variant.x]\nbits = 7",
        "[variant.x]\ngroup_size = 64",
        "[variant.x]\nmode = 'mxfp4'\nbits = 8",
        "[variant.x]\nrecipe = 'mixed_4_6'\nbits = 4",
        "[model.x]\nadapter = 'a'\nvariants = []",
        "[adapter.'a b']\nbase = 'a'\npath = 'p'",
    ],
)
def test_the_schema_refuses_what_the_parser_refuses(text: str) -> None:
    assert validated(text)


def test_the_schema_is_json() -> None:
    shipped: dict[str, Any] = json.loads((ROOT / "docs" / "artifacts.schema.json").read_text())
    assert shipped["$schema"].endswith("draft-07/schema#")
