"""doit report: what the store holds as a page, as Markdown and as JSON; nothing is loaded for it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from builder.evaluate.comparison import Difference
from builder.evaluate.statistics import Figure
from builder.report.facts import Compared
from builder.report.tables import verdict
from tests.conftest import Sandbox, make_sandbox
from tests.test_evaluate_run import figures, project
from tests.tiny import DECLARATION

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
    assert {"index.html", "report.md", "m-kl.svg", "m-size.svg"} <= set(first)


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
    assert "nothing is built" in ran.out
    wrong = box.doit("report", "n")
    assert wrong.code == 3
    assert wrong.err.startswith('ERROR: there is no model "n"')


def test_two_targets_are_called_different_only_by_a_test() -> None:
    none = Compared("s", "a", "b", Difference(-0.1, -0.2, 0.01, 40, 0.2, False))
    rate = Compared("s", "a", "b", Difference(-0.1, -0.2, -0.01, 40, 0.02, True))
    loss = Compared("s", "a", "b", Difference(0.5, 0.4, 0.6, 40, None, True))
    assert verdict(none) == "no difference shown (n = 40)"
    assert verdict(rate) == "-10.0 points (-20.0 to -1.0, n = 40)"
    assert verdict(loss) == "+0.5 (+0.4 to +0.6, n = 40)"


CHROME = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
CHECK = """
<script>
addEventListener("load", () => {
  const seen = [...document.querySelectorAll("svg")].map(e => e.getBoundingClientRect());
  const style = getComputedStyle(document.body);
  const ink = getComputedStyle(document.querySelector("svg text")).fill;
  const boxes = [...document.querySelectorAll("h1, h2, p, figure, .box, details")];
  const said = [Math.max(...boxes.map(e => e.getBoundingClientRect().right)), seen.length,
    Math.min(...seen.map(r => r.width)), Math.max(...seen.map(r => r.right)),
    style.color, style.backgroundColor, ink].join("|");
  const e = document.createElement("p"); e.id = "said"; e.textContent = said; document.body.append(e);
});
</script>
"""


@pytest.mark.skipif(CHROME is None, reason="no Chromium or Chrome on PATH")
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_looks_right_in_a_browser(measured: Sandbox, tmp_path: Path, width: int, dark: bool) -> None:
    """Nothing is wider than the page, which is narrowed: Chromium's windows are at least 500 wide."""
    measured.doit("report")
    page = (measured.root / "store/report/index.html").read_text()
    file = tmp_path / "page.html"
    file.write_text(page.replace("</body>", f"<style>html {{ width: {width}px }}</style>{CHECK}</body>"))
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    command = [
        str(CHROME),
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}/c",
    ]
    command += [f"--window-size={max(width, 500)},900", *scheme, "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
    found = re.search(r'<p id="said">([^<]*)</p>', done.stdout)
    assert found is not None, done.stderr[-500:]
    edge, count, narrowest, right, color, paper, ink = found[1].split("|")
    assert float(edge) <= width, "the page scrolls sideways"
    assert int(count) >= 2
    assert float(narrowest) > 200
    assert float(right) <= width, "a plot is wider than the page"
    assert contrast(color, paper) >= 7
    assert contrast(ink, paper) >= 7
    assert (luminance(paper) < 0.1) == dark


def luminance(color: str) -> float:
    """Relative luminance, WCAG 2.2."""
    parts = [int(value) / 255 for value in re.findall(r"\d+", color)[:3]]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(share * p for share, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_a_figure_without_width_has_no_interval() -> None:
    from builder.report.tables import _cell

    assert _cell("s.kl", Figure(0.5, 0.5, 0.5, 3)) == "0.5"
    assert _cell("s.greedy", Figure(0.5, 0.25, 0.75, 3)) == "50 % (25 to 75)"
