"""Checks a TOML document against `builder.spec.fields`: its tables, keys, types, names and choices.

`builder.spec.parse` checks what the values mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from builder.console.words import dotted, found, listed, nearest, quoted, size_of_text, suggestion
from builder.spec.fields import FIELDS, Field, Table
from builder.spec.names import name_problem
from builder.spec.problems import Place, Problems, table_place

_EXPECTED = {
    "string": "a string",
    "name": "a name, as a string",
    "path": "a path, as a string",
    "bool": "true or false",
    "integer": "an integer",
    "number": "a number",
}
_TABLES = ("globs", "table")


class Values(NamedTuple):
    """What a table says. `given` holds the values that are right. `bad` names keys with a reported problem.

    A size is in bytes. Each entry of a globs key is a Values, or None where the file says false.
    """

    place: Place
    given: dict[str, Any]
    bad: set[str]

    def get(self, key: str) -> Any:
        """The value of a key, or None when the key is absent or has a problem."""
        return self.given.get(key)

    def says(self, key: str) -> bool:
        """Whether the table has the key, with or without a problem."""
        return key in self.given or key in self.bad


Declared = Mapping[str, Mapping[str, Values]]  # kind -> name ("" for a table without names) -> its values


def check_shape(data: dict[str, Any], problems: Problems) -> Declared:
    """All tables of the document. Tables with problems are included, so that references to them are right."""
    declared: dict[str, dict[str, Values]] = {kind: {} for kind in FIELDS}
    for kind, value in data.items():
        table = FIELDS.get(kind)
        place = table_place(kind)
        if table is None:
            problems.add(*_unknown_table(kind, value))
        elif not isinstance(value, dict):
            wanted = f"tables [{kind}.NAME]" if table.named else "a table"
            problems.add(place, f"expected {wanted}, found {found(value)}")
        elif table.named:
            declared[kind] = _named_tables(table, value, problems)
        else:
            declared[kind][""] = _table(table.fields, value, place, problems)
    return declared


def _unknown_table(kind: str, value: object) -> tuple[Place, str]:
    kinds = [f"[{known}.NAME]" if table.named else f"[{known}]" for known, table in FIELDS.items()]
    close = nearest(kind, list(FIELDS))
    hint = f"; did you mean [{close}]?" if close else f" (possible: {', '.join(kinds)})"
    if isinstance(value, dict) or (isinstance(value, list) and all(isinstance(v, dict) for v in value)):
        return table_place(kind), f"unknown table{hint}"
    return Place((kind,), ""), f"unknown key {quoted(kind)} outside of any table{hint}"


def _named_tables(table: Table, value: dict[str, Any], problems: Problems) -> dict[str, Values]:
    tables: dict[str, Values] = {}
    by_lower: dict[str, str] = {}
    for name, content in value.items():
        place = table_place(table.key, name)
        if not isinstance(content, dict):
            what = f"key {quoted(name)} is outside of any [{table.key}.NAME]; give the table a name"
            problems.add(Place(place.path, f"[{table.key}]"), what)
            continue
        if wrong := name_problem(name):
            problems.add(place, wrong)
        other = by_lower.setdefault(name.lower(), name)
        if other != name:
            title = table_place(table.key, other)
            where = f"{title.title} (line {problems.line(title)})"
            problems.add(place, f"differs from {where} only in letter case, which macOS ignores; rename one")
        tables[name] = _table(table.fields, content, place, problems)
        _check_one_of(table.one_of, table.fields, tables[name], problems)
    return tables


def _table(fields: Sequence[Field], value: dict[str, Any], place: Place, problems: Problems) -> Values:
    values = Values(place, {}, set())
    known = {field.name: field for field in fields}
    for key, content in value.items():
        if field := known.get(key):
            _check_field(field, content, values, problems)
        else:
            is_table = isinstance(content, dict)
            close = nearest(key, [n for n, f in known.items() if (f.kind in _TABLES) is is_table])
            problems.add(place.key(key), _unknown_key(key, content, place, close, list(known)))
            if close and close not in value:
                values.bad.add(close)
    for field in fields:
        _check_company(field, known, values, problems)
    return values


def _unknown_key(key: str, content: object, place: Place, close: str | None, known: list[str]) -> str:
    if close:
        return f'unknown key {quoted(key)}; did you mean "{close}"?'
    if len(place.path) == 2 and isinstance(content, dict):
        whole = f"[{place.path[0]}.{quoted(_undotted(place, key, content, known))}]"
        return f"unknown key {quoted(key)}; if the dot is part of the name, write {whole}"
    if len(place.path) == 4 and isinstance(content, dict | bool):
        whole = quoted(_undotted(place, key, content, known))
        return f"unknown key {quoted(key)}; if the dot is part of the pattern, write {whole} = ..."
    return f"unknown key {quoted(key)} (possible: {listed(known)})"


def _undotted(place: Place, key: str, content: object, known: list[str]) -> str:
    """The dotted name that was probably meant, when somebody wrote model.layers.0 without quotes."""
    parts = [str(place.path[-1]), key]
    while isinstance(content, dict) and len(content) == 1:
        key, content = next(iter(content.items()))
        if key in known or not isinstance(content, dict | bool):
            break
        parts.append(key)
    return ".".join(parts)


def _check_company(field: Field, known: Mapping[str, Field], values: Values, problems: Problems) -> None:
    """Checks which other keys a key needs or excludes."""
    place = values.place.key(field.name)
    if not values.says(field.name):
        if field.required:
            problems.add(values.place, f"{field.name} is missing; add, for example, {field.example}")
        return
    if field.needs and not any(values.says(other) for other in field.needs):
        example = known[field.needs[0]].example
        needs = listed(field.needs, "or")
        problems.add(place, f"{field.name} needs {needs} beside it; add, for example, {example}")
    if against := [other for other in field.excludes if values.says(other)]:
        problems.add(place, f"{field.name} excludes {listed(against, 'and')}; remove one or the other")


def _check_one_of(one_of: Sequence[str], fields: Sequence[Field], values: Values, problems: Problems) -> None:
    says = [key for key in one_of if values.says(key)]
    if one_of and not says:
        example = next(field.example for field in fields if field.name == one_of[0])
        problems.add(values.place, f"needs {listed(one_of, 'or')}; add, for example, {example}")
    if len(says) > 1:
        place = values.place.key(says[1])
        problems.add(place, f"{listed(says, 'and')} exclude each other; keep one")


def _check_field(field: Field, content: Any, values: Values, problems: Problems) -> None:
    """Takes the value of a key when the value is right, and reports the problem otherwise."""
    place = values.place.key(field.name)
    if field.kind == "globs":
        if isinstance(content, dict):
            values.given[field.name] = _globs(field, content, place, problems)
            return
        wrong: str | None = f"{field.name}: expected a table of {field.example}, found {found(content)}"
    elif field.kind == "table":
        if isinstance(content, dict):
            title = f"[{dotted(*(str(key) for key in place.path))}]"
            inner = _table(field.entry, content, Place(place.path, title), problems)
            values.given[field.name] = inner
            return
        what = f"{{ {field.example} }}"
        wrong = f"{field.name}: expected a table such as {what}, found {found(content)}"
    elif field.kind in ("numbers", "shares"):
        some = [content] if field.kind == "shares" and _is_number(content) else content
        numbers = isinstance(some, list) and some and all(map(_is_number, some))
        wrong = None if numbers else f"{field.name}: expected a list of numbers such as {field.example}"
        if field.kind == "shares" and wrong:
            wrong = f"{field.name}: expected a number such as {field.example}, or a list of numbers"
    elif field.kind == "texts":
        texts, wrong = _texts(field, content)
        values.given[field.name] = texts
    elif field.kind in ("names", "strings"):
        names, wrong = _names(field, content, place, problems)
        values.given[field.name] = names
    elif field.kind == "size":
        size = size_of_text(content) if isinstance(content, str) else None
        wrong = None if size else f'{field.name}: expected a size such as "16GB", found {found(content)}'
        content = size
    else:
        wrong = _scalar_problem(field, content)
    if wrong:
        problems.add(place, wrong)
        values.bad.add(field.name)
        values.given.pop(field.name, None)
    else:
        values.given.setdefault(field.name, content)


def _scalar_problem(field: Field, content: object) -> str | None:
    type_: Any = {"bool": bool, "integer": int, "number": int | float}.get(field.kind, str)
    if not isinstance(content, type_) or (isinstance(content, bool) and type_ is not bool):
        return f"{field.name}: expected {_EXPECTED[field.kind]}, found {found(content)}"
    if not isinstance(content, str):
        return None
    if not content:
        return f"{field.name} is empty; write, for example, {field.example}"
    if field.choices and content not in field.choices:
        hint = suggestion(content, [str(choice) for choice in field.choices])
        return f"{field.name} = {quoted(content)} is not possible{hint}"
    return _path_problem(field, content) if field.kind == "path" else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _path_problem(field: Field, text: str) -> str | None:
    if "\x00" in text:
        return f"{field.name} = {quoted(text)} has a NUL character, which a path cannot have"
    try:
        Path(text).expanduser()
    except RuntimeError:
        user = text.split("/")[0]
        return f"{field.name} = {quoted(text)}: the home of {quoted(user)} is not known; write the whole path"
    return None


def _names(
    field: Field, content: object, place: Place, problems: Problems
) -> tuple[tuple[str | None, ...], str | None]:
    """The names and the problem of the whole list. None replaces what is not a name, to keep positions."""
    if not isinstance(content, list):
        what = f"{field.name}: expected a list of {_items(field)} such as {field.example}"
        return (), f"{what}, found {found(content)}"
    if not content:
        return (), f"{field.name} is empty; write, for example, {field.example}"
    seen = set()
    for index, name in enumerate(content):
        if not isinstance(name, str):
            what = f"{field.name}: expected {_items(field)}, as strings, found {found(name)}"
            problems.add(place.key(index), what)
        elif name in seen:
            problems.add(place.key(index), f"{field.name} has {quoted(name)} twice; keep one")
        else:
            seen.add(name)
    return tuple(name if isinstance(name, str) else None for name in content), None


def _items(field: Field) -> str:
    return "names" if field.kind == "names" else "texts"


def _texts(field: Field, content: object) -> tuple[dict[str, str], str | None]:
    """Label -> text, and the problem. A label written as a.b without quotes is put together again."""
    if not isinstance(content, dict) or not content:
        what = found(content) if content != {} else "an empty one"
        return {}, f"{field.name}: expected a table of texts such as {field.example}, found {what}"
    texts: dict[str, str] = {}
    for label, value in content.items():
        if isinstance(value, dict) and value:
            inner, wrong = _texts(field, value)
            if wrong:
                return {}, wrong
            texts |= {f"{label}.{rest}": text for rest, text in inner.items()}
        elif not isinstance(value, str) or not value:
            what = found(value) if value != "" else "an empty one"
            return {}, f"{field.name}: expected a text for {quoted(label)}, found {what}"
        else:
            texts[label] = value
    return texts, None


def _globs(
    field: Field, content: dict[str, Any], place: Place, problems: Problems
) -> dict[str, Values | None]:
    entries: dict[str, Values | None] = {}
    title = f"[{dotted(*(str(key) for key in place.path))}]"
    for pattern, value in content.items():
        entry = Place((*place.path, pattern), f"{title} {quoted(pattern)}:")
        if not pattern:
            problems.add(entry, 'the pattern is empty; "*" matches every path')
        elif value is False:
            entries[pattern] = None
        elif not isinstance(value, dict):
            wanted = "{ bits = 8 } or false"
            problems.add(entry, f"expected a table such as {wanted}, found {found(value)}")
        elif not value:
            keys = listed([each.name for each in field.entry], "or")
            problems.add(entry, f"the table is empty; say {keys}, or false to leave the path unquantized")
        else:
            entries[pattern] = _table(field.entry, value, entry, problems)
    return entries
