"""The words for values: what a person reads, and what the program reads back."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.console.words import (
    ago,
    count,
    dotted,
    duration,
    found,
    from_here,
    listed,
    nearest,
    number,
    quoted,
    shown,
    size_of_text,
    size_text,
    suggestion,
)

# -- sizes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nbytes", "said"),
    [
        (None, "-"),
        (0, "0 B"),
        (1, "1 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1024, "1.0 kB"),  # the units of disk makers
        (99_949, "99.9 kB"),
        (99_950, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (92_600_000, "92.6 MB"),
        (57_000_000_000, "57.0 GB"),
        (512_000_000_000, "512 GB"),
        (1_500_000_000_000, "1.5 TB"),
        (2_000_000_000_000_000, "2000 TB"),
        (-1_500_000, "-1.5 MB"),
        (-150_000_000, "-150 MB"),
    ],
)
def test_size_text(nbytes: float | None, said: str) -> None:
    assert size_text(nbytes) == said


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("0 B", 0),
        ("16GB", 16 * 10**9),
        ("16 GB", 16 * 10**9),
        ("16gb", 16 * 10**9),
        ("200 kB", 200_000),
        ("1.5 MiB", 3 << 19),
        ("1 TiB", 1 << 40),
        ("2KiB", 2048),
        ("1.001 kB", 1001),  # although 1.001 * 1000 is a little less in binary
        ("0.25GB", 250_000_000),
        *((text, None) for text in ("", "16", "GB", "-1 GB", "1e3 MB", "16  GB", " 16GB", "16GB ", "16 G")),
        *((text, None) for text in ("1.GB", ".5GB", "1,5 GB", "16 XB", "١٦ GB", "16 GB\n", "nan GB")),
    ],
)
def test_size_of_text(text: str, nbytes: int | None) -> None:
    assert size_of_text(text) == nbytes


@given(st.integers(0, 10**18))
def test_a_size_that_is_read_back_is_the_same_but_for_rounding(nbytes: int) -> None:
    text = size_text(nbytes)
    value, unit = text.split()
    step = (0.1 if "." in value else 1) * {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}[unit]
    again = size_of_text(text)
    assert again is not None
    assert abs(again - nbytes) <= step / 2 * (1 + 1e-9)
    assert size_text(again) == text
    assert len(value.replace(".", "")) <= 3 or unit == "TB"


# -- numbers, counts and times -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0, "0"),
        (0.983, "0.983"),
        (1, "1.000"),
        (0.5, "0.500"),
        (-0.5, "-0.500"),
        (2.614, "2.61"),
        (26.14, "26.1"),
        (261.4, "261"),
        (12345.6, "12346"),
        (0.01234, "0.0123"),
        (0.0001234, "0.000123"),
        (1.234e-9, "1.23e-09"),  # not 0.000000
        (-1.234e-9, "-1.23e-09"),
        (math.inf, "inf"),
        (math.nan, "nan"),
    ],
)
def test_number(value: float, said: str) -> None:
    assert number(value) == said


@given(st.floats(allow_nan=False, allow_infinity=False).filter(bool))
def test_a_number_that_is_not_zero_is_not_shown_as_zero(value: float) -> None:
    assert float(number(value)) != 0
    assert math.copysign(1, float(number(value))) == math.copysign(1, value)


@pytest.mark.parametrize(("n", "said"), [(0, "0 bases"), (1, "1 base"), (2, "2 bases"), (1000, "1000 bases")])
def test_count(n: int, said: str) -> None:
    assert count(n, "base") == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, "unknown"),
        (0, "0.0 s"),
        (2.61, "2.6 s"),
        (10, "10 s"),
        (59.4, "59 s"),
        (60, "1 min 00 s"),
        (61, "1 min 01 s"),
        (119.6, "2 min 00 s"),
        (3599.6, "1 h 00 min"),
        (3600, "1 h 00 min"),
        (3661, "1 h 01 min"),
        (100_000, "27 h 46 min"),
    ],
)
def test_duration(seconds: float | None, said: str) -> None:
    assert duration(seconds) == said


NOW = datetime(2025, 6, 15, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("before", "said"),
    [
        (timedelta(0), "just now"),
        (timedelta(seconds=59), "just now"),
        (timedelta(seconds=60), "1 min ago"),
        (timedelta(minutes=59, seconds=59), "59 min ago"),
        (timedelta(hours=1), "1 h ago"),
        (timedelta(hours=23, minutes=59), "23 h ago"),
        (timedelta(days=1), "1 d ago"),
        (timedelta(days=400), "400 d ago"),
        (timedelta(hours=-1), "just now"),  # another machine's clock
    ],
)
def test_ago(before: timedelta, said: str) -> None:
    assert ago((NOW - before).isoformat().replace("+00:00", "Z"), NOW) == said


def test_ago_of_what_is_not_a_time() -> None:
    assert ago(None, NOW) == "-"
    assert ago("yesterday", NOW) == "yesterday"
    assert ago("2025-06-15T12:00:00+02:00", NOW) == "2 h ago"
    assert ago(datetime.now(UTC).isoformat()) == "just now"


# -- names, lists and paths --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", '""'),
        ("m_4bit", '"m_4bit"'),
        ('say "x"', '"say \\"x\\""'),
        ("a\\b", '"a\\\\b"'),
        ("a\nb\tc", '"a\\nb\\tc"'),
        ("\x1b[31mred", '"\\u001b[31mred"'),
        ("\u202e", '"\\u202e"'),  # turns the direction of a terminal's text around
        ("\U000e0001", '"\\U000e0001"'),
        ("Größe", '"Größe"'),
        ("x" * 60, f'"{"x" * 60}"'),
        ("x" * 61, f'"{"x" * 57}..."'),
    ],
)
def test_quoted(text: str, said: str) -> None:
    assert quoted(text) == said


@given(st.text())
def test_what_is_quoted_stays_on_its_line_and_does_nothing_to_a_terminal(text: str) -> None:
    assert quoted(text).isprintable()
    assert len(quoted(text).splitlines()) == 1


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("x", 'the string "x"'),
        (True, "the boolean true"),
        (7, "the integer 7"),
        (10**20, "the integer 0x56bc75e2d6..."),
        (1.5, "the float 1.5"),
        ({}, "a table"),
        ([], "an array"),
        (datetime(2025, 1, 1, tzinfo=UTC), "a date or time"),
    ],
)
def test_found(value: object, said: str) -> None:
    assert found(value) == said


def test_shown_is_what_toml_writes() -> None:
    assert [shown(v) for v in ("a", True, False, 3, 0.5)] == ['"a"', "true", "false", "3", "0.5"]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (("model", "phase8"), "model.phase8"),
        (("model", "a b", "c"), 'model."a b".c'),
        (("a.b",), '"a.b"'),
        (("",), '""'),
    ],
)
def test_dotted(keys: tuple[str, ...], said: str) -> None:
    assert dotted(*keys) == said


@pytest.mark.parametrize(
    ("values", "last", "said"),
    [
        ([], "", ""),
        (["a"], "", "a"),
        (["a"], "or", "a"),
        (["a", "b"], "", "a, b"),
        (["a", "b"], "or", "a or b"),
        (["a", "b", "c"], "or", "a, b or c"),
        ([4, 5, True], "", "4, 5, true"),
        ([str(n) for n in range(12)], "", "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11"),
        ([str(n) for n in range(14)], "or", "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 2 more"),
    ],
)
def test_listed(values: list[object], last: str, said: str) -> None:
    assert listed(values, last) == said


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("m_4bt", '; did you mean "m_4bit"?'),
        ("M_4BIT", '; did you mean "m_4bit"?'),
        ("zzz", " (possible: m_4bit, m_5bit)"),
        ("m_4bit" * 100, " (possible: m_4bit, m_5bit)"),  # too long to be a slip
    ],
)
def test_suggestion(word: str, said: str) -> None:
    assert suggestion(word, ["m_4bit", "m_5bit"]) == said


def test_nothing_is_near_where_there_is_nothing() -> None:
    assert nearest("x", []) is None
    assert suggestion("x", []) == " (possible: )"


def test_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert from_here(tmp_path / "here/store/x") == "store/x"
    assert from_here(Path("store/x")) == "store/x"
    assert from_here(tmp_path / "there") == "../there"
    far = Path("/a/b")
    assert from_here(far) == str(far)  # shorter than the way up
    monkeypatch.setenv("BUILDER_HERE", str(tmp_path / "here/sub"))
    assert from_here(tmp_path / "here/store/x") == "../store/x"
    monkeypatch.delenv("BUILDER_HERE")
    assert from_here(Path("/")) == "/"
