"""The headline of a report, its first table and its sample answers, from facts."""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from builder.commands.report import write
from builder.evaluate import results
from builder.evaluate.results import Result, Sample, shortened
from builder.evaluate.statistics import Figure
from builder.keys import Key
from builder.report import drawing
from builder.report.answer import answer
from builder.report.document import document
from builder.report.facts import ModelReport, Production, Report, Row
from builder.report.labels import Box, apart, places
from builder.report.samples import markdown, questions
from builder.report.size_plot import size_plot
from builder.report.tables import MOST_COLUMNS, key
from builder.spec.types import Metric
from builder.store import seals
from builder.store.layout import Store
from tests.report.test_page import report

GREEDY = Metric("s", "greedy")
MB = 1_000_000


def row(name: str, size: float, value: float | None, verdict: str, **more: Any) -> Row:
    (made,) = report({}, {}).rows
    figures = {} if value is None else {GREEDY: Figure(value, value - 0.05, min(1, value + 0.05), 100)}
    misses = (f"s.greedy >= 0.95: measured {value}, misses by 0.1",) if verdict == "misses" else ()
    facts = {"target": f"m_{name}", "variant": name, "size": int(size * MB), "figures": figures}
    bits = 16 if name == "f16" else 4
    return dataclasses.replace(made, bits=bits, verdict=verdict, misses=misses, **facts, **more)


def model(*rows: Row, required: bool = True, **more: Any) -> ModelReport:
    made = report({"s": "choice"}, {}, required={GREEDY: (">=", 0.95)} if required else {})
    return dataclasses.replace(made, rows=rows, metrics=(GREEDY,), **more)


F16, FIVE, FOUR = (
    row("f16", 273, 0.98, "passes"),
    row("5bit", 96, 0.96, "passes"),
    row("4bit", 79, 0.89, "misses"),
)
OPEN = row("3bit", 60, None, "not measured")
FREE = [dataclasses.replace(each, verdict="nothing required") for each in (F16, FOUR)]


@pytest.mark.parametrize(
    ("facts", "headline"),
    [
        (model(F16, FIVE, FOUR), "5bit is the smallest that passes: 96.0 MB, 2.8 times smaller than f16"),
        (
            model(F16, FIVE, FOUR, production=Production("m_5bit", is_current=True)),
            "5bit is the smallest that passes: 96.0 MB, 2.8 times smaller than f16; production is 5bit",
        ),
        (
            model(F16, FIVE, FOUR, production=Production("m_4bit", is_current=True)),
            "5bit is the smallest that passes: 96.0 MB, 2.8 times smaller than f16; "
            "production is 4bit, which misses",
        ),
        (
            model(F16, FIVE, production=Production("m_5bit", is_current=False)),
            "5bit is the smallest that passes: 96.0 MB, 2.8 times smaller than f16; "
            "production is an older build of 5bit",
        ),
        (
            model(F16, FOUR, production=Production(None, is_current=False)),
            "f16 is the smallest that passes: 273 MB; production is not released yet",
        ),
        (
            model(F16, FIVE, FOUR, OPEN),
            "5bit is the smallest measured variant that passes: 96.0 MB, 2.8 times smaller than f16",
        ),
        (
            model(FOUR),
            "No variant passes: 4bit, the largest, misses s greedy (89 %, required at least 95 %)",
        ),
        (model(FOUR, OPEN), "No variant is known to pass: measure with `doit eval:m_3bit`"),
        (model(*FREE, required=False), "Nothing is required: 2 variants, 79.0 MB to 273 MB"),
        (model(), "Nothing is built yet: build with `doit model:m`"),
    ],
)
def test_the_headline(facts: ModelReport, headline: str) -> None:
    assert answer(facts).headline == headline
    assert document(facts)["headline"] == headline
    assert document(facts)["chosen"] == answer(facts).chosen


def test_what_limits_the_answer() -> None:
    larger = row("8bit", 140, 0.9, "misses")
    doubted = dataclasses.replace(FIVE, doubts={GREEDY: 0.91})
    assert answer(model(F16, larger, doubted, OPEN, absent=("m_2bit",))).notes == (
        "5bit passes, but not with certainty: the true s greedy may be as low as 91 %.",
        "Larger, but misses: 8bit.",
        "Not measured: 2bit, 3bit.",
    )


def test_the_first_table_has_at_most_seven_columns() -> None:
    metrics = [Metric("s", name) for name in ("accuracy", "greedy", "a", "b", "c")]
    figures = {metric: Figure(0.97, 0.9, 1.0, 50) for metric in metrics}
    wide = report({"s": "choice"}, figures, required=dict.fromkeys(metrics, (">=", 0.9)))
    table = key(wide)
    assert len(table.headings) <= MOST_COLUMNS
    assert table.headings[:4] == ("variant", "verdict", "size", "bits/weight")
    assert table.rows[0][0] == "4bit (smallest that passes)"
    assert table.rows[0][1] == "✓ passes"


