"""A suite and a figure with a dot in their names: from the declaration to every place that shows them."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from builder.evaluate.statistics import Figure
from builder.report.answer import answer
from builder.report.cells import accuracy, cell, divergence, heading, shown_as
from builder.report.document import FiguresOfOneName, document
from builder.report.facts import ModelReport
from builder.report.notes import first, required
from builder.report.page import summary
from builder.report.tables import study, whose_loss
from builder.spec.types import Metric
from tests.conftest import Sandbox, make_sandbox
from tests.evaluate.test_run import figures, project
from tests.report.test_page import report
from tests.tiny import DECLARATION

GREEDY, KL = Metric("routing.v2", "greedy"), Metric("fidelity.v2", "kl")
OWN = Metric("own.v1", "latency.p99")
KINDS = {"routing.v2": "choice", "fidelity.v2": "fidelity", "own.v1": "command"}
FIGURES = {
    GREEDY: Figure(0.967, 0.917, 0.987, 120),
    KL: Figure(0.0868, 0.071, 0.103, 1917, 120),
    OWN: Figure(2.5, None, None, 1),
}
KL_OF_BASE = Figure(0.0123, 0.01, 0.02, 1917, 120)


# -- values


def test_units_and_headings() -> None:
    model = report(KINDS, FIGURES)
    assert [shown_as(model, metric) for metric in FIGURES] == ["%", "KL", ""]
    assert [heading(model, metric) for metric in FIGURES] == [
        "routing.v2 greedy",
        "KL",
        "own.v1 latency.p99",
    ]
    assert [cell(model, metric, figure) for metric, figure in FIGURES.items()] == [
        "96.7 % (91.7 to 98.7)",
        "0.0868 (0.071 to 0.103)",
        "2.5",
    ]
    assert (accuracy(model), divergence(model)) == (GREEDY, KL)


def test_sentences() -> None:
    doubted: dict[str, Any] = {"required": {GREEDY: (">=", 0.95)}, "doubts": {GREEDY: 0.917}}
    model = report(KINDS, FIGURES, **doubted)
    said = first(model)
    assert said[0] == (
        "In brackets the 95 % interval (routing.v2 n = 120, fidelity.v2 n = 1917 tokens of 120 answers, "
        "own.v1 n = 1)."
    )
    assert required(model) == ["Required: routing.v2 greedy at least 95 %."]
    assert "Measured: routing.v2 n = 120, fidelity.v2 n = 1917 tokens of 120 answers" in summary(model)
    assert answer(model).notes == (
        "4bit passes, but not with certainty: the true routing.v2 greedy may be as low as 91.7 %.",
    )


def test_a_commands_figure_is_not_taken_for_what_its_name_ends_in() -> None:
    """Neither "x.kl" of a command nor its "x.agreement" is the KL or the agreement of a fidelity suite."""
    own = {Metric("own", "x.kl"): Figure(0.5, None, None, 1), Metric("own", "x.agreement"): KL_OF_BASE}
    model = report({"own": "command"}, own, control=own)
    assert (accuracy(model), divergence(model)) == (None, None)
    assert whose_loss(model) is None
    half = Metric("own", "s.greedy")
    assert cell(model, half, Figure(0.5, None, None, 1)) == "0.5"


def test_the_base_has_its_own_column() -> None:
    table = whose_loss(report(KINDS, FIGURES, control={KL: KL_OF_BASE, OWN: Figure(9.0, None, None, 1)}))
    assert table is not None
    assert dict(zip(table.headings, table.rows[0], strict=True)) == {
        "variant": "4bit",
        "KL, fine-tuned": "0.0868 (0.071 to 0.103)",
        "KL, base alone": "0.0123 (0.01 to 0.02)",
    }


def test_a_metric_is_text_in_json() -> None:
    made = document(report(KINDS, FIGURES, required={OWN: ("<=", 3.0)}, doubts={OWN: 3.5}))
    names = ["routing.v2.greedy", "fidelity.v2.kl", "own.v1.latency.p99"]
    assert made["metrics"] == names
    assert list(made["rows"][0]["figures"]) == names
    assert made["required"] == {"own.v1.latency.p99": ["<=", 3.0]}
    assert made["rows"][0]["doubts"] == {"own.v1.latency.p99": 3.5}
    assert json.loads(json.dumps(made)) == made


def test_two_figures_with_one_name_in_json_are_refused() -> None:
    """The page keeps them apart; in an object of JSON one would replace the other."""
    one, other = Metric("own", "v2.p99"), Metric("own.v2", "p99")
    kinds = {"own": "command", "own.v2": "command"}
    model: ModelReport = report(kinds, {one: Figure(1.0, None, None, 1), other: Figure(2.0, None, None, 1)})
    assert study(model).headings[-2:] == ("own v2.p99", "own.v2 p99")
    assert study(model).rows[0][-2:] == ("1", "2")
    with pytest.raises(FiguresOfOneName) as caught:
        document(model)
    assert str(caught.value) == (
        'model "m": "own.v2.p99" can mean figure "v2.p99" of suite "own" or figure "p99" of suite "own.v2".\n'
        "  Rename one of the suites in artifacts.toml: in JSON both figures would have this name."
    )


# -- as a person runs it


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """Two variants with an adapter and one without, measured by suites with dots in their names."""
    box = project(lambda text: make_sandbox(tmp_path_factory.mktemp("dots") / "p", text))
    base = re.search(r"\[base\.(\w+)\]", DECLARATION)
    assert base is not None
    text = box.toml.read_text()
    for name, new in {"routing": "routing.v2", "fidelity": "fidelity.v2", "own": "own.v1"}.items():
        text = text.replace(f"[suite.{name}]", f'[suite."{new}"]')
    text = text.replace(
        '["routing", "calls", "ppl", "fidelity", "said", "own"]', '["routing.v2", "fidelity.v2", "own.v1"]'
    )
    text = text.replace(
        '"routing.accuracy" = ">= 0"',
        '"routing.v2.greedy" = ">= 0"\n"fidelity.v2.kl" = "<= 100"\n"own.v1.latency.p99" = "<= 3"',
    )
    plain = f'\n[model.plain]\nbase = "{base[1]}"\nvariants = ["4bit"]\nsuites = ["fidelity.v2", "own.v1"]\n'
    box.toml.write_text(text + plain)
    (box.root / "own.py").write_text('print(\'{"latency.p99": 2.5, "n": 7}\')\n')
    ran = box.doit("run", "eval:m_4bit", "eval:m_5bit", "eval:plain_4bit")
    assert ran.code == 0, ran.text
    assert "own.v1.latency.p99" in ran.out
    assert len(figures(box)) == 8
    return box


def test_the_report(measured: Sandbox) -> None:
    ran = measured.doit("report")
    assert ran.code == 0, ran.text
    assert "routing.v2 greedy" in ran.out
    folder = measured.root / "store/report"
    text, found = (folder / "report.md").read_text(), figures(measured)
    table = table_of(text, "The variants")
    table = next(row for name, row in table.items() if name.split(" (")[0] == "4bit")
    greedy = found["m_4bit", "routing.v2"]["greedy"]
    assert table["routing.v2 greedy"].startswith(f"{100 * greedy:.3g} %")
    assert table["own.v1 latency.p99"] == "2.5"
    loss = table_of(text, "Whose loss is it?")["4bit"]
    assert loss["KL, fine-tuned"].startswith(f"{found['m_4bit', 'fidelity.v2']['kl']:.3g} ")
    assert loss["KL, base alone"].startswith(f"{found['plain_4bit', 'fidelity.v2']['kl']:.3g} ")
    assert not any("latency" in name for name in loss)
    assert "| routing.v2.greedy | 5bit | 4bit |" in text
    assert {"m-size.svg", "m-frontier.svg"} <= {file.name for file in folder.iterdir()}
    assert "routing.v2 greedy, %" in (folder / "m-size.svg").read_text()
    assert "size on disk against routing.v2.greedy" in text


def table_of(text: str, title: str) -> dict[str, dict[str, str]]:
    """A table of the Markdown: by the first cell of a row, the cells by heading."""
    lines = text.split(f"### {title}\n\n")[1].split("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: dict(zip(cells[0], row, strict=True)) for row in cells[2:]}


def test_the_report_as_json(measured: Sandbox) -> None:
    model = json.loads(measured.doit("report", "--json").out)["models"][0]
    assert model["kinds"] == KINDS
    assert model["required"] == {
        "routing.v2.greedy": [">=", 0.0],
        "fidelity.v2.kl": ["<=", 100.0],
        "own.v1.latency.p99": ["<=", 3.0],
    }
    row = next(row for row in model["rows"] if row["variant"] == "4bit")
    assert row["verdict"] == "passes"
    assert row["figures"]["own.v1.latency.p99"]["value"] == 2.5
    assert row["control"]["fidelity.v2.kl"] != row["figures"]["fidelity.v2.kl"]
    assert {(each["suite"], each["kind"], each["metric"]) for each in model["compared"]} == {
        ("routing.v2", "choice", "greedy"),
        ("fidelity.v2", "fidelity", "kl"),
    }


def test_the_threshold_and_the_status(measured: Sandbox) -> None:
    ran = measured.doit("threshold:m")
    assert ran.code == 0, ran.text
    assert "m_4bit is the smallest that passes" in ran.out
    before = measured.toml.read_text()
    try:
        measured.edit('"<= 3"', '"<= 2"')
        ran = measured.doit("eval:m_4bit")
        assert ran.code == 1
        assert "own.v1.latency.p99 <= 2: measured 2.5, misses by 0.5" in ran.text
        status = json.loads(measured.doit("status", "--json").out)["targets"]
        misses = {row["target"]: row["misses"] for row in status}
        assert misses["m_4bit"] == ["own.v1.latency.p99 <= 2: measured 2.5, misses by 0.5"]
    finally:
        measured.toml.write_text(before)
