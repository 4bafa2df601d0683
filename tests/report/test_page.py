"""doit report: what the store holds as a page, as Markdown and as JSON; nothing is loaded for it."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builder.evaluate.comparison import Difference
from builder.evaluate.results import MOST_SAMPLES
from builder.evaluate.statistics import Figure
from builder.project.project import Project
from builder.report.collect import collect
from builder.report.document import as_json
from builder.report.facts import Compared, ModelReport, Provenance, Report, Row, Trained
from builder.report.page import html, section, summary
from builder.report.plots import plots
from builder.report.tables import study, verdict
from builder.spec.types import Metric
from tests.conftest import Sandbox, make_sandbox
from tests.evaluate.test_run import figures, project
from tests.report.browser import contrast, looked_at, luminance
from tests.tiny import DECLARATION

ROOT = Path(__file__).resolve().parents[2]

CONTROL = """
[model.plain]
base = "base"
variants = ["f16", "4bit"]
suites = ["routing", "fidelity"]
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """Two variants with an adapter and the same without, measured."""
    box = project(lambda text: make_sandbox(tmp_path_factory.mktemp("report") / "p", text))
    text = box.toml.read_text()
    base = re.search(r"\[base\.(\w+)\]", DECLARATION)
    assert base is not None
    asked = text.replace('suites = ["routing", "calls", "ppl", "fidelity", "said", "own"]',
                         'suites = ["routing", "fidelity", "said"]')  # fmt: skip
    box.toml.write_text(asked.replace('">= 0"', '">= 0.9"') + CONTROL.replace('"base"', f'"{base[1]}"', 1))
    targets = ("m_4bit", "m_5bit", "m_f16", "plain_4bit", "plain_f16")
    ran = box.doit("run", "--continue", *(f"eval:{target}" for target in targets))
    assert len(figures(box)) == 13, ran.text
    return box


def test_the_page_says_what_was_measured(measured: Sandbox) -> None:
    ran = measured.doit("report")
    assert ran.code == 0, ran.text
    page = (measured.root / "store/report/index.html").read_text()
    text = (measured.root / "store/report/report.md").read_text()
    found = figures(measured)
    greedy = f"{100 * found['m_4bit', 'routing']['greedy']:.3g} %"
    kl = f"{found['m_4bit', 'fidelity']['kl']:.3g}"
    beside = f"{found['plain_4bit', 'fidelity']['kl']:.3g}"
    for number in (greedy, kl, beside):
        assert number in page
        assert number in text
    assert "Whose loss is it?" in page
    assert "no difference shown (n = 6)" in text
    manifest = (measured.view("m_4bit") / "artifact.toml").read_text()
    key = re.search(r'key = "(\w+)"', manifest)
    assert key is not None
    assert key[1][:12] in page
    assert "store/report/index.html" in ran.out.splitlines()


def test_sample_answers_stand_beside_the_right_ones(measured: Sandbox) -> None:
    """The suite "said" generates. Its first answers are kept, those of other suites are not."""
    rows = json.loads(measured.doit("report", "--json").out)["models"][0]["rows"]
    kept = next(row for row in rows if row["variant"] == "4bit")["samples"]
    assert list(kept) == ["said"]
    assert 0 < len(kept["said"]) <= MOST_SAMPLES
    first = json.loads((measured.root / "rows.jsonl").read_text().splitlines()[0])["messages"]
    assert kept["said"][0]["question"] == first[-2]["content"]
    assert kept["said"][0]["expected"] == first[-1]["content"]
    page = (measured.root / "store/report/index.html").read_text()
    assert "Sample answers" in page