def test_the_answer_is_text_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "available", lambda: False)
    write(Report("1", (model(F16, FIVE, FOUR),)), tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert "5bit is the smallest that passes:</strong> 96.0 MB, 2.8 times smaller than f16" in page
    assert "✗ misses" in page
    assert "pip install matplotlib" in page
    assert "<svg" not in page
    assert "5bit is the smallest that passes: 96.0 MB" in (tmp_path / "report.md").read_text()


def test_a_point_in_the_green_zone_says_what_it_misses() -> None:
    pytest.importorskip("matplotlib")
    kl = Metric("f", "kl")
    missed = dataclasses.replace(
        FIVE, verdict="misses", misses=("f.kl <= 0.1: measured 0.3, misses by 0.2",),
        figures={**FIVE.figures, kl: Figure(0.3, 0.2, 0.4, 50)},
    )  # fmt: skip
    facts = model(F16, missed, kinds={"s": "choice", "f": "fidelity"})
    facts = dataclasses.replace(facts, required={GREEDY: (">=", 0.95), kl: ("<=", 0.1)})
    plot = size_plot(facts)
    assert plot is not None
    assert "5bit, misses KL" in plot.svg
    assert "f16, 273 MB" in plot.svg


# -- sample answers


def test_equal_answers_stand_together_beside_the_right_one() -> None:
    right, wrong = (
        Sample("q <b>?", "yes", "yes", right=True),
        Sample("q <b>?", "yes", "``n``\no", right=False),
    )
    rows = [
        dataclasses.replace(F16, samples={"g": (right,)}),
        dataclasses.replace(FIVE, samples={"g": (right,)}),
    ]
    rows.append(dataclasses.replace(FOUR, samples={"g": (wrong,)}))
    facts = model(*rows, checks={"g": "regex"})
    facts = dataclasses.replace(facts, kinds={"s": "choice", "g": "generate"})
    (asked,) = questions(facts)
    assert [(said.variants, said.text, said.word) for said in asked.answers] == [
        (("f16", "5bit"), "yes", "right"),
        (("4bit",), "``n``\no", "wrong"),
    ]
    assert markdown([asked]) == [
        "**`q <b>?`** (g)",
        "",
        "- right (a regular expression): `yes`",
        "- ✓ right, f16, 5bit: `yes`",
        "- ✗ wrong, 4bit: ``` ``n`` o ```",
        "",
    ]


def test_a_page_shows_strange_answers_as_text(tmp_path: Path) -> None:
    said = Sample("<script>q</script>", "x", "<script>alert(1)</script>", right=False)
    facts = model(dataclasses.replace(F16, samples={"s": (said,)}), FIVE)
    write(Report("1", (facts,)), tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_results_with_and_without_samples(tmp_path: Path) -> None:
    """Old results are read. Results of suites without samples are written as before."""
    store = Store(tmp_path)
    made = Result(
        Key("a" * 64), "m_4bit", "s", "generate", {"rate": Figure(1.0, 0.5, 1.0, 3)}, {"rate": (1.0,)}
    )
    results.write(store, made)
    text = seals.read(results.path(store, made.key))
    assert text is not None
    assert "samples" not in json.loads(text)
    assert results.read(store, made.key) == made
    kept = dataclasses.replace(made, samples=(Sample("q", "a", "b", right=False),))
    results.write(store, kept)
    assert results.read(store, made.key) == kept


def test_a_long_answer_is_shortened() -> None:
    assert shortened("x" * 400) == "x" * 400
    assert shortened("x" * 401) == "x" * 397 + "..."


# -- names in a plot


def test_names_cover_nothing() -> None:
    points = [(10.0 * n, 50.0 + n % 2) for n in range(1, 11)]
    marks = [Box(x - 4, y - 4, x + 4, y + 4) for x, y in points]
    bounds = Box(0, 0, 400, 200)
    made = places(points, [(40, 12)] * 10, marks, [], bounds)
    found = [place.box for place in made if place is not None]
    assert len(found) >= 5
    assert all(box.inside(bounds) for box in found)
    assert not any(box.meets(mark) for box in found for mark in marks)
    assert not any(a.meets(b) for n, a in enumerate(found) for b in found[n + 1 :])


def test_names_at_the_ends_of_lines_stand_apart() -> None:
    assert apart([1, 30, 60], 10) == [1, 30, 60]
    assert apart([30, 31, 60], 10) == [25.5, 35.5, 60]
    assert apart([58, 59], 10, (0, 60)) == [45, 55]
    assert apart([1, 20], 10, (0, 60)) == [5, 20]
    low_to_high = sorted(apart([5, 5, 5, 14], 10))
    assert all(b - a >= 10 for a, b in pairwise(low_to_high))
