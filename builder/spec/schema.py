"""The JSON Schema of artifacts.toml, made from `builder.spec.fields`, for editors.

The schema holds the rules that JSON Schema can express: keys, types, choices, and which keys a key needs or
excludes. It cannot check that names are declared and that paths exist.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from builder.spec.fields import FIELDS, Field, Table
from builder.spec.names import LONGEST
from builder.spec.quantizers import MODES

NAME = {"type": "string", "pattern": "^[A-Za-z0-9](\\.?[A-Za-z0-9_-])*$", "maxLength": LONGEST}

KINDS: Mapping[str, Mapping[str, Any]] = {
    "string": {"type": "string"},
    "path": {"type": "string"},
    "name": NAME,
    "texts": {"type": "object", "minProperties": 1},
    "names": {"type": "array", "items": NAME, "minItems": 1, "uniqueItems": True},
    "strings": {"type": "array", "items": {"type": "string"}, "minItems": 1, "uniqueItems": True},
    "bool": {"type": "boolean"},
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "shares": {"type": ["number", "array"], "items": {"type": "number"}, "minItems": 1},
    "numbers": {"type": "array", "items": {"type": "number"}, "minItems": 1},
    "size": {"type": "string", "pattern": "^[0-9]+(\\.[0-9]+)? ?[A-Za-z]{1,3}$"},
}


def schema() -> dict[str, Any]:
    """The schema of the whole file, in draft 7, which the TOML support of editors reads."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "artifacts.toml",
        "description": "What is built, and from what.",
        "type": "object",
        "additionalProperties": False,
        "properties": {key: _section(table) for key, table in FIELDS.items()},
    }


def schema_text() -> str:
    """The schema as the JSON text that is shipped."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def _section(table: Table) -> dict[str, Any]:
    if not table.named:
        return {"description": table.doc, **_object(table.fields, table.one_of)}
    one = {"description": table.doc, **_object(table.fields, table.one_of)}
    return {
        "description": table.doc,
        "type": "object",
        "propertyNames": NAME,
        "additionalProperties": one,
    }


def _object(fields: tuple[Field, ...], one_of: tuple[str, ...] = ()) -> dict[str, Any]:
    made: dict[str, Any] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {field.name: _value(field) for field in fields},
    }
    if required := [field.name for field in fields if field.required]:
        made["required"] = required
    if one_of:
        made["oneOf"] = [{"required": [name]} for name in one_of]
    if needs := {field.name: rule for field in fields if (rule := _dependency(field))}:
        made["dependencies"] = needs
    if any(field.name == "mode" and set(field.choices) == set(MODES) for field in fields):
        made["allOf"] = [_mode_rule(mode) for mode in MODES]
    return made


def _value(field: Field) -> dict[str, Any]:
    made: dict[str, Any] = {"description": field.doc}
    if field.kind == "globs":
        entry = {"anyOf": [{"const": False}, _object(field.entry)]}
        made |= {"type": "object", "additionalProperties": entry}
    elif field.kind == "table":
        made |= _object(field.entry)
    else:
        made |= KINDS.get(field.kind, {})
    if field.choices:
        enum = list(field.choices)
        if made.get("type") == "array":
            made["items"] = {**made["items"], "enum": enum}
        else:
            made["enum"] = enum
    if field.default is not None:
        made["default"] = field.default
    return made


def _dependency(field: Field) -> dict[str, Any]:
    rules: list[dict[str, Any]] = []
    if field.needs:
        rules.append({"anyOf": [{"required": [name]} for name in field.needs]})
    if field.excludes:
        rules.append({"not": {"anyOf": [{"required": [name]} for name in field.excludes]}})
    if not rules:
        return {}
    return rules[0] if len(rules) == 1 else {"allOf": rules}


def _mode_rule(mode: str) -> dict[str, Any]:
    bits, groups, _, _ = MODES[mode]
    allowed = {"bits": {"enum": list(bits)}, "group_size": {"enum": list(groups)}}
    return {
        "if": {"properties": {"mode": {"const": mode}}, "required": ["mode"]},
        "then": {"properties": allowed},
    }