def test_the_headline_names_production(measured: Sandbox, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(measured.root, copy, symlinks=True)
    box = Sandbox(copy)
    box.edit('">= 0.9"', '">= 0"')
    box.toml.write_text(box.toml.read_text() + '\n[release]\nproduction = "m_5bit"\n')
    before = json.loads(box.doit("report", "--json").out)["models"][0]
    assert before["production"] == {"target": None, "is_current": False}
    assert before["headline"].endswith("; production is not released yet")
    assert box.doit("release:production").code == 0
    model, plain = json.loads(box.doit("report", "--json").out)["models"]
    assert model["chosen"] == "m_4bit"
    assert re.fullmatch(r"4bit is the smallest that passes: .*; production is 5bit", model["headline"])
    assert plain["production"] is None
    assert "production is 5bit." in box.doit("report").out


def test_the_page_needs_nothing_from_elsewhere(measured: Sandbox) -> None:
    measured.doit("report")
    page = (measured.root / "store/report/index.html").read_text()
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?!#)[^"'>\s]""", page.replace("xlink:href", "xlink"))
    assert "@import" not in page
    assert "<script" not in page
    linked = set(re.findall(r'xlink:href="#([^"]+)"', page))
    assert linked <= set(re.findall(r'\bid="([^"]+)"', page))
    assert linked, "the plots are missing"


def test_the_same_store_gives_the_same_bytes(measured: Sandbox) -> None:
    def made(folder: str) -> dict[str, bytes]:
        assert measured.doit("report", "-o", folder).code == 0
        return {path.name: path.read_bytes() for path in sorted((measured.root / folder).iterdir())}

    first, second = made("one"), made("two")
    assert first == second
    assert {"index.html", "report.md", "m-frontier.svg", "m-size.svg", "m-error.svg", "m-table.md"} <= set(
        first
    )


def test_no_model_is_loaded(measured: Sandbox, tmp_path: Path) -> None:
    """Importing mlx is an error: the report is still there, and the same."""
    copy = tmp_path / "copy"
    shutil.copytree(measured.root, copy, symlinks=True)
    box = Sandbox(copy)
    before = measured.doit("report", "--json")
    (copy / "mlx.py").write_text("raise ImportError('not here')")
    ran = box.doit("report", "--json", env={"PYTHONPATH": str(copy)})
    assert ran.code == 0, ran.text
    mine, theirs = json.loads(ran.out), json.loads(before.out)
    assert mine["schema"] == "modelkiln/report/1"
    assert mine["models"][0]["rows"] == theirs["models"][0]["rows"]


def test_nothing_built_and_an_unknown_model(sandbox: Callable[[str], Sandbox]) -> None:
    box = sandbox(DECLARATION)
    ran = box.doit("report")
    assert ran.code == 0, ran.text
    assert "Nothing is built yet: build with `doit model:m`." in ran.out
    assert "Nothing is built yet" in (box.root / "store/report/index.html").read_text()
    wrong = box.doit("report", "n")
    assert wrong.code == 3
    assert wrong.err.startswith('ERROR: there is no model "n"')


def test_two_targets_are_called_different_only_by_a_test() -> None:
    def said(kind: str, metric: str, difference: Difference) -> str:
        return verdict(Compared(Metric("s", metric), kind, "a", "b", difference))

    none = Difference(-0.1, -0.2, 0.01, 40, 0.02, 0.2, False)
    some = Difference(-0.1, -0.2, -0.01, 40, 0.02, 0.04, True)
    assert said("choice", "greedy", none) == "no difference shown (n = 40)"
    assert said("choice", "greedy", some) == "-10.0 points (-20.0 to -1.0, n = 40)"
    assert said("fidelity", "agreement", some) == "-10.0 points (-20.0 to -1.0, n = 40)"
    assert said("fidelity", "kl", some) == "-0.1 nats/token (-0.2 to -0.01, n = 40)"


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280, 1600])
def test_it_looks_right_in_a_browser(measured: Sandbox, tmp_path: Path, width: int, dark: bool) -> None:
    """Nothing is cut off and no name covers another one, with details closed and open."""
    measured.doit("report")
    looks_right((measured.root / "store/report/index.html").read_text(), tmp_path, width, dark=dark)


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["study", "frontier"])
def test_the_page_of_the_study_looks_right(tmp_path: Path, width: int, name: str) -> None:
    """Many variants, some of them of nearly equal size."""
    looks_right((ROOT / "docs" / name / "index.html").read_text(), tmp_path, width, dark=False)


