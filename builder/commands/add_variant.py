"""`builder add-variant MODEL VARIANT`: adds a variant to a model in artifacts.toml, and keeps comments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from doit.cmd_base import Command
from doit.exceptions import InvalidCommand

from builder.commands.base import AnyOrder
from builder.commands.guard import guarded, writing
from builder.commands.usage import OneScreen
from builder.console.words import from_here
from builder.spec.place import DECLARATION


def _option(name: str, kind: type, default: object, text: str) -> Mapping[str, Any]:
    return {"name": name, "long": name.replace("_", "-"), "type": kind, "default": default, "help": text}


class AddVariant(AnyOrder, OneScreen, Command):  # type: ignore[misc]
    name = "add-variant"
    doc_purpose = "declare one more variant of a model in artifacts.toml; comments are kept"
    doc_usage = "MODEL VARIANT"
    doc_description = "Without options the name says it: 6bit, 4bit-g32, f16, mxfp4, mixed_4_6."
    cmd_options: ClassVar[tuple[Mapping[str, Any], ...]] = (
        _option("bits", int, 0, "bits per weight"),
        _option("group_size", int, 0, "how many weights share one scale"),
        _option("mode", str, "", "affine, mxfp4, nvfp4 or mxfp8"),
        _option("dtype", str, "", "type of what stays unquantized"),
        _option("recipe", str, "", "a mixed recipe of mlx-lm"),
    )

    def execute(self, opt_values: Mapping[str, Any], pos_args: Sequence[str]) -> int:
        if len(pos_args) != 2:
            raise InvalidCommand("add-variant takes MODEL and VARIANT, for example: add-variant phase8 6bit")
        given = {o["name"]: opt_values[o["name"]] for o in self.cmd_options if opt_values[o["name"]]}
        return guarded(lambda: _add(Path(DECLARATION), pos_args[0], pos_args[1], given))


def _add(file: Path, model: str, variant: str, settings: dict[str, Any]) -> int:
    from builder.scaffold.edit import add_variant, read_exactly, replace_checked
    from builder.spec.parse import parse_spec

    spec = parse_spec(file)
    changed = add_variant(read_exactly(file), spec, model, variant, settings)
    with writing(file):
        replace_checked(file, changed)
    print(
        f"{from_here(file)}: target {model}_{variant} declared; `builder build {model}_{variant}` builds it"
    )
    return 0
