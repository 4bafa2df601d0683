from __future__ import annotations

import tomllib
from typing import Any

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.spec.toml import KeyPath, index_lines


@pytest.mark.parametrize(
    "text, path, line",
    [
        ("a = 1\n\n[b]\nc = 2\n", ("b",), 3),
        ("a = 1\n\n[b]\nc = 2\n", ("b", "c"), 4),
        ("[b]\nc = 2\n", ("b", "nothing"), 1),
        ("x = 1\n[b]\n", ("nothing", "at", "all"), 1),
        ("\na.b.c = 1\n", ("a", "b"), 2),
        ("[a.b.c]\n[a]\n", ("a",), 2),  # the header itself, not what implies it
        ("[a.b.c]\n[a]\n", ("a", "b"), 1),
        ("\n[ \"a\" . 'b.c' ]\n", ("a", "b.c"), 2),
        ('\n"\\u0061\\"" = 1\n', ('a"',), 2),
        ("a = {b = 1, c = {d = [1, {e = 2}]}}\nf = 1", ("f",), 2),
        ("a = [\n  1,\n  # 2,\n  [\n    3, # ]\n    4],\n]\nb = 1", ("a", 1, 1), 6),
        ("a = [\n  1,\n  # 2,\n  [\n    3, # ]\n    4],\n]\nb = 1", ("b",), 8),
        ('a = """\n[b]\n\\"""\n""\n"""""\nb = 1', ("b",), 6),
        ("a = '''\n[b]\n\\'''\nb = 1", ("b",), 4),
        ("a = '''\n''b = 1'''''\nb = 1", ("b",), 3),
        ('a = """"""\nb = 1', ("b",), 2),
        ('a = ""\nb = 1', ("b",), 2),
        ('a = \'"""\'\nb = 1', ("b",), 2),
        ("a = 'x # y' # z = '\nb = 1", ("b",), 2),
        ("a = 1979-05-27 07:32:00\nb = +inf # c\nd = 1", ("d",), 3),
        ("[[a]]\nb = 1\n[[a]]\nb = 2\n[c]", ("a",), 1),
        ("[[a]]\nb = 1\n[[a]]\nb = 2\n[c]", ("c",), 5),
        ("a = [[[[[[[[[[[[]]]]]]]]]]]]\nb = 1", ("b",), 2),
    ],
)
def test_lines(text: str, path: KeyPath, line: int) -> None:
    tomllib.loads(text)
    assert index_lines(text).at(path) == line


@given(text=st.text("ab[]{}=.,#\"'\\\n ", max_size=30))
@settings(max_examples=200, deadline=None)
def test_text_that_is_no_toml_is_no_error(text: str) -> None:
    assert index_lines(text).at(("a", "b")) >= 1


TRAPS = st.sampled_from(
    ["k1 = 1", "[k1]", '"""', "'''", '\\"""', "# k1", "\nk1 = 2\n", "\\\n", "}", "]", "\n"]
)
STRINGS = st.lists(TRAPS, max_size=4).map("".join)


@given(data=st.data(), multiline=st.booleans())
@settings(max_examples=200, deadline=None)
def test_every_key_is_found_where_it_stands(data: st.DataObject, multiline: bool) -> None:
    """Each key is unique, and stands in a line of its own or in an inline table on that line."""
    count = iter(range(10**6))

    def table(depth: int) -> dict[str, Any]:
        return {f"k{next(count)}k": value(depth) for _ in range(data.draw(st.integers(0, 3)))}

    def value(depth: int) -> Any:
        kind = data.draw(st.sampled_from(["string", "table", "array"] if depth else ["string"]))
        if kind == "string":
            return data.draw(STRINGS)
        return table(depth - 1) if kind == "table" else [value(depth - 1) for _ in range(2)]

    document = table(4)
    text = tomli_w.dumps(document, multiline_strings=multiline)
    lines, index = text.split("\n"), index_lines(text)
    for path in paths(document):
        if text.count(f"{path[-1]}") and not any(isinstance(key, int) for key in path):
            assert str(path[-1]) in lines[index.at(path) - 1], (path, text)


def paths(value: object, here: KeyPath = ()) -> list[KeyPath]:
    found = [here] if here else []
    if isinstance(value, dict):
        for key, inner in value.items():
            found += paths(inner, (*here, key))
    return found