CURVE = Trained(
    train=tuple((step, 4.5 / step + 0.1 * (step % 3)) for step in range(1, 121)),
    valid=((0, 4.54), (40, 1.42), (80, 1.38), (120, 1.57)),
    steps=120,
    kept=80,
    settings={"on": "4-bit, group size 64"},
    seconds=400.0,
    overlaps=("suite routing: 3 of 6 questions stand in train.jsonl",),
    loss=1.38,
    fused_loss=1.391,
)


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_of_a_trained_model_looks_right(measured: Sandbox, tmp_path: Path, width: int) -> None:
    """Two seeds: their table stands before them, and each has its curves."""
    [model] = collect(Project.load(measured.toml), ["m"]).models
    seeds = [f"m-seed{seed}" for seed in range(2)]
    models = tuple(dataclasses.replace(model, name=each, seed_of="m", training=CURVE) for each in seeds)
    page = html(Report("1", models), [section(each, plots(each)) for each in models])
    headings = re.findall(r"<h2>(.*)</h2>", page)
    assert headings == ["m, all 2 seeds", *seeds]
    assert page.count("Training: 120 steps, step 80 kept") == 2
    assert "validation loss 1.38 there, and 1.39 fused into the unquantized base" in page
    looks_right(page, tmp_path, width, dark=False, least=4)


def looks_right(page: str, folder: Path, width: int, *, dark: bool, least: int = 2) -> None:
    for seen in looked_at(page, folder, width, dark=dark).values():
        assert seen["width"] == width
        assert seen["needed"] <= width, "the page scrolls sideways"
        assert seen["cut"] == [], "a table is cut off"
        assert seen["covered"] == [], "texts of a plot cover each other"
        assert seen["outside"] == [], "a text of a plot is cut off"
        assert len(seen["plots"]) >= least
        assert all(left >= 0 and right <= width and right - left > 200 for left, right, _ in seen["plots"])
        assert seen["text"] >= 10.5, "the text of the plot is too small"
        assert contrast(seen["ink"], seen["paper"]) >= 7
        assert contrast(seen["plot_ink"], seen["paper"]) >= 7
        assert min(contrast(seen[name], seen["paper"]) for name in ("good", "bad")) >= 4.5
        assert (luminance(seen["paper"]) < 0.1) == dark


def report(kinds: dict[str, str], figures: dict[Metric, Figure], **more: Any) -> ModelReport:
    """Of one target with these figures."""
    said = Provenance("m_4bit", "k", "", "", "", "", "", "", "", "", None)
    row = Row("m_4bit", "4bit", 4, 20_000_000, 4.5, figures, None, (), "passes", (), {}, said)
    row = dataclasses.replace(row, **{k: v for k, v in more.items() if k in ("doubts", "verdict", "control")})
    required = more.get("required", {})
    return ModelReport("m", "b", None, (row,), tuple(figures), kinds, required, (), (), None)


def cells(model: ModelReport) -> dict[str, str]:
    table = study(model)
    return dict(zip(table.headings, table.rows[0], strict=True))


def test_a_figure_without_width_has_no_interval() -> None:
    kinds = {"f": "fidelity", "s": "choice", "g": "generate"}
    found = cells(
        report(
            kinds,
            {
                Metric("f", "kl"): Figure(0.5, 0.5, 0.5, 3),
                Metric("s", "greedy"): Figure(0.5, 0.25, 0.75, 3),
                Metric("g", "seconds"): Figure(2.0, -math.inf, math.inf, 1),
            },
        )
    )
    assert found["KL"] == "0.5"
    assert found["s greedy"] == "50 % (25 to 75)"
    assert found["g s/query"] == "2"


def test_the_kind_of_a_suite_says_what_a_figure_is_not_its_name() -> None:
    own = {
        Metric("own", "memory"): Figure(20_000_000, None, None, 1),
        Metric("own", "accuracy"): Figure(97.5, None, None, 40),
    }
    found = cells(report({"own": "command"}, own))
    assert found["own memory"] == "2e+07"
    assert found["own accuracy"] == "97.5"
    assert "memory" not in found  # nobody measured the peak, and the size on disk is none
    generated = cells(report({"g": "generate"}, {Metric("g", "memory"): Figure(0.02, None, None, 5)}))
    assert generated["memory"] == "20.0 MB"


GREEDY = {
    Metric("s", "accuracy"): Figure(1.0, 0.9, 1.0, 120),
    Metric("s", "greedy"): Figure(0.967, 0.917, 0.987, 120),
}
KL = {Metric("f", "kl"): Figure(0.0868, 0.071, 0.103, 1917, 120)}
DOUBTED: dict[str, Any] = {
    "required": {Metric("s", "greedy"): (">=", 0.95), Metric("f", "kl"): ("<=", 0.1)},
    "doubts": {Metric("s", "greedy"): 0.917, Metric("f", "kl"): 0.103},
}


