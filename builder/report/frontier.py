"""What each variant gives for its bytes: kinds of variants, and the line through the uniform ones. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from builder.console.words import listed
from builder.evaluate.line import Point, beside_line
from builder.evaluate.threshold import family_of
from builder.report.cells import divergence, short
from builder.report.facts import Beside, Frontier, Kind, ModelReport, Row
from builder.spec.types import Variant

LEAST = 1e-6  # smaller KLs are rounding errors of float32 and have no place on a logarithmic axis

# What each kind is, in words.
KINDS: Mapping[Kind, str] = {
    "uniform": "uniform bits, rounded to nearest",
    "mixed": "mixed bits (recipe or overrides)",
    "learned": "learned (a method of mlx-lm)",
    "calibrated": "calibrated",
    "chosen bits": "chosen bits (a target size)",
    "fewer experts": "fewer experts",
}
_BELOW = "Below the line of uniform bits"
_OPEN = "No difference from the line of uniform bits is shown"
_ABOVE = "Above the line of uniform bits"
_ALONE = "Beside the line of uniform bits, without an interval"


def kind_of(variant: Variant) -> Kind | None:
    """How a variant became small. None for an unquantized variant with all experts."""
    if variant.experts is not None:
        return "fewer experts"
    if not variant.is_quantized:
        return None
    if variant.goal is not None:
        return "chosen bits"
    if variant.learned is not None:
        return "learned"
    if variant.calibrated is not None:
        return "calibrated"
    return "mixed" if variant.recipe or variant.overrides else "uniform"


def frontier(
    model: ModelReport, variants: Mapping[str, Variant], rows: Mapping[str, tuple[float, ...]]
) -> Frontier | None:
    """The line of a model, and its other targets beside it. None if no KL is measured.

    A target that searched its size is measured on other questions, so it is not compared. `variants` are by
    name. `rows` has the contributions of each question to the KL, by target.
    """
    metric = divergence(model)
    if metric is None:
        return None
    shown = shown_rows(model)
    points = {
        row.target: Point(row.size, row.figures[metric].value, rows.get(row.target, ())) for row in shown
    }
    family = _family([row for row in shown if row.kind == "uniform"], variants)
    line = [points[row.target] for row in family]
    beside = []
    for row in shown:
        apart = row in family or row.searched
        ratio = None if apart else beside_line(points[row.target], line)
        if ratio is not None:
            beside.append(Beside(row.target, ratio))
    return Frontier(metric, tuple(row.target for row in family), tuple(beside))


def shown_rows(model: ModelReport) -> list[Row]:
    """The rows of smaller variants with a KL that a logarithmic axis can show."""
    metric = divergence(model)
    known = [row for row in model.rows if row.kind and metric and metric in row.figures]
    return [row for row in known if metric and row.figures[metric].value > LEAST]


def _family(uniform: Sequence[Row], variants: Mapping[str, Variant]) -> list[Row]:
    """The uniform rows that differ only in bits: the largest such family. Empty for fewer than two."""
    families: dict[Hashable, list[Row]] = {}
    for row in uniform:
        variant = variants[row.variant]
        families.setdefault((variant.dtype, family_of(variant)), []).append(row)
    found = max(families.values(), key=len, default=[])
    return found if len({row.size for row in found}) > 1 else []


def sentences(model: ModelReport) -> list[str]:
    """Which targets lie below the line, and by what ratio. Empty where there is no line to compare with."""
    found = model.frontier
    if found is None or not found.beside:
        return []
    groups: dict[str, list[str]] = {name: [] for name in (_BELOW, _OPEN, _ABOVE, _ALONE)}
    for each in sorted(found.beside, key=lambda each: each.ratio.value):
        groups[_side(each)].append(f"{each.target.removeprefix(f'{model.name}_')} {ratio_text(each)}")
    line = [row.variant for row in reversed(model.rows) if row.target in found.line]
    paired = any(each.ratio.low is not None for each in found.beside)
    return [
        *(f"{name}: {', '.join(texts)}." for name, texts in groups.items() if texts),
        "A number is the KL of a variant divided by the KL of the line at the same bytes"
        + (", with the paired 95 % interval." if paired else "."),
        f"The line goes through {listed(line, 'and')}.",
    ]


def ratio_text(each: Beside) -> str:
    """The ratio with its interval: "0.28 (0.25 to 0.31)"."""
    ratio = each.ratio
    if ratio.low is None or ratio.high is None:
        return short(ratio.value)
    return f"{short(ratio.value)} ({short(ratio.low)} to {short(ratio.high)})"


def _side(each: Beside) -> str:
    """On which side of the line a target lies, as its interval says."""
    low, high = each.ratio.low, each.ratio.high
    if low is None or high is None:
        return _ALONE
    return _BELOW if high < 1 else _ABOVE if low > 1 else _OPEN
