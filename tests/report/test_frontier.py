"""The frontier of a report: kinds of variants, the line, its sentences, its table, its plot, its JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest

from builder.commands.report import show, write
from builder.evaluate.statistics import Figure
from builder.report.document import document
from builder.report.facts import Kind, ModelReport, Report, Row
from builder.report.frontier import frontier, kind_of, sentences
from builder.report.plots import plots
from builder.report.tables import beside_line
from builder.spec.quantizers import Calibrated, Experts, Goal, Learned
from builder.spec.types import Metric, Override, Quantization, Variant
from tests.report.test_page import report

KL, GREEDY = Metric("f", "kl"), Metric("s", "greedy")
TEXT = Path("text.jsonl")


def uniform(bits: int, *, group: int = 64, mode: str = "affine") -> Variant:
    return Variant(f"{bits}bit", quantization=Quantization(bits, group, mode))


FOUR = uniform(4)
VARIANTS: Mapping[str, Variant] = {
    "f16": Variant("f16", dtype="float16"),
    "3bit": uniform(3),
    "4bit": FOUR,
    "5bit": uniform(5),
    "mxfp4": uniform(4, group=32, mode="mxfp4"),
    "recipe": Variant("recipe", recipe="mixed_4_6"),
    "head8": dataclasses.replace(FOUR, overrides=(Override("lm_head", Quantization(8, 64)),)),
    "gptq": dataclasses.replace(FOUR, learned=Learned("gptq", "f16", TEXT)),
    "cal": dataclasses.replace(FOUR, calibrated=Calibrated(TEXT)),
    "fewer": dataclasses.replace(FOUR, experts=Experts(0.75), calibrated=Calibrated(TEXT, nearest=True)),
    "fewer16": Variant("fewer16", experts=Experts(0.75), calibrated=Calibrated(TEXT, nearest=True)),
    "small": Variant("small", goal=Goal(4.7), calibrated=Calibrated(TEXT)),
}
ROWS = tuple(1 + 0.01 * (at % 7) for at in range(60))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("f16", None),
        ("4bit", "uniform"),
        ("mxfp4", "uniform"),
        ("recipe", "mixed"),
        ("head8", "mixed"),
        ("gptq", "learned"),
        ("cal", "calibrated"),
        ("small", "chosen bits"),
        ("fewer", "fewer experts"),
        ("fewer16", "fewer experts"),
    ],
)
def test_the_kind_of_a_variant(name: str, kind: Kind | None) -> None:
    assert kind_of(VARIANTS[name]) == kind


def model(*measured: tuple[str, float, float | None], paired: bool = True, asked: bool = True) -> ModelReport:
    """Targets with their sizes in MB and their KLs, where they are measured. All have a rate too."""
    made = report({"f": "fidelity", "s": "choice"}, {}, required={GREEDY: (">=", 0.5)} if asked else {})
    rows: list[Row] = []
    for name, size, kl in sorted(measured, key=lambda each: -each[1]):
        figures = {GREEDY: Figure(0.9, 0.8, 1.0, 60)} if asked else {}
        if kl is not None:
            figures[KL] = Figure(kl, 0.9 * kl, 1.1 * kl, 60)
        facts = {"target": f"m_{name}", "variant": name, "size": int(1e6 * size), "figures": figures}
        kind = kind_of(VARIANTS[name])
        rows.append(dataclasses.replace(made.rows[0], **facts, kind=kind, verdict="passes"))
    metrics = tuple(metric for metric in (GREEDY, KL) if any(metric in row.figures for row in rows))
    made = dataclasses.replace(made, rows=tuple(rows), metrics=metrics)
    seen = {f"m_{name}": tuple(kl * each for each in ROWS) for name, _, kl in measured if kl}
    return dataclasses.replace(made, frontier=frontier(made, VARIANTS, seen if paired else {}))


WHOLE = model(
    ("f16", 270, 0.0), ("5bit", 95, 0.1), ("recipe", 85, 0.25), ("cal", 75, 0.1), ("4bit", 75, 0.4),
    ("small", 85, 0.06), ("gptq", 75, 0.3), ("head8", 80, 0.6), ("3bit", 55, 1.6), ("mxfp4", 50, 0.9),
)  # fmt: skip


def test_the_line_and_what_lies_beside_it() -> None:
    found = WHOLE.frontier
    assert found is not None
    assert found.line == ("m_5bit", "m_4bit", "m_3bit")
    beside = {each.target: each.ratio for each in found.beside}
    assert set(beside) == {"m_recipe", "m_cal", "m_small", "m_gptq", "m_head8"}  # mxfp4 is smaller than all
    assert beside["m_small"].value == pytest.approx(0.3)
    assert beside["m_small"].line == pytest.approx(0.2)


def test_a_target_that_searched_its_size_is_not_compared() -> None:
    """It is measured on the half of the questions that the search did not see."""
    rows = tuple(dataclasses.replace(row, searched=row.variant == "small") for row in WHOLE.rows)
    made = frontier(dataclasses.replace(WHOLE, rows=rows), VARIANTS, {})
    assert made is not None
    assert {each.target for each in made.beside} == {"m_recipe", "m_cal", "m_gptq", "m_head8"}


def test_the_sentences_say_what_lies_below() -> None:
    assert sentences(WHOLE) == [
        "Below the line of uniform bits: cal 0.25 (0.25 to 0.25), small 0.3 (0.3 to 0.3), "
        "gptq 0.75 (0.75 to 0.75).",
        "Above the line of uniform bits: recipe 1.25 (1.25 to 1.25), head8 2.12 (2.12 to 2.12).",
        "A number is the KL of a variant divided by the KL of the line at the same bytes, "
        "with the paired 95 % interval.",
        "The line goes through 3bit, 4bit and 5bit.",
    ]


def test_without_rows_nothing_is_called_lower() -> None:
    said = sentences(model(("5bit", 95, 0.1), ("4bit", 75, 0.4), ("cal", 75, 0.1), paired=False))
    assert said[0] == "Beside the line of uniform bits, without an interval: cal 0.25."
    assert said[1].endswith("at the same bytes.")


def test_an_interval_that_holds_1_shows_no_difference() -> None:
    made = model(("5bit", 95, 0.1), ("4bit", 75, 0.4), ("cal", 75, 0.4))
    rows = {"m_4bit": tuple(0.4 * each for each in ROWS), "m_cal": tuple(0.4 * each for each in ROWS[::-1])}
    rows["m_5bit"] = rows["m_4bit"]
    made = dataclasses.replace(made, frontier=frontier(made, VARIANTS, rows))
    assert sentences(made)[0].startswith("No difference from the line of uniform bits is shown: cal 1 (0.99")


def test_the_table_has_the_same_numbers() -> None:
    table = beside_line(WHOLE)
    assert table is not None
    assert table.headings == ("variant", "how", "size", "KL", "KL of the line", "KL / line")
    small = ("small", "chosen bits (a target size)", "85.0 MB", "0.06", "0.2", "0.3 (0.3 to 0.3)")
    assert small in table.rows


@pytest.mark.parametrize(
    ("measured", "line", "beside", "drawn"),
    [
        ([("5bit", 95, 0.1), ("4bit", 75, 0.4), ("3bit", 55, None)], 2, 0, True),
        ([("4bit", 75, 0.4), ("cal", 75, 0.1), ("small", 85, 0.05)], 0, 0, True),  # one uniform
        ([("cal", 75, 0.1), ("small", 85, 0.05)], 0, 0, True),  # none
        ([("4bit", 75, 0.4), ("mxfp4", 70, 0.9), ("cal", 75, 0.1)], 0, 0, True),  # two kinds of grids
        ([("4bit", 75, 0.4), ("f16", 270, 0.0)], 0, 0, False),
        ([("4bit", 75, 0.4), ("5bit", 95, None), ("cal", 75, None)], 0, 0, False),
        ([("4bit", 75, None), ("cal", 75, None)], None, None, False),
        ([], None, None, False),
    ],
)
def test_what_is_missing_is_left_out(
    measured: list[tuple[str, float, float | None]],
    line: int | None,
    beside: int | None,
    drawn: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("matplotlib")
    made = model(*measured, asked=False)
    assert (None if made.frontier is None else len(made.frontier.line)) == line
    assert (None if made.frontier is None else len(made.frontier.beside)) == beside
    assert sentences(made) == []
    assert beside_line(made) is None
    write(Report("1", (made,)), tmp_path)
    assert (tmp_path / "m-frontier.svg").exists() == drawn
    show(Report("1", (made,)))
    assert "line" not in capsys.readouterr().out
    assert "line of uniform bits" not in (tmp_path / "report.md").read_text()


def test_the_plot_tells_the_kinds_apart() -> None:
    pytest.importorskip("matplotlib")
    plot = next(plot for plot in plots(WHOLE) if plot.name == "frontier")
    for words in ("rounded to nearest", "recipe or overrides", "a method of mlx-lm", "chosen bits (a target"):
        assert words in plot.svg
    assert "size on disk, MB" in plot.svg
    assert "KL, nats per token" in plot.narrow
    assert plot.text.startswith("Below the line of uniform bits: cal 0.25")


def test_the_frontier_is_the_large_plot_where_the_answer_is_a_kl() -> None:
    pytest.importorskip("matplotlib")
    alone = model(("5bit", 95, 0.1), ("4bit", 75, 0.4), ("cal", 75, 0.1), asked=False)
    alone = dataclasses.replace(alone, required={KL: ("<=", 0.2)})
    assert [plot.name for plot in plots(alone)] == ["frontier"]
    assert "required: KL at most 0.2" in plots(alone)[0].svg
    assert [plot.name for plot in plots(WHOLE)] == ["size", "frontier"]


def test_the_terminal_and_the_json_say_it_too(capsys: pytest.CaptureFixture[str]) -> None:
    show(Report("1", (WHOLE,)))
    assert "Below the line of uniform bits: cal 0.25" in capsys.readouterr().out
    made = document(WHOLE)
    assert made["frontier"]["metric"] == "f.kl"
    assert made["frontier"]["line"] == ["m_5bit", "m_4bit", "m_3bit"]
    first = made["frontier"]["beside"][0]
    assert set(first) == {"target", "ratio"}
    assert set(first["ratio"]) == {"line", "value", "low", "high"}
    assert [row["kind"] for row in made["rows"]][:2] == [None, "uniform"]