def test_a_pass_that_is_not_certain_says_so() -> None:
    found = cells(report({"s": "choice", "f": "fidelity"}, GREEDY | KL, **DOUBTED))
    assert found["result"] == "✓ passes, not certain"


def test_the_table_for_a_readme_has_the_answer_above_and_its_doubts_below() -> None:
    assert summary(report({"s": "choice", "f": "fidelity"}, GREEDY | KL, **DOUBTED)) == (
        "**4bit is the smallest that passes: 20.0 MB.**\n"
        "\n"
        "| variant | verdict | size | bits/weight | s greedy | KL |\n"
        "| --- | --- | ---: | ---: | ---: | ---: |\n"
        "| 4bit | ✓ passes, not certain | 20.0 MB | 4.50 | 96.7 % | 0.0868 |\n"
        "\n"
        "Measured: s n = 120, f n = 1917 tokens of 120 answers. "
        "Required: s greedy at least 95 % and KL at most 0.1. Not certain for 4bit: the true s greedy may be "
        "as low as 91.7 % and the true KL may be as high as 0.103.\n"
    )


def test_the_figures_of_that_table_are_the_required_ones_else_the_first_rate() -> None:
    free = summary(report({"s": "choice"}, GREEDY, verdict="nothing required"))
    assert "| variant | size | bits/weight | s accuracy |" in free
    assert "| 4bit | 20.0 MB | 4.50 | 100 % |" in free
    certain = summary(report({"s": "choice"}, GREEDY, required={Metric("s", "greedy"): (">=", 0.9)}))
    assert "| 4bit | ✓ passes | 20.0 MB | 4.50 | 96.7 % |" in certain
    assert certain.endswith("Required: s greedy at least 90 %.\n")
    bare = summary(report({}, {}, verdict="nothing required"))
    assert bare.splitlines()[2] == "| variant | size | bits/weight |"


def test_the_base_alone_stands_in_the_table(measured: Sandbox) -> None:
    measured.doit("report")
    text = (measured.root / "store/report/report.md").read_text()
    row = re.search(r"^\| f16, no adapter \| - \|.*$", text, re.MULTILINE)
    assert row is not None
    greedy = figures(measured)["plain_f16", "routing"]["greedy"]
    assert f"{100 * greedy:.3g} %" in row[0]
    assert "Without a control, since plain has none built: 5bit." in text
    table = (measured.root / "store/report/m-table.md").read_text()
    assert "| f16, no adapter |" in table
    assert "Measured from base and adapter, not on disk: f16; the size is what it takes." in text
    assert "In brackets the 95 % interval (routing n = 6, fidelity n =" in text
    assert re.search(r"^Measured: routing n = 6, fidelity n = \d+ tokens of 6 answers", table, re.M)


def test_it_says_when_and_on_what_was_measured(measured: Sandbox) -> None:
    model = json.loads(measured.doit("report", "--json").out)["models"][0]
    told = model["rows"][0]["provenance"]["measured"]
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ( to 20.*Z)?", told["when"])
    assert told["where"]
    assert re.search(r"mlx \d+.*mlx-lm \d+.*precision", told["how"])


def test_missing_questions_cost_their_suite_alone(measured: Sandbox, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(measured.root, copy, symlinks=True)
    box = Sandbox(copy)
    said = copy / "said.jsonl"
    said.write_text((copy / "rows.jsonl").read_text())
    text = box.toml.read_text()
    place = text.index('data = "rows.jsonl"', text.index("[suite.said]"))
    box.toml.write_text(text[:place] + 'data = "said.jsonl"' + text[place + len('data = "rows.jsonl"') :])
    assert box.doit("report").code == 0
    assert "not measured: questions missing" not in (copy / "store/report/report.md").read_text()
    said.unlink()
    ran = box.doit("report")
    assert ran.code == 0, ran.text
    report = (copy / "store/report/report.md").read_text()
    assert "said: not measured: questions missing (said.jsonl: No such file or directory)." in report
    assert "routing n = 6" in report


def test_numbers_that_json_lacks_are_null() -> None:
    assert as_json({"a": [math.inf, 1.5, (math.nan, "x")]}) == {"a": [None, 1.5, [None, "x"]]}
