"""Edits of artifacts.toml that keep a person's comments, order and format. Text in, text out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from builder.errors import BuildError
from builder.spec import DTYPES, MODES, RECIPES, Spec

_HEADER = re.compile(r"\s*\[")
_VARIANT = re.compile(r"\s*\[\s*variant\s*\.")
_DTYPE_NAMES = {"f16": "float16", "fp16": "float16", "bf16": "bfloat16", "f32": "float32"}


class BadVariant(BuildError):
    """variant "{name}": {what}."""

    exit_code = 3
    hint = "For example: builder add-variant MODEL 6bit, or NAME --bits 5 --group-size 32."


class NoSuchModel(BuildError):
    """artifacts.toml declares no model "{name}"{near}"""

    exit_code = 3


def guess_settings(name: str) -> dict[str, Any]:
    """What a usual name means: 6bit, f16, mxfp4, mixed_4_6, 4bit-g32. Raises BadVariant."""
    if match := re.fullmatch(r"(\d+)[-_]?bits?(?:[-_]?g(\d+))?", name):
        return {"bits": int(match[1]), "group_size": int(match[2] or 64)}
    if name in _DTYPE_NAMES or name in DTYPES:
        return {"dtype": _DTYPE_NAMES.get(name, name)}
    if name in MODES and name != "affine":
        return {"mode": name}
    if name in RECIPES:
        return {"recipe": name}
    raise BadVariant(name=name, what="its name does not say how weights are stored, and no option does")


def add_variant(text: str, spec: Spec, model: str, variant: str, settings: dict[str, Any]) -> str:
    """The declaration with `variant` among the model's variants, declared if it was not.

    `settings` empty: taken from the name. Raises NoSuchModel, BadVariant.
    """
    import tomlkit

    from builder.problems import suggestion

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
    return _insert(changed, f"[variant.{name}]\n" + "\n".join(lines) + "\n")


def _insert(text: str, table: str) -> str:
    """The table after the last [variant.*], before the comment of what follows; else at the end."""
    lines = text.splitlines(keepends=True)
    heads = [number for number, line in enumerate(lines) if _VARIANT.match(line)]
    if not heads:
        return f"{text.rstrip()}\n\n{table}"
    after = [number for number in range(heads[-1] + 1, len(lines)) if _HEADER.match(lines[number])]
    at = after[0] if after else len(lines)
    while at > heads[-1] + 1 and (not lines[at - 1].strip() or lines[at - 1].lstrip().startswith("#")):
        at -= 1
    before, rest = "".join(lines[:at]).rstrip(), "".join(lines[at:]).lstrip("\n")
    return f"{before}\n\n{table}\n{rest}" if rest else f"{before}\n\n{table}"


def replace_checked(file: Path, text: str) -> None:
    """Writes the declaration if it is one. Raises SpecError, and then the file is what it was."""
    import os

    from builder.parse import parse_spec

    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        parse_spec(draft)
        draft.chmod(file.stat().st_mode & 0o7777)
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)
