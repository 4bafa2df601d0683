"""The paper of the plots: figures in colours that the page decides, and figures as SVG text.

Ink has the colour of the text around the plot. Good and bad have the colours that the page gives them. So a
page can be light or dark. matplotlib (extra `report`) is imported when a plot is made. Equal facts give equal
bytes.
"""

from __future__ import annotations

import importlib.util
import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#010203"  # these stand for the colours of the page until the SVG is text
GOOD = "#010204"
BAD = "#010205"
LIGHT = {"good": "#1a7f37", "bad": "#cf222e"}
DARK = {"good": "#3fb950", "bad": "#f85149"}
_COLOURS = {
    INK: "currentColor",
    GOOD: f"var(--good, {LIGHT['good']})",
    BAD: f"var(--bad, {LIGHT['bad']})",
}
# How a plot looks outside a page: an <img> follows the reader's light or dark scheme.
_ALONE = (
    "<style>svg{font-family:system-ui,sans-serif;color:#1f2328;"
    f"--good:{LIGHT['good']};--bad:{LIGHT['bad']}}}"
    f"@media(prefers-color-scheme:dark){{svg{{color:#e6edf3;--good:{DARK['good']};--bad:{DARK['bad']}}}}}"
    "</style>"
)


@dataclass(frozen=True)
class Plot:
    """One plot. `svg` begins with its <svg> element. `text` says in words what the plot shows.

    `narrow` is the same plot for a narrow screen, or empty.
    """

    name: str
    title: str
    text: str
    svg: str
    narrow: str = ""

    @property
    def file(self) -> str:
        """The content of an SVG file with only this plot."""
        end = self.svg.index(">") + 1
        return f'<?xml version="1.0" encoding="utf-8"?>\n{self.svg[:end]}{_ALONE}{self.svg[end:]}\n'


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def canvas(width: float = 6.4, height: float = 3.6, font: float = 9) -> tuple[Any, Axes]:
    """An empty figure with one pair of axes. Width and height are in inches of 72 points."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"font.size": font}):
        figure = Figure(figsize=(width, height), dpi=72, layout="constrained")
        axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(INK)
    axes.tick_params(colors=INK, which="both")
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    return figure, axes


def svg_of(figure: Any, name: str, title: str, scale: float = 1.4) -> str:
    """A figure as SVG text. `name` begins all ids, which must differ within a page."""
    from matplotlib import rc_context

    out = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r" ?font-family: [^;\"]*;?", "", svg)
    svg = re.sub(r"font: (?:bold |700 )?([0-9.]+)px [^;\"]*", r"font-size: \1px", svg)
    size = re.search(r'viewBox="0 0 ([0-9.]+) ([0-9.]+)"', svg)
    assert size is not None
    svg = re.sub(r"<svg [^>]*>", _opening(size, title, scale), svg, count=1)
    for stand_in, colour in _COLOURS.items():
        svg = svg.replace(stand_in, colour)
    return svg


def _opening(size: re.Match[str], title: str, scale: float) -> str:
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" role="img" '
        f'viewBox="0 0 {size[1]} {size[2]}" width="{float(size[1]) * scale:.0f}" aria-label="{title}">'
    )
