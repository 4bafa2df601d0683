"""What is generated from the code: `python docs/reference_pages.py` writes it, a test says when to.

docs/artifacts.schema.json, docs/artifacts-toml.md (both from builder.spec.fields) and docs/errors.md (from
the classes of errors).
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path

import builder
from builder.errors import BuildError
from builder.spec.fields import FIELDS, PUBLISH, RELEASE, SUITE, Field, Table
from builder.spec.quantizers import MODES
from builder.spec.schema import schema_text
from builder.spec.suites import KEYS

ROOT = Path(__file__).resolve().parent.parent

_KINDS = {
    "string": "string",
    "path": "path",
    "name": "name",
    "names": "array of names",
    "bool": "true or false",
    "integer": "integer",
    "number": "number",
    "numbers": "array of numbers",
    "shares": "number, or array of numbers",
    "table": "table",
    "size": 'size, "16GB"',
    "globs": "table of patterns",
    "texts": "table of texts",
    "strings": "array of texts",
}


def generated() -> Mapping[Path, str]:
    """Every generated file, relative to the project's folder, and what it should hold."""
    return {
        Path("docs/artifacts.schema.json"): schema_text(),
        Path("docs/artifacts-toml.md"): declaration_page(),
        Path("docs/errors.md"): errors_page(),
    }


def main() -> int:
    for path, text in generated().items():
        file = ROOT / path
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")
            print(f"wrote {path}")
    return 0


# -- docs/artifacts-toml.md -------------------------------------------------------------------------------

_INTRODUCTION = """\
# artifacts.toml

This file declares what is built, and from what. `builder init` proposes a file. `builder add-variant`
adds a variant. This page is generated from the code that checks the file
(`python docs/reference_pages.py`).

**Names.** Names consist of letters, digits, `.`, `_` and `-`. A target is a model and a variant:
`[model.phase8]` with the variant `5bit` is `phase8_5bit`.

**Paths.** Paths are relative to the folder of the file. `~` is the home folder.

**Order.** Tables may stand in any order. Comments, order and format never rebuild anything.

**Editors.** The first line, `#:schema ./.artifacts.schema.json`, lets editors with Taplo (for example
Even Better TOML) complete and check the file. `builder init` puts a copy of the schema beside the file.
Commit both. A path into the Python environment of your machine would mean nothing on another machine.
After an upgrade, `builder init --schema` writes the copy anew.
"""


def declaration_page() -> str:
    parts = [_INTRODUCTION]
    for table in FIELDS.values():
        parts.append(_section(table))
    parts.append(_modes())
    return "\n".join(parts)


def _section(table: Table) -> str:
    title = f"[{table.key}.NAME]" if table.named else f"[{table.key}]"
    lines = [f"## {title}", "", table.doc, ""]
    if table.one_of:
        lines += [f"Give exactly one of {_code_list(table.one_of)}.", ""]
    lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
    lines += [_row(field) for field in table.fields]
    lines += ["", "```toml", f"[{table.key}.NAME]" if table.named else title]
    lines += _examples(table)
    lines += ["```", ""]
    for field in table.fields:
        if field.kind == "table":
            lines += _inner(f"{table.key}.NAME.{field.name}", field)
    return "\n".join(lines)


def _inner(title: str, field: Field) -> list[str]:
    """The keys of a table in a table."""
    lines = [f"### [{title}]", "", field.doc, "", "| key | type | default | meaning |", "|---|---|---|---|"]
    return [*lines, *map(_row, field.entry), ""]


def _row(field: Field) -> str:
    about = [field.doc]
    if field.choices:
        about.append(f"One of {_code_list(field.choices)}.")
    if field.refers:
        about.append(f"Names a `[{field.refers}.NAME]`.")
    if field.needs:
        about.append(f"Needs {_code_list(field.needs, 'or')}.")
    if field.excludes:
        about.append(f"Not with {_code_list(field.excludes, 'or')}.")
    if field.kind == "globs":
        about.append(f"Keys of an entry: {_code_list([entry.name for entry in field.entry])}.")
    default = "required" if field.required else _shown(field.default)
    return f"| `{field.name}` | {_KINDS.get(field.kind, field.kind)} | {default} | {' '.join(about)} |"


def _examples(table: Table) -> list[str]:
    """One line for each key; those that do not go with the others are comments."""
    lines = []
    live: set[str] = set()
    for field in table.fields:
        if not field.example:
            continue
        line = field.example
        if field.kind in ("globs", "texts", "table"):
            line = f"{field.name} = {{ {line} }}"
        alternative = field.name in table.one_of[1:] or field.excludes
        lacks = field.needs and not live & set(field.needs)
        elsewhere = table is SUITE and field.name not in ("kind", *chain(*KEYS["choice"]))
        elsewhere |= table is RELEASE and field.name == "publish"
        elsewhere |= table is PUBLISH and field.name in ("model", "link", "override", "gguf")
        if alternative or lacks or elsewhere:
            lines.append(f"# {line}")
        else:
            live.add(field.name)
            lines.append(line)
    return lines


def _modes() -> str:
    lines = ["## Modes of quantization", "", "| mode | bits | group sizes | default |", "|---|---|---|---|"]
    for mode, (bits, groups, bit, group) in MODES.items():
        lines.append(
            f"| `{mode}` | {', '.join(map(str, bits))} | {', '.join(map(str, groups))} | {bit}, {group} |"
        )
    return "\n".join([*lines, ""])


def _code_list(values: Iterable[object], last: str = "") -> str:
    words = [f"`{value}`" for value in values]
    if last and len(words) > 1:
        return f"{', '.join(words[:-1])} {last} {words[-1]}"
    return ", ".join(words)


def _shown(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{str(value).lower()}`" if isinstance(value, bool) else f"`{value}`"


# -- docs/errors.md ---------------------------------------------------------------------------------------

_ERRORS = """\
# Errors

This page lists every error that you can put right, with its message, its hint and its exit code.
[troubleshooting.md](troubleshooting.md) starts from the symptom instead. This page is generated from the
code.

An error is one to three lines on stderr. It ends with its name in brackets. Words in braces stand for
what the error is about. A traceback is a bug of this program.

| exit code | meaning |
|---|---|
| 0 | done, or up to date |
| 1 | failed. With `status`, `why` and `plan`: something is to be done |
| 2 | an error while running |
| 3 | a bad declaration, or an unknown name |
| 130 | interrupted with Ctrl-C. Finished blocks are kept |
"""


def error_classes() -> tuple[type[BuildError], ...]:
    """Every error that can be raised, sorted by name; imports every module."""
    for module in pkgutil.walk_packages(builder.__path__, "builder."):
        with suppress(ImportError):  # an extra that is not installed
            importlib.import_module(module.name)
    return tuple(sorted(_below(BuildError), key=lambda kind: kind.__name__))


def errors_page() -> str:
    parts = [_ERRORS]
    for kind in error_classes():
        lines = [f"## {kind.__name__}", "", f"    {' '.join((kind.__doc__ or '').split())}", ""]
        if kind.hint:
            lines += [kind.hint, ""]
        lines.append(f"Exit code {kind.exit_code}. `{kind.__module__}`")
        parts.append("\n".join([*lines, ""]))
    return "\n".join(parts)


def _below(kind: type[BuildError]) -> Iterator[type[BuildError]]:
    for child in kind.__subclasses__():
        yield child
        yield from _below(child)


if __name__ == "__main__":
    sys.exit(main())
