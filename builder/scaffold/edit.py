"""Edits artifacts.toml and keeps a person's comments, order and format."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from builder.errors import BuildError, SpecError
from builder.spec.quantizers import MODES, RECIPES
from builder.spec.types import DTYPES, Spec

_BOM = "\ufeff"
_HEADER = re.compile(r"\s*\[")
_VARIANT = re.compile(r"\s*\[\s*variant\s*\.")
_DTYPE_NAMES = {"f16": "float16", "fp16": "float16", "bf16": "bfloat16", "f32": "float32"}


class BadVariant(BuildError):
    """variant "{name}": {what}."""

    exit_code = 3
    hint = "For example `builder add-variant MODEL 6bit`, or `... MODEL NAME --bits 5 --group-size 32`."


class NoSuchModel(BuildError):
    """artifacts.toml declares no model "{name}"{near}"""

    exit_code = 3


def guess_settings(name: str) -> dict[str, Any]:
    """The settings that a usual name stands for: 6bit, f16, mxfp4, mixed_4_6, 4bit-g32. Raises BadVariant."""
    if match := re.fullmatch(r"(\d+)[-_]?bits?(?:[-_]?g(\d+))?", name):
        return {"bits": int(match[1]), "group_size": int(match[2] or 64)}
    if name in _DTYPE_NAMES or name in DTYPES:
        return {"dtype": _DTYPE_NAMES.get(name, name)}
    if name in MODES and name != "affine":
        return {"mode": name}
    if name in RECIPES:
        return {"recipe": name}
    raise BadVariant(name=name, what="neither its name nor an option says how weights are stored")


def read_exactly(file: Path) -> str:
    """The text of a file with its own line ends, and with the BOM that some Windows editors put first."""
    return file.read_bytes().decode("utf-8")


def add_variant(text: str, spec: Spec, model: str, variant: str, settings: dict[str, Any]) -> str:
    """The text of the declaration with `variant` added to the model, and declared if it was not.

    Empty `settings` are taken from the name. Raises NoSuchModel, BadVariant.
    """
    import tomlkit

    from builder.console.words import suggestion

    if text.startswith(_BOM):
        return _BOM + add_variant(text.removeprefix(_BOM), spec, model, variant, settings)
    if model not in spec.models:
        raise NoSuchModel(name=model, near=suggestion(model, [*spec.models]))
    if variant in spec.models[model].variants:
        raise BadVariant(name=variant, what=f'model "{model}" has it already')
    if variant in spec.variants and settings:
        raise BadVariant(name=variant, what="it is declared already; edit its table instead")
    document: Any = tomlkit.parse(text)
    document["model"][model]["variants"].append(variant)
    changed = tomlkit.dumps(document)
    if variant in spec.variants:
        return changed
    lines = [
        f"{key} = {tomlkit.item(value).as_string()}"
        for key, value in (settings or guess_settings(variant)).items()
    ]
    name = variant if re.fullmatch(r"[A-Za-z0-9_-]+", variant) else tomlkit.item(variant).as_string()
    return _insert(changed, [f"[variant.{name}]", *lines])


def _insert(text: str, new: list[str]) -> str:
    """Puts a table after the last [variant.*] and before the comment of the next table, else at the end.

    The new lines end as most lines of the text do.
    """
    end = "\r\n" if 2 * text.count("\r\n") > text.count("\n") else "\n"
    table = "".join(line + end for line in new)
    lines = text.splitlines(keepends=True)
    heads = [number for number, line in enumerate(lines) if _VARIANT.match(line)]
    if not heads:
        return f"{text.rstrip()}{end}{end}{table}"
    after = [number for number in range(heads[-1] + 1, len(lines)) if _HEADER.match(lines[number])]
    at = after[0] if after else len(lines)
    while at > heads[-1] + 1 and (not lines[at - 1].strip() or lines[at - 1].lstrip().startswith("#")):
        at -= 1
    before, rest = "".join(lines[:at]).rstrip(), "".join(lines[at:]).lstrip("\r\n")
    return f"{before}{end}{end}{table}{end}{rest}" if rest else f"{before}{end}{end}{table}"


def replace_checked(file: Path, text: str) -> None:
    """Replaces the declaration as a whole, after checking the new text. Follows a symlink.

    Raises SpecError if the new text is not a valid declaration. The file then stays as it was.
    """
    import os

    from builder.spec.parse import parse_spec

    raw = text.encode("utf-8")
    try:
        parse_spec(file, raw)
    except SpecError as error:
        raise SpecError(problems=error.fields["problems"], hint="Nothing was written.") from None
    real = file.resolve()
    draft = real.with_name(f".{real.name}.{os.getpid()}")
    try:
        draft.write_bytes(raw)
        if real.exists():
            draft.chmod(real.stat().st_mode & 0o7777)
        draft.replace(real)
    finally:
        draft.unlink(missing_ok=True)
