"""A page in a real browser: its size, what is cut off, which texts cover each other, its colours."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PATIENCE

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=4000",
)
LOOK = """
<script>
function look() {
  const shown = e => e.getClientRects().length > 0;
  const plots = [...document.querySelectorAll("svg")].filter(shown);
  const covered = [], outside = [];
  for (const plot of plots) {
    const frame = plot.getBoundingClientRect();
    const texts = [...plot.querySelectorAll("text")].map(e => [e.textContent, e.getBoundingClientRect()]);
    texts.forEach(([said, a], i) => {
      if (a.left < frame.left - 1 || a.right > frame.right + 1
          || a.top < frame.top - 1 || a.bottom > frame.bottom + 1)
        outside.push(said);
      for (const [other, b] of texts.slice(i + 1))
        if (a.left < b.right - .5 && b.left < a.right - .5 && a.top < b.bottom - .5 && b.top < a.bottom - .5)
          covered.push(said + " / " + other);
    });
  }
  const style = getComputedStyle(document.body);
  const colour = q => getComputedStyle(document.querySelector(q) || document.body).color;
  const scale = e => e.getBoundingClientRect().width / e.viewBox.baseVal.width;
  const size = e => parseFloat(getComputedStyle(e).fontSize);
  return {
    width: innerWidth, needed: document.documentElement.scrollWidth,
    cut: [...document.querySelectorAll(".box")].filter(e => shown(e) && e.scrollWidth > e.clientWidth + 1)
      .map(e => e.getAttribute("aria-label")),
    plots: plots.map(e => { const r = e.getBoundingClientRect(); return [r.left, r.right, r.height]; }),
    text: Math.min(...plots.slice(0, 1)
      .map(p => scale(p) * Math.min(...[...p.querySelectorAll("text")].map(size)))),
    covered, outside, ink: style.color, paper: style.backgroundColor,
    plot_ink: plots.length ? getComputedStyle(plots[0].querySelector("text")).fill : style.color,
    good: colour("td.good"), bad: colour("td.bad"),
  };
}
addEventListener("load", () => {
  const closed = look();
  for (const e of document.querySelectorAll("details")) e.open = true;
  parent.postMessage(JSON.stringify({closed, open: look()}), "*");
});
</script>
"""
FRAME = """<!doctype html><body style="margin: 0">
<script>
addEventListener("message", e => {
  const p = document.createElement("p"); p.id = "said"; p.textContent = e.data; document.body.append(p);
});
</script>
<iframe src="page.html" style="width: %dpx; height: 900px; border: 0"></iframe>
"""


def browser() -> str:
    """Chromium or Chrome. A change must pass with one; on a machine without, this is skipped."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None and (os.environ.get("CI") or os.environ.get("MODELKILN_CI")):
        pytest.fail("no Chromium or Chrome on PATH: .ci/run installs Debian's where it may")
    return found or pytest.skip("no Chromium or Chrome on PATH")


def looked_at(page: str, folder: Path, width: int, *, dark: bool = False) -> dict[str, Any]:
    """What the browser sees of a page in a window of this width: with details closed, and with details open.

    The page is in a frame, because Chromium's windows are at least 500 pixels wide.
    """
    chrome = browser()
    (folder / "page.html").write_text(page.replace("</body>", f"{LOOK}</body>"))
    (folder / "frame.html").write_text(FRAME % width)
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    command = [chrome, *FLAGS, f"--user-data-dir={folder}/c", f"--window-size={max(width, 500)},900", *scheme]
    command += ["--dump-dom", (folder / "frame.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    found = re.search(r'<p id="said">([^<]*)</p>', done.stdout)
    assert found is not None, done.stderr[-500:]
    seen: dict[str, Any] = json.loads(html.unescape(found[1]))
    return seen


def luminance(color: str) -> float:
    """Relative luminance, WCAG 2.2."""
    parts = [int(value) / 255 for value in re.findall(r"\d+", color)[:3]]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(share * p for share, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)
